"""From run folders to the evidence that tables and reports are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from masksub.app.errors import InputError

from .arm_groups import Places, place_groups
from .choice import choose, sweep_of
from .curves import curves_of, flops_to_reach
from .model import Arm, Evidence, Paired, Problem, SweepPoint
from .recipe_groups import Group, check_comparable, group_runs, settings_of
from .run_files import FoundRun, find_runs, is_number
from .stability import measure_stability
from .statistics import METHODS, mean_interval, paired, spread

__all__ = ["gather"]

REFERENCES = ("plain", "plain-equal")
SHOWN_ENVIRONMENT = ("versions", "platform", "processor", "cores", "threads", "gpu")


def gather(
    paths: Sequence[str | Path], *, statistics: str = "t", mixed_versions: bool = False, swept: Sequence[str] = ()
) -> Evidence:
    """Read run folders and put side by side what was measured.

    Args:
        paths: run folders, or folders that hold run folders, up to three levels down. Hidden folders, checkpoints and
            folders set aside (".replaced-") are passed over.
        statistics: how paired differences get their interval: "t" or "bootstrap".
        mixed_versions: whether runs of other versions of masksub or torch than most are used too.
        swept: recipe keys that were varied on purpose, so that runs may differ in them though they belong to the data,
            the model or the loss. Those of a sweep.json beside the runs are known.

    Returns:
        The evidence. What was found but not used is in its problems, and why.

    Raises:
        InputError: a path is no folder, nothing can be used (with the reasons), the runs' data or model differ (with
            the keys), or there are no such statistics.
    """
    if statistics not in METHODS:
        raise InputError(f"statistics {statistics!r}: must be {' or '.join(METHODS)}")
    runs, problems = find_runs(paths)
    runs, others = _of_one_version(runs, mixed_versions)
    groups, doubles = group_runs(runs)
    problems += others + doubles
    groups = [group for group in groups if group.runs]
    if not any(run.status != "incomplete" for group in groups for run in group.runs):
        raise InputError(_nothing(paths, problems))
    check_comparable(groups, frozenset(swept) | _swept_keys(runs))
    places = place_groups(groups, partial(_recommend, statistics=statistics))
    used = [run for group in groups for run in group.runs]
    first = next(iter(places.arms.values()))
    recipe = first.recipe.model_dump(mode="json")
    del recipe["seed"]
    return Evidence(
        paths=tuple(map(str, paths)),
        arms=tuple(_arm(key, places.arms, statistics) for key in places.arms),
        sweep=_sweep(places, statistics) if places.sweep else None,
        problems=tuple(problems),
        environments=_environments(used),
        recipe=recipe,
        classes=next((run.classes for run in used if run.classes), ()),
    )


def _nothing(paths: Sequence[str | Path], problems: list[Problem]) -> str:
    said = [f"{problem.path}: {problem.message}" for problem in problems]
    more = [f"... and {len(said) - 20} more"] if len(said) > 20 else []
    named = ", ".join(map(str, paths)) or "no folder was named"
    return "\n  ".join([f"no complete run to report on in: {named}", *said[:20], *more])


def _of_one_version(runs: list[FoundRun], mixed: bool) -> tuple[list[FoundRun], list[Problem]]:
    """The runs of the versions that most have; a run that does not tell its versions is kept."""
    known = Counter(run.versions for run in runs if None not in run.versions)
    if len(known) < 2:
        return runs, []
    complete = Counter(run.versions for run in runs if run.status == "complete")
    usual = max(known, key=lambda versions: (complete[versions], known[versions]))
    kept, problems = [], []
    for run in runs:
        odd = run.versions in known and run.versions != usual
        if odd:
            values: dict[str, Any] = {"masksub": run.versions[0], "torch": run.versions[1], "used": mixed}
            values |= {"usual_masksub": usual[0], "usual_torch": usual[1], "seed": run.recipe.seed}
            said = (
                f"made with masksub {run.versions[0]} and torch {run.versions[1]}, most runs with {usual[0]} and "
                f"{usual[1]}: {'used all the same, as asked' if mixed else 'left out'}"
            )
            problems.append(Problem(run.path, "version", said, values))
        if mixed or not odd:
            kept.append(run)
    return kept, problems


def _swept_keys(runs: list[FoundRun]) -> frozenset[str]:
    """Keys of the sweeps that made these runs."""
    keys: set[str] = set()
    for parent in {run.parent for run in runs}:
        try:
            keys |= {*json.loads((parent / "sweep.json").read_text(encoding="utf-8"))["study"]["space"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no sweep, or one that does not tell; the runs are then held to be alike
    return frozenset(map(str, keys))


def _recommend(groups: Sequence[Group], keys: tuple[str, ...], *, statistics: str) -> int | None:
    return choose([_point(group, keys, None, statistics) for group in _same_seeds(groups)], statistics=statistics)


def _sweep(places: Places, statistics: str) -> Any:
    plain = places.arms.get("plain")
    points = [_point(group, places.keys, plain, statistics) for group in _same_seeds(places.sweep)]
    points.sort(key=lambda point: [_order(point.settings[key]) for key in places.keys])
    return sweep_of(places.keys, points, statistics=statistics)


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then the rest by name."""
    return (False, float(value), "") if is_number(value) else (True, 0.0, str(value))


def _same_seeds(groups: Sequence[Group]) -> list[Group]:
    """The settings of a sweep on the seeds that at least half of them have.

    One of them may also be an arm of a comparison over more seeds; its other runs would make it look surer.
    """
    count = Counter(run.recipe.seed for group in groups for run in group.runs)
    usual = {seed for seed, settings in count.items() if 2 * settings >= len(groups)}
    kept = [replace(group, runs=tuple(run for run in group.runs if run.recipe.seed in usual)) for group in groups]
    return kept if all(group.runs for group in kept) else [*groups]


def _point(group: Group, keys: tuple[str, ...], plain: Group | None, statistics: str) -> SweepPoint:
    settings = settings_of(group.recipe)
    return SweepPoint(
        settings={key: settings.get(key) for key in keys},
        runs=tuple(run.as_run() for run in group.runs),
        top1=mean_interval([*group.top1.values()]),
        versus_plain=_versus(group, plain, "plain", statistics),
        flops=_mean(group, "flops"),
    )


def _versus(group: Group, other: Group | None, reference: str, statistics: str) -> Paired | None:
    """None without that arm, or without a seed that both completed."""
    if other is None or not group.top1.keys() & other.top1.keys():
        return None
    return paired(group.top1, other.top1, reference, method=statistics)


def _mean(group: Group, key: str, *, of_all: bool = False) -> float | None:
    """Mean of a figure over the complete runs that have it; with ``of_all`` only if all have it."""
    values = [run.summary[key] for run in group.complete if is_number(run.summary.get(key))]
    if not values or (of_all and len(values) < len(group.complete)):
        return None
    return fmean(values)


def _arm(key: str, arms: dict[str, Group], statistics: str) -> Arm:
    group, plain = arms[key], arms.get("plain")
    curves = curves_of(group.runs)
    references = [name for name in REFERENCES if name in arms and key not in ("plain", name)]
    versus = {name: found for name in references if (found := _versus(group, arms[name], name, statistics))}
    goal = mean_interval([*plain.top1.values()]) if plain else None
    energy = _mean(group, "energy_joules", of_all=True)
    measured = {str(run.summary["energy_of"]) for run in group.complete if run.summary.get("energy_of")}
    return Arm(
        key=key,
        method=group.method,
        changes=_changes(plain or next(iter(arms.values())), group),
        runs=tuple(run.as_run() for run in group.runs),
        top1=mean_interval([*group.top1.values()]),
        spread=spread([*group.top1.values()]),
        epochs=_mean(group, "epochs"),
        images=_mean(group, "images"),
        flops=_mean(group, "flops"),
        seconds=_mean(group, "train_seconds"),
        images_per_second=_mean(group, "images_per_second"),
        peak_memory_bytes=_mean(group, "peak_memory_bytes"),
        energy_joules=energy,
        energy_of=None if energy is None else ", ".join(sorted(measured)) or None,
        versus=versus,
        flops_to_plain=flops_to_reach(curves.get("top1"), goal.mean) if goal else None,
        stability=measure_stability(group.runs),
        curves=curves,
    )


def _changes(one: Group, two: Group) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> values of both, where the recipes differ, also in what their methods do not read."""
    there, here = settings_of(one.recipe), settings_of(two.recipe)
    keys = {**there, **here}
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def _environments(runs: Sequence[FoundRun]) -> tuple[dict[str, Any], ...]:
    """Distinct environments, those of most runs first."""
    counted = Counter(
        json.dumps({key: run.environment.get(key) for key in SHOWN_ENVIRONMENT}) for run in runs if run.environment
    )
    return tuple({**json.loads(text), "runs": count} for text, count in counted.most_common())
