"""Quantities over training, for an arm: mean and range over its complete seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .model import Curve
from .run_files import FoundRun, is_number

__all__ = ["curves_of", "flops_to_reach"]

EVALUATED = ("top1", "loss")
TRAINED = ("loss_main", "loss_sub", "agreement", "gradient_norm")
POINTS = 400
"""Most points of a training curve; more lines are averaged in groups of neighbours, as each is a mean of steps itself.
Evaluations are never averaged."""
ROUNDING = 1e-9


def curves_of(runs: Sequence[FoundRun]) -> dict[str, Curve]:
    """Name -> curve, for all that the complete runs recorded; see ``evidence.Arm.curves``."""
    complete = [run for run in runs if run.status == "complete"]
    found = {name: _curve([run.evaluations for run in complete], name) for name in EVALUATED}
    found |= {name: _curve([run.lines for run in complete], name, most=POINTS) for name in TRAINED}
    return {name: curve for name, curve in found.items() if curve is not None}


def _curve(runs: list[list[dict[str, Any]]], name: str, most: int | None = None) -> Curve | None:
    """The records of the seeds side by side, at the epochs that all have."""
    tables = [{round(r["epoch"], 6): r for r in records if is_number(r.get(name))} for records in runs]
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    if not epochs:
        return None
    values = np.array([[table[epoch][name] for epoch in epochs] for table in tables], float)
    flops = np.array([[table[epoch]["flops"] for epoch in epochs] for table in tables], float).mean(axis=0)
    places = np.array(epochs)
    if most is not None and len(epochs) > most:
        group = -(-len(epochs) // most)
        starts = np.arange(0, len(epochs), group)
        sizes = np.diff([*starts, len(epochs)])
        mean: Callable[[Any], Any] = lambda x: np.add.reduceat(x, starts, axis=-1) / sizes  # noqa: E731
        values, flops, places = mean(values), mean(flops), mean(places)
    return Curve(
        epoch=places.tolist(),
        flops=flops.tolist(),
        mean=values.mean(axis=0).tolist(),
        low=values.min(axis=0).tolist(),
        high=values.max(axis=0).tolist(),
    )


def flops_to_reach(curve: Curve | None, top1: float) -> float | None:
    """FLOPs at which the mean first reaches ``top1`` percent, on straight lines between evaluations; None if never."""
    if curve is None:
        return None
    before: tuple[float, float] | None = None
    for flops, mean in zip(curve.flops, curve.mean):
        if mean >= top1 - ROUNDING:
            if before is None:
                return flops
            share = (top1 - before[1]) / (mean - before[1])
            return before[0] + share * (flops - before[0])
        before = (flops, mean)
    return None
