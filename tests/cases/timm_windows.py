"""timm's windowed and hierarchical transformers, each as small as its class allows.

Classes are called with their own arguments, as timm's names for them fix those that make them large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import coat, focalnet, gcvit, hieradet_sam2, levit, mlp_mixer, mvitv2, nest, sequencer
from timm.models import vision_transformer_sam as sam
from torch import nn

from tests.cases.case import CLASSES, Case

SWIN = {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
MAXVIT = {
    "img_size": 64, "embed_dim": (32, 32), "depths": (1, 1), "block_type": ("M", "M"), "stem_width": 8,
    "transformer_window_size": (4, 4), "transformer_grid_size": (4, 4),
}  # fmt: skip
COATNET = {"img_size": 64, "embed_dim": (32, 32), "depths": (1, 1), "block_type": ("C", "T"), "stem_width": 8}
TWINS = {
    "img_size": 64, "patch_size": 4, "embed_dims": (8, 8), "num_heads": (1, 1), "depths": (1, 2), "wss": (4, 4),
    "sr_ratios": (2, 1), "mlp_ratios": (2, 2),
}  # fmt: skip
TINY_VIT = {
    "embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_sizes": (4, 4, 4, 2),
}  # fmt: skip
STAGES = {"depths": (1, 1), "num_heads": (1, 1)}
PVT: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}


def mvit(num_classes: int, **kwargs: Any) -> nn.Module:
    cfg = mvitv2.MultiScaleVitCfg(depths=(1, 1), embed_dim=8, num_heads=1, stride_q=((1, 1), (2, 2)), **kwargs)  # type: ignore[arg-type]
    return mvitv2.MultiScaleVit(cfg, img_size=64, num_classes=num_classes)


def case(build: Callable[..., nn.Module], **kwargs: Any) -> Case:
    """A model of 64 x 64 images: 4 units of 32 px."""
    return Case(lambda: build(num_classes=CLASSES, **kwargs), (3, 64, 64), 4, "fill")


def named(name: str, **kwargs: Any) -> Case:
    return case(lambda **more: timm.create_model(name, **more), **kwargs)


CASES = {
    "pvt v2": Case(lambda: timm.create_model("pvt_v2_b0", num_classes=CLASSES, **PVT), (3, 64, 64), 4, "fill"),
    "pvt v2, linear attention": Case(
        lambda: timm.create_model("pvt_v2_b2_li", num_classes=CLASSES, **PVT), (3, 64, 64), 4, "fill"
    ),
    "swin": named("swin_tiny_patch4_window7_224", **SWIN),
    "swin v2": named("swinv2_tiny_window8_256", **SWIN),
    "swin v2 cr": named("swinv2_cr_tiny_ns_224", **SWIN),
    "maxvit": named("maxvit_tiny_rw_224", **MAXVIT),
    "coatnet": named("coatnet_0_rw_224", **COATNET),
    "nest": case(nest.Nest, img_size=64, num_levels=2, embed_dims=(8, 8), **STAGES),
    "twins svt": named("twins_svt_small", **TWINS),
    "davit": named("davit_tiny", embed_dims=(8, 8), window_size=4, **STAGES),
    "mvitv2": case(mvit),
    "mvitv2 with class token": case(mvit, use_cls_token=True),
    "gcvit": case(
        gcvit.GlobalContextVit, img_size=64, embed_dim=8, window_ratio=(16, 16), depths=(2, 2), num_heads=(1, 1)
    ),
    "tiny_vit": named("tiny_vit_5m_224", **TINY_VIT),
    "mixer": case(mlp_mixer.MlpMixer, img_size=64, embed_dim=8, num_blocks=2),
    "coat": case(
        coat.CoaT, img_size=64, patch_size=4, embed_dims=(8, 8, 8, 8), serial_depths=(1, 1, 1, 1), num_heads=8
    ),
    "levit": case(levit.Levit, img_size=64, embed_dim=(16, 16), key_dim=8, depth=(1, 1), num_heads=(1, 1)),
    "focalnet": case(focalnet.FocalNet, embed_dim=8, depths=(1, 1), focal_levels=(1, 1), focal_windows=(3, 3)),
    "focalnet, overlapping stem": case(
        focalnet.FocalNet, embed_dim=8, depths=(1, 1), focal_levels=(1, 1), focal_windows=(3, 3), use_overlap_down=True
    ),
    "hieradet": case(
        hieradet_sam2.HieraDet, embed_dim=8, stages=(1, 1, 1, 2), window_spec=(4, 2, 2, 2), global_att_blocks=(4,)
    ),
    "sequencer": case(
        sequencer.Sequencer2d,
        img_size=64,
        layers=(1, 1),
        patch_sizes=(8, 2),
        embed_dims=(8, 8),
        hidden_sizes=(4, 4),
        mlp_ratios=(2.0, 2.0),
    ),
    "sequencer, pixels left over": Case(
        lambda: sequencer.Sequencer2d(
            img_size=64,
            num_classes=CLASSES,
            layers=(1, 1),
            patch_sizes=(7, 1),
            embed_dims=(8, 8),
            hidden_sizes=(4, 4),
            mlp_ratios=(2.0, 2.0),
        ),
        (3, 64, 64),
        4,
        "fill",
        unit=35,
    ),
    "vit of segment anything": case(
        sam.VisionTransformerSAM,
        img_size=64,
        patch_size=8,
        embed_dim=8,
        depth=2,
        num_heads=1,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
        neck_chans=8,
    ),
}
