"""timm's ConViT: gated blocks, then blocks with a class token."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

CONVIT = {
    "img_size": 16, "patch_size": 4, "embed_dim": 6, "depth": 3, "num_heads": 4, "local_up_to_layer": 2,
    "num_classes": CLASSES,
}  # fmt: skip


def case(**kwargs: object) -> Case:
    return Case(lambda: timm.create_model("convit_tiny", **{**CONVIT, **kwargs}), (3, 16, 16), 16, "drop")


CASES = {"convit": case(), "convit without positions": case(use_pos_embed=False)}
