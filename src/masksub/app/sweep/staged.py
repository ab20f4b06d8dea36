"""Masking brought in step by step, as a cautious team does it: a little first, more while nothing is lost.

Plain training is the reference. Each ratio is trained with the same seeds; the next one follows while mean top-1 does
not fall below the reference by more than a tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from masksub.app.errors import InputError
from masksub.app.evidence.model import Paired
from masksub.app.experiment.cells import Cell, check_cells
from masksub.app.experiment.check import check_folder, check_trainable, seeds_of, settle_cache
from masksub.app.experiment.compare import train_cells
from masksub.app.experiment.workers import default_jobs
from masksub.app.progress import Reporter
from masksub.app.runs import write_text_atomically
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS

from .settings import slug, with_settings

__all__ = ["RATIOS", "Step", "run_staged"]

RATIOS = (0.1, 0.25, 0.5, 0.75)
"""Steps where nothing else is asked for."""


@dataclass(frozen=True)
class Step:
    """What one ratio came to.

    Attributes:
        ratio: 0 for plain training.
        cells: its runs.
        top1: seed -> final top-1 of the complete ones.
        failed: seed -> why it diverged.
        flops: mean of the complete runs, None without one.
        versus_plain, versus_before: paired differences; None for plain training, and for the first ratio, whose step
            before is plain training.
    """

    ratio: float
    cells: list[Cell]
    top1: dict[int, float]
    failed: dict[int, str]
    flops: float | None
    versus_plain: Paired | None
    versus_before: Paired | None


def run_staged(
    base: Recipe,
    folder: Path,
    *,
    ratios: Sequence[float] = RATIOS,
    seeds: int,
    tolerance: float = 0.5,
    jobs: int | None = None,
    statistics: str = "t",
    retry_failed: bool = False,
    reporter: Reporter,
) -> tuple[dict[str, Any], str]:
    """Raise the ratio step by step, stop with the reason, and name the ratio to use.

    Stopped and started again, it goes on with what is missing; a larger tolerance goes on from where it stopped.

    Args:
        base: the recipe; its ratio is replaced, its weight is kept, its seed is the first one.
        folder: gets the run folders ``plain-sSEED`` and ``ratio-RATIO-sSEED``, and staged.json.
        ratios: the steps, rising.
        seeds: of each step.
        tolerance: how many points mean top-1 may be below plain training's.
        jobs: processes at a time, None for the default.
        statistics: of the intervals, "t" or "bootstrap".
        retry_failed: train diverged runs again.
        reporter: where progress is told.

    Returns:
        The result for JSON, and text for a terminal.

    Raises:
        InputError: before anything is written.
        InterruptedRun: on a signal; the same command goes on.
        StoppedError: runs could not be made, through no mistake in the recipe.
    """
    if statistics not in ("t", "bootstrap"):
        raise InputError(f"--statistics {statistics}: must be t or bootstrap")
    if seeds < 1 or not 0 <= tolerance < 100:
        raise InputError(
            f"--seeds {seeds} must be at least 1, and --tolerance {tolerance:g} from 0 to below 100 points"
        )
    jobs = jobs or default_jobs(base.train.device)
    seeds_of(base, seeds)
    steps = _steps(settle_cache(base, folder, jobs), folder, ratios, seeds)
    check_trainable(cells[0].recipe for _, cells in steps)
    done: list[Step] = []
    reason = ""
    with reporter:
        for ratio, cells in steps:
            for cell in cells if retry_failed else ():
                cell.run.forget_failure()
            train_cells(cells, jobs=jobs, reporter=reporter)
            step = _step(ratio, cells, steps[0][1], done[-1].cells if done else None, statistics)
            done.append(step)
            if reason := _why_stop(step, tolerance):
                break
            reporter.line(_line(step))
    accepted = [step for step in done if not _why_stop(step, tolerance)]
    result = {
        "tolerance": tolerance,
        "steps": [_as_dict(step, accepted=step in accepted) for step in done],
        "not_tried": [ratio for ratio, _ in steps[len(done) :]],
        "stopped": reason or None,
        "recommended": _recommended(accepted),
    }
    write_text_atomically(folder / "staged.json", json.dumps(result, indent=2) + "\n")
    return result, _text(done, accepted, result, folder)


def _steps(base: Recipe, folder: Path, ratios: Sequence[float], seeds: int) -> list[tuple[float, list[Cell]]]:
    """Ratio and cells of each step; the first is plain training, ratio 0."""
    if METHODS[base.method].ratio is not None:
        raise InputError(f"method {base.method!r} has no ratio to raise: use method=masksub")
    if not ratios or any(not 0 < ratio < 1 for ratio in ratios) or [*ratios] != sorted({*ratios}):
        raise InputError(f"--ratio {', '.join(f'{r:g}' for r in ratios)}: must rise, each above 0 and below 1")
    check_folder(folder)
    recipes = [(0.0, "plain", base.model_copy(update={"method": "plain"}))]
    for ratio in ratios:
        settings = {"sub.ratio": float(ratio)}
        recipes.append((float(ratio), slug(settings), with_settings(base, settings)))
    steps = [
        (
            ratio,
            [
                Cell(recipe.model_copy(update={"seed": seed}), folder / f"{name}-s{seed}")
                for seed in range(base.seed, base.seed + seeds)
            ],
        )
        for ratio, name, recipe in recipes
    ]
    check_cells([cell for _, cells in steps for cell in cells])
    return steps


def _step(ratio: float, cells: list[Cell], plain: list[Cell], before: list[Cell] | None, method: str) -> Step:
    from masksub.app.evidence.statistics import paired  # needs SciPy

    ours, reference = _top1(cells), _top1(plain)
    return Step(
        ratio=ratio,
        cells=cells,
        top1=ours,
        failed={c.recipe.seed: (c.run.failure() or {}).get("reason", "") for c in cells if c.state == "failed"},
        flops=fmean(s["flops"] for c in cells if (s := c.run.summary())) if ours else None,
        versus_plain=paired(ours, reference, "plain", method=method) if ratio else None,
        versus_before=paired(ours, _top1(before), "before", method=method) if before and before != plain else None,
    )


def _top1(cells: Sequence[Cell]) -> dict[int, float]:
    """Seed -> final top-1 of the complete runs."""
    found = {cell.recipe.seed: cell.run.summary() for cell in cells}
    return {seed: float(summary["final"]["top1"]) for seed, summary in found.items() if summary is not None}


def _why_stop(step: Step, tolerance: float) -> str:
    """Why the ratio is not raised beyond this step, empty if it may be."""
    name = f"ratio {step.ratio:g}" if step.ratio else "plain training"
    if step.failed:
        seed, reason = next(iter(step.failed.items()))
        more = f" (and {len(step.failed) - 1} more)" if len(step.failed) > 1 else ""
        return f"seed {seed}{more} of {name} diverged: {reason}"
    versus = step.versus_plain
    if versus is not None and versus.interval.mean < -tolerance:
        return (
            f"at {name} mean top-1 is {-versus.interval.mean:.2f} points below plain training, more than the tolerance "
            f"of {tolerance:g}"
        )
    return ""


def _recommended(accepted: list[Step]) -> float | None:
    """The accepted ratio with the highest mean; of equal ones the larger, which costs less. None: stay with plain."""
    masked = [(step.versus_plain.interval.mean, step.ratio) for step in accepted if step.versus_plain is not None]
    return max(masked)[1] if masked else None


def _text(done: list[Step], accepted: list[Step], result: dict[str, Any], folder: Path) -> str:
    lines = [_line(step) + ("" if step in accepted else "  <- stopped here") for step in done]
    lines.append("")
    if result["stopped"]:
        lines.append(f"Stopped: {result['stopped']}.")
        if result["not_tried"]:
            lines.append(f"Not tried: {', '.join(f'{ratio:g}' for ratio in result['not_tried'])}.")
    else:
        lines.append(f"All steps are within the tolerance of {result['tolerance']:g} points.")
    chosen = next((step for step in done if step.ratio == result["recommended"]), None)
    if not accepted:
        lines.append("Plain training itself fails with this recipe: mend it before anything is masked.")
    elif chosen is None or chosen.versus_plain is None:
        lines.append("Ratio to use: none. Stay with plain training, or look for the cause at the first step.")
    else:
        lines.append(f"Ratio to use: {chosen.ratio:g}, the highest mean of those within the tolerance.")
        lines.append(_how_sure(chosen.versus_plain))
    lines.append(f"{folder / 'staged.json'}; the page: masksub report {folder}")
    return "\n".join(lines)


def _how_sure(versus: Paired) -> str:
    """No more than the figures say."""
    at, count = versus.interval, len(versus.seeds)
    if versus.verdict == "unknown" or at.low is None or at.high is None:
        return (
            f"Against plain training: {at.mean:+.2f} points over {count} seed(s): too few to say anything about noise; "
            f"three are the least."
        )
    words = {"better": "It is better than plain training", "worse": "It is worse than plain training, within tolerance"}
    said = words.get(versus.verdict, "No difference from plain training is seen")
    return f"{said}: {at.mean:+.2f} points, {at.level:.0%} interval {at.low:+.2f} to {at.high:+.2f} ({versus.method})."


def _line(step: Step) -> str:
    name = f"ratio {step.ratio:g}" if step.ratio else "plain"
    top1 = f"top-1 {fmean(step.top1.values()):.2f} %" if step.top1 else "no result"
    text = f"{name:12} {top1}, {len(step.top1)} seed(s)"
    for key, words in (("versus_plain", "to plain"), ("versus_before", "to the step before")):
        if (versus := getattr(step, key)) is not None and versus.seeds:
            text += f"; {words} {versus.interval.mean:+.2f}"
            if versus.interval.low is not None:
                text += f" ({versus.interval.low:+.2f} to {versus.interval.high:+.2f})"
    return text + (f"; {len(step.failed)} failed" if step.failed else "")


def _as_dict(step: Step, *, accepted: bool) -> dict[str, Any]:
    def plain(versus: Paired | None) -> dict[str, Any] | None:
        if versus is None or not versus.seeds:
            return None
        at = versus.interval
        return {"mean": at.mean, "low": at.low, "high": at.high, "p": versus.p, "method": versus.method}

    return {
        "ratio": step.ratio,
        "accepted": accepted,
        "top1": step.top1,
        "failed": step.failed,
        "flops": step.flops,
        "versus_plain": plain(step.versus_plain),
        "versus_before": plain(step.versus_before),
        "runs": [str(cell.folder) for cell in step.cells],
    }
