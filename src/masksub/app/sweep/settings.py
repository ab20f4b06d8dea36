"""Settings of a sweep: what each key may be, and the recipe and the folder's name of a setting."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from masksub.app.errors import InputError
from masksub.app.recipe import dump_recipe, load_recipe
from masksub.app.settings import Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Dimension", "Space", "flat", "overridden", "slug", "with_settings"]

DIGITS = 4
"""Significant digits of a value that a sampler draws: no result hangs on more, and folders can be told apart by eye."""


@dataclass(frozen=True)
class Dimension:
    """A key and what it may be.

    Attributes:
        key: dotted.
        values: of a list, as the recipe resolves them; empty for a range.
        low, high: ends of a range, both part of it.
        step: of a range, None for any value between.
        log: whether a range is drawn from evenly on a logarithmic scale.
        whole: whether a range holds whole numbers alone.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def listed(self) -> tuple[Any, ...]:
        """All values, empty if there is no end of them."""
        if self.values or self.step is None:
            return self.values
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        found = (float(f"{self.low + number * self.step:.12g}") for number in range(count))
        return tuple(int(value) if self.whole else value for value in found)

    @property
    def choices(self) -> dict[Any, Any]:
        """What stands for each value in a study, and the value: a schedule stands there as its JSON."""
        return {flat(value): value for value in self.listed}

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.values:
            return CategoricalDistribution(tuple(self.choices))
        high = self.high if self.step is None else self.listed[-1]
        if self.whole:
            return IntDistribution(int(self.low), int(high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, high, log=self.log, step=self.step)

    def value(self, drawn: Any) -> Any:
        """The value for the recipe."""
        if self.values:
            return self.choices[drawn]
        if self.whole:
            return int(drawn)
        if self.step is not None:
            return float(f"{drawn:.12g}")
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def described(self) -> Any:
        """For comparing two spaces, and for people."""
        if self.values:
            return list(self.values)
        step = "" if self.step is None else f":{self.step:g}"
        return f"{'log:' if self.log else ''}{self.low:.12g}:{self.high:.12g}{step}"


@dataclass(frozen=True)
class Space:
    """All dimensions, on a recipe.

    Attributes:
        base: the recipe that every setting changes.
        dimensions: in the order in which they were given.
    """

    base: Recipe
    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> float:
        """Number of settings, infinite with a range that has no step."""
        return math.prod(len(each.listed) or math.inf for each in self.dimensions)

    def grid(self) -> list[dict[str, Any]]:
        """All settings, the last key fastest, as a study holds them; empty if there is no end of them."""
        keys = [each.key for each in self.dimensions]
        return [
            dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*(d.choices for d in self.dimensions))
        ]

    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna."""
        return {each.key: each.distribution() for each in self.dimensions}

    def settings(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Key -> value for the recipe, from what a study holds."""
        return {each.key: each.value(drawn[each.key]) for each in self.dimensions}

    def described(self) -> dict[str, Any]:
        """For comparing two spaces, and for people."""
        return {each.key: each.described() for each in self.dimensions}


def with_settings(base: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with these values, checked as a whole.

    Raises:
        InputError: the recipe does not accept them.
    """
    data = base.model_dump(mode="json")
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    try:
        return Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError:
        return overridden(base, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def slug(settings: dict[str, Any]) -> str:
    """A folder's name that depends on the settings alone and is the same on every machine: ratio-0.5-weight-0.25."""
    last = [key.rpartition(".")[2] for key in settings]
    names = [short if last.count(short) == 1 else key for key, short in zip(settings, last, strict=True)]
    texts = [flat(value) if isinstance(value, str) else json.dumps(value) for value in settings.values()]
    clean = ["-".join(re.findall(r"[\w.+-]+", text)) for text in texts]
    name = "-".join(f"{key}-{text}" for key, text in zip(names, clean, strict=True))
    if clean == texts and len(name) <= 80:
        return name
    return f"{name[:80]}-{hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()}"


def overridden(base: Recipe, items: Sequence[str]) -> Recipe:
    """The recipe with overrides as on the command line, and its messages; InputError with what it does not accept."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(base), encoding="utf-8")
        try:
            return load_recipe(file, items)
        except InputError as error:
            raise InputError(str(error).replace(str(file), "the recipe").replace("command line: ", "")) from None


def flat(value: Any) -> Any:
    """What may stand in a study: a scalar as it is, a list or mapping as JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
