"""timm's NaFlexVit, called with images."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

NAFLEX = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
FLEX = {"pos_embed_grid_size": (4, 4), "mlp_ratio": 2.0, **NAFLEX}


def case(name: str = "naflexvit_base_patch16_gap", prefix: int = 0, **kwargs: object) -> Case:
    return Case(lambda: timm.create_model(name, **{**FLEX, **kwargs}), (3, 16, 16), 16, "drop", prefix)


CASES = {
    "naflexvit": case(prefix=4),
    "naflexvit, attention pooling": case("naflexvit_base_patch16_map", 1),
    "naflexvit, factorized positions": case("naflexvit_base_patch16_parfac_gap", 4),
    "naflexvit without registers": case("naflexvit_base_patch16_siglip"),
    "naflexvit, rotary": case(prefix=4, rope_type="axial", pos_embed="none"),
    "naflexvit, rotary of each block": case(prefix=4, rope_type="mixed", pos_embed="none"),
    "naflexvit, rotary of dinov3, half": case(prefix=4, rope_type="dinov3", rope_rotate_half=True),
    "naflexvit with its own patch dropout": case(prefix=4, patch_drop_rate=0.25, rope_type="axial"),
    "naflexvit, wide image": Case(
        lambda: timm.create_model("naflexvit_base_patch16_gap", **{**FLEX, "rope_type": "axial"}),
        (3, 12, 20),
        15,
        "drop",
        4,
    ),
}
