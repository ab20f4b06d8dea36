"""timm's hierarchical models that are masked by units: 64 x 96 images of six units of 32 px."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import convmixer, metaformer, rdnet, swiftformer, xcit
from torch import Tensor, nn

from tests.cases.case import CLASSES, Case

NEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "num_classes": CLASSES}
RDNET: dict[str, Any] = {
    "growth_rates": (8, 8, 8), "num_blocks_list": (2, 2, 2), "block_type": ("Block", "BlockESE", "BlockESE"),
    "is_downsample_block": (None, True, True), "num_init_features": 8, "num_classes": CLASSES,
}  # fmt: skip
SWIFT: dict[str, Any] = {"downsamples": [False, True], "num_classes": CLASSES}
NORMS = [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2
PVT: dict[str, Any] = {
    "depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "num_classes": CLASSES,
}  # fmt: skip


class UnevenCase(Case):
    """Images whose last units are smaller."""

    def changed(self, x: Any, keep: Tensor, grid: tuple[int, int], *, visible: bool) -> Any:
        whole_units = Case(self.build, self.shape, self.units, "pixels")
        return whole_units.changed(x, keep, grid, visible=visible)


def case(name: str, **kwargs: Any) -> Case:
    return Case(lambda: timm.create_model(name, **kwargs), (3, 64, 96), 6, "drop")


def small_xcit(patch: int, **kwargs: Any) -> nn.Module:
    model: nn.Module = xcit.Xcit(
        img_size=32, patch_size=patch, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES, **kwargs
    )
    return model


def former(token_mixers: Any, **kwargs: Any) -> nn.Module:
    model: nn.Module = metaformer.MetaFormer(token_mixers=token_mixers, **NEXT, **kwargs)
    return model


CASES = {
    "twins pcpvt": case("twins_pcpvt_small", img_size=64, **PVT),
    "xcit": Case(lambda: small_xcit(8), (3, 24, 32), 12, "drop"),
    "xcit, patches of 16 px": Case(lambda: small_xcit(16, tokens_norm=True), (3, 48, 64), 12, "drop"),
    "xcit without positions": Case(lambda: small_xcit(8, use_pos_embed=False), (3, 24, 32), 12, "drop"),
    "caformer": Case(
        lambda: former([metaformer.SepConv] * 2 + [metaformer.Attention] * 2, norm_layers=NORMS, head_dim=4),
        (3, 64, 96),
        6,
        "drop",
    ),
    "convformer": Case(lambda: former(metaformer.SepConv, use_mlp_head=False), (3, 64, 96), 6, "drop"),
    "convnext": case("convnext_atto", **NEXT),
    "convnext v2": case("convnextv2_atto", **NEXT),
    "convnext, overlapping stem": case("convnext_atto_ols", **NEXT),
    "convnext, image that units don't divide": UnevenCase(
        lambda: timm.create_model("convnext_atto", **NEXT), (3, 70, 90), 9, "drop"
    ),
    "edgenext": case(
        "edgenext_xx_small", depths=(1, 2, 2, 2), dims=(8, 16, 16, 16), heads=(2, 2, 2, 2), num_classes=CLASSES
    ),
    "inception next": case("inception_next_tiny", depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), num_classes=CLASSES),
    "convmixer": Case(
        lambda: convmixer.ConvMixer(8, 2, kernel_size=5, patch_size=4, num_classes=CLASSES), (3, 12, 20), 15, "drop"
    ),
    "rdnet": Case(lambda: rdnet.RDNet(**RDNET), (3, 32, 48), 6, "drop"),
    "swiftformer": Case(lambda: swiftformer.SwiftFormer([2, 2], [8, 12], **SWIFT), (3, 16, 24), 6, "drop"),
    "mambaout": case("mambaout_femto", **NEXT),
    "mambaout, other head": case("mambaout_base_short_rw", **NEXT),
}
