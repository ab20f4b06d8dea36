"""Drop path by depth. If these fail, the DeiT III recipes train with half the published drop path."""

from __future__ import annotations

import pytest
from timm.layers import DropPath

from masksub.app.errors import InputError
from masksub.app.models import create_model
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe


def recipe(*overrides: str) -> Recipe:
    small = ("model.kwargs.depth=4", "model.kwargs.embed_dim=24", "model.kwargs.num_heads=2")
    return load_recipe("digits/vit_micro", (*small, *overrides))


def rates(wanted: Recipe) -> list[float]:
    model = create_model(wanted, 10)
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]


def test_linear_is_timm_s_rule_and_uniform_gives_each_block_the_rate() -> None:
    assert rates(recipe("model.kwargs.drop_path_rate=0.3")) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    uniform = recipe("model.kwargs.drop_path_rate=0.3", "model.drop_path=uniform")
    assert rates(uniform) == [0.3] * 4
    model = create_model(uniform, 10)
    assert sum(isinstance(module, DropPath) for module in model.modules()) == 8  # two a block, none beside them
    assert rates(recipe("model.kwargs.drop_path_rate=0.0", "model.drop_path=uniform")) == [0.0] * 4


def test_a_rate_that_has_no_place_is_an_error() -> None:
    with pytest.raises(InputError, match=r"it needs the rate, model.kwargs.drop_path_rate"):
        create_model(recipe("model.drop_path=uniform"), 10)
    other = load_recipe(
        "digits/vit_micro",
        ("model.name=vgg11", "model.kwargs={'drop_path_rate': 0.1}", "model.drop_path=uniform", "data.image_size=32"),
    )
    with pytest.raises(InputError):
        create_model(other, 10)


def test_patches_may_leave_a_few_pixels_of_a_large_image_over_and_say_so() -> None:
    heard: list[str] = []
    large = ("data.image_size=160", "model.kwargs.patch_size=14", "data.channels=3", "data.mean=null", "data.std=null")
    create_model(recipe(*large), 10, heard.append)
    assert any("the last 6 of 160 px" in line for line in heard)
    with pytest.raises(InputError, match=r"patches of 3 x 3 px, which do not divide it"):
        create_model(recipe("model.kwargs.patch_size=3"), 10)
