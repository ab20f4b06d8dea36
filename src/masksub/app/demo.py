"""The demonstration: four ways of training on the embedded digits, from run folders to a table and a picture."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from .cost import FlopTable
from .data import open_source
from .errors import InputError
from .interrupt import InterruptedRun, StopRequest
from .models import create_criterion, create_model
from .progress import Reporter
from .recipe import load_recipe
from .runs import RunFolder, write_text_atomically
from .settings import Recipe
from .train import train

__all__ = ["ARMS", "Arm", "run_demo"]

RECIPE = "digits/vit_micro"
EVALUATIONS = 20
"""Evaluations of each run: points of its curves."""
CHECKPOINT_UPDATES = 200
"""Updates between two checkpoints: some seconds of work, should it be interrupted."""


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: for people, and part of the run folder's name.
        method: key of METHODS.
        equal_compute: whether training is made longer until it costs as much as MaskSub's.
    """

    name: str
    method: str
    equal_compute: bool = False


ARMS = (
    Arm("plain", "plain"),
    Arm("plain, equal compute", "plain", equal_compute=True),
    Arm("masking in plain training", "direct-mask"),
    Arm("MaskSub", "masksub"),
)


def run_demo(folder: Path, *, seeds: int, reporter: Reporter, overrides: tuple[str, ...] = ()) -> str:
    """Train all arms, as many at a time as there are cores, and say what was seen.

    Runs that are complete are not made again; interrupted ones go on.

    Args:
        folder: gets one run folder for each arm and seed, ``demo.json`` and ``demo.png``.
        seeds: paired seeds, 0 to seeds - 1.
        reporter: where progress is told.
        overrides: changes to the recipe, for tests.

    Returns:
        The table and the sentence.

    Raises:
        InputError: the folder holds runs of another recipe.
    """
    from .figures import draw_demo  # matplotlib, needed at the end only

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: --out needs a folder")
    base = load_recipe(RECIPE, overrides)
    compute = compute_ratio(base)
    recipes = {(arm, seed): _arm_recipe(base, arm, seed, compute) for arm in ARMS for seed in range(seeds)}
    folders = {key: folder / f"{_slug(key[0].name)}-s{key[1]}" for key in recipes}
    began = time.perf_counter()
    with reporter:
        # The longest first, so that no core is left waiting for the last one.
        longest = sorted(recipes, key=lambda key: -compute_share(key[0], compute) * recipes[key].train.epochs)
        _train_all([(recipes[key], folders[key]) for key in longest], reporter)
    rows = [_row(arm, [RunFolder(folders[arm, seed]) for seed in range(seeds)]) for arm in ARMS]
    result = {"seeds": seeds, "rows": rows, "sentence": sentence(rows)}
    write_text_atomically(folder / "demo.json", json.dumps(result, indent=2) + "\n")
    picture = folder / "demo.png"
    draw_demo(picture, {arm.name: [folders[arm, seed] for seed in range(seeds)] for arm in ARMS}, base)
    took = f"{time.perf_counter() - began:.0f} s; runs, {folder / 'demo.json'} and picture: {picture}"
    return f"{table(rows)}\n\n{result['sentence']}\n\n{took}"


def compute_ratio(base: Recipe) -> float:
    """Operations of a MaskSub step over those of a plain step, from shapes."""
    classes = len(open_source(base.data, "train", 0).classes)
    with torch.random.fork_rng(devices=[]):
        model, criterion = create_model(base, classes), create_criterion(base)
    ratio, weight = base.sub.ratio_schedule(0.0), base.sub.weight_schedule(0.0)
    table = FlopTable(model, criterion, base, classes)
    return table.per_image(ratio, weight) / table.per_image(0.0, 0.0)


def compute_share(arm: Arm, compute: float) -> float:
    """About how much a step of this arm costs, in plain steps."""
    return {"masksub": compute, "direct-mask": compute - 1}.get(arm.method, 1.0)


def _arm_recipe(base: Recipe, arm: Arm, seed: int, compute: float) -> Recipe:
    epochs = base.train.epochs * (compute if arm.equal_compute else 1.0)
    recipe = base.changed(
        "train", epochs=epochs, eval_every=epochs / EVALUATIONS, checkpoint_every=CHECKPOINT_UPDATES, tensorboard=False
    )
    return recipe.model_copy(update={"method": arm.method, "seed": seed})


def _train_all(jobs: list[tuple[Recipe, Path]], reporter: Reporter) -> None:
    """One process a core, one thread a process: small models gain nothing from more threads."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(_workers(len(jobs)), mp_context=context, initializer=_start_worker, initargs=(stop,))
    pending: set[Future[None]] = set()
    with pool, StopRequest() as request:
        try:
            pending = {pool.submit(_train_one, recipe, path) for recipe, path in jobs}
            while pending:
                done, pending = wait(pending, timeout=0.5)
                for future in done:
                    future.result()
                reporter.step("training", round(100 * _progress(jobs)), 100 * len(jobs), _note(jobs))
                if request.signum:
                    raise InterruptedRun(
                        request.signum, "stopped on request; the same command goes on with what is missing"
                    )
        except BrokenProcessPool:
            if not request.signum:
                raise
            raise InterruptedRun(request.signum, "stopped on request; the same command goes on") from None
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # what it trains writes a checkpoint and ends
            raise


def _workers(jobs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, jobs))


def _start_worker(stop: Event) -> None:
    global _stop  # what a worker is given at its start has no other place
    _stop = stop
    torch.set_num_threads(1)


_stop: Event | None = None


def _train_one(recipe: Recipe, path: Path) -> None:
    if _stop is not None and _stop.is_set():
        return  # was already on its way to this worker
    train(recipe, path, resume=True, reporter=Reporter(quiet=True))


def _progress(jobs: list[tuple[Recipe, Path]]) -> float:
    """Sum over runs of the share that is done."""
    total = 0.0
    for recipe, path in jobs:
        last = None
        for last in RunFolder(path).metrics():  # noqa: B007
            pass
        total += last["epoch"] / recipe.train.epochs if last else 0.0
    return total


def _note(jobs: list[tuple[Recipe, Path]]) -> str:
    complete = sum((path / "summary.json").exists() for _, path in jobs)
    return f"{complete} of {len(jobs)} runs complete"


def _row(arm: Arm, runs: list[RunFolder]) -> dict[str, Any]:
    """One line of the table, from the runs' own files."""
    summaries = [summary for run in runs if (summary := run.summary()) is not None]
    top1 = [float(summary["final"]["top1"]) for summary in summaries]
    return {
        "arm": arm.name,
        "epochs": summaries[0]["epochs"],
        "top1": top1,
        "mean": float(np.mean(top1)),
        "spread": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
        "flops": float(np.mean([summary["flops"] for summary in summaries])),
        "seconds": float(np.mean([summary["train_seconds"] for summary in summaries])),
        "runs": [str(run.path) for run in runs],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal; compute relative to the first."""
    head = f"{'':27}{'epochs':>7}{'compute':>9}{'top-1 %':>15}{'seconds':>9}"
    lines = [head, "-" * len(head)]
    for row in rows:
        spread = "" if row["spread"] is None else f" +- {row['spread']:.1f}"
        accuracy = f"{row['mean']:.1f}{spread}"
        compute = f"{row['flops'] / rows[0]['flops']:.2f} x"
        lines.append(f"{row['arm']:27}{row['epochs']:7.0f}{compute:>9}{accuracy:>15}{row['seconds']:9.0f}")
    lines.append(
        "top-1: mean over seeds of the last evaluation, +- standard deviation; seconds of training, one thread"
    )
    return "\n".join(lines)


def sentence(rows: list[dict[str, Any]]) -> str:
    """What was seen, no stronger than the figures: a difference whose 95 % interval contains 0 is not called one."""
    by_name = {row["arm"]: row for row in rows}
    plain, equal, direct, sub = (by_name[arm.name] for arm in ARMS)
    seeds = len(sub["top1"])
    if seeds < 3:
        gap = sub["mean"] - equal["mean"]
        return (
            f"MaskSub ended {gap:+.1f} points from plain training at equal compute, over {seeds} seed(s): too few to "
            f"say anything about noise; three are the least."
        )
    said = [
        _difference(sub, equal, "At equal compute, MaskSub", "plain training"),
        _difference(sub, plain, "At equal epochs (and more compute), MaskSub", "plain training"),
        _difference(direct, plain, "Masking inside plain training", "plain training"),
    ]
    return (
        "\n".join(said)
        + f"\n(95 % t-intervals of the paired difference over {seeds} seeds; few seeds, wide intervals.)"
    )


def _difference(one: dict[str, Any], two: dict[str, Any], who: str, whom: str) -> str:
    gaps = np.subtract(one["top1"], two["top1"])
    mean = float(gaps.mean())
    if np.ptp(gaps) == 0:  # no variance: the t-interval is not defined
        low = high = mean
    else:
        low, high = scipy.stats.t.interval(0.95, len(gaps) - 1, loc=mean, scale=scipy.stats.sem(gaps))
    interval = f"{mean:+.1f} points, interval {low:+.1f} to {high:+.1f}"
    if low <= 0 <= high:
        return f"{who}: no difference from {whom} seen ({interval})."
    return f"{who} is {'better' if mean > 0 else 'worse'} than {whom} ({interval})."


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).replace("--", "-")
