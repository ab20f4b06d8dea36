"""One training run, from a recipe to a run folder.

Everything random depends on the seed and on the place in training (``seeds``), so the state of a run is the weights,
the optimizer and the number of updates. A resumed run on a CPU is bit-equal to an unbroken one.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from masksub.core.branches import MaskSub
from masksub.core.methods import METHODS
from masksub.core.step import TwoBranchStep
from masksub.core.wrappers import without_gradient_sync

from . import checkpoint as checkpoints
from .attention import settle_attention
from .cost import FlopTable
from .data import EvalBatches, TrainBatches, open_data
from .devices import create_accelerator
from .energy import EnergyMeter
from .errors import DivergedError, InputError
from .evaluate import evaluate
from .interrupt import InterruptedRun, StopRequest
from .memory import restart_peak
from .models import create_criterion, create_model, create_optimizer, create_schedule
from .progress import Reporter
from .runs import RunFolder, as_recorded, command_line
from .seeds import generator, mix
from .settings import Recipe
from .state import Standing, restore, save
from .summary import summarise
from .window import BRANCHES, LossWindow

__all__ = ["train"]


def train(
    recipe: Recipe,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    on_eval: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train and return the summary.

    Args:
        recipe: everything that decides the run.
        path: its folder.
        resume: go on from the last whole checkpoint, if there is one.
        overwrite: move an existing folder out of the way first.
        reporter: where progress is told.
        on_eval: called with the record of each evaluation, on every process; what it raises ends the run.

    Returns:
        What summary.json holds.

    Raises:
        InputError: before anything is written.
        DivergedError: a loss that is not finite; the last checkpoint is kept, failure.json says where.
        RunBusy: another process is training this run.
        InterruptedRun: on SIGINT or SIGTERM, after a checkpoint.
    """
    run = RunFolder(path)
    if run.exists and not (resume or overwrite):
        raise InputError(f"{run.path} exists: go on with --resume, or start anew with --overwrite (it is set aside)")
    parent = next(each for each in (run.path, *run.path.absolute().parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{run.path}: can't make a run folder, {parent} is no folder that can be written to")
    recipe = as_recorded(recipe, run) if resume and run.begun else recipe
    accelerator = create_accelerator(recipe)
    with reporter or Reporter(main=accelerator.is_main_process) as reporter, StopRequest() as request:
        trainer = Trainer(recipe, run, accelerator, reporter, request, on_eval)
        return trainer.run(resume=resume)


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
    ) -> None:
        # 1. Data and model. Wrong input ends here, before anything is written.
        self.accelerator, self.reporter, self.request, self.folder = accelerator, reporter, request, run
        self.on_eval = on_eval
        restart_peak(accelerator.device)
        train_source, val_source = open_data(recipe.data, recipe.seed)
        self.classes = train_source.classes
        torch.manual_seed(mix(recipe.seed, "weights"))
        model = create_model(recipe, len(self.classes))
        recipe = settle_attention(recipe, model, accelerator)
        self.recipe, self.method = recipe, METHODS[recipe.method]
        wanted = recipe.sub
        self.sub = self.method.branch(0.0, unit=wanted.unit, p=wanted.p, efficient=wanted.efficient, bn=wanted.bn)
        criterion = create_criterion(recipe)
        self.flops = FlopTable(model, criterion, recipe, len(self.classes))
        self.flops.per_image(*self.settings_at(0.0))  # also the first try of the masked forward, on shapes alone

        # 2. Batches.
        place = {"rank": accelerator.process_index, "world": accelerator.num_processes, "device": accelerator.device}
        self.batches = TrainBatches(
            train_source,
            recipe.data,
            recipe.augment,
            seed=recipe.seed,
            batch_size=recipe.train.batch_size,
            accumulate=recipe.train.accumulate,
            num_classes=len(self.classes),
            smoothing=recipe.loss.smoothing,
            progress=self._reading,
            **place,
        )
        self.recipe = recipe.changed("data", cache=self.batches.held)
        eval_size = recipe.train.eval_batch_size or recipe.train.batch_size
        self.eval_batches = EvalBatches(
            val_source, recipe.data, recipe.augment, batch_size=eval_size, progress=self._reading, **place
        )
        self.updates_per_epoch = self.batches.batches_per_epoch // recipe.train.accumulate
        self.updates = max(1, round(recipe.train.epochs * self.updates_per_epoch))

        # 3. Optimizer, schedule, moving average, and the step; then what Accelerate makes of them.
        optimizer = create_optimizer(recipe, model)
        self.schedule = create_schedule(recipe, optimizer, self.updates, self.updates_per_epoch)
        self.ema = None
        if recipe.train.ema_decay is not None:
            self.ema = ModelEmaV3(model, decay=recipe.train.ema_decay, use_warmup=True).to(accelerator.device)
        self.plain_model = model
        prepared, self.optimizer = accelerator.prepare(model, optimizer)
        if recipe.train.compile:
            prepared = torch.compile(prepared)
        self.model: nn.Module = prepared
        self.step = TwoBranchStep(
            prepared, criterion, sub=self.sub, mode=recipe.sub.mode, **self.method.step_arguments()
        )

        # 4. Where training stands: all of it is in the checkpoint.
        # With several processes, who would read which counter once? The figure is left out.
        self.standing = Standing(EnergyMeter.find(accelerator.device) if accelerator.num_processes == 1 else None)

    def _reading(self, done: int, total: int) -> None:
        self.reporter.step("reading images", done, total)
        if self.request.signum:
            raise InterruptedRun(self.request.signum, "stopped on request while reading images; nothing was trained")

    def run(self, *, resume: bool) -> dict[str, Any]:
        """All updates that are still to do, evaluations and checkpoints between them, and the summary."""
        with contextlib.ExitStack() as held:
            if self.accelerator.is_main_process:
                self._open_folder(resume, held)
            self.accelerator.wait_for_everyone()
            return self._run(resume)

    def _run(self, resume: bool) -> dict[str, Any]:
        if resume and (summary := self.folder.summary()) is not None:
            self.reporter.line(f"{self.folder.path} is complete already")
            return summary
        if resume:
            self._restore()
        events = self._events()
        if self.standing.energy is not None:
            self.standing.energy.read()  # what came before is not training
        try:
            self._evaluate_where_due(events)
            stream = self._stream()
            while self.standing.update < self.updates:
                self._one_update(stream)
                if self.standing.update % self.recipe.train.log_every == 0 or self.standing.update == self.updates:
                    self.standing.read_energy()
                    self._record(events, self.standing.window.means(self._place()))
                    self.standing.window = LossWindow()
                self._evaluate_where_due(events)
                self._checkpoint_where_due()
                self._stop_if_asked()
            return self._finish()
        except DivergedError as error:
            if self.accelerator.is_main_process:
                place = {"update": self.standing.update + 1, "epoch": self.standing.update / self.updates_per_epoch}
                self.folder.write_failure({**place, "reason": str(error)})
            raise
        finally:
            if events is not None:
                events.close()

    def measure(self, updates: int) -> tuple[float, float]:
        """Seconds of an update and of evaluating an image, medians of a few; the weights change, nothing is written."""
        stream, times = self._stream(), []
        # At the peak of the learning rate without the warm-up before it, training might diverge.
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.schedule.step_update = lambda update: None
        for _ in range(updates + 2):
            self.standing.update = self.updates // 2  # where ramps of ratio and weight are at their mean
            before = self.standing.spent["train_seconds"]
            self._one_update(stream)
            times.append(self.standing.spent["train_seconds"] - before)
        began = time.perf_counter()
        result = evaluate(self.plain_model, self.eval_batches, autocast=self.accelerator.autocast)
        return statistics.median(times[2:]), (time.perf_counter() - began) / result["images"]

    def settings_at(self, progress: float) -> tuple[float, float]:
        """Ratio and weight in force at this point of training."""
        return self.method.settings(self.recipe.sub.ratio_schedule(progress), self.recipe.sub.weight_schedule(progress))

    def _one_update(self, stream: Iterator[tuple[Tensor, Tensor]]) -> None:
        recipe, began, waited = self.recipe, time.perf_counter(), 0.0
        ratio, self.step.weight = _, weight = self.settings_at(self.standing.update / self.updates)
        if isinstance(self.sub, MaskSub):
            self.sub.ratio = ratio
        self.schedule.step_update(self.standing.update)
        self.optimizer.zero_grad()
        parts = recipe.train.accumulate
        for part in range(parts):
            asked = time.perf_counter()
            x, y = next(stream)
            waited += time.perf_counter() - asked
            where = (recipe.seed, self.standing.update, part, self.accelerator.process_index)
            torch.manual_seed(mix("step", *where))  # dropout and drop path of both branches
            last = part == parts - 1
            with contextlib.nullcontext() if last else without_gradient_sync(self.model):
                out = self.step(
                    x,
                    y,
                    generator=generator("mask", *where, device=self.accelerator.device),
                    backward=lambda loss: self.accelerator.backward(loss / parts),
                )
            self.standing.window.add(out)
            self.standing.spent["flops"] += (
                self.flops.per_image(ratio, weight) * len(x) * self.accelerator.num_processes
            )
        self._stop_if_not_finite()
        self.standing.window.gradient_norm = norm = self._clip()
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            raise DivergedError(self._why_stopped("norm of the gradient"))
        self.optimizer.step()
        self.standing.update += 1
        if self.ema is not None:
            self.ema.update(self.plain_model, step=self.standing.update)
        took = time.perf_counter() - began
        for key, value in (("seconds", took), ("train_seconds", took), ("data_seconds", waited)):
            self.standing.spent[key] += value
        self._show(ratio, took)

    def _clip(self) -> float | None:
        """Clip the gradient where asked for, and measure its norm where it will be logged."""
        limit = self.recipe.train.log_every
        logged = (self.standing.update + 1) % limit == 0 or self.standing.update + 1 == self.updates
        if self.recipe.optim.clip_norm is None and not logged:
            return None
        if self.recipe.optim.clip_norm is not None:
            return float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_norm))
        self.accelerator.unscale_gradients()
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))

    def _stop_if_not_finite(self) -> None:
        """NaN or infinity in either branch's loss, on any process: stop before it reaches the weights."""
        bad = self.standing.window.not_finite()
        if self._anywhere(bad is not None):
            raise DivergedError(self._why_stopped(f"loss of the {bad or 'other process'}"))

    def _why_stopped(self, what: str) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        last = checkpoints.latest(self.folder.checkpoints, self.reporter.warn)
        kept = f"the last good checkpoint is {last.path}" if last else "no checkpoint had been written yet"
        place = f"update {self.standing.update + 1} of {self.updates}"
        return (
            f"the {what} is not finite at {place} (learning rate {lr:.3g}); stopped before the optimizer step, {kept}. "
            f"Try a lower optim.lr, optim.clip_norm, or train.precision=bf16"
        )

    def _evaluate_where_due(self, events: Any) -> None:
        every = max(1, round(self.recipe.train.eval_every * self.updates_per_epoch))
        due = self.standing.update > 0 and (self.standing.update % every == 0 or self.standing.update == self.updates)
        done = (r["update"] for r in self.folder.metrics() if r["kind"] == "eval") if due else ()
        if not due or self._anywhere(self.standing.update in done):
            return
        began = time.perf_counter()
        model = self.plain_model if self.ema is None else self.ema.module
        result = evaluate(
            model,
            self._until_asked(self.eval_batches),
            kind="sigmoid" if self.recipe.loss.name == "bce" else "softmax",
            reduce=lambda sums: self.accelerator.reduce(sums.to(self.accelerator.device)).cpu(),
            autocast=self.accelerator.autocast,
        )
        self.standing.spent["seconds"] += time.perf_counter() - began
        if not math.isfinite(result["loss"]):
            raise DivergedError(self._why_stopped("loss of the evaluation"))
        record = {"kind": "eval", **self._place(), **result}
        self._record(events, record)
        if self.on_eval is not None:
            self.on_eval(record)
        epoch = self.standing.update / self.updates_per_epoch
        self.reporter.line(
            f"epoch {epoch:g}: top-1 {result['top1']:.2f} %, loss {result['loss']:.4f} ({self.folder.path.name})"
        )

    def _checkpoint_where_due(self) -> None:
        every = self.recipe.train.checkpoint_every or self.updates_per_epoch
        if self.standing.update % every == 0 or self.standing.update == self.updates:
            self._save()

    def _stop_if_asked(self) -> None:
        if self._anywhere(self.request.signum > 0):
            self._save()
            signum = self.request.signum or 15
            raise InterruptedRun(
                signum,
                f"stopped on request after update {self.standing.update} of {self.updates}; checkpoint written, go on "
                f"with: masksub train {self.folder.path} --resume",
            )

    def _until_asked(self, batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an evaluation, cut off by a request to stop; the evaluation is then made after resuming."""
        total = len(self.eval_batches)
        for number, batch in enumerate(batches):
            if self.accelerator.num_processes == 1:
                self._stop_if_asked()
            self.reporter.step("evaluating", number, total)
            yield batch

    def _parts(self) -> dict[str, Any]:
        """What is in a checkpoint beside the standing."""
        ema = None if self.ema is None else self.ema.module
        return {"model": self.plain_model, "ema": ema, "optimizer": self.optimizer, "accelerator": self.accelerator}

    def _save(self) -> None:
        save(self.folder.checkpoints, self.standing, keep=self.recipe.train.keep_checkpoints, **self._parts())

    def _restore(self) -> None:
        last = restore(self.folder.checkpoints, self.standing, reporter=self.reporter, **self._parts())
        if last is None:
            self.reporter.line(f"{self.folder.path} has no checkpoint yet; starting from the beginning")
        else:
            self.reporter.line(f"going on from update {self.standing.update} of {self.updates} ({last})")
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.standing.update)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> dict[str, Any]:
        summary = summarise(
            self.recipe,
            self.standing,
            [record for record in self.folder.metrics() if record["kind"] == "eval"],
            updates_per_epoch=self.updates_per_epoch,
            processes=self.accelerator.num_processes,
            parameters=sum(p.numel() for p in self.plain_model.parameters()),
            device=self.accelerator.device,
        )
        summary["skipped_images"] = self.batches.skipped
        summary["skipped_validation_images"] = self.eval_batches.skipped
        for batches, which in ((self.batches, "training"), (self.eval_batches, "validation")):
            if batches.skipped:
                files = "; ".join(batches.skipped_files)
                self.reporter.warn(f"{batches.skipped} {which} image(s) could not be read and were skipped: {files}")
        if self.accelerator.is_main_process:
            self.folder.write_summary(summary)
        return summary

    def _open_folder(self, resume: bool, held: contextlib.ExitStack) -> None:
        if self.folder.exists and not resume:
            with self.folder.lock():  # not while another process trains it
                self.reporter.line(f"the folder that was there is now {self.folder.set_aside()}")
        held.enter_context(self.folder.lock())
        self.folder.forget_failure()
        if not self.folder.begun:
            self.folder.create(self.recipe, self.classes, command_line())

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, within = divmod(self.standing.update, self.updates_per_epoch)
        start = within * self.recipe.train.accumulate
        while True:
            yield from self.batches.epoch(epoch, start=start)
            epoch, start = epoch + 1, 0

    def _place(self) -> dict[str, Any]:
        per_update = self.recipe.train.batch_size * self.recipe.train.accumulate * self.accelerator.num_processes
        ratio, weight = self.settings_at(max(0, self.standing.update - 1) / self.updates)  # of the last update
        return {
            "update": self.standing.update,
            "epoch": self.standing.update / self.updates_per_epoch,
            "images": self.standing.update * per_update,
            "seconds": round(self.standing.spent["seconds"], 3),
            "flops": self.standing.spent["flops"],
            "lr": self.optimizer.param_groups[0]["lr"],
            "mask_ratio": ratio,
            "weight": weight,
        }

    def _record(self, events: Any, record: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.append(record)
        if events is not None:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("update", "epoch", "images"):
                    events.add_scalar(f"{record['kind']}/{key}", value, record["update"])

    def _events(self) -> Any:
        if not (self.recipe.train.tensorboard and self.accelerator.is_main_process):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(
            str(self.folder.path), purge_step=self.standing.update + 1 if self.standing.update else None
        )

    def _show(self, ratio: float, took: float) -> None:
        images = self.recipe.train.batch_size * self.recipe.train.accumulate * self.accelerator.num_processes
        last = self.standing.window.last
        losses = ", ".join(f"{name} {last[key]:.3f}" for key, name in BRANCHES.items() if last.get(key) is not None)
        self.reporter.step(
            self.folder.path.name, self.standing.update, self.updates, f"{losses}, {images / took:.0f} images/s"
        )

    def _anywhere(self, flag: bool) -> bool:
        """Whether a flag is set on any process; all processes must ask."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item())
