"""Checkpoints written while training goes on: a copy in memory is made at once, a thread brings it to disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint as checkpoints
from .errors import StoppedError

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes one checkpoint at a time.

    Args:
        folder: the run's ``checkpoints``.
        keep: how many checkpoints stay.
        background: write in a thread of its own.
        stop: a checkpoint that can't be written ends the training; else it is told and counted.
        warn: is told of such a checkpoint, from the training thread.
        flush: has the disk hold what must not be older than a checkpoint; called before it gets its name.

    Attributes:
        failed: checkpoints that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        background: bool,
        stop: bool,
        warn: Callable[[str], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._keep, self._background, self._stop = folder, keep, background, stop
        self._warn, self._flush = warn, flush
        self._thread: threading.Thread | None = None
        self._error: tuple[int, BaseException] | None = None
        self.failed = 0

    @property
    def must_stop(self) -> bool:
        """Whether a checkpoint could not be written and that ends the training; ``wait`` tells why."""
        return self._stop and self._error is not None

    def write(
        self, update: int, weights: dict[str, dict[str, Tensor]], training: dict[str, Any], *, in_use: bool = True
    ) -> None:
        """Write a checkpoint, after the one before is done.

        Args:
            update: number of optimizer updates done.
            weights: state dicts by file stem. They may change as soon as this returns.
            training: tensors and plain values only.
            in_use: the tensors are those of the training. If False they are copies already, but for counters, which
                optimizers keep on the CPU.

        Raises:
            StoppedError: the one before (or this one, where it is not written in the background) could not be
                written, and that ends the training.
        """
        self.wait()
        if not self._background:
            self._write(update, weights, training)
            self.wait()
            return
        copies = (_copied(each, {}, in_use=in_use) for each in (weights, training))
        # A daemon: a second request to stop ends the process at once, in the middle of a file that has no name yet.
        self._thread = threading.Thread(target=self._write, args=(update, *copies), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Tell a failure that training goes on in spite of, without waiting for a checkpoint that is not done."""
        if not self._stop and self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Until the checkpoint is on disk.

        Args:
            last: it is the one that training ends with; then a failure is never passed over.

        Raises:
            StoppedError: it could not be written, and that ends the training.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is None:
            return
        (update, error), self._error = self._error, None
        self.failed += 1
        kept = checkpoints.latest(self._folder, lambda _: None)
        why = (
            f"the checkpoint of update {update} could not be written: {error}; "
            f"{f'the one before is kept: {kept.path}' if kept else 'there is none before it'}"
        )
        if self._stop or last:
            raise StoppedError(
                f"{why}. Make room and go on with: masksub train {self._folder.parent} --resume"
            ) from error
        self._warn(f"{why}; training goes on (train.on_checkpoint_error = continue)")

    def close(self) -> None:
        """Until the thread is done; what went wrong was told or is told by another error."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, update: int, weights: dict[str, dict[str, Tensor]], training: dict[str, Any]) -> None:
        try:
            checkpoints.save(self._folder, update, weights, training, keep=self._keep, flush=self._flush)
        except Exception as error:  # safetensors and torch have their own for a full disk; told in the training thread
            self._error = update, error


def _copied(value: Any, known: dict[int, Tensor], *, in_use: bool) -> Any:
    """The same on the CPU, sharing no memory with the original; tensors that are one stay one."""
    if isinstance(value, Tensor):
        if not in_use and value.ndim:
            return value
        if id(value) not in known:
            known[id(value)] = value.detach().to("cpu", copy=True)
        return known[id(value)]
    if isinstance(value, dict):
        return {key: _copied(each, known, in_use=in_use) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each, known, in_use=in_use) for each in value)
    return value
