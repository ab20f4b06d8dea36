"""What the tests of faults share: a tiny run as a process of its own, faults that strike it at a known moment, and the
comparison of two runs bit for bit.

Most processes are forked (``tests.forked``). What a test does to one is then what a machine does to it.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file

from masksub.app import checkpoint
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from tests import forked

RECIPE = "digits/vit_micro"
SMALL = (
    "data.train_images=128", "data.val_images=60", "train.epochs=3", "train.batch_size=16", "train.log_every=3",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0.5",
    "train.tensorboard=false", "train.device=cpu",
)  # fmt: skip
UPDATES = 24
"""Of the run SMALL: three epochs of eight, each with an evaluation and a checkpoint at its end."""
LONGEST = 120
"""Seconds after which something that is waited for counts as hung."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def small(*overrides: str) -> Recipe:
    """The tiny run's recipe, for training in this process."""
    return load_recipe(RECIPE, (*SMALL, *overrides))


def quiet() -> Reporter:
    """Says warnings alone."""
    return Reporter(quiet=True)


# Faults. They are sent to the process that they strike, so they hold plain values.


class Fault(Protocol):
    """Something that goes wrong in a process."""

    def install(self) -> None:
        """Arrange for it, in the process itself, before its command starts."""


@dataclass(frozen=True)
class Send:
    """The process gets a signal, from itself: no other way hits a moment exactly."""

    signum: int = signal.SIGKILL

    def __call__(self) -> None:
        os.kill(os.getpid(), self.signum)


@dataclass(frozen=True)
class SleepAfter:
    """The process leaves a file as a mark and then does nothing for longer than a test waits."""

    mark: Path

    def __call__(self) -> None:
        self.mark.touch()
        time.sleep(10 * LONGEST)


@dataclass(frozen=True)
class Fill:
    """The disk is filled, but for some bytes."""

    folder: Path
    leaving: int

    def __call__(self) -> None:
        fill(self.folder, self.leaving)


@dataclass(frozen=True)
class MakeRoom:
    """What Fill took is given back."""

    folder: Path

    def __call__(self) -> None:
        (self.folder / "ballast").unlink()


@dataclass(frozen=True)
class LimitFiles:
    """No file may grow beyond so many bytes; None takes the limit back."""

    size: int | None

    def __call__(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if self.size is None else self.size, hard))


@dataclass(frozen=True)
class AtUpdate:
    """Acts when an update is done, before its metrics, evaluation and checkpoint.

    Args:
        update: number of the update; or with ``task``, of the step of that task.
        act: what happens.
        task: "evaluating" or "reading images".
    """

    update: int
    act: Callable[[], None]
    task: str = ""

    def install(self) -> None:
        real, struck = Reporter.step, [False]

        def step(reporter: Reporter, task: str, done: int, total: int, note: str = "") -> None:
            fits = task == self.task if self.task else task not in ("reading images", "evaluating")
            if fits and done == self.update and not struck[0]:
                struck[0] = True
                self.act()
            real(reporter, task, done, total, note)

        Reporter.step = step  # type: ignore[method-assign]


@dataclass(frozen=True)
class AtCall:
    """Acts just before the process does something that the interpreter audits: opens, renames or removes a file.

    Args:
        event: name of the audit event, a regular expression.
        what: found in its arguments, a regular expression; and one file name contains it.
        number: which of the events that fit, from 1.
        act: what happens.
    """

    event: str
    what: str
    number: int = 1
    act: Callable[[], None] = Send()

    def install(self) -> None:
        event, what, left = re.compile(self.event), re.compile(self.what), [self.number]

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if left[0] > 0 and event.fullmatch(name) and what.search(" ".join(map(str, arguments))):
                left[0] -= 1
                if left[0] == 0:
                    self.act()

        sys.addaudithook(hook)


@dataclass(frozen=True)
class ForkedWorkers:
    """No fault: workers are forked, too, where the command would start them anew, which takes seconds for each."""

    def install(self) -> None:
        forked.fork_workers()


@dataclass(frozen=True)
class ClockBackwards:
    """The clock of the machine goes back by an hour each time it is read."""

    start: float

    def install(self) -> None:
        times = iter(range(10**9))
        time.time = lambda: self.start - 3600.0 * next(times)


def fill(folder: Path, leaving: int) -> None:
    """Fill a file system with one file, but for about so many bytes.

    Side effects: makes ``ballast`` in the folder.
    """
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        file.truncate(max(0, (folder / "ballast").stat().st_size - leaving))


@contextmanager
def small_disk(folder: Path, size: int, *options: str) -> Iterator[Path]:
    """A file system of so many bytes in memory; skips where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=LONGEST, check=True)


# Processes.


def _main(arguments: tuple[str, ...], cwd: Path, said: Path, faults: tuple[Fault, ...], more: dict[str, str]) -> None:
    """A process: its own group, its own standard streams, then the command as from a shell."""
    os.setsid()
    os.chdir(cwd)
    os.environ.update(ENVIRONMENT | more)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(said.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    torch.set_num_threads(1)
    # Else decoding workers inherit this process's own start from a server and begin with a server of theirs.
    multiprocessing.set_start_method("fork", force=True)
    warnings.simplefilter("default")
    sys.argv = ["masksub", *arguments]
    for fault in faults:
        fault.install()
    from masksub.cli import main

    main()


@dataclass
class Done:
    """How a process ended: the exit code (minus the signal that killed it), and what it said.

    ``stderr`` is in one line, ``written`` as it was written.
    """

    code: int
    stdout: str
    stderr: str

    def __post_init__(self) -> None:
        self.written = self.stderr
        self.stderr = re.sub(r"\s*\n\s*", " ", self.stderr)  # messages are wrapped to a terminal's width


class Started:
    """A process that runs."""

    def __init__(self, process: Any, said: Path) -> None:
        self._process, self._said = process, said

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return int(self._process.pid)

    def send(self, signum: int) -> None:
        """A signal to the process alone."""
        os.kill(self.pid, signum)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, but not longer."""
        self._process.join(seconds)
        return not self.runs()

    def wait(self, seconds: float = LONGEST) -> Done:
        """Until it ends."""
        self._process.join(seconds)
        said = [self._said.with_suffix(suffix) for suffix in (".out", ".err")]
        out, err = (path.read_text() if path.exists() else "" for path in said)
        assert not self.runs(), f"still running after {seconds} s: {out}{err}"
        return Done(self._process.exitcode, out, err)

    def wait_for(self, path: Path) -> None:
        """Until a file is there."""
        wait_for(path, lambda: self.runs() or self.wait())

    def end(self) -> None:
        """Kill it with all that it started."""
        for signum in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self.pid, signum)
            except ProcessLookupError:
                break
        self._process.kill()
        self._process.join(LONGEST)


class Commands:
    """Runs the command in processes of their own and leaves none behind.

    Args:
        cwd: where they run.
        said: the folder where what they say is kept, if it is another.
    """

    def __init__(self, cwd: Path, said: Path | None = None) -> None:
        self.cwd, self._said, self._started = cwd, said or cwd, []  # type: tuple[Path, Path, list[Started]]
        self._context = forked.context()

    def __enter__(self) -> Commands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for started in self._started:
            started.end()

    def start(self, *arguments: str, faults: Iterable[Fault] = (), **more: str) -> Started:
        """Start ``masksub`` with these arguments.

        Args:
            faults: what goes wrong in it.
            more: environment variables.
        """
        said = self._said / f".said-{len(self._started)}"
        process = self._context.Process(target=_main, args=(arguments, self.cwd, said, tuple(faults), more))
        process.start()
        self._started.append(Started(process, said))
        return self._started[-1]

    def run(self, *arguments: str, faults: Iterable[Fault] = (), **more: str) -> Done:
        """Start it and wait for its end."""
        return self.start(*arguments, faults=faults, **more).wait()

    def train(self, run: str, *overrides: str, faults: Iterable[Fault] = ()) -> Done:
        """The tiny run from its beginning."""
        return self.run("train", RECIPE, *SMALL, *overrides, "--out", run, faults=faults)

    def resume(self, run: str, *options: str, faults: Iterable[Fault] = ()) -> Done:
        """The run goes on."""
        return self.run("train", run, "--resume", *options, faults=faults)

    def ranks(self, *arguments: str, count: int = 2, faults: dict[int, Fault] | None = None) -> list[Started]:
        """One training by several processes that find each other as those of torchrun do.

        Args:
            count: number of processes.
            faults: what goes wrong, by rank.
        """
        place = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        return [
            self.start(
                *arguments,
                faults=[faults[rank]] if faults and rank in faults else (),
                **place,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
            )
            for rank in range(count)
        ]

    def two(self, run: str, *overrides: str, **faults: Fault) -> list[Started]:
        """The tiny run by two processes, begun or gone on with; a fault of one is given by rank0= or rank1=."""
        return self.ranks(
            "train", RECIPE, *SMALL, *overrides, "--out", run, "--resume",
            faults={int(rank[-1]): fault for rank, fault in faults.items()},
        )  # fmt: skip


def all_end_well(ranks: list[Started]) -> None:
    """Wait for all, none of which may fail."""
    for rank in ranks:
        done = rank.wait()
        assert done.code == 0, done.stderr


def torchrun(*arguments: str, count: int = 2, cwd: Path) -> subprocess.Popen[str]:
    """The command by torchrun, in a process group of its own."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [*launch, "-m", "masksub", *arguments],
        cwd=cwd, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LONGEST)


def wait_for(path: Path, alive: Callable[[], Any] = lambda: True) -> None:
    """Until a file that fits the pattern is there."""
    end = time.monotonic() + LONGEST
    while not any(path.parent.glob(path.name)):
        assert time.monotonic() < end, f"{path} never came"
        assert alive() is True, f"{path} never came: the process has ended: {alive()}"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Comparison.


def comparable(run: Path) -> list[dict[str, Any]]:
    """The metrics without the clock."""
    return [_without_clock(record) for record in RunFolder(run).metrics()]


def _without_clock(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not re.search("second|energy|memory|wait", k)}


def newest(run: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint; no damaged one may come before it."""
    found = checkpoint.latest(run / "checkpoints", pytest.fail)
    assert found is not None, "there is no checkpoint"
    return found


def checkpoint_content(found: checkpoint.Checkpoint) -> dict[str, Any]:
    """Weights, moving average, optimizer and place in training, without the clock."""
    weights = {path.name: load_file(path) for path in sorted(found.path.glob("*.safetensors"))}
    assert weights, f"{found.path} holds no weights"
    state = found.training_state()
    counts = {key: count for key, count in state["counts"].items() if key != "failed_checkpoints"}  # of a broken disk
    return {"weights": weights, "training": state | {"spent": _without_clock(state["spent"]), "counts": counts}}


def assert_bit_equal(one: Any, two: Any, place: str = "") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(one, dict) and isinstance(two, dict):
        assert one.keys() == two.keys(), place
        for key in one:
            assert_bit_equal(one[key], two[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        assert len(one) == len(two), place
        for number, (a, b) in enumerate(zip(one, two)):
            assert_bit_equal(a, b, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert isinstance(two, torch.Tensor), place
        assert one.dtype == two.dtype and torch.equal(one, two), place
    else:
        assert one == two, f"{place}: {one!r} and {two!r}"


def assert_same_end(run: Path, whole: Path) -> None:
    """A run that was broken and went on ended as the unbroken one, and left nothing behind."""
    assert newest(run).update == newest(whole).update
    assert_bit_equal(checkpoint_content(newest(run)), checkpoint_content(newest(whole)))
    assert comparable(run) == comparable(whole)
    updates = [(record["kind"], record["update"]) for record in comparable(run)]
    assert len(set(updates)) == len(updates), "a record twice"
    one, two = RunFolder(run).summary(), RunFolder(whole).summary()
    assert one is not None and two is not None
    assert _without_clock(one) == _without_clock(two)
    assert not [path for path in run.rglob("*") if "writing" in path.name], "something half written is left"
    left = {path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("refused-")}
    assert left == {path.name for path in (whole / "checkpoints").iterdir()}


def environment_of(run: Path) -> dict[str, Any]:
    """environment.json."""
    found: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return found
