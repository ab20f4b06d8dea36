"""Runs of one recipe and seed that are there twice, as where a sweep tries the setting of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .model import Problem
from .run_files import FoundRun

__all__ = ["told_doubles"]


def told_doubles(doubled: Sequence[tuple[FoundRun, FoundRun]]) -> list[Problem]:
    """A problem for all runs that two folders have in common; for a single one, or in one folder, its own.

    Args:
        doubled: each a run that is left out, and the one that counts.
    """
    found: dict[tuple[Path, Path], list[tuple[FoundRun, FoundRun]]] = {}
    for run, other in doubled:
        found.setdefault((run.parent, other.parent), []).append((run, other))
    problems = []
    for (folder, other_folder), pairs in found.items():
        if len(pairs) == 1 or folder == other_folder:
            problems += [_single(run, other) for run, other in pairs]
        else:
            problems.append(_several(pairs))
    return problems


def _single(run: FoundRun, other: FoundRun) -> Problem:
    seed = run.recipe.seed
    said = f"a double of {other.path}: the same recipe and seed {seed} ({run.status}); left out"
    values: dict[str, Any] = {"other": other.path, "seed": seed, "status": run.status}
    if _gap(run, other):
        values |= {"top1": run.top1, "other_top1": other.top1}
        said += f", although it ended at {run.top1:.2f} % and the other at {other.top1:.2f} %"
    return Problem(run.path, "double", said, values)


def _several(pairs: Sequence[tuple[FoundRun, FoundRun]]) -> Problem:
    folder, other = (str(Path(run.path).parent) for run in pairs[0])  # as they were given
    said = f"{len(pairs)} runs are also in {other} (the same recipe and seed) and count once, as they are there"
    values: dict[str, Any] = {"code": "doubles", "n": len(pairs), "other": other}
    if gaps := [gap for pair in pairs if (gap := _gap(*pair))]:
        values |= {"code": "doubles-other", "unequal": len(gaps), "most": max(gaps)}
        said += f"; {len(gaps)} of them ended at another top-1 here, by up to {max(gaps):.2f} points"
    return Problem(folder, "double", said, values)


def _gap(run: FoundRun, other: FoundRun) -> float:
    """Points of top-1 between them; 0 where one has no result."""
    return abs(run.top1 - other.top1) if run.top1 is not None and other.top1 is not None else 0.0
