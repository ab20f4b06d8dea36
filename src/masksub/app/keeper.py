"""Checkpoints of a run: written by the main process, read by all, and what must be alike on them."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from . import checkpoint as checkpoints
from .errors import InputError
from .processes import Processes
from .progress import Reporter
from .resume import Continuation
from .runs import RunFolder
from .setup import Setup
from .state import Standing, find, restore, snapshot
from .writer import CheckpointWriter

__all__ = ["Keeper"]


class Keeper:
    """Saves and restores the state of a run.

    Args:
        folder: of the run.
        setup: model, optimizer and data.
        standing: how far training is.
        accelerator: device and loss scale.
        processes: that train together.
        reporter: is told what is gone on with, and what is wrong with a checkpoint.

    Attributes:
        writer: brings checkpoints to disk.
    """

    def __init__(
        self,
        folder: RunFolder,
        setup: Setup,
        standing: Standing,
        accelerator: Accelerator,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self.folder, self.setup, self.standing, self.accelerator = folder, setup, standing, accelerator
        self.processes, self.reporter = processes, reporter
        settings = setup.recipe.train
        self.writer = CheckpointWriter(
            folder.checkpoints,
            keep=settings.keep_checkpoints,
            background=settings.checkpoint_in_background,
            stop=settings.on_checkpoint_error == "stop",
            warn=reporter.warn,
            flush=folder.flush_metrics,
        )

    def _parts(self) -> dict[str, Any]:
        """What is in a checkpoint beside the standing."""
        ema = None if self.setup.ema is None else self.setup.ema.module
        return {
            "model": self.setup.plain_model,
            "ema": ema,
            "optimizer": self.setup.optimizer,
            "accelerator": self.accelerator,
            "supplies": (self.setup.batches, self.setup.eval_batches),
            "images": self.setup.images,
            "updates": self.setup.updates,
        }

    def save(self, *, wait: bool = False) -> None:
        """Write a checkpoint; ``wait`` until it is on disk, since training ends with it."""
        self.standing.counts["failed_checkpoints"] = self.writer.failed
        weights, training = snapshot(self.standing, **self._parts())
        if self.processes.is_main:
            on_cpu = self.accelerator.device.type == "cpu"
            self.writer.write(self.standing.update, weights, training, in_use=on_cpu)
            if wait:
                self.writer.wait(last=True)

    def restore(self, going_on: Continuation | None, approximate: bool) -> None:
        """Bring back the last whole checkpoint, if there is any, and write down that the run goes on.

        Args:
            going_on: how a run that was begun goes on.
            approximate: also from a checkpoint of another number of processes.

        Raises:
            InputError: another number of processes, or processes that see different folders.
            StoppedError: there are checkpoints, and none is whole.
        """
        if self.processes.is_main:
            checkpoints.sweep_away_unfinished(self.folder.checkpoints)
            self.folder.sweep_away_unfinished()
        self.processes.wait()
        found = find(self.folder.checkpoints, self.reporter)
        # Each looks for itself, and one of another machine may look into another folder.
        seen = self.processes.gather(None if found is None else found[0].path.name)
        if len(set(seen)) > 1:
            told = ", ".join(f"process {rank}: {name or 'none'}" for rank, name in enumerate(seen))
            raise InputError(
                f"{self.folder.path}: the processes find different checkpoints ({told}). The run folder must be "
                f"on storage that all machines share, at the same path"
            )
        exact = going_on is None or going_on.exact
        if found is None:
            self.reporter.line(f"{self.folder.path} has no checkpoint yet; starting from the beginning")
        else:
            same = restore(found, self.standing, reporter=self.reporter, approximate=approximate, **self._parts())
            exact = exact and same
            self.writer.failed = self.standing.counts["failed_checkpoints"]
            place = f"update {self.standing.update} of {self.setup.updates} ({found[0].path})"
            self.reporter.line(f"going on from {place}")
        if self.processes.is_main:
            for path in checkpoints.set_aside_after(self.folder.checkpoints, self.standing.update):
                self.reporter.warn(f"what was refused is kept as {path}")
            if found is not None:  # a process that was killed while it removed one may have left half of it
                checkpoints.prune(self.folder.checkpoints, self.setup.recipe.train.keep_checkpoints)
            self.folder.forget_after(self.standing.update)
            if going_on is not None:
                facts = {"update": self.standing.update, "processes": self.processes.count, "exact": exact}
                self.folder.note_resumed(going_on.recipe, {**facts, "changed": going_on.changed})
        self.processes.wait()

    def share_skips(self) -> None:
        """Each process counts the images that it could not read; the count and its limit are for all together."""
        if self.processes.count == 1:
            return
        supplies = (self.setup.batches, self.setup.eval_batches)
        for states in self.processes.gather([supply.state_dict() for supply in supplies]):
            for supply, state in zip(supplies, states, strict=True):
                supply.load_state_dict(state)
