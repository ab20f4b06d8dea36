"""How calmly runs trained: variance of the loss, norms of the gradient, spikes, and seeds that diverged."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from .model import Stability
from .run_files import FoundRun, is_number

__all__ = ["measure_stability", "spikes"]

DEVIATIONS = 6.0
"""Standard deviations above the mean that a loss must reach to be a spike: of a normal distribution one value in a
thousand million does."""
SHARE = 0.1
"""Least height of a spike, as a share of the loss at the beginning: late in training the losses of single batches are
tiny and skewed, and a few images that are got wrong lie many deviations off without anything being amiss."""


def measure_stability(runs: Sequence[FoundRun]) -> Stability:
    """Stability of an arm, over its complete and failed runs."""
    ran = [run for run in runs if run.status != "incomplete"]
    variances = [value for run in ran if (value := _loss_variance(run)) is not None]
    norms = [line["gradient_norm"] for run in ran for line in run.lines if is_number(line.get("gradient_norm"))]
    return Stability(
        loss_variance=statistics.fmean(variances) if variances else None,
        gradient_norm_mean=statistics.fmean(norms) if norms else None,
        gradient_norm_max=max(norms, default=None),
        spikes=sum(spikes(run.lines, warmup_epochs=run.recipe.optim.warmup_epochs) for run in ran),
        failed=tuple(sorted(run.recipe.seed for run in ran if run.status == "failed")),
    )


def spikes(lines: Sequence[dict[str, Any]], *, warmup_epochs: float) -> int:
    """Number of lines of metrics with a spike of the loss.

    A line has one if the largest loss of its steps lies above the mean of the line before it by more than
    ``DEVIATIONS`` standard deviations of that line's steps, and by more than ``SHARE`` of the first line's mean. The
    line before must have begun after the warm-up, in which the loss moves by design. The loss is the main branch's;
    the sub branch's where only that is trained. Lines without these figures have no spike.

    Args:
        lines: training lines of one run, in order.
        warmup_epochs: epochs of the learning rate's warm-up.
    """
    known = [line for line in lines if all(is_number(line.get(key)) for key in ("loss_main_std", "loss_main_max"))]
    known = [line for line in known if is_number(_trained_loss(line))]
    if not known:
        return 0
    least = SHARE * _trained_loss(known[0])
    begins, count = 0.0, 0
    for before, line in itertools.pairwise(known):
        height = line["loss_main_max"] - _trained_loss(before)
        if begins >= warmup_epochs and height > max(DEVIATIONS * before["loss_main_std"], least):
            count += 1
        begins = before["epoch"]
    return count


def _trained_loss(line: dict[str, Any]) -> Any:
    """The loss that loss_main_std and loss_main_max are of."""
    return line.get("loss_main", line.get("loss"))


def _loss_variance(run: FoundRun) -> float | None:
    """Mean over the lines of the second half of training."""
    half = run.recipe.train.epochs / 2
    lines = [line for line in run.lines if line["epoch"] > half and is_number(line.get("loss_main_std"))]
    return statistics.fmean(line["loss_main_std"] ** 2 for line in lines) if lines else None
