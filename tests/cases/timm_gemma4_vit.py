"""timm's classifier on Gemma 4's encoder, with and without its pooler."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}

CASES = {
    "gemma4 vit": Case(lambda: timm.create_model("gemma4_vit_167m", **SMALL), (3, 12, 20), 15, "drop"),
    "gemma4 vit, pooler": Case(
        lambda: timm.create_model("gemma4_vit_167m", encoder_pool="soft", **SMALL), (3, 24, 36), 6, "drop"
    ),
}
