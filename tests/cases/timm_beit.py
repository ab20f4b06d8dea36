"""timm's BEiT: a bias in each block, one for all, or none."""

from __future__ import annotations

import timm

from tests.cases.case import CLASSES, Case

BEIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": CLASSES}


def case(**kwargs: object) -> Case:
    return Case(lambda: timm.create_model("beit_base_patch16_224", **{**BEIT, **kwargs}), (3, 16, 16), 16, "drop", 1)


CASES = {
    "beit, a bias each block": case(),
    "beit, one bias for all": case(use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    "beit, both biases and absolute, token pooling": case(
        use_shared_rel_pos_bias=True, use_abs_pos_emb=True, global_pool="token", init_values=None
    ),
    "beit without biases": case(use_rel_pos_bias=False, use_abs_pos_emb=True, swiglu_mlp=True),
    "beit, wide image": Case(
        lambda: timm.create_model("beit_base_patch16_224", **{**BEIT, "img_size": (8, 20)}), (3, 8, 20), 10, "drop", 1
    ),
}
