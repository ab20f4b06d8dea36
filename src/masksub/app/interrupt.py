"""Stopping on request: the first signal asks, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptedRun", "StopRequest"]


class InterruptedRun(Exception):
    """Training stopped on a signal, with a checkpoint written.

    Args:
        signum: SIGINT or SIGTERM; the exit code is 128 + signum.
        message: what was saved, and how to go on.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(signum, message)  # all arguments, so that it travels between processes
        self.signum = signum

    def __str__(self) -> str:
        return str(self.args[1])


class StopRequest:
    """While active, SIGINT and SIGTERM are remembered instead of ending the process."""

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise SystemExit(128 + signum)
        self.signum = signum
