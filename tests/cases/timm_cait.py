"""timm's CaiT."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

CAIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}


def case(**kwargs: object) -> Case:
    return Case(lambda: timm.create_model("cait_xxs24_224", **{**CAIT, **kwargs}), (3, 16, 16), 16, "drop")


CASES = {"cait": case(), "cait, average pooling": case(global_pool="avg")}
