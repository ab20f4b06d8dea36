"""timm's classifier on Qwen3's encoder, with and without its merger."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

SMALL = {
    "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES, "img_size": 16,
    "pos_embed_grid_size": 4,
}  # fmt: skip

CASES = {
    "qwen3 vit": Case(lambda: timm.create_model("qwen3_vit_88m", **SMALL), (3, 16, 16), 16, "drop"),
    "qwen3 vit, wide image": Case(lambda: timm.create_model("qwen3_vit_88m", **SMALL), (3, 12, 20), 15, "drop"),
    "qwen3 vit, merger": Case(
        lambda: timm.create_model("qwen3_vit_88m_merge", out_features=16, **SMALL), (3, 16, 24), 6, "drop"
    ),
}
