"""Open files that threads and forked processes share: reads say where, so no position can be disturbed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

__all__ = ["Handles"]

LIMIT = 64
"""Files kept open at once; many systems allow a process 1,024 of all kinds."""


class Handles:
    """Keeps the files that were read last open. It can be pickled; the copy opens its own."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _Handle] = OrderedDict()

    def read(self, path: Path, start: int, size: int) -> bytes:
        """Bytes of a file, fewer than ``size`` where it ends before.

        Raises:
            OSError: it can't be opened or read.
        """
        return self._handle(path).read(start, size)

    def _handle(self, path: Path) -> _Handle:
        if self._process != os.getpid():
            self._start()  # another thread may have held the lock when this process was forked
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
            handle = self._open[path] = _Handle(path)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)  # a thread that reads it still keeps it open until it is done
            return handle

    def __len__(self) -> int:
        return len(self._open)

    def __getstate__(self) -> int:
        return self._limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)  # type: ignore[misc]


class _Handle:
    """A file descriptor that is closed when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1  # os.open may fail
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._turn = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            part = self._once(start, size)
            if not part:
                break
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)

    def _once(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, start)
        with self._turn:  # Windows has no pread
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
