"""timm's VisionTransformerRelPos: biases from a table or an MLP, of each block or for all."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

RELPOS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}


def case(name: str = "vit_relpos_small_patch16_224", prefix: int = 0, **kwargs: object) -> Case:
    return Case(lambda: timm.create_model(name, **{**RELPOS, **kwargs}), (3, 16, 16), 16, "drop", prefix)


CASES = {
    "relpos, table": case(),
    "relpos, table and class token": case("vit_relpos_medium_patch16_cls_224", 1),
    "relpos, mlp": case(rel_pos_type="mlp", rel_pos_dim=8),
    "relpos, swin mlp and class token": case("vit_relpos_medium_patch16_cls_224", 1, rel_pos_type="swin-mlp"),
    "relpos, one for all": case("vit_srelpos_small_patch16_224", rel_pos_dim=8),
    "relpos, norm after": case("vit_relpos_small_patch16_rpn_224"),
}
