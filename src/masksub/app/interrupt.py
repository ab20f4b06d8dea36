"""Stopping on request: the first signal asks, the second one ends at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptedRun", "StopRequest"]

GRACE = 1.0
"""Seconds that a second signal waits for the handler in the main thread, before the process is ended from another."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """While active, the first SIGINT or SIGTERM is remembered instead of ending the process; the second one ends it.

    It also ends a process whose main thread hears nothing because it waits for another process or for a device.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}
        self._over = threading.Event()
        self._told: socket.socket | None = None
        self._wakeup_before = -1

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._remember)
            heard, self._told = socket.socketpair()
            self._told.setblocking(False)
            # The number of each signal is written there at once, whatever the main thread is doing.
            self._wakeup_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            _ACTIVE.add(self._told.fileno())
            threading.Thread(target=self._end_at_the_second, args=(heard,), name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self._told is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            _ACTIVE.discard(self._told.fileno())
            self._told.close()  # the thread reads the end
            self._told = None
        outer = self._previous.get(self.signum)
        if value is None and callable(outer) and outer is not signal.default_int_handler:
            outer(self.signum, None)  # it came too late here; who runs several trainings still wants to know

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise SystemExit(128 + signum)
        self.signum = signum

    def _end_at_the_second(self, heard: socket.socket) -> None:
        seen = 0
        with heard:
            while numbers := heard.recv(64):
                for number in numbers:
                    if number in _SIGNALS and (seen := seen + 1) >= 2 and not self._over.wait(GRACE):
                        os._exit(128 + number)


_ACTIVE: set[int] = set()
"""Descriptors that signals are written to at the moment."""


def _forget_in_child() -> None:
    # A forked worker would tell its own signals as if they were this process's.
    if _ACTIVE:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
