"""Disks that are full or can't be written to. If these fail, a full disk costs more than the checkpoint that it hit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from masksub.app.runs import RunFolder
from tests.app.faults_made_up import (
    UPDATES,
    AtUpdate,
    Commands,
    Done,
    Fill,
    LimitFiles,
    MakeRoom,
    Send,
    assert_bit_equal,
    assert_same_end,
    checkpoint_content,
    comparable,
    newest,
    small_disk,
)

OVERRIDES = ("train.ema_decay=0.9",)
DISK = 16 << 20
ROOM = 160 << 10
"""Free bytes: enough for lines of metrics, not for a checkpoint of the tiny run."""
KINDS = ("full", "limited")
"""A file system with no room, and a limit on files, which hits in the middle of one and needs no privileges."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    with Commands(folder) as commands:
        done = commands.train("run", *OVERRIDES)
    assert done.code == 0, done.stderr
    return folder / "run"


@contextmanager
def disk(kind: str, folder: Path) -> Iterator[Path]:
    """Where the run goes."""
    with small_disk(folder, DISK) if kind == "full" else nullcontext(folder) as place:
        yield place


def trouble(kind: str, place: Path, update: int, until: int | None = None) -> list[AtUpdate]:
    """No room from an update on, and until another one."""
    begin = Fill(place, ROOM) if kind == "full" else LimitFiles(20 << 10)
    end = MakeRoom(place) if kind == "full" else LimitFiles(None)
    return [AtUpdate(update, begin), *([] if until is None else [AtUpdate(until, end)])]


def assert_told(done: Done, kind: str, run: Path) -> None:
    """Which checkpoint, why, and which one is kept."""
    assert "checkpoint of update 16 could not be written" in done.stderr, done.stderr
    assert ("No space left on device" if kind == "full" else "File too large") in done.stderr
    assert f"{run.name}/checkpoints/update-00000008" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_stops_the_training_and_the_checkpoint_before_is_used(
    kind: str, background: bool, commands: Commands, tmp_path: Path, whole: Path
) -> None:
    with disk(kind, tmp_path / "disk") as place:
        run, how = place / "run", f"train.checkpoint_in_background={str(background).lower()}"
        done = commands.train(str(run), *OVERRIDES, how, faults=trouble(kind, place, 10))
        assert done.code == 1, done.stderr
        assert_told(done, kind, run)
        assert newest(run).update == 8
        assert not (run / "failure.json").exists(), "the recipe is not to blame"
        if kind == "full":
            MakeRoom(place)()
        done = commands.resume(str(run))
        assert done.code == 0, done.stderr
        assert_same_end(run, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_with_continue_a_full_disk_costs_one_checkpoint(
    kind: str, commands: Commands, tmp_path: Path, whole: Path
) -> None:
    with disk(kind, tmp_path / "disk") as place:
        run = place / "run"
        how = "train.on_checkpoint_error=continue"
        done = commands.train(str(run), *OVERRIDES, how, faults=trouble(kind, place, 10, until=20))
        assert done.code == 0, done.stderr
        assert "warning" in done.stderr
        assert_told(done, kind, run)
        summary = RunFolder(run).summary()
        assert summary is not None and summary["failed_checkpoints"] == 1
        assert_bit_equal(checkpoint_content(newest(run)), checkpoint_content(newest(whole)))
        assert comparable(run) == comparable(whole)
        assert not list((run / "checkpoints").glob(".writing-*"))


def test_with_continue_and_killed_the_checkpoint_before_is_used(
    commands: Commands, tmp_path: Path, whole: Path
) -> None:
    """The one that could not be written leaves nothing that a resumed run could take for a checkpoint."""
    with disk("limited", tmp_path / "disk") as place:
        run = place / "run"
        faults = [*trouble("limited", place, 10), AtUpdate(21, Send())]
        done = commands.train(str(run), *OVERRIDES, "train.on_checkpoint_error=continue", faults=faults)
        assert done.code == -9, done.stderr
        assert newest(run).update == 8
        done = commands.resume(str(run))
        assert done.code == 0, done.stderr
        assert f"update 8 of {UPDATES}" in done.stderr
        assert_bit_equal(checkpoint_content(newest(run)), checkpoint_content(newest(whole)))
        assert comparable(run) == comparable(whole)


def test_a_disk_without_room_for_metrics_is_told_and_nothing_is_lost(
    commands: Commands, tmp_path: Path, whole: Path
) -> None:
    """Not one more byte: the line of metrics can't be written, the run stops, and goes on once there is room."""
    with small_disk(tmp_path / "disk", DISK) as place:
        run = place / "run"
        done = commands.train(str(run), *OVERRIDES, "train.log_every=1", faults=[AtUpdate(10, Fill(place, 0))])
        assert done.code == 1, done.stderr
        assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
        assert newest(run).update == 8
        MakeRoom(place)()
        done = commands.resume(str(run))
        assert done.code == 0, done.stderr
        assert_bit_equal(checkpoint_content(newest(run))["weights"], checkpoint_content(newest(whole))["weights"])
        updates = [record["update"] for record in comparable(run) if record["kind"] == "train"]
        assert updates == list(range(1, UPDATES + 1))


def test_a_disk_that_is_read_only_is_named_before_training(commands: Commands, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20, "ro") as place:
        done = commands.train(str(place / "run"))
    assert done.code == 2, done.stderr
    assert f"{place}/run" in done.stderr and "Traceback" not in done.stderr
    assert "epoch" not in done.stderr


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after update 11."""
    folder = tmp_path_factory.mktemp("stopped")
    with Commands(folder) as commands:
        done = commands.train("run", *OVERRIDES, faults=[AtUpdate(11, Send(signal.SIGTERM))])
    assert done.code == 143, done.stderr
    return folder / "run"


def assert_refused_before_training(done: Done, run: Path, stopped: Path, *named: str) -> None:
    """One message that names the place, and nothing was trained."""
    assert done.code in (1, 2), done.stderr
    for part in named:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "epoch" not in done.stderr
    assert newest(run).update == newest(stopped).update == 11
    assert not (run / "summary.json").exists()


def test_metrics_that_can_t_be_written_are_named_before_training(
    commands: Commands, tmp_path: Path, stopped: Path
) -> None:
    """The administrator's account may write to any file, so a folder stands in its place."""
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    done = commands.resume("run")
    assert_refused_before_training(done, tmp_path / "run", stopped, "metrics.jsonl")


def test_a_run_on_a_disk_that_became_read_only_is_named_before_training(
    commands: Commands, tmp_path: Path, stopped: Path
) -> None:
    with small_disk(tmp_path / "disk", DISK) as place:
        shutil.copytree(stopped, place / "run")
        remount = ["mount", "-o", "remount,ro", str(place)]
        subprocess.run(remount, check=True, timeout=60)
        done = commands.resume(str(place / "run"))
        assert_refused_before_training(done, place / "run", stopped, f"{place}/run")


def test_tensorboard_events_that_can_t_be_written_are_named_before_training(commands: Commands, tmp_path: Path) -> None:
    """All of the folder but the events can be written to."""
    done = commands.train("run", "train.tensorboard=true", faults=[NoEvents()])
    assert done.code in (1, 2), done.stderr
    assert "TensorBoard" in done.stderr and "train.tensorboard=false" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "epoch" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("update-*"))


@dataclass(frozen=True)
class NoEvents:
    """Files of TensorBoard's events can't be opened."""

    def install(self) -> None:
        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" and "events.out" in str(arguments[0]):
                raise PermissionError(13, "Permission denied", str(arguments[0]))

        sys.addaudithook(hook)
