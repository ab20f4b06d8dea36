"""timm's VisionTransformer in its variants, and models with rotary embeddings (Eva)."""

from __future__ import annotations

import timm
from torch import nn

from tests.cases.case import CLASSES, Case

VIT = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES, "img_size": 16}


def vit(name: str = "vit_tiny_patch16_224", **kwargs: object) -> nn.Module:
    """A timm ViT of 2 layers x 24, 16 x 16 images, 16 patches."""
    return timm.create_model(name, **{**VIT, **kwargs})


def case(name: str = "vit_tiny_patch16_224", prefix: int = 1, **kwargs: object) -> Case:
    return Case(lambda: vit(name, **kwargs), (3, 16, 16), 16, "drop", prefix)


CASES = {
    "vit": case(),
    "vit without prefix": case(prefix=0, class_token=False, global_pool="avg"),
    "vit with registers": case(prefix=4, reg_tokens=3),
    "deit distilled, two prefix tokens": case("deit_tiny_distilled_patch16_224", prefix=2),
    "deit3": case("deit3_small_patch16_224"),
    "clip, norm before the blocks": case("vit_base_patch16_clip_224"),
    "vit with its own patch dropout": case(patch_drop_rate=0.25),
    "vit of dynamic size": Case(lambda: vit(dynamic_img_size=True), (3, 12, 20), 15, "drop", 1),
    "eva02, rotary": case("eva02_tiny_patch14_224"),
    "dinov3, rotary and registers": case("vit_small_patch16_dinov3", prefix=5),
    "rope mixed": case("vit_small_patch16_rope_mixed_224"),
}
