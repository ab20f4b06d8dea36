"""What a run writes while it trains: lines of metrics.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from .errors import InputError
from .runs import RunFolder

__all__ = ["Records"]


class Records:
    """Writers of one process; only the main one writes.

    Args:
        folder: of the run.
        main: whether this process writes.
        tensorboard: write its events as well.
        update: updates that are done; later events of an earlier process are taken back.
        warn: is told when events can't be written any more; metrics.jsonl is what counts.

    Raises:
        InputError: metrics.jsonl or the events can't be written; nothing was trained yet.
    """

    def __init__(
        self, folder: RunFolder, *, main: bool, tensorboard: bool, update: int, warn: Callable[[str], None]
    ) -> None:
        self._folder, self._main, self._warn = folder, main, warn
        self._events: Any = None
        if not main:
            return
        folder.check_metrics()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            try:
                # The writer's thread would tell of a failure in its own way, after this.
                with tempfile.NamedTemporaryFile(dir=folder.path, prefix="events.out.tfevents."):
                    pass
                self._events = SummaryWriter(str(folder.path), purge_step=update + 1 if update else None)
            except OSError as error:
                raise InputError(
                    f"{folder.path}: TensorBoard's events can't be written there ({error}); mend it, or set "
                    f"train.tensorboard=false"
                ) from error

    def write(self, record: dict[str, Any]) -> None:
        """One line, with its update and kind."""
        if not self._main:
            return
        self._folder.append(record)
        if self._events is None:
            return
        try:
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("update", "epoch", "images"):
                    self._events.add_scalar(f"{record['kind']}/{key}", value, record["update"])
        except OSError as error:
            self._events = None
            self._warn(f"TensorBoard's events can't be written any more ({error}); metrics.jsonl goes on")

    def close(self) -> None:
        """Have all events written."""
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError as error:
            self._warn(f"the last of TensorBoard's events could not be written ({error})")
