"""timm's TNT, new and legacy."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

TNT = {
    "img_size": 32, "patch_size": 8, "embed_dim": 24, "inner_dim": 8, "depth": 2, "num_heads_inner": 2,
    "num_heads_outer": 2, "num_classes": CLASSES,
}  # fmt: skip


def case(name: str) -> Case:
    return Case(lambda: timm.create_model(name, **TNT), (3, 32, 32), 16, "drop", 1)


CASES = {"tnt": case("tnt_s_patch16_224"), "tnt, legacy": case("tnt_s_legacy_patch16_224")}
