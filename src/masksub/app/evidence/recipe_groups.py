"""Runs of one recipe but for the seed, and whether groups of them can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from masksub.app.errors import InputError
from masksub.app.recipe_yaml import shown
from masksub.app.resume import FREE
from masksub.app.runs import differing_keys
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS

from .doubles import told_doubles
from .model import Problem
from .run_files import FoundRun

__all__ = ["Group", "check_comparable", "decisive_settings", "group_runs", "settings_of", "varying_keys"]

NEUTRAL = (FREE - {"data.on_error", "data.max_skipped"}) | {
    "seed", "data.cache", "model.attention", "train.device", "train.log_every", "train.eval_batch_size",
    "train.eval_every", "train.recompute", "train.shard",
}  # fmt: skip
"""Keys that say where and how a run is made, not what comes out; arms of equal compute are evaluated as often, so
eval_every differs between them."""
STATUS = ("complete", "failed", "incomplete")
DECIDED = ("data", "model", "loss")
"""Sections in which runs that are compared must agree, and ``augment.test_crop``: what is learnt and how it is
measured."""
NESTED = ("model.kwargs", "optim.kwargs")
"""Mappings whose keys are settings of their own; a schedule is one value."""


@dataclass(frozen=True)
class Group:
    """Runs of one recipe but for the seed.

    Attributes:
        recipe: the first run's.
        runs: by seed, each seed once.
    """

    recipe: Recipe
    runs: tuple[FoundRun, ...]

    @property
    def method(self) -> str:
        """The recipe's method."""
        return self.recipe.method

    @property
    def complete(self) -> tuple[FoundRun, ...]:
        """The runs that are complete."""
        return tuple(run for run in self.runs if run.status == "complete")

    @property
    def parents(self) -> frozenset[Path]:
        """The folders that hold the runs."""
        return frozenset(run.parent for run in self.runs)

    @property
    def top1(self) -> dict[int, float]:
        """Seed -> final top-1 of the complete runs."""
        return {run.recipe.seed: top1 for run in self.runs if (top1 := run.top1) is not None}

    @property
    def flops(self) -> float | None:
        """Mean training FLOPs; of runs none of which is complete, by what they took for each epoch until now."""
        if self.complete:
            return fmean(run.summary["flops"] for run in self.complete)
        lasts = [max((*run.lines, *run.evaluations), key=_epoch, default=None) for run in self.runs]
        begun = [last for last in lasts if last and last["epoch"] > 0]
        return fmean(last["flops"] / last["epoch"] for last in begun) * self.recipe.train.epochs if begun else None


def _epoch(record: dict[str, Any]) -> float:
    return float(record["epoch"])


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, in the recipe's order, for all that may change the result."""
    return {key: value for key, value in _flat(recipe.model_dump(mode="json")) if key not in NEUTRAL}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and (not prefix or name in NESTED):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _without_effect(method: str) -> set[str]:
    """Keys of the sub branch that a method does not read; see ``Method``."""
    what = METHODS[method]
    if what.weight == 0:  # no sub branch at all
        return {"sub.ratio", "sub.weight", "sub.unit", "sub.p", "sub.efficient", "sub.bn", "sub.mode"}
    found = {"sub.ratio"} if what.ratio is not None else set()
    found |= {"sub.weight"} if what.weight is not None else set()
    found |= {"sub.unit"} if what.drops != "units" or what.ratio == 0 else set()
    found |= {"sub.p"} if what.drops == "units" else set()
    return found | ({"sub.efficient"} if what.drops in ("units", "values") else set())


def decisive_settings(recipe: Recipe) -> dict[str, Any]:
    """``settings_of`` without what the method does not read."""
    unread = _without_effect(recipe.method)
    return {key: value for key, value in settings_of(recipe).items() if key not in unread}


def varying_keys(recipes: Iterable[Recipe]) -> tuple[str, ...]:
    """Keys in which recipes differ with effect, "sub.ratio" and "sub.weight" first, then in the recipe's order."""
    settings = [decisive_settings(recipe) for recipe in recipes]
    keys = {key: None for each in settings for key in each}
    varying = [key for key in keys if len({json.dumps(each.get(key)) for each in settings}) > 1]
    return tuple(sorted(varying, key=lambda key: (key != "sub.ratio", key != "sub.weight")))


def group_runs(runs: Sequence[FoundRun]) -> tuple[list[Group], list[Problem]]:
    """Groups in the order of their first runs. Of a seed that is there twice one run counts.

    Returns:
        The groups, and a problem for each double, or for all that two folders have in common: complete ones count
        before failed and incomplete ones, and of these the one that was started first.
    """
    found: dict[str, dict[int, list[FoundRun]]] = {}
    for run in runs:
        identity = json.dumps(decisive_settings(run.recipe), sort_keys=True)
        found.setdefault(identity, {}).setdefault(run.recipe.seed, []).append(run)
    groups: list[Group] = []
    doubled: list[tuple[FoundRun, FoundRun]] = []
    for seeds in found.values():
        kept = []
        for _, doubles in sorted(seeds.items()):
            first = min(
                doubles, key=lambda run: (STATUS.index(run.status), run.environment.get("started") or "", run.path)
            )
            kept.append(first)
            doubled += [(run, first) for run in doubles if run is not first]
        groups.append(Group(kept[0].recipe, tuple(kept)))
    return groups, told_doubles(doubled)


def check_comparable(groups: Sequence[Group], swept: frozenset[str] = frozenset()) -> None:
    """See that all groups learn the same task with the same model.

    Args:
        groups: to be compared.
        swept: keys that were varied on purpose.

    Raises:
        InputError: groups differ in data, model, loss, test crop, classes or number of validation images; with the keys
            and both values.
    """
    first = max(groups, key=lambda group: len(group.runs))
    said = []
    for group in groups:
        differing = differing_keys(_task(first.recipe, swept), _task(group.recipe, swept))
        if differing:
            said.append(_told(first.runs[0], group.runs[0], differing))
    runs = [run for group in groups for run in group.runs if run.classes]
    for run in runs:
        if not said and run.classes != runs[0].classes:
            named = [f"{len(each.classes)} ({shown(each.classes)})" for each in (runs[0], run)]
            said.append(_told(runs[0], run, [f"classes: {named[0]} -> {named[1]}"]))
    judged = [run for group in groups for run in group.complete if run.summary["final"].get("images")]
    for run in judged:
        one, two = (each.summary["final"]["images"] for each in (judged[0], run))
        if not said and one != two:  # images were added to a folder between the runs, or taken away
            said.append(_told(judged[0], run, [f"validation images: {one} -> {two}"]))
    if said:
        raise InputError(
            "these runs can't be compared, their data or model is not the same; give folders that belong together:\n  "
            + "\n  ".join(said)
        )


def _told(one: FoundRun, two: FoundRun, differing: list[str]) -> str:
    return f"{one.path} and {two.path} differ (first -> second):\n    " + "\n    ".join(differing)


def _task(recipe: Recipe, swept: frozenset[str]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings_of(recipe).items()
        if (key.split(".")[0] in DECIDED or key == "augment.test_crop") and key not in swept
    }
