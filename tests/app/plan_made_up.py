"""A very small recipe, and plans of it."""

from __future__ import annotations

from typing import Any

from masksub.app.plan import Plan, create_machine, make_plan
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe

MICRO = ("model.kwargs={patch_size: 2, embed_dim: 24, depth: 2, num_heads: 3}", "train.batch_size=4")
WIDTH, DEPTH, TOKENS = 24, 2, 17  # 16 patches of 2 x 2 px, one channel, and the class token


def recipe(*changes: str) -> Recipe:
    """A ViT of 2 layers x 24 on the digits, 8 x 8 px."""
    return load_recipe("digits/vit_micro", [*MICRO, *changes])


def plan(*changes: str, gpus: int = 8, **more: Any) -> Plan:
    wanted = recipe(*changes)
    machine = create_machine("h100-80gb", wanted.train.precision, per_node=8, utilisation=0.4, network=400)
    return make_plan(wanted, machine, gpus=gpus, **more)
