"""The settings of a sweep as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .model import Evidence, Sweep, SweepPoint
from .table import WIDTH, aligned, signed_interval

__all__ = ["sweep_text"]

MOST_ROWS = 60
"""Rows of a list of settings; a long sweep's best ones."""


def sweep_text(evidence: Evidence) -> str:
    """Table, recommended setting with its interval, sensitivity, Pareto front, and what is left out."""
    sweep = evidence.sweep
    if sweep is None:
        return "No recipe key varies among these runs: there is no sweep to tell of."
    most = max(_complete(point) for point in sweep.points)
    table = _grid(sweep, most) if len(sweep.keys) == 2 else None
    return "\n\n".join(["\n".join([table or _list(sweep), *_legend(sweep, most)]), "\n".join(_said(sweep, evidence))])


def _complete(point: SweepPoint) -> int:
    return sum(run.status == "complete" for run in point.runs)


def _failed(point: SweepPoint) -> int:
    return sum(run.status == "failed" for run in point.runs)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _settings(point: SweepPoint) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in point.settings.items())


def _mark(sweep: Sweep, number: int) -> str:
    """One character, so that figures stay under each other."""
    return "*" if number == sweep.recommended else "^" if number == sweep.best else " "


def _cell(sweep: Sweep, number: int, most: int) -> str:
    """Mean, how many seeds if not as many as elsewhere, and a mark."""
    point = sweep.points[number]
    seeds = "" if _complete(point) == most and not _failed(point) else f" ({_complete(point)}"
    if seeds:
        seeds += f", {_failed(point)} failed)" if _failed(point) else ")"
    return f"{'-' if point.top1 is None else f'{point.top1.mean:.2f}'}{seeds}{_mark(sweep, number)}"


def _sorted(values: Sequence[Any]) -> list[Any]:
    """Distinct values: numbers by size, then the others."""
    distinct = {json.dumps(value): value for value in values}.values()
    numbers = [value for value in distinct if isinstance(value, (int, float))]
    return sorted(numbers) + [value for value in distinct if not isinstance(value, (int, float))]


def _grid(sweep: Sweep, most: int) -> str | None:
    """One key down, the other across; None where that is too wide or mostly holes."""
    down, across = sweep.keys
    rows, columns = (_sorted([point.settings[key] for point in sweep.points]) for key in sweep.keys)
    if len(rows) * len(columns) > 2 * len(sweep.points):
        return None
    cells = {}
    for number, point in enumerate(sweep.points):
        cells[json.dumps(point.settings[down]), json.dumps(point.settings[across])] = _cell(sweep, number, most)
    table = aligned(
        [f"{down} \\ {across}", *(f"{_value(value)} " for value in columns)],
        [[_value(row), *(cells.get((json.dumps(row), json.dumps(column)), " ") for column in columns)] for row in rows],
    )
    return table if max(map(len, table.splitlines())) <= WIDTH else None


def _list(sweep: Sweep) -> str:
    """One setting a row, the best first."""
    order = sorted(range(len(sweep.points)), key=lambda i: -(t.mean if (t := sweep.points[i].top1) else -1.0))
    least = min((point.flops for point in sweep.points if point.flops), default=None)
    rows = []
    for number in order[:MOST_ROWS]:
        point = sweep.points[number]
        top1 = "-" if point.top1 is None else f"{point.top1.mean:.2f}"
        seeds = f"{_complete(point)}" + (f", {_failed(point)} failed" if _failed(point) else "")
        compute = f"{point.flops / least:.2f} x" if point.flops and least else "-"
        versus = signed_interval(point.versus_plain) if point.versus_plain else "-"
        rows.append([_shortened(_settings(point)), f"{top1}{_mark(sweep, number)}", seeds, compute, versus])
    table = aligned(["setting", "top-1 % ", "seeds", "compute", "to plain"], rows)
    left = len(order) - MOST_ROWS
    return table + (f"\n... and {left} settings below these" if left > 0 else "")


def _shortened(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _legend(sweep: Sweep, most: int) -> list[str]:
    said = f"top-1 %, mean over {most} seed{'s' * (most != 1)}, or as many as are named. *: recommended"
    return [said + ("; ^: highest mean" if sweep.best != sweep.recommended else "")]


def _said(sweep: Sweep, evidence: Evidence) -> list[str]:
    said = _recommended(sweep)
    for key, loss in sweep.sensitivity.items():
        said.append(f"One step away along {key}, top-1 falls by {loss:.2f} points at most.")
    if sweep.pareto:
        said.append("Accuracy against compute, settings that no other beats:")
        least = sweep.points[sweep.pareto[0]].flops
        for point in (sweep.points[number] for number in sweep.pareto):
            compute = f"{point.flops / least:.2f} x" if point.flops and least else "-"
            said.append(f"  {compute}  {point.top1.mean if point.top1 else 0:.2f} %  {_settings(point)}")
    for point in sweep.points:
        said += [f"{_settings(point)}, seed {r.seed} failed: {r.reason}" for r in point.runs if r.status == "failed"]
        if waiting := [str(run.seed) for run in point.runs if run.status == "incomplete"]:
            said.append(f"{_settings(point)}, not complete: seed {', '.join(waiting)}.")
    told = {run.path for point in sweep.points for run in point.runs if run.status != "complete"}
    left = [problem for problem in evidence.problems if problem.path not in told]
    return said + [f"{problem.path}: {problem.message}" for problem in left]


def _recommended(sweep: Sweep) -> list[str]:
    if sweep.recommended is None:
        return ["No setting is complete: none can be recommended."]
    point = sweep.points[sweep.recommended]
    assert point.top1 is not None
    at, seeds = point.top1, _complete(point)
    known = at.low is not None and at.high is not None
    interval = f", {100 * at.level:g} % interval {at.low:.2f} to {at.high:.2f}" if known else ""
    said = [f"Recommended: {_settings(point)}: top-1 {at.mean:.2f} %{interval} over {seeds} seed{'s' * (seeds != 1)}."]
    if seeds < 3:
        said.append("Fewer than three seeds: no claim about noise can be made; it has the highest mean, no more.")
    elif sweep.best != sweep.recommended and sweep.best is not None:
        best = sweep.points[sweep.best]
        mean = best.top1.mean if best.top1 else 0.0
        if _complete(best) < seeds:
            said.append(f"The highest mean, {mean:.2f} % at {_settings(best)}, is of fewer seeds.")
        else:
            said.append(
                f"The highest mean is {mean:.2f} % at {_settings(best)}; the recommended setting is not told apart "
                f"from it and is cheaper or nearer to the paper's."
            )
    versus = point.versus_plain
    if versus is not None:
        words = {"better": "better than plain training", "worse": "worse than plain training"}
        words |= {"none": "no difference from plain training seen", "unknown": "against plain training"}
        said.append(
            f"This setting: {words[versus.verdict]}, {signed_interval(versus)} points over {len(versus.seeds)} pairs."
        )
    said.append("The same images chose the setting and measured it, so its accuracy is a little optimistic.")
    return said
