"""Small models and inputs, one case for each way of masking. Adding a family is adding a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

VIT = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 16}


def vit(name: str = "vit_tiny_patch16_224", **kwargs: object) -> nn.Module:
    """A timm ViT of 2 layers x 24, 16 x 16 images, 16 patches."""
    return timm.create_model(name, **{**VIT, **kwargs})


def resnet() -> nn.Module:
    """A small timm ResNet with batch norm."""
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, channels=(8, 8, 8, 8))


@dataclass(frozen=True)
class Case:
    """A model family's example: how to build it, its input, its units and how it is masked."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: int
    how: str

    def inputs(self, batch: int = 4) -> tuple[Tensor, Tensor]:
        """A seeded batch (x, y)."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(batch, *self.shape, generator=generator)
        return x, torch.randint(5, (batch,), generator=generator)


CASES = {
    "vit": Case(vit, (3, 16, 16), 16, "drop"),
    "vit without prefix": Case(lambda: vit(class_token=False, global_pool="avg"), (3, 16, 16), 16, "drop"),
    "vit with registers": Case(lambda: vit(reg_tokens=3), (3, 16, 16), 16, "drop"),
    "deit distilled, two prefix tokens": Case(lambda: vit("deit_tiny_distilled_patch16_224"), (3, 16, 16), 16, "drop"),
    "deit3": Case(lambda: vit("deit3_small_patch16_224"), (3, 16, 16), 16, "drop"),
    "clip, norm before the blocks": Case(lambda: vit("vit_base_patch16_clip_224"), (3, 16, 16), 16, "drop"),
    "vit with its own patch dropout": Case(lambda: vit(patch_drop_rate=0.25), (3, 16, 16), 16, "drop"),
    "vit of dynamic size": Case(lambda: vit(dynamic_img_size=True), (3, 12, 20), 15, "drop"),
    "resnet": Case(resnet, (3, 64, 64), 4, "pixels"),
    "swin": Case(
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
            window_size=2, num_classes=5,
        ),
        (3, 64, 64), 4, "pixels",
    ),
    "plain module": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        (3, 70, 70), 9, "pixels",
    ),
}  # fmt: skip
