"""What a set of runs will cost, before any is made: operations from shapes, time from a few measured updates."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masksub.app.cores import threads_for
from masksub.app.data import open_source
from masksub.app.interrupt import StopRequest
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe

from .arms import ARMS, Costs
from .cells import Cell

__all__ = ["Estimate", "as_dicts", "duration", "estimate_cells", "estimate_text", "measure", "sizes"]

UPDATES = 5
"""Measured updates of each kind of run, after two that are not counted."""


@dataclass(frozen=True)
class Estimate:
    """What the runs of one arm will take.

    Attributes:
        name: of the arm: what its folders are called, without the seed.
        runs: how many are planned.
        left: how many of them are neither complete nor failed.
        epochs, updates, flops: of one run; FLOPs of training.
        seconds: of one run: training and evaluation, measured with as many threads as a worker will have.
    """

    name: str
    runs: int
    left: int
    epochs: float
    updates: int
    flops: float
    seconds: float


def estimate_cells(cells: Sequence[Cell], *, jobs: int) -> list[Estimate]:
    """Measure a few updates of each arm, on a few of the images. Nothing is written.

    Args:
        cells: the planned runs, ``ARM-sSEED``.
        jobs: processes that will share the machine's cores.

    Returns:
        One estimate an arm, in the order of ARMS. Reading the images in and starting the processes is not in it, nor
        what processes that run side by side take from each other.
    """
    arms: dict[str, list[Cell]] = {}
    for cell in cells:
        arms.setdefault(cell.folder.name.rpartition("-s")[0], []).append(cell)
    arms = {name: arms[name] for name in sorted(arms, key=lambda name: [*ARMS, name].index(name))}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_for(jobs))
    try:
        return [_estimate(name, runs) for name, runs in arms.items()]
    finally:
        torch.set_num_threads(threads)


def _estimate(name: str, runs: list[Cell]) -> Estimate:
    recipe = runs[0].recipe
    per_update = recipe.train.batch_size * recipe.train.parts(1)
    images, validation = sizes(recipe)
    per_epoch = images // per_update
    updates = max(1, round(recipe.train.epochs * per_epoch))
    evaluations = math.ceil(updates / max(1, round(recipe.train.eval_every * per_epoch)))
    update_seconds, image_seconds = measure(recipe, images, validation)
    return Estimate(
        name=name,
        runs=len(runs),
        left=sum(cell.state in ("missing", "begun") for cell in runs),
        epochs=recipe.train.epochs,
        updates=updates,
        flops=updates * per_update * Costs(recipe).per_image(recipe.method),
        seconds=updates * update_seconds + evaluations * validation * image_seconds,
    )


def sizes(recipe: Recipe) -> tuple[int, int]:
    """Images to train and to validate on."""
    images, validation = (len(open_source(recipe.data, which, recipe.seed)) for which in ("train", "val"))
    return images, validation


def measure(recipe: Recipe, images: int, validation: int) -> tuple[float, float]:
    """Seconds of an update, and of evaluating one image; medians of a few.

    Args:
        recipe: is trained for some updates, at a learning rate of 0.
        images: to train on, of which no more than one update takes are read.
        validation: images to validate on; as few are read.
    """
    from masksub.app.devices import create_accelerator
    from masksub.app.evaluate import evaluate
    from masksub.app.train import Trainer

    few = recipe.train.batch_size * recipe.train.parts(1)
    recipe = recipe.changed("data", train_images=min(few, images), val_images=min(few, validation))
    nowhere = RunFolder(Path("nowhere"))  # a trainer writes when it runs; this one does not run
    with StopRequest() as request:
        trainer = Trainer(recipe, nowhere, create_accelerator(recipe), Reporter(quiet=True), request)
        setup, standing = trainer.setup, trainer.standing
        # At the peak of the learning rate without the warm-up before it, training might diverge.
        for group in setup.optimizer.param_groups:
            group["lr"] = 0.0
        setup.schedule.step_update = lambda update: None
        stream, times = setup.stream(0), []
        for _ in range(UPDATES + 2):
            standing.update = setup.updates // 2  # where ramps of ratio and weight are at their mean
            trainer.one_update(stream)
            times.append(standing.took)
        began = time.perf_counter()
        result = evaluate(setup.plain_model, setup.eval_batches, autocast=trainer.accelerator.autocast)
        return statistics.median(times[2:]), (time.perf_counter() - began) / result["images"]


def estimate_text(found: Sequence[Estimate], *, jobs: int) -> str:
    """The plan for a terminal."""
    head = (
        f"{'':24}{'runs':>6}{'left':>6}{'epochs':>8}{'updates':>9}{'FLOPs a run':>13}{'compute':>9}{'time a run':>12}"
    )
    lines = [head, "-" * len(head)]
    reference = next((each for each in found if each.name == "plain"), found[0])
    for each in found:
        compute = each.flops / reference.flops
        lines.append(
            f"{each.name:24}{each.runs:>6}{each.left:>6}{each.epochs:>8.4g}{each.updates:>9}{each.flops:>13.2e}"
            f"{compute:>7.2f} x{duration(each.seconds):>12}"
        )
    total = sum(each.left * each.seconds for each in found)
    flops = sum(each.left * each.flops for each in found)
    left = sum(each.left for each in found)
    lines += [
        "",
        f"{left} runs left, {flops:.2e} FLOPs; about {duration(total / max(1, min(jobs, left)))} with {jobs} "
        f"process(es) at a time.",
        f"Compute is relative to {reference.name}. The time comes from {UPDATES} measured updates of each arm and one "
        f"evaluation;",
        "reading the images in, and what processes on one machine take from each other, comes on top.",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, to two digits or so."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if seconds / size >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def as_dicts(found: Sequence[Estimate], *, jobs: int) -> dict[str, Any]:
    """For JSON."""
    return {"jobs": jobs, "arms": [vars(each) for each in found]}
