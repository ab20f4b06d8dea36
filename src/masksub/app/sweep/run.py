"""A sweep over recipe keys: settings tried by any number of workers, and what to set.

The runs are run folders, and what is said about them is read from these. Which setting is whose, and what was drawn,
is in the study (``sweep_study``).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from masksub.app.errors import InputError, StoppedError
from masksub.app.experiment.cells import check_cells
from masksub.app.experiment.check import check_folder, check_trainable, seeds_of, settle_cache
from masksub.app.experiment.estimate import as_dicts, estimate_cells, estimate_text
from masksub.app.experiment.workers import default_jobs, run_in_processes
from masksub.app.progress import Reporter
from masksub.app.settings import Recipe

from .plan import Plan
from .result import line_of, sweep_result
from .space import parse_space
from .storage import check_reachable, patiently, storage_url
from .study import Progress, SharedStudy
from .worker import work

__all__ = ["plan_sweep", "run_sweep"]

SAMPLERS = ("grid", "tpe", "random")
PRUNERS = ("none", "median", "hyperband")
TRIALS = 20
"""Settings that a sampler draws where nothing else is asked for."""
LOOK = 3.0
"""Seconds between two looks at the study, for the bar and the news."""


def run_sweep(
    base: Recipe,
    folder: Path,
    *,
    space: Sequence[str],
    seeds: int,
    sampler: str = "grid",
    pruner: str = "none",
    trials: int | None = None,
    storage: str | None = None,
    study: str | None = None,
    jobs: int | None = None,
    statistics: str = "t",
    dry_run: bool = False,
    retry_failed: bool = False,
    reporter: Reporter,
) -> tuple[dict[str, Any], str]:
    """Try settings and tell which to use.

    Stopped and started again, it goes on with what is missing. Started several times on one study, on this machine or
    on others, the commands share the work.

    Args:
        base: the recipe; its seed is the first one.
        folder: gets a run folder ``SETTING-sSEED`` for each run, and sweep.json.
        space: what is varied, items for ``sweep_space.parse_space``.
        seeds: of each setting.
        sampler: "grid" (all settings), "tpe" or "random".
        pruner: "none", "median" or "hyperband": cuts off settings that fall behind.
        trials: how many settings tpe or random draw, all workers together; None for 20.
        storage: postgresql://..., or None for a file in the folder.
        study: its name in the storage; None for the folder's.
        jobs: processes at a time, None for the default.
        statistics: of the intervals, "t" or "bootstrap".
        dry_run: only tell what a grid will take; nothing is written.
        retry_failed: try settings of which a run diverged again; with the same software and machine it diverges again.
        reporter: where progress is told.

    Returns:
        The result for JSON, and text for a terminal.

    Raises:
        InputError: before anything is written: values that the recipe refuses, a study with other settings, a database
            that can't be reached.
        InterruptedRun: on a signal; the same command goes on.
        StoppedError: runs could not be made, through no mistake in the recipe.
    """
    if statistics not in ("t", "bootstrap"):
        raise InputError(f"--statistics {statistics}: must be t or bootstrap")
    jobs = jobs or default_jobs(base.train.device)
    plan = plan_sweep(
        settle_cache(base, folder, jobs),
        folder,
        space=space,
        seeds=seeds,
        sampler=sampler,
        pruner=pruner,
        trials=trials,
        storage=storage,
        study=study,
    )
    if dry_run:
        return _told(plan, jobs)
    check_reachable(plan.url)
    if plan.url.startswith("sqlite"):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(SharedStudy.create(plan)) as shared, reporter:
        folder.mkdir(parents=True, exist_ok=True)  # not before the study has said that it is the same
        if retry_failed:
            shared.retry_failed()
        progress = patiently(plan.url, shared.progress)
        if progress.finished < progress.total:
            jobs = max(1, min(jobs, progress.total - progress.finished))
            run_in_processes(work, [(plan,)] * jobs, jobs=jobs, reporter=reporter, poll=_poll(shared, reporter))
            progress = patiently(plan.url, shared.progress)
    _check_done(plan, progress)
    return sweep_result(plan, progress.trials, statistics=statistics)


def _told(plan: Plan, jobs: int) -> tuple[dict[str, Any], str]:
    """What the runs of a grid will take."""
    if plan.sampler != "grid":
        raise InputError(f"--dry-run with --sampler {plan.sampler}: only the settings of a grid are known beforehand")
    cells = [cell for drawn in plan.space.grid() for cell in plan.cells(plan.space.settings(drawn))]
    found = estimate_cells(cells, jobs=jobs)
    return as_dicts(found, jobs=jobs), estimate_text(found, jobs=jobs)


def plan_sweep(
    base: Recipe,
    folder: Path,
    *,
    space: Sequence[str],
    seeds: int,
    sampler: str = "grid",
    pruner: str = "none",
    trials: int | None = None,
    storage: str | None = None,
    study: str | None = None,
) -> Plan:
    """Check what is asked for, as far as that goes without the storage; writes nothing.

    Raises:
        InputError: everything that is wrong with the values, or the folder holds runs of other recipes.
    """
    for option, value, accepted in (("--sampler", sampler, SAMPLERS), ("--pruner", pruner, PRUNERS)):
        if value not in accepted:
            raise InputError(f"{option} {value}: must be {', '.join(accepted[:-1])} or {accepted[-1]}")
    seeds_of(base, seeds)
    if trials is not None and trials < 1:
        raise InputError(f"--trials {trials}: must be at least 1")
    if sampler == "grid" and trials is not None:
        raise InputError(f"--trials {trials}: a grid tries all its settings; --trials is for --sampler tpe or random")
    check_folder(folder)
    plan = Plan(
        base=base,
        space=parse_space(space, base, grid=sampler == "grid"),
        folder=folder,
        seeds=seeds,
        sampler=_one_of(sampler, SAMPLERS),
        pruner=_one_of(pruner, PRUNERS),
        trials=None if sampler == "grid" else trials or TRIALS,
        url=storage_url(storage, folder),
        study=study or folder.absolute().name,
        session=uuid.uuid4().hex,
    )
    grid = [plan.cells(plan.space.settings(drawn)) for drawn in plan.space.grid()] if sampler == "grid" else []
    for cells in grid:
        check_cells(cells)
    check_trainable(cells[0].recipe for cells in grid)
    return plan


def _one_of(value: str, accepted: tuple[str, ...]) -> Any:
    assert value in accepted
    return value


def _poll(shared: SharedStudy, reporter: Reporter) -> Callable[[], tuple[int, int, str]]:
    """How far the study is, for the bar, with a line for each setting that ends, also on other machines."""
    told = {trial.number for trial in shared.progress().trials if trial.state.is_finished()}
    last: dict[str, Any] = {"at": 0.0, "said": (0, 1, "")}

    def poll() -> tuple[int, int, str]:
        if time.monotonic() - last["at"] < LOOK:
            return last["said"]  # type: ignore[no-any-return]
        last["at"] = time.monotonic()
        try:
            progress = shared.progress()
        except Exception:  # a database that does not answer now: the workers wait for it, and say so if it stays away
            return last["said"]  # type: ignore[no-any-return]
        for trial in progress.trials:
            if trial.state.is_finished() and trial.number not in told:
                told.add(trial.number)
                reporter.line(line_of(trial))
        note = f"settings; {progress.running} running" + (f", {progress.failed} failed" if progress.failed else "")
        last["said"] = (progress.finished, progress.total, note)
        return last["said"]  # type: ignore[no-any-return]

    return poll


def _check_done(plan: Plan, progress: Progress) -> None:
    """Raises StoppedError if settings are left."""
    errors = [trial for trial in progress.trials if "error" in trial.user_attrs and trial.state is TrialState.FAIL]
    left = progress.total - progress.finished
    if not errors and left <= 0:
        return
    said = [line_of(trial) for trial in errors] + ([f"{left} more: their workers were killed"] if left > 0 else [])
    raise StoppedError(
        f"{len(errors) + max(left, 0)} of {progress.total} settings could not be tried; the same command tries them "
        f"again:\n  " + "\n  ".join(said)
    )
