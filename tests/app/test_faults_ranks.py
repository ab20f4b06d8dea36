"""Faults of a training by several processes, with real ones. If these fail, a dead one leaves the others hanging, or a
run goes on in silence with another number of processes than it was made with.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masksub.app.runs import RunFolder
from tests.app.faults_made_up import (
    LONGEST,
    RECIPE,
    SMALL,
    UPDATES,
    AtUpdate,
    Commands,
    Fault,
    Send,
    SleepAfter,
    Started,
    all_end_well,
    assert_same_end,
    comparable,
    environment_of,
    newest,
)

TWO = ("train.batch_size=8", "train.ema_decay=0.9", "model.kwargs.proj_drop_rate=0.1", "augment.mixup=0.8")


def train(commands: Commands, run: str, *overrides: str, **faults: Fault) -> list[Started]:
    return commands.two(run, *TWO, *overrides, **faults)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    with Commands(folder) as commands:
        all_end_well(train(commands, "run", "train.timeout_seconds=60"))
    return folder / "run"


@dataclass(frozen=True)
class ThreadsAtTheEnd:
    """No fault: when the command is done, the names of the process's threads are written; first, a fault."""

    file: Path
    fault: AtUpdate | None = None

    def install(self) -> None:
        if self.fault:
            self.fault.install()
        Finalize(None, self._write, exitpriority=1)

    def _write(self) -> None:
        self.file.write_text("".join(sorted(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux's /proc")
@pytest.mark.parametrize("end", ["done", "stopped"])
def test_no_thread_of_the_group_is_left(end: str, commands: Commands, tmp_path: Path) -> None:
    """It could ask for the interpreter's lock when there is none any more, and abort a process that is done."""
    fault = AtUpdate(5, Send(signal.SIGTERM)) if end == "stopped" else None
    files = [tmp_path / "threads-0", tmp_path / "threads-1"]
    ranks = train(
        commands, "run", "train.epochs=1", "train.timeout_seconds=60",
        rank0=ThreadsAtTheEnd(files[0], fault), rank1=ThreadsAtTheEnd(files[1], fault),
    )  # fmt: skip
    for rank, file in zip(ranks, files, strict=True):
        done = rank.wait()
        assert done.code == (143 if end == "stopped" else 0), done.stderr
        assert "python" in file.read_text() and "gloo" not in file.read_text()


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_process_dies(rank: int, commands: Commands, tmp_path: Path, whole: Path) -> None:
    """The other one stops by itself, says why, and the training goes on by starting both again."""
    ranks = train(commands, "broken", "train.timeout_seconds=60", **{f"rank{rank}": AtUpdate(11, Send())})
    assert ranks[rank].wait().code == -signal.SIGKILL
    assert_stopped_by_the_other(ranks[1 - rank])
    assert newest(tmp_path / "broken").update == 8
    assert not (tmp_path / "broken" / "failure.json").exists(), "the recipe is not to blame"
    all_end_well(train(commands, "broken", "train.timeout_seconds=60"))
    assert_same_end(tmp_path / "broken", whole)
    assert (
        environment_of(tmp_path / "broken")["resumed"][-1] | {"update": 8, "processes": 2, "exact": True}
        == (environment_of(tmp_path / "broken")["resumed"][-1])
    )


def assert_stopped_by_the_other(rank: Started) -> None:
    done = rank.wait()
    assert done.code == 1, done.stderr
    assert "another process of this training is gone" in done.stderr
    assert "train.timeout_seconds" in done.stderr and "--resume" in done.stderr
    assert "Traceback" not in done.stderr and "terminate called" not in done.stderr


def test_one_process_dies_while_evaluating(commands: Commands, tmp_path: Path) -> None:
    fault = AtUpdate(2, Send(), task="evaluating")
    ranks = train(commands, "broken", "train.eval_batch_size=4", "train.timeout_seconds=60", rank1=fault)
    assert ranks[1].wait().code == -signal.SIGKILL
    assert_stopped_by_the_other(ranks[0])


def test_one_process_hangs(commands: Commands, tmp_path: Path) -> None:
    """It keeps its connection and says nothing: only the time limit tells."""
    mark = tmp_path / "hangs"
    ranks = train(commands, "broken", "train.timeout_seconds=3", rank1=AtUpdate(11, SleepAfter(mark)))
    ranks[1].wait_for(mark)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    assert_stopped_by_the_other(ranks[0])
    assert newest(tmp_path / "broken").update == 8


@pytest.mark.parametrize("signum", [signal.SIGTERM])
def test_a_second_signal_ends_a_process_that_waits_for_one_that_hangs(
    signum: int, commands: Commands, tmp_path: Path
) -> None:
    """It waits outside of the interpreter, which sees no signal there; its time limit is longer than this waits."""
    mark = tmp_path / "hangs"
    limit = f"train.timeout_seconds={10 * LONGEST}"
    ranks = train(commands, "broken", limit, rank1=AtUpdate(11, SleepAfter(mark)))
    ranks[1].wait_for(mark)
    for _ in range(2):
        assert not ranks[0].ends_within(1)
        ranks[0].send(signum)
    assert ranks[0].wait(LONGEST / 2).code == 128 + signum


def test_another_number_of_processes_is_refused_or_told(commands: Commands, tmp_path: Path, whole: Path) -> None:
    for started in train(commands, "run", rank0=AtUpdate(11, Send(signal.SIGTERM))):
        assert started.wait().code == 143
    before = comparable(tmp_path / "run"), newest(tmp_path / "run").update
    refused = commands.resume("run")
    assert refused.code == 2, refused.stderr
    for part in ("by 2 process", "--approximate", "exact"):
        assert part in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert (comparable(tmp_path / "run"), newest(tmp_path / "run").update) == before, "nothing was changed"
    assert not environment_of(tmp_path / "run").get("resumed")
    done = commands.resume("run", "--approximate")
    assert done.code == 0, done.stderr
    [told] = environment_of(tmp_path / "run")["resumed"]
    # Processes agree inside of an update, so a signal that comes at its end is heard in the next.
    assert told["update"] == before[1] in (11, 12)
    assert (told["processes"], told["exact"]) == (1, False)
    summary = RunFolder(tmp_path / "run").summary()
    assert summary is not None and summary["final"]["images"] == 60
    updates = [(record["kind"], record["update"]) for record in comparable(tmp_path / "run")]
    assert len(set(updates)) == len(updates), "no record twice"
    # Images seen are counted, not worked out from the last number of processes.
    images = [record["images"] for record in comparable(tmp_path / "run") if record["kind"] == "train"]
    assert images == sorted(images)


def test_the_same_number_is_exact_whatever_is_allowed(commands: Commands, tmp_path: Path, whole: Path) -> None:
    """--approximate permits; it does not make a resume approximate that can be exact."""
    for started in train(commands, "run", "train.timeout_seconds=60", rank1=AtUpdate(11, Send(signal.SIGTERM))):
        assert started.wait().code == 143
    all_end_well(commands.ranks("train", "run", "--resume", "--approximate"))
    [told] = environment_of(tmp_path / "run")["resumed"]
    assert (told["processes"], told["exact"]) == (2, True)
    assert_same_end(tmp_path / "run", whole)


PLAIN = (
    "method=plain", "model.attention=fused", "train.batch_size=8", "train.global_batch_size=16", "optim.name=sgd",
    "optim.lr=0.1", "optim.kwargs={momentum: 0.9}",
)  # fmt: skip


def test_a_global_batch_is_the_same_for_any_number_of_processes(commands: Commands, tmp_path: Path) -> None:
    """One process takes two parts, two processes one part each: the same images an update, nearly the same weights."""
    ranks = commands.ranks("train", RECIPE, *SMALL, *PLAIN, "--out", "two")
    all_end_well(ranks)
    done = commands.train("one", *PLAIN)
    assert done.code == 0, done.stderr
    one, two = RunFolder(tmp_path / "one").summary(), RunFolder(tmp_path / "two").summary()
    assert one is not None and two is not None
    assert one["updates"] == two["updates"] == UPDATES and one["images"] == two["images"] == 16 * UPDATES
    weights = [load_file(newest(tmp_path / name).path / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
    for a, b in zip(comparable(tmp_path / "one"), comparable(tmp_path / "two"), strict=True):
        assert a["images"] == b["images"]
        if a["kind"] == "eval":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a["top1"] == pytest.approx(b["top1"], abs=2)


def test_a_global_batch_that_does_not_divide_is_named(commands: Commands, tmp_path: Path) -> None:
    done = commands.train("run", "train.batch_size=12", "train.global_batch_size=16")
    assert done.code == 2, done.stderr
    assert "train.global_batch_size = 16" in done.stderr and "train.batch_size" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_rendezvous_that_never_comes_ends_with_a_message(commands: Commands, tmp_path: Path) -> None:
    """The other process was never started: the time limit holds for the first meeting too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = commands.start(
        "train", RECIPE, *SMALL, *TWO, "train.timeout_seconds=3", "--out", "run",
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    done = started.wait()
    assert done.code == 1, done.stderr
    assert "train.timeout_seconds" in done.stderr and "Traceback" not in done.stderr
