"""Made-up training for the tests of sweeps, and a worker process that "trains" by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from masksub.app.errors import RunBusy
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.sweep import study as sweep_study
from masksub.app.sweep import worker as sweep_worker
from masksub.app.sweep.plan import Plan

EVALUATIONS = 4
DIVERGES = 0.1
"""Learning rate above which a run diverges."""


def made_up_top1(recipe: Recipe) -> float:
    """Best at ratio 0.5 and weight 0.5."""
    ratio, weight = recipe.sub.ratio_schedule(0.9), recipe.sub.weight_schedule(0.9)
    return 90 - 20 * abs(ratio - 0.5) - 10 * abs(weight - 0.5) + 0.1 * recipe.seed


def made_up_run(
    recipe: Recipe,
    folder: Path,
    *,
    reporter: Reporter | None = None,
    on_eval: Callable[[dict[str, Any]], None] | None = None,
) -> Literal["complete", "failed", "busy"]:
    """Stands in for ``run_cell``. ``begun.log`` and ``ended.log`` beside the runs have a line for each time it trained.

    In a process with MADE_UP_HANG in its environment the first run never ends.
    """
    run = RunFolder(folder)
    if run.summary() is not None:
        return "complete"
    if run.failure() is not None:
        return "failed"
    try:
        with run.lock():
            return _train(recipe, run, on_eval)
    except RunBusy:
        return "busy"


def _train(
    recipe: Recipe, run: RunFolder, on_eval: Callable[[dict[str, Any]], None] | None
) -> Literal["complete", "failed"]:
    if not run.begun:
        run.create(recipe, ["a", "b"], [])
    log(run.path, "begun")
    if recipe.optim.lr > DIVERGES:
        run.write_failure({"update": 3, "epoch": 0.5, "reason": "the loss is not finite"})
        return "failed"
    if "MADE_UP_HANG" in os.environ:
        (run.path.parent / "hangs").write_text(run.path.name)
        time.sleep(600)
    top1 = made_up_top1(recipe)
    done = sum(record["kind"] == "eval" for record in run.metrics())
    for number in range(done + 1, EVALUATIONS + 1):
        time.sleep(float(os.environ.get("MADE_UP_SECONDS", "0")) / EVALUATIONS)
        value = top1 - 5 * (EVALUATIONS - number)
        record = {"kind": "eval", "update": number, "epoch": float(number), "flops": 1e9 * number, "top1": value}
        run.append(record)
        if on_eval is not None:
            on_eval(record)
    run.write_summary(
        {
            "method": recipe.method, "seed": recipe.seed, "best_top1": top1, "updates": EVALUATIONS, "images": 100,
            "final": {"top1": top1, "loss": 0.3, "calibration_error": 2.0, "images": 50}, "epochs": EVALUATIONS,
            "parameters": 10, "seconds": 1.0, "train_seconds": 0.9, "data_seconds": 0.1, "images_per_second": 100.0,
            "flops": 1e12 * (2 - recipe.sub.ratio_schedule(0.9)), "data_wait_share": 0.1,
            "peak_memory_bytes": 1000, "peak_memory_of": "the whole process",
        }
    )  # fmt: skip
    log(run.path, "ended")
    return "complete"


def log(folder: Path, what: str) -> None:
    with (folder.parent / f"{what}.log").open("a", encoding="utf-8") as file:
        file.write(folder.name + "\n")


def logged(folder: Path, what: str) -> list[str]:
    """Names of the runs, once for each time."""
    path = folder / f"{what}.log"
    return sorted(path.read_text(encoding="utf-8").split()) if path.exists() else []


def worker(plan: Plan, environment: dict[str, str]) -> None:
    """What a worker's process does."""
    os.environ.update(environment)
    setattr(sweep_worker, "run_cell", made_up_run)  # noqa: B010
    if "MADE_UP_OTHER_MACHINE" in environment:  # a death is then told by the missing heartbeat alone
        setattr(sweep_study, "is_here_and_dead", lambda worker: False)  # noqa: B010
    sweep_worker.work(plan)
