"""Runs that belong together, trained by any number of processes and machines, each run once.

A cell is a recipe and the run folder that it fills. Who trains a cell holds the folder's lock; all else is read from
the folder: complete, failed, or to be begun or gone on with. There is no list of tasks that could disagree with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masksub.app.errors import DivergedError, InputError, RunBusy, StoppedError
from masksub.app.progress import Reporter
from masksub.app.resume import as_recorded
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.train import train

__all__ = ["Cell", "check_cells", "progress", "run_cell", "work_on"]

WAIT = 2.0
"""Seconds between two looks at runs that other processes have."""


@dataclass(frozen=True)
class Cell:
    """A run that is to be there: its recipe and its folder."""

    recipe: Recipe
    folder: Path

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.folder)

    @property
    def state(self) -> Literal["complete", "failed", "begun", "missing"]:
        """What the folder says."""
        run = self.run
        if run.begun and run.summary() is not None:
            return "complete"
        if run.failure() is not None:
            return "failed"
        return "begun" if run.begun else "missing"


def check_cells(cells: Sequence[Cell]) -> None:
    """See that what is there already was made by these recipes.

    Raises:
        InputError: a folder of another recipe, with the differing keys, or something else at a cell's place.
    """
    for cell in cells:
        if cell.run.begun:
            as_recorded(cell.recipe, cell.run)
        elif cell.run.exists and not (cell.folder / "checkpoints").is_dir():
            raise InputError(f"{cell.folder} is in the way: it is not a run folder, and a run is to be made there")


def run_cell(
    recipe: Recipe,
    folder: Path,
    *,
    reporter: Reporter | None = None,
    on_eval: Callable[[dict[str, Any]], None] | None = None,
) -> Literal["complete", "failed", "busy"]:
    """Train a cell, or go on with it, unless it is done or another process has it.

    Args:
        recipe: of the run.
        folder: its run folder.
        reporter: where progress is told.
        on_eval: as for ``train``.

    Returns:
        "complete", "failed" (it diverged, now or before) or "busy".

    Raises:
        InputError: the folder was made with another recipe, or the recipe can't be trained.
        InterruptedRun: on a signal, after a checkpoint.
        StoppedError: it can't go on, through no mistake in the recipe.
    """
    cell = Cell(recipe, folder)
    if (state := cell.state) == "complete" or state == "failed":
        check_cells([cell])
        return state
    try:
        with cell.run.lock():
            if (state := cell.state) == "complete" or state == "failed":
                return state  # by another process, a moment ago
            train(recipe, folder, resume=True, reporter=reporter, on_eval=on_eval)
    except RunBusy:
        return "busy"
    except DivergedError:
        return "failed"
    return "complete"


def work_on(cells: Sequence[Cell], *, reporter: Reporter | None = None) -> dict[str, str]:
    """Train cell after cell until none is left, also those that other processes leave behind.

    Returns:
        Folder -> why, for the cells that could not be trained although nothing is wrong with their recipe (a full disk,
        memory). Diverged ones are not among them: their folders tell.
    """
    left, errors = list(cells), {}
    reporter = reporter or Reporter(quiet=True)
    while left:
        busy = []
        for cell in left:
            try:
                if run_cell(cell.recipe, cell.folder, reporter=reporter) == "busy":
                    busy.append(cell)
            except (StoppedError, OSError, MemoryError, RuntimeError) as error:
                errors[str(cell.folder)] = str(error) or type(error).__name__
        if len(busy) == len(left):
            time.sleep(WAIT)
        left = busy
    return errors


def progress(cells: Sequence[Cell]) -> tuple[int, int, str]:
    """How far they are: hundredths of a run that are done, of how many, and a note."""
    total, complete, failed = 0.0, 0, 0
    for cell in cells:
        state = cell.state
        complete, failed = complete + (state == "complete"), failed + (state == "failed")
        if state != "begun":
            total += state != "missing"
            continue
        last = None
        for last in cell.run.metrics():  # noqa: B007
            pass
        total += min(1.0, last["epoch"] / cell.recipe.train.epochs) if last else 0.0
    note = f"{complete} of {len(cells)} runs complete" + (f", {failed} failed" if failed else "")
    return round(100 * total), 100 * len(cells), note
