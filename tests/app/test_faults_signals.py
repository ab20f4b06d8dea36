"""A scheduler or a person asks a training to stop, in real processes. If these fail, preemption loses work."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.app.faults_made_up import (
    LONGEST,
    RECIPE,
    SMALL,
    AtCall,
    AtUpdate,
    Commands,
    Done,
    Fault,
    Send,
    SleepAfter,
    assert_same_end,
    comparable,
    environment_of,
    kill_group,
    newest,
    torchrun,
    wait_for,
)

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
LONG_EVALUATION = ("data.val_images=300", "train.eval_batch_size=10", "train.ema_decay=0.9")
TWO = ("train.batch_size=8", "train.eval_batch_size=4", "train.timeout_seconds=60")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run with long evaluations."""
    folder = tmp_path_factory.mktemp("whole")
    with Commands(folder) as commands:
        done = commands.train("run", *LONG_EVALUATION)
    assert done.code == 0, done.stderr
    return folder / "run"


def assert_stopped_well(done: Done, signum: int, run: Path, update: int) -> None:
    """The exit code of the signal, one message, and a checkpoint of the update that was going on."""
    assert done.code == CODES[signal.Signals(signum)], done.stderr
    assert f"masksub train {run.name} --resume" in done.stderr and "Traceback" not in done.stderr
    assert newest(run).update == update
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert not (run / "summary.json").exists() and not (run / "failure.json").exists()


MOMENTS: dict[str, tuple[type[AtUpdate] | type[AtCall], tuple[object, ...], int]] = {
    "in an update": (AtUpdate, (5,), 5),
    "in the last update of an epoch": (AtUpdate, (8,), 8),
    "while evaluating": (AtUpdate, (3,), 8),
    "while a checkpoint is written": (AtCall, ("open", r"\.writing-00000008"), -1),
}


def struck(moment: str, signum: int) -> tuple[Fault, int]:
    kind, place, update = MOMENTS[moment]
    task = {"task": "evaluating"} if moment == "while evaluating" else {}
    fault: Fault = kind(*place, act=Send(signum), **task)  # type: ignore[arg-type]
    return fault, update


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("in an update", signal.SIGTERM),
        ("while evaluating", signal.SIGTERM),
        ("while evaluating", signal.SIGINT),
        ("while a checkpoint is written", signal.SIGTERM),
        pytest.param("in an update", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("in the last update of an epoch", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("while a checkpoint is written", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_with_its_code_and_loses_nothing(
    moment: str, signum: int, commands: Commands, tmp_path: Path, whole: Path
) -> None:
    fault, update = struck(moment, signum)
    done = commands.train("broken", *LONG_EVALUATION, faults=[fault])
    # A checkpoint may be written while training goes on: the update that sees the signal is then one of the next.
    found = newest(tmp_path / "broken").update
    assert_stopped_well(done, signum, tmp_path / "broken", found if update < 0 else update)
    assert found >= 8 or update == 5
    if moment == "while evaluating":
        assert not [record for record in comparable(tmp_path / "broken") if record["kind"] == "eval"]
    done = commands.resume("broken")
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", whole)


def test_a_signal_before_the_first_update_leaves_a_run_that_can_be_started(
    commands: Commands, tmp_path: Path, whole: Path
) -> None:
    """While images are read there is nothing to save: the code says it was the signal, and the same command works."""
    fault = AtUpdate(100, Send(signal.SIGTERM), task="reading images")
    done = commands.train("broken", *LONG_EVALUATION, faults=[fault])
    assert done.code == 143, done.stderr
    done = commands.train("broken", *LONG_EVALUATION)
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", whole)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), pytest.param(signal.SIGINT, signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_second_signal_ends_at_once(first: int, second: int, commands: Commands, tmp_path: Path, whole: Path) -> None:
    """The update hangs for longer than anything waits here; the last checkpoint is good for going on."""
    mark = tmp_path / "hangs"
    started = commands.start(
        "train", RECIPE, *SMALL, *LONG_EVALUATION, "--out", "broken", faults=[AtUpdate(11, SleepAfter(mark))]
    )
    started.wait_for(mark)
    started.send(first)
    # The first one asks, so the process goes on: the second one comes when it was surely seen.
    assert not started.ends_within(1)
    started.send(second)
    done = started.wait(LONGEST)
    assert done.code == CODES[signal.Signals(second)], done.stderr
    assert "Traceback" not in done.stderr
    assert newest(tmp_path / "broken").update == 8
    done = commands.resume("broken")
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", whole)


def test_a_second_signal_while_evaluating_ends_at_once(commands: Commands, tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    fault = AtUpdate(3, SleepAfter(mark), task="evaluating")
    started = commands.start("train", RECIPE, *SMALL, *LONG_EVALUATION, "--out", "broken", faults=[fault])
    started.wait_for(mark)
    for _ in range(2):
        started.send(signal.SIGTERM)
        started.ends_within(0.5)
    assert started.wait(LONGEST).code == 143
    assert [record["kind"] for record in comparable(tmp_path / "broken")] == ["train", "train"]


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    with Commands(folder) as commands:
        ranks = commands.ranks("train", RECIPE, *SMALL, *LONG_EVALUATION, *TWO, "--out", "run")
        for rank in ranks:
            done = rank.wait()
            assert done.code == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize(
    ("moment", "rank"),
    [("in an update", 1), ("while evaluating", 1), pytest.param("while evaluating", 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_update(
    moment: str, rank: int, commands: Commands, tmp_path: Path, whole_of_two: Path
) -> None:
    """A scheduler's signal reaches processes at different times; a process that went on alone would hang."""
    fault, update = struck(moment, signal.SIGTERM)
    arguments = ("train", RECIPE, *SMALL, *LONG_EVALUATION, *TWO, "--out", "broken")
    for started in commands.ranks(*arguments, faults={rank: fault}):
        done = started.wait()
        assert done.code == 143, done.stderr
        assert "Traceback" not in done.stderr
    # Processes agree inside of an update, so a signal that comes at its end is heard in the next.
    assert newest(tmp_path / "broken").update in ((update, update + 1) if moment == "in an update" else (update,))
    # Neither goes through the rest of an evaluation, which on a large set takes longer than a scheduler waits.
    assert not [record for record in comparable(tmp_path / "broken") if record["kind"] == "eval"]
    for started in commands.ranks("train", "broken", "--resume"):
        done = started.wait()
        assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", whole_of_two)


def test_torchrun_stopped_by_its_scheduler_goes_on_where_it_was(tmp_path: Path, whole_of_two: Path) -> None:
    """The real launcher: it hands SIGTERM on to its two processes."""
    arguments = ("train", RECIPE, *SMALL, *LONG_EVALUATION, *TWO, "--out", "broken", "--resume")
    process = torchrun(*arguments, cwd=tmp_path)
    try:
        wait_for(tmp_path / "broken" / "checkpoints" / "update-*", lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LONGEST)
    finally:
        kill_group(process)
    assert process.returncode != 0
    assert "masksub train broken --resume" in said, said[-3000:]
    assert said.count("epoch 1: ") == 1, f"one process speaks for all: {said[-3000:]}"
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = torchrun(*arguments, cwd=tmp_path)
    try:
        _, said = resumed.communicate(timeout=LONGEST)
    finally:
        kill_group(resumed)
    assert resumed.returncode == 0, said[-3000:]
    assert_same_end(tmp_path / "broken", whole_of_two)
    told = environment_of(tmp_path / "broken")["resumed"]
    assert [(each["processes"], each["exact"]) for each in told] == [(2, True)], told
