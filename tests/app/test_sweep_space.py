"""What a sweep varies. If these fail, a sweep trains what nobody asked for, or stops in the middle on a bad value."""

from __future__ import annotations

from typing import Any

import pytest

from masksub.app.errors import InputError
from masksub.app.recipe import load_recipe
from masksub.app.settings import Recipe
from masksub.app.sweep.settings import Space, slug, with_settings
from masksub.app.sweep.space import parse_space, space_items

STAGED = {"kind": "staged", "stages": [[0.0, 0.25], [0.5, 0.5]]}


def base(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", overrides)


def all_settings(space: Space) -> list[dict[str, Any]]:
    return [space.settings(drawn) for drawn in space.grid()]


def test_a_grid_has_every_setting_once() -> None:
    items = space_items(ratio="0.25, 0.5", weight="0.1:0.9:0.4", space=["optim.name=adamw,sgd"])
    found = all_settings(parse_space(items, base(), grid=True))
    assert len(found) == 2 * 3 * 2 and len({slug(each) for each in found}) == 12
    assert found[0] == {"sub.ratio": 0.25, "sub.weight": 0.1, "optim.name": "adamw"}
    assert found[-1] == {"sub.ratio": 0.5, "sub.weight": 0.9, "optim.name": "sgd"}
    recipe = with_settings(base(), found[-1])
    assert (recipe.sub.ratio, recipe.sub.weight, recipe.optim.name) == (0.5, 0.9, "sgd")
    assert recipe.changed("sub", ratio=0.5, weight=0.5).changed("optim", name="adamw") == base(), "nothing else changed"


def test_schedules_are_values_like_others() -> None:
    items = space_items(ratio="{kind: linear, start: 0, end: 0.5},0.5", stages=["0:0.25,0.5:0.5"])
    found = all_settings(parse_space(items, base(), grid=True))
    assert [each["sub.ratio"] for each in found] == [{"kind": "linear", "start": 0.0, "end": 0.5}, 0.5, STAGED]
    ratios = [with_settings(base(), each).sub.ratio_schedule for each in found]
    assert [(ratio(0.0), ratio(0.9)) for ratio in ratios] == [(0, pytest.approx(0.45)), (0.5, 0.5), (0.25, 0.5)]


def test_nothing_asked_for_is_ratio_by_weight_around_the_papers() -> None:
    assert parse_space(space_items(), base(), grid=True).size == 9


@pytest.mark.parametrize(
    "items, expected",
    [
        (["sub.ratio=0.5,1.5,x"], ["sub.ratio=1.5: must be a number, at least 0 and below 1", "sub.ratio=x: must be"]),
        (["sub.wieght=0.3", "optim.lr=-1"], ["did you mean sub.weight?", "optim.lr=-1: must be a number, above 0"]),
        (["optim.lr=log:1e-4:1e-2"], ["a grid needs values"]),
        (["sub.ratio=0.9:0.1:0.1"], ["LOW below HIGH"]),
        (["optim.lr=log:0:1"], ["optim.lr=0: must be a number, above 0"]),
        (["sub.ratio=0.5,0.50"], ["0.50 is given twice"]),
        (["sub.ratio=0.5", "sub.ratio=0.7"], ["varied twice"]),
        (["optim.kwargs={},{eps: 1e-6}", "optim.kwargs.eps=1e-8"], ["varied twice"]),
        (["seed=1,2"], ["--seeds"]),
        (["sub.ratio"], ["key=VALUES"]),
        (["sub.p=0.1,0.2"], ["changes nothing with method 'masksub'"]),
        (["sub.ratio={kind: linear, start: 0, end: 2}"], ["0 <= ratio < 1 all along"]),
        (["train.batch_size=15,16", "augment.mixup=0,0.2"], ["train.batch_size=15, augment.mixup=0.2", "even number"]),
        (["data.name=1:2"], ["data.name=1"]),
        ([], ["nothing is varied"]),
    ],
)
def test_what_the_recipe_refuses_is_named(items: list[str], expected: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_space(items, base(), grid=True)
    for each in expected:
        assert each in str(caught.value)
    assert "/" not in str(caught.value).replace("digits/vit_micro", ""), "no path of a file that nobody wrote"


def test_stages_that_are_none_are_named() -> None:
    with pytest.raises(InputError, match=r"'0\.5' must be BEGIN:VALUE"):
        space_items(stages=["0:0.25,0.5"])


def test_drawn_values_are_short_and_in_the_range() -> None:
    space = parse_space(["optim.lr=log:1.23444e-4:1e-2", "train.batch_size=16:64"], base(), grid=False)
    assert space.size == float("inf") and space.grid() == []
    drawn = {"optim.lr": 0.00123456789, "train.batch_size": 20}
    assert space.settings(drawn) == {"optim.lr": 0.001235, "train.batch_size": 20}
    assert space.settings({**drawn, "optim.lr": 1.234441e-4})["optim.lr"] == 1.23444e-4, "not rounded out of the range"


def test_a_folders_name_tells_the_setting_and_is_no_path() -> None:
    assert slug({"sub.ratio": 0.5, "sub.weight": 0.25}) == "ratio-0.5-weight-0.25"
    assert slug({"optim.name": "sgd", "model.name": "vit"}) == "optim.name-sgd-model.name-vit"
    one, two = slug({"sub.ratio": STAGED}), slug({"sub.ratio": {**STAGED, "stages": [[0.0, 0.25], [0.55, 0.5]]}})
    assert one != two and all(letter.isalnum() or letter in "-._" for letter in one)
    assert slug({"model.name": "../a b"}) != slug({"model.name": "..-a-b"}) and "/" not in slug({"model.name": "../a"})
