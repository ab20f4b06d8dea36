"""What a worker of a sweep does: take a setting, train its seeds, say what came out, until nothing is left."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import sys
import time
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from masksub.app.errors import InputError, StoppedError
from masksub.app.experiment.cells import Cell, run_cell
from masksub.app.interrupt import InterruptedRun, StopRequest
from masksub.app.progress import Reporter
from masksub.app.runs import RunFolder, write_text_atomically

from .plan import Plan
from .storage import Heartbeat, exclusive, hide_password, open_storage, patiently
from .study import Claim, SharedStudy

__all__ = ["work"]

WAIT = 1.0
"""Seconds between two looks at what other workers have."""
PRUNED = "pruned.json"


def work(plan: Plan) -> None:
    """Try settings of the study until all are done, also those that other workers leave behind.

    A run that is complete is not made again: its result is read from its folder. A setting that can't be trained
    although nothing is wrong with its recipe (a full disk, memory) is noted as such, and the next is taken.

    Args:
        plan: the sweep. Its study must be there.

    Raises:
        InputError: the data or model can't be used on this machine.
        InterruptedRun: on a signal, after a checkpoint.
        StoppedError: the database does not answer.
    """
    sys.argv[:] = [hide_password(word) for word in sys.argv]  # each run notes the command that made it
    shared: SharedStudy = patiently(plan.url, _join, plan)
    with contextlib.closing(shared), StopRequest() as request:
        while True:
            _stop_if_asked(request)
            claim = shared.claim()
            if claim == "done":
                return
            if isinstance(claim, Claim):
                with Heartbeat(shared.storage, claim.trial_id):
                    _try(shared, claim, request)
            else:
                time.sleep(WAIT)


def _join(plan: Plan) -> SharedStudy:
    with exclusive(plan.url, plan.study):
        return SharedStudy(plan, open_storage(plan.url, beat=plan.beat, grace=plan.grace))


def _stop_if_asked(request: StopRequest) -> None:
    if request.signum:
        raise InterruptedRun(request.signum, "stopped on request; the same command goes on with what is missing")


def _try(shared: SharedStudy, claim: Claim, request: StopRequest) -> None:
    """Train the seeds of a setting and say what came out; whatever happens, it is not left as if it were running."""
    cells = shared.plan.cells(claim.settings)
    try:
        runs: list[dict[str, Any]] = []
        watch = _Watch(shared.plan, claim, cells)
        if claim.again:  # here and not in the command: the folders may be on other machines
            for cell in cells:
                cell.run.forget_failure()
        for number, cell in enumerate(cells):
            watch.number = number
            _train(cell, watch, request)
            runs.append(_told(cell))
            patiently(shared.plan.url, claim.trial.set_user_attr, "runs", runs)
            watch.report()
        failed = [f"seed {run['seed']}: {run['reason']}" for run in runs if run["status"] == "failed"]
        if failed:
            shared.finish(claim, TrialState.FAIL, reason=f"diverged: {'; '.join(failed)}")
        else:
            shared.finish(claim, TrialState.COMPLETE, statistics.fmean(run["top1"] for run in runs))
    except optuna.TrialPruned as pruned:
        shared.finish(claim, TrialState.PRUNED, reason=str(pruned))
    except UpdateFinishedTrialError:
        return  # this machine slept, and the setting was given to another worker
    except InputError as error:  # a setting that can't be trained; the others can
        shared.finish(claim, TrialState.FAIL, reason=str(error))
    except (StoppedError, OSError, MemoryError, RuntimeError) as error:
        why = str(error) or type(error).__name__
        shared.finish(claim, TrialState.FAIL, error=why, session=shared.plan.session)
    except BaseException:
        with contextlib.suppress(StoppedError):
            shared.finish(claim, TrialState.FAIL)  # for another worker
        raise


def _train(cell: Cell, watch: _Watch, request: StopRequest) -> None:
    """Train one run to its end, or wait for the process that has it."""
    while True:
        _stop_if_asked(request)
        (cell.folder / PRUNED).unlink(missing_ok=True)
        on_eval = watch.evaluated if watch.plan.pruner != "none" else None
        if run_cell(cell.recipe, cell.folder, reporter=Reporter(quiet=True), on_eval=on_eval) != "busy":
            return
        time.sleep(WAIT)


def _told(cell: Cell) -> dict[str, Any]:
    """A run for the study: workers elsewhere do not see its folder."""
    run, seed = cell.run, cell.recipe.seed
    found = {"seed": seed, "host": platform.node(), "folder": str(cell.folder.absolute())}
    if (summary := run.summary()) is None:
        reason = (run.failure() or {}).get("reason", "no result")
        return {**found, "status": "failed", "reason": reason}
    keys = ("flops", "seconds", "train_seconds", "epochs")
    figures = {key: summary[key] for key in keys if key in summary}
    return {**found, "status": "complete", "top1": summary["final"]["top1"], **figures}


class _Watch:
    """Reports the evaluations of a setting to the pruner, and ends a run that it cuts off.

    The steps are the evaluations of all its runs, one seed after the other; the value of a step is the mean over the
    seeds so far of top-1 at that point of training, so that equal steps of two settings can be compared.
    """

    def __init__(self, plan: Plan, claim: Claim, cells: list[Cell]) -> None:
        self.plan, self.number = plan, 0
        self._trial, self._cells = claim.trial, cells
        self._steps = 0

    def evaluated(self, record: dict[str, Any]) -> None:
        """After an evaluation of run ``number``; raises TrialPruned."""
        self.report()
        if not self._is_cut_off():
            return
        place = f"seed {self._cells[self.number].recipe.seed}, epoch {record['epoch']:g}"
        reason = f"top-1 {record['top1']:.2f} % at {place}: cut off by the {self.plan.pruner} pruner"
        text = json.dumps({"update": record["update"], "reason": reason}, indent=2)
        write_text_atomically(self._cells[self.number].folder / PRUNED, text + "\n")
        raise optuna.TrialPruned(reason)

    def _is_cut_off(self) -> bool:
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            return bool(self._trial.should_prune())
        return False  # a database that does not answer is no reason to stop training

    def report(self) -> None:
        """All that was not told yet, also what was evaluated before an interruption."""
        if self.plan.pruner == "none":
            return
        curves = [_curve(cell.run) for cell in self._cells[: self.number + 1]]
        values = [
            statistics.fmean(other[point] for other in curves[: number + 1] if point < len(other))
            for number, curve in enumerate(curves)
            for point in range(len(curve))
        ]
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            while self._steps < len(values):
                self._trial.report(values[self._steps], self._steps + 1)
                self._steps += 1


def _curve(run: RunFolder) -> list[float]:
    return [record["top1"] for record in run.metrics() if record["kind"] == "eval"]
