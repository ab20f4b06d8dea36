"""Which setting of a sweep to use, how much hangs on it, and which settings are worth their compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .model import Sweep, SweepPoint
from .run_files import is_number
from .statistics import paired, spread

__all__ = ["choose", "sweep_of"]

PAPER = {"sub.ratio": 0.5, "sub.weight": 0.5}
"""The paper's setting: where the figures do not decide, the known is to be preferred."""
SAME_FLOPS = 1e-3
"""Shares of FLOPs by which settings count as equally dear."""


def sweep_of(keys: Sequence[str], points: Sequence[SweepPoint], *, statistics: str = "t", level: float = 0.95) -> Sweep:
    """The sweep with all that follows from its points; ``Sweep`` says what each is.

    Args:
        keys: what varies.
        points: every setting.
        statistics: "t" or "bootstrap".
        level: of the interval that tells two settings apart.
    """
    chosen = choose(points, statistics=statistics, level=level)
    return Sweep(
        keys=tuple(keys),
        points=tuple(points),
        recommended=chosen,
        best=_best(points, [i for i, point in enumerate(points) if point.top1]),
        sensitivity={} if chosen is None else _sensitivity(keys, points, chosen),
        pareto=_pareto(points),
    )


def choose(points: Sequence[SweepPoint], *, statistics: str = "t", level: float = 0.95) -> int | None:
    """Index of the recommended setting.

    With fewer than three seeds nothing tells what is noise: the highest mean is recommended, and others only where they
    reach it.
    """
    seeds = [sum(run.status == "complete" for run in point.runs) for point in points]
    most = max(seeds, default=0)
    fullest = [i for i, point in enumerate(points) if point.top1 and seeds[i] == most]
    best = _best(points, fullest)
    if best is None:
        return None
    allowed = _allowed(points[best])
    as_good = [
        i
        for i in fullest
        if i == best
        or (
            _mean(points[best]) - _mean(points[i]) <= allowed and _not_apart(points[i], points[best], statistics, level)
        )
    ]
    least = min((flops for i in as_good if (flops := points[i].flops) is not None), default=None)
    if least is not None:
        as_good = [i for i in as_good if (flops := points[i].flops) is not None and flops <= least * (1 + SAME_FLOPS)]
    return min(as_good, key=lambda i: (round(_from_paper(points[i]), 9), -_mean(points[i]), i))


def _not_apart(point: SweepPoint, best: SweepPoint, statistics: str, level: float) -> bool:
    ours, theirs = ({run.seed: run.top1 for run in each.runs if run.top1 is not None} for each in (point, best))
    found = paired(ours, theirs, "best", level=level, method=statistics)
    return found.verdict == "none" or (not found.claims and _mean(point) == _mean(best))


def _allowed(best: SweepPoint) -> float:
    """Points that a cheaper setting may be below the best: its standard error. That few seeds can't tell two settings
    apart does not make them equal."""
    values = [run.top1 for run in best.runs if run.top1 is not None]
    return (spread(values) or 0.0) / math.sqrt(len(values))


def _best(points: Sequence[SweepPoint], among: Sequence[int]) -> int | None:
    """Index of the highest mean; of equal ones the cheapest, then the first."""
    return min(among, key=lambda i: (-_mean(points[i]), points[i].flops or 0.0, i), default=None)


def _mean(point: SweepPoint) -> float:
    assert point.top1 is not None
    return point.top1.mean


def _from_paper(point: SweepPoint) -> float:
    """Distance to the paper's setting; a schedule is as far as a value can be."""
    values = [(point.settings[key], paper) for key, paper in PAPER.items() if key in point.settings]
    return sum(abs(value - paper) if is_number(value) else 1.0 for value, paper in values)


def _sensitivity(keys: Sequence[str], points: Sequence[SweepPoint], chosen: int) -> dict[str, float]:
    """Largest loss one step away along each numeric key, 0 if both neighbours are at least as good."""
    at, found = points[chosen], {}
    for key in keys:
        here = at.settings.get(key)
        if not is_number(here):
            continue
        line = [
            point
            for point in points
            if point.top1 is not None
            and is_number(point.settings.get(key))
            and all(point.settings.get(other) == at.settings.get(other) for other in keys if other != key)
        ]
        below = max((p for p in line if p.settings[key] < here), key=lambda p: p.settings[key], default=None)
        above = min((p for p in line if p.settings[key] > here), key=lambda p: p.settings[key], default=None)
        losses = [_mean(at) - _mean(point) for point in (below, above) if point is not None]
        if losses:
            found[key] = max(0.0, *losses)
    return found


def _pareto(points: Sequence[SweepPoint]) -> tuple[int, ...]:
    """Settings for which no other is at least as good in both top-1 and FLOPs and better in one."""
    known = {i: (flops, -_mean(point)) for i, point in enumerate(points) if point.top1 and (flops := point.flops)}
    front = [
        i
        for i, (flops, loss) in known.items()
        if not any(f <= flops and m <= loss and (f, m) != (flops, loss) for f, m in known.values())
    ]
    return tuple(sorted(front, key=lambda i: (known[i], i)))
