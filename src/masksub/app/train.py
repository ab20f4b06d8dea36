"""One training run, from a recipe to a run folder.

Everything random depends on the seed and on the place in training (``seeds``), so the state of a run is the weights,
the optimizer and the number of updates. A resumed run on a CPU is bit-equal to an unbroken one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from . import checkpoint as checkpoints
from .data import EvalBatches
from .devices import create_accelerator
from .energy import EnergyMeter
from .environment import command_line
from .errors import DivergedError, InputError, StoppedError
from .evaluate import evaluate
from .guard import Guard, mends
from .interrupt import InterruptedRun, StopRequest
from .keeper import Keeper
from .memory import restart_peak
from .processes import Processes
from .progress import Reporter
from .records import Records
from .resume import Continuation, continuation, see_alike
from .run_check import check_new_run
from .runs import RunFolder
from .settings import Recipe
from .setup import set_up
from .sharding import whole_weights
from .state import Standing
from .summary import summarise
from .update import Updater
from .window import BRANCHES, LossWindow

__all__ = ["train"]

_LAUNCHED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")
"""Variables of processes that torchrun or ``accelerate launch`` started: these may be fewer than was meant."""


def train(
    recipe: Recipe,
    path: str | Path,
    *,
    resume: bool = False,
    approximate: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    on_eval: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train and return the summary.

    Args:
        recipe: everything that decides the run.
        path: its folder.
        resume: go on from the last whole checkpoint, if there is one.
        approximate: go on also where the result will not be that of the unbroken run: with another number of
            processes, another precision or the like (see ``resume``).
        overwrite: move an existing folder out of the way first.
        reporter: where progress is told.
        on_eval: called with the record of each evaluation, on every process; what it raises ends the run.

    Returns:
        What summary.json holds.

    Raises:
        InputError: before anything is written.
        DivergedError: a loss or gradient that is not finite; the last checkpoint is kept, failure.json says where.
        StoppedError: a checkpoint that can't be written, or another process of the training that is gone.
        RunBusy: another process is training this run.
        InterruptedRun: on SIGINT or SIGTERM, after a checkpoint.
    """
    run = RunFolder(path)
    check_new_run(run.path, resume=resume, overwrite=overwrite)
    accelerator = create_accelerator(recipe)
    going_on = None
    if resume and run.begun:
        going_on = continuation(recipe, run, processes=accelerator.num_processes, approximate=approximate)
        recipe = going_on.recipe
    processes = Processes(accelerator, recipe.train.timeout_seconds)
    with reporter or Reporter(main=accelerator.is_main_process) as reporter, StopRequest() as request:
        if not accelerator.is_main_process:
            reporter.silence()
        with processes.together(lambda: "stopped before training; start all processes again"):
            see_alike(processes, run, going_on, recipe)
            trainer = Trainer(recipe, run, accelerator, reporter, request, on_eval, resume=resume)
        return trainer.run(going_on, resume=resume, approximate=approximate)


class Trainer:
    """The objects of one run and the loop over updates."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        accelerator: Accelerator,
        reporter: Reporter,
        request: StopRequest,
        on_eval: Callable[[dict[str, Any]], None] | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self.accelerator, self.reporter, self.request, self.folder = accelerator, reporter, request, run
        self.on_eval = on_eval
        self.processes = Processes(accelerator, recipe.train.timeout_seconds)
        restart_peak(accelerator.device)
        restored = resume and checkpoints.any_in(run.checkpoints)
        self.setup = set_up(recipe, accelerator, restored=restored, reading=self._reading, tell=reporter.line)
        self.recipe = self.setup.recipe
        # With several processes, who would read which counter once? The figure is left out.
        self.standing = Standing(EnergyMeter.find(accelerator.device) if self.processes.count == 1 else None)
        self.keeper = Keeper(run, self.setup, self.standing, accelerator, self.processes, reporter)
        self.writer = self.keeper.writer
        guard = Guard(recipe.train, self.standing, self.setup.plain_model, reporter.warn)
        self.one_update = Updater(
            self.setup, self.standing, accelerator, self.processes, guard, why_stopped=self._why_stopped
        )
        # What the processes agreed on in the last update.
        self.asked = self.unwritten = False

    def _reading(self, done: int, total: int) -> None:
        self.reporter.step("reading images", done, total)
        if self.request.signum:
            raise InterruptedRun(self.request.signum, "stopped on request while reading images; nothing was trained")

    def run(
        self, going_on: Continuation | None = None, *, resume: bool = False, approximate: bool = False
    ) -> dict[str, Any]:
        """All updates that are still to do, evaluations and checkpoints between them, and the summary.

        Args:
            going_on: how a run that was begun goes on.
            resume: go on, if there is anything to go on with.
            approximate: also from a checkpoint of another number of processes.
        """
        with contextlib.ExitStack() as held, self.processes.together(self._how_to_go_on):
            self._open_folder(resume, held)
            summary = self.folder.summary() if resume else None
            if self.processes.any(summary is not None)[0]:
                self.reporter.line(f"{self.folder.path} is complete already")
                if summary is None:
                    raise InputError(f"{self.folder.path} is complete, but not all processes see its summary.json")
                return summary
            if resume:
                self.keeper.restore(going_on, approximate)
            if self.processes.count > 1 or any(name in os.environ for name in _LAUNCHED):
                device, images = self.accelerator.device.type, self.setup.images_per_update
                self.reporter.line(f"{self.processes.count} process(es) on {device}, {images} images an update")
            return self._train()

    def _train(self) -> dict[str, Any]:
        records = Records(
            self.folder,
            main=self.processes.is_main,
            tensorboard=self.recipe.train.tensorboard,
            update=self.standing.update,
            warn=self.reporter.warn,
        )
        if self.standing.energy is not None:
            self.standing.energy.read()  # what came before is not training
        at_once = False
        stream = self.setup.stream(self.standing.update)
        try:
            self._evaluate_where_due(records)
            while self.standing.update < self.setup.updates:
                self.asked, self.unwritten = self.one_update(stream, self.request.signum > 0, self.writer.must_stop)
                self._show()
                self._log_where_due(records)
                self._evaluate_where_due(records)
                self._checkpoint_where_due()
                self._stop_if_asked()
            return self._finish()
        except DivergedError as error:
            if self.processes.is_main:
                update = self.standing.update + 1 if error.update is None else error.update
                with self._told_only(OSError):
                    self.folder.write_failure({"update": update, "epoch": self._epoch, "reason": str(error)})
            raise
        except InputError:
            # An image that can't be decoded: what was trained so far is kept.
            if self.one_update.between and self.processes.count == 1 and self.standing.update:
                with self._told_only(StoppedError):
                    self.keeper.save(wait=True)
            raise
        except SystemExit:
            at_once = True  # the second request to stop
            raise
        finally:
            if not at_once:
                self.writer.close()
                records.close()
                stream.close()  # an error's traceback would hold it, and its workers with it
                self.setup.batches.close()
                self.setup.eval_batches.close()

    def _why_stopped(self, what: str) -> str:
        lr = self.setup.optimizer.param_groups[0]["lr"]
        self.writer.close()
        last = checkpoints.latest(self.folder.checkpoints, self.reporter.warn)
        kept = f"the last good checkpoint is {last.path}" if last else "no checkpoint had been written yet"
        place = f"update {self.standing.update + 1} of {self.setup.updates}"
        return (
            f"{what} at {place} (learning rate {lr:.3g}); stopped before the optimizer step, {kept}. "
            f"Try {mends(self.recipe.train.precision)}; train.on_nan=skip leaves such updates out"
        )

    def _how_to_go_on(self) -> str:
        return (
            f"stopped at update {self.standing.update} of {self.setup.updates}; start all processes again with: "
            f"masksub train {self.folder.path} --resume"
        )

    def _log_where_due(self, records: Records) -> None:
        if self.standing.update % self.recipe.train.log_every and self.standing.update != self.setup.updates:
            return
        self.standing.read_energy()
        self.keeper.share_skips()
        window = LossWindow.of_all(self.processes.gather(self.standing.window))
        if window.count:  # none of the updates may have been made
            records.write(window.means(self._place()))
        self.standing.window = LossWindow()

    def _evaluate_where_due(self, records: Records) -> None:
        update = self.standing.update
        every = max(1, round(self.recipe.train.eval_every * self.setup.updates_per_epoch))
        if update == 0 or (update % every and update != self.setup.updates):
            return
        done = (record["update"] for record in self.folder.metrics() if record["kind"] == "eval")
        if self.processes.any(update in done)[0]:
            return
        began = time.perf_counter()
        model = self.setup.plain_model if self.setup.ema is None else self.setup.ema.module
        with whole_weights(model):
            result = evaluate(
                model,
                self._until_asked(self.setup.eval_batches),
                kind="sigmoid" if self.recipe.loss.name == "bce" else "softmax",
                reduce=self.processes.sum,
                autocast=self.accelerator.autocast,
            )
        self.standing.spent["seconds"] += time.perf_counter() - began
        if not math.isfinite(result["loss"]):
            raise DivergedError(
                f"the loss of the evaluation after update {update} of {self.setup.updates} is not finite; stopped. "
                f"Try {mends(self.recipe.train.precision)}",
                update,
            )
        record = {"kind": "eval", **self._place(), **result}
        records.write(record)
        if self.on_eval is not None:
            self.on_eval(record)
        self.reporter.line(
            f"epoch {self._epoch:g}: top-1 {result['top1']:.2f} %, loss {result['loss']:.4f} ({self.folder.path.name})"
        )

    def _checkpoint_where_due(self) -> None:
        every = self.recipe.train.checkpoint_every or self.setup.updates_per_epoch
        if self.standing.update == self.setup.updates:
            self.keeper.save(wait=True)
        elif self.standing.update % every == 0:
            self.keeper.save()
        self.writer.poll()

    def _stop_if_asked(self) -> None:
        """After an update or in an evaluation, on all processes alike."""
        if self.unwritten:
            self.writer.wait()
            raise StoppedError("the main process could not write a checkpoint, and says why")
        # Several processes agree in an update, so a later signal waits for the next one.
        if self.asked or (self.processes.count == 1 and self.request.signum):
            self.keeper.save(wait=True)
            signum = self.request.signum or 15
            raise InterruptedRun(
                signum,
                f"stopped on request after update {self.standing.update} of {self.setup.updates}; checkpoint written, "
                f"go on with: masksub train {self.folder.path} --resume",
            )

    def _until_asked(self, batches: EvalBatches) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an evaluation, cut off by a request to stop; the evaluation is then made after resuming."""
        each = iter(batches)
        for number in range(batches.rounds):  # as many on every process, so that all of them agree on stopping
            (self.asked,) = self.processes.any(self.request.signum > 0)
            self._stop_if_asked()
            self.reporter.step("evaluating", number, batches.rounds)
            yield from itertools.islice(each, 1)

    def _finish(self) -> dict[str, Any]:
        self.keeper.share_skips()
        summary = summarise(
            self.recipe,
            self.standing,
            [record for record in self.folder.metrics() if record["kind"] == "eval"],
            updates_per_epoch=self.setup.updates_per_epoch,
            parameters=sum(p.numel() for p in self.setup.plain_model.parameters()),
            device=self.accelerator.device,
        )
        summary["failed_checkpoints"] = self.writer.failed
        summary["skipped_images"] = self.setup.batches.skipped
        summary["skipped_validation_images"] = self.setup.eval_batches.skipped
        for batches, which in ((self.setup.batches, "training"), (self.setup.eval_batches, "validation")):
            if batches.skipped:
                files = "; ".join(batches.skipped_files)
                self.reporter.warn(f"{batches.skipped} {which} image(s) could not be read and were skipped: {files}")
        if self.processes.is_main:
            self.folder.write_summary(summary)
        return summary

    @contextlib.contextmanager
    def _told_only(self, kind: type[Exception]) -> Iterator[None]:
        """For what is done because of an error: one more error is told, and does not take its place."""
        try:
            yield
        except kind as error:
            self.reporter.warn(str(error))

    def _open_folder(self, resume: bool, held: contextlib.ExitStack) -> None:
        """On the main process; where it can't, all end."""
        failed: Exception | None = None
        if self.processes.is_main:
            try:
                self._open_as_main(resume, held)
            except (InputError, StoppedError, OSError) as error:
                failed = error
        told = self.processes.gather(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        if any(told):
            raise StoppedError("the main process can't open the run folder, and says why")

    def _open_as_main(self, resume: bool, held: contextlib.ExitStack) -> None:
        if self.folder.exists and not resume:
            with self.folder.lock():  # not while another process trains it
                self.reporter.line(f"the folder that was there is now {self.folder.set_aside()}")
        held.enter_context(self.folder.lock())
        self.folder.forget_failure()
        if not self.folder.begun:
            self.folder.create(self.recipe, self.setup.classes, command_line(), self.processes.count)

    @property
    def _epoch(self) -> float:
        return self.standing.update / self.setup.updates_per_epoch

    def _place(self) -> dict[str, Any]:
        last = max(0, self.standing.update - 1)
        ratio, weight = self.setup.settings_at(last / self.setup.updates)
        return {
            "update": self.standing.update,
            "epoch": self._epoch,
            "images": self.standing.images,
            "seconds": round(self.standing.spent["seconds"], 3),
            "flops": self.standing.spent["flops"],
            "lr": self.setup.optimizer.param_groups[0]["lr"],
            "mask_ratio": ratio,
            "weight": weight,
            **self._left_out(),
        }

    def _left_out(self) -> dict[str, int]:
        """Counts of updates left out, where the recipe may leave some out."""
        may = {
            "skipped_updates": self.recipe.train.on_nan == "skip",
            "overflowed_updates": bool(self.accelerator.scaler),
        }
        return {key: self.standing.counts[key] for key, possible in may.items() if possible}

    def _show(self) -> None:
        last, counts, took = self.standing.window.last, self.standing.counts, self.standing.took
        notes = [f"{name} {last[key]:.3f}" for key, name in BRANCHES.items() if last.get(key) is not None]
        notes.append(f"{self.setup.images_per_update / took:.0f} images/s")
        if left_out := counts["skipped_updates"] + counts["overflowed_updates"]:
            notes.append(f"{left_out} left out")
        self.reporter.step(self.folder.path.name, self.standing.update, self.setup.updates, ", ".join(notes))
