"""timm's classifier on DeepSeek's encoder, with and without its aligner."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}

CASES = {
    "deepseek vit": Case(lambda: timm.create_model("deepseek_vit_412m", img_size=16, **SMALL), (3, 12, 20), 15, "drop"),
    "deepseek vit, aligner": Case(
        lambda: timm.create_model("deepseek_vit_412m_align", img_size=24, out_features=16, **SMALL),
        (3, 24, 36),
        6,
        "drop",
    ),
}
