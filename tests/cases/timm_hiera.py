"""timm's Hiera: 64 x 64 images of four mask units."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

HIERA = {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), "num_classes": CLASSES}


def case(name: str = "hiera_tiny_224", **kwargs: object) -> Case:
    return Case(lambda: timm.create_model(name, **{**HIERA, **kwargs}), (3, 64, 64), 4, "drop")


CASES = {
    "hiera": case(),
    "hiera, window positions": case("hiera_small_abswin_256", global_pos_size=(4, 4)),
    "hiera with its own dropout of units": case(patch_drop_rate=0.25),
    "hiera, wide image": Case(
        lambda: timm.create_model("hiera_tiny_224", **{**HIERA, "img_size": (32, 96)}), (3, 32, 96), 3, "drop"
    ),
}
