"""What a sweep varies: recipe keys, the values of each, and the recipe of every setting.

A key is varied as ``key=VALUES``. VALUES is a list with commas, each item in YAML (``0.25,0.5``, ``adamw,sgd``,
``{kind: linear, start: 0, end: 0.5},0.5``), or a range of numbers: ``0.1:0.9``, with a step ``0.1:0.9:0.2``, or
``log:1e-4:1e-2`` on a logarithmic scale. What the recipe does not accept is refused before anything is written.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from masksub.app.errors import InputError
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS

from .settings import Dimension, Space, flat, overridden, with_settings

__all__ = ["parse_space", "space_items", "staged_value"]

DEFAULT = "0.25,0.5,0.75"
"""Values of ratio and of weight where nothing is asked for."""
MOST = 10_000
"""Settings of a grid; more is a slip of the keyboard."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(log:)?({NUMBER}):({NUMBER})(?::({NUMBER}))?")


def space_items(
    *, ratio: str | None = None, weight: str | None = None, stages: Sequence[str] = (), space: Sequence[str] = ()
) -> list[str]:
    """The options of the command as items for ``parse_space``.

    Args:
        ratio: values of sub.ratio.
        weight: values of sub.weight.
        stages: schedules, each one more value of sub.ratio; see ``staged_value``.
        space: more items ``key=VALUES``.

    Returns:
        The items; the ratios and weights around the paper's if nothing is given.
    """
    if ratio is None and weight is None and not stages and not space:
        ratio = weight = DEFAULT
    ratios = [*([ratio] if ratio else []), *map(staged_value, stages)]
    items = [f"sub.ratio={','.join(ratios)}"] if ratios else []
    return [*items, *([f"sub.weight={weight}"] if weight else []), *space]


def staged_value(text: str) -> str:
    """A schedule in steps, ``0:0.25,0.5:0.5``, in YAML: 0.25 from the start, 0.5 from half of the training on.

    Raises:
        InputError: no pairs BEGIN:VALUE.
    """
    stages = []
    for part in text.split(","):
        if not (found := re.fullmatch(rf"\s*({NUMBER}):({NUMBER})\s*", part)):
            raise InputError(f"--stages {text}: {part.strip()!r} must be BEGIN:VALUE, such as 0:0.25,0.5:0.5")
        stages.append([float(found[1]), float(found[2])])
    return json.dumps({"kind": "staged", "stages": stages})


def parse_space(items: Sequence[str], base: Recipe, *, grid: bool) -> Space:
    """Read what is to be varied, and check every value, and every setting of a grid, against the recipe.

    Args:
        items: ``key=VALUES``.
        base: the recipe.
        grid: whether all settings are to be tried, so that a range needs a step.

    Raises:
        InputError: everything that is wrong, each with its item and what is accepted.
    """
    dimensions: list[Dimension] = []
    mistakes: list[str] = []
    for item in items:
        try:
            dimensions.append(_dimension(item, base, grid=grid))
        except InputError as error:
            mistakes.append(str(error))
    keys = [each.key for each in dimensions]
    for one, two in itertools.combinations(keys, 2):
        if f"{one}.".startswith(f"{two}.") or f"{two}.".startswith(f"{one}."):
            mistakes.append(f"{two}: is varied twice, {'also' if one == two else 'in part'} by {one}")
    if not items:
        mistakes.append("nothing is varied: give --ratio, --weight or --space key=VALUES")
    space = Space(base, tuple(dimensions))
    if not mistakes and grid:
        mistakes += _grid_mistakes(space)
    if mistakes:
        raise InputError("\n".join(dict.fromkeys(mistakes)))
    return space


def _dimension(item: str, base: Recipe, *, grid: bool) -> Dimension:
    key, equals, text = (part.strip() for part in item.partition("="))
    if not (equals and key and text):
        raise InputError(f"{item}: must be key=VALUES, such as sub.ratio=0.25,0.5 or optim.lr=log:1e-4:1e-2")
    if key == "seed":
        raise InputError(f"{item}: seeds are not varied here: every setting has the same ones, see --seeds")
    method = METHODS[base.method]
    fixed = {"sub.ratio": method.ratio, "sub.weight": method.weight}.get(key)
    if fixed is not None or (key == "sub.p" and method.drops == "units"):
        raise InputError(f"{item}: {key} changes nothing with method {base.method!r}; choose another method")
    found = RANGE.fullmatch(text)
    if found is None:
        return Dimension(key, tuple(_values(item, key, text, base)))
    log, low, high, step = bool(found[1]), *(None if part is None else float(part) for part in found.groups()[1:])
    assert low is not None and high is not None
    ends = [_at(overridden(base, [f"{key}={part}"]), key) for part in (found[2], found[3])]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise InputError(f"{item}: {key} is no number, so it has no range; list its values with commas")
    if not low < high or (log and low <= 0) or (step is not None and (log or step <= 0)):
        raise InputError(
            f"{item}: a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH, with LOW below HIGH, STEP above 0, and LOW "
            f"above 0 for log"
        )
    whole = all(isinstance(end, int) for end in ends)
    if whole and step is not None and step % 1:
        raise InputError(f"{item}: {key} takes whole numbers, so its step must be one too")
    if grid and step is None:
        raise InputError(
            f"{item}: a grid needs values: list them, give a step (LOW:HIGH:STEP), or draw from the range with "
            f"--sampler tpe or random"
        )
    return Dimension(key, low=low, high=high, step=step, log=log, whole=whole)


def _values(item: str, key: str, text: str, base: Recipe) -> Iterable[Any]:
    """The values of a list, as the recipe resolves them; all that it refuses in one message."""
    values: dict[Any, Any] = {}
    mistakes = []
    for each in _split(text):
        try:
            value = _at(overridden(base, [f"{key}={each}"]), key)
        except InputError as error:
            mistakes.append(str(error))
            continue
        if flat(value) in values:
            mistakes.append(f"{item}: {each} is given twice")
        values[flat(value)] = value
    if mistakes:
        raise InputError("\n".join(mistakes))
    return values.values()


def _split(text: str) -> Iterable[str]:
    """At the commas that are in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quote:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def _grid_mistakes(space: Space) -> list[str]:
    """Settings that the recipe refuses although it takes each value alone."""
    if space.size > MOST:
        return [f"the grid has {space.size:.0f} settings; {MOST} are the most"]
    mistakes = []
    for drawn in space.grid():
        try:
            with_settings(space.base, space.settings(drawn))
        except InputError as error:
            mistakes.append(f"{', '.join(f'{key}={value}' for key, value in drawn.items())}: {error}")
    return mistakes


def _at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value
