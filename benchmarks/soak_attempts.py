"""One attempt at a training: started as a process of its own, watched, and killed at its moment.

A moment is drawn from (seed, number). It is told in updates after the last checkpoint, or by what is being done, and a
share of the time that this takes, so that it means the same on a slow machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak_compare import checkpoints_of

__all__ = ["BLOCK", "Moment", "Pace", "attempt", "draw", "end_group", "wait_for_group"]

BLOCK = ("step",) * 5 + ("checkpoint",) * 2 + ("evaluation",) * 2 + ("start",) + ("stop",)
"""Kinds of eleven interruptions, in a random order: ten by SIGKILL, and a request to stop (SIGTERM or SIGINT)."""
PATIENCE = 180.0
"""Seconds after which a process that shows nothing new counts as hung."""


@dataclass(frozen=True)
class Moment:
    """When and how a process is ended.

    Args:
        kind: "step": while it trains; "checkpoint": while one is written; "evaluation"; "start": before it trains;
            "stop": while it trains, by a signal that asks.
        updates: for "step" and "stop", updates after those of the last checkpoint; for "checkpoint", the how manieth.
        share: of the time that an update, a checkpoint, an evaluation or the start takes.
        group: signal the whole process group, as a scheduler does; else the main process alone, as the kernel does
            when memory runs out.
        signum: the signal.
    """

    kind: str
    updates: int
    share: float
    group: bool
    signum: signal.Signals


@dataclass(frozen=True)
class Pace:
    """How long things take here, from the unbroken run.

    Args:
        start: seconds from the start of the process to the first record of metrics.
        update: seconds of an update.
        evaluation: seconds of an evaluation.
        evaluate_every: updates between two evaluations.
    """

    start: float
    update: float
    evaluation: float
    evaluate_every: int


def draw(seed: int, number: int, most_updates: int, kinds: Sequence[str] = BLOCK) -> Moment:
    """The moment of one interruption: a function of the seed and its number, from 0."""
    order = random.Random(f"soak kinds {seed} {number // len(kinds)}").sample(kinds, len(kinds))
    chance = random.Random(f"soak moment {seed} {number}")
    kind = order[number % len(kinds)]
    updates = chance.randint(1, 3) if kind == "checkpoint" else chance.randint(1, most_updates)
    share, group, asks = chance.random(), chance.random() < 0.75, chance.choice((signal.SIGTERM, signal.SIGINT))
    return Moment(kind, updates, share, group, asks if kind == "stop" else signal.SIGKILL)


def attempt(command: Sequence[str], run: Path, moment: Moment | None, pace: Pace | None, log: Path,
            started: Callable[[int, float], None] = lambda pid, created: None) -> dict[str, Any]:  # fmt: skip
    """Start a training, end it at its moment, and say what came of it.

    Args:
        command: arguments of ``masksub``.
        run: its run folder.
        moment: when to end it; None to let it finish.
        pace: how long things take; needed with a moment.
        log: gets what the process says.
        started: is told the process id and when it was made, for whoever must clean up after this process.

    Returns:
        code: exit code, negative for a signal. hit: what it was doing when it ended, None if it had ended by itself.
        update: the last update in its metrics. checkpoint: update of the newest complete checkpoint. first: seconds
        until the first record of metrics, None if there was none. workers_left: seconds that its worker processes
        outlived it.

    Raises:
        RuntimeError: the process hangs, or leaves processes behind.
    """
    watch = _Watch(run)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        output.write(f"\n--- {moment}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "masksub", *command],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, env=environment,
        )  # fmt: skip
    with contextlib.suppress(psutil.NoSuchProcess):
        started(process.pid, psutil.Process(process.pid).create_time())
    hit = None
    try:
        if moment is None or pace is None:
            while process.poll() is None:
                watch.look()
                watch.patience(process, 10 * PATIENCE)
                time.sleep(0.02)
        elif watch.until(moment, pace, process):
            hit = watch.doing(pace)
            if moment.group:
                os.killpg(process.pid, moment.signum)
            else:
                process.send_signal(moment.signum)
        code = process.wait(timeout=PATIENCE)
        left = wait_for_group(process.pid, 30.0)
    except subprocess.TimeoutExpired:
        end_group(process.pid)
        raise RuntimeError(f"the process did not end within {PATIENCE:g} s of the signal; see {log}") from None
    except BaseException:
        end_group(process.pid)
        raise
    if hit is not None and code == 0:
        hit = None  # it ended by itself at the same moment
    if hit == "checkpoint" and not watch.writing():
        hit = "step"  # the checkpoint was complete when the signal came
    # Before the process has touched the metrics they are those of the one before.
    update = max((record["update"] for record in watch.records()), default=0) if watch.live else watch.base
    newest = max(checkpoints_of(run), default=0)
    return {
        "code": code, "hit": hit, "update": update, "checkpoint": newest, "first": watch.first, "workers_left": left,
    }  # fmt: skip


class _Watch:
    """What a training process does, read from its run folder."""

    def __init__(self, run: Path) -> None:
        self.metrics, self.checkpoints = run / "metrics.jsonl", run / "checkpoints"
        self.began, self.live = time.monotonic(), False
        self.first: float | None = None
        self.base = max(checkpoints_of(run), default=0)
        self._before, self._left_over = self._mark(), self.writing()
        self._last, self._since = self._before, self.began
        self._seen: set[str] = set()

    def _mark(self) -> tuple[int, int, int]:
        with contextlib.suppress(OSError):
            found = self.metrics.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return (0, 0, 0)

    def look(self) -> None:
        """Take note of news. Metrics are those of this process once the file is another one than at its start."""
        mark = self._mark()
        if mark != self._last:
            self._last, self._since = mark, time.monotonic()
        self.live = self.live or mark != self._before
        if self.live and self.first is None and any(self.records()):
            self.first = time.monotonic() - self.began

    def records(self) -> list[dict[str, Any]]:
        """The last records of the metrics, oldest first."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, self.metrics.stat().st_size - 4096))
                lines = file.read().split(b"\n")
        except OSError:
            return []
        return list(_whole(lines))

    def writing(self) -> dict[str, int]:
        """The folders of checkpoints that are being written, or were when a process was killed."""
        found = {}
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.checkpoints):
                if entry.name.startswith(".writing-"):
                    found[entry.name] = entry.stat().st_mtime_ns
        return found

    def patience(self, process: subprocess.Popen[bytes], most: float = PATIENCE) -> None:
        """End a wait that leads nowhere."""
        if time.monotonic() - self._since > most:
            raise RuntimeError(f"process {process.pid} shows nothing new for {most:g} s")

    def until(self, moment: Moment, pace: Pace, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the moment; False if the process ended before."""
        waits = {"start": 0.9 * pace.start, "evaluation": pace.evaluation, "checkpoint": 0.01}

        def reached() -> bool:
            if moment.kind == "checkpoint":
                return self._writes(moment.updates)
            if moment.kind == "evaluation":
                return self.evaluates(pace)
            return moment.kind == "start" or self._updated(moment.updates)

        while not reached():
            if process.poll() is not None:
                return False
            self.look()
            self.patience(process)
            # A checkpoint of a small model is written in a few milliseconds.
            time.sleep(0.01 if not self.live else 0.0005 if moment.kind == "checkpoint" else 0.003)
        end = time.monotonic() + moment.share * waits.get(moment.kind, pace.update)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(min(0.001, max(0.0, end - time.monotonic())))
        self.look()
        return process.poll() is None

    def evaluates(self, pace: Pace) -> bool:
        """Whether the last record is of an update after which an evaluation is made."""
        last = self.records()[-1:] if self.live else []
        return bool(last) and last[0]["kind"] == "train" and last[0]["update"] % pace.evaluate_every == 0

    def doing(self, pace: Pace) -> str:
        """What the process is doing now."""
        if not self.live:
            return "start"
        if any(self._left_over.get(name) != made for name, made in self.writing().items()):
            return "checkpoint"
        return "evaluation" if self.evaluates(pace) else "step"

    def _updated(self, updates: int) -> bool:
        return self.live and any(record["update"] >= self.base + updates for record in self.records()[-1:])

    def _writes(self, count: int) -> bool:
        self._seen |= {name for name, made in self.writing().items() if self._left_over.get(name) != made}
        return len(self._seen) >= count


def _whole(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):  # the first may be cut by the window, the last by the writer
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _group(leader: int) -> list[int]:
    """Processes of the group that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def wait_for_group(leader: int, most: float) -> float:
    """Seconds until no process of the group runs.

    Raises:
        RuntimeError: after ``most`` seconds some still do.
    """
    began = time.monotonic()
    while left := _group(leader):
        if time.monotonic() - began > most:
            raise RuntimeError(f"{len(left)} worker processes still run {most:g} s after their main process ended")
        time.sleep(0.05)
    return round(time.monotonic() - began, 2)


def end_group(leader: int) -> None:
    """Kill what is left of a process group that an attempt started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
