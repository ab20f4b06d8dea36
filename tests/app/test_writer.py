"""Checkpoints in the background. If these fail, a checkpoint holds later weights, or a full disk loses a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from masksub.app import checkpoint
from masksub.app.errors import StoppedError
from masksub.app.writer import CheckpointWriter

LONGEST = 60


def writer(folder: Path, heard: list[str], **settings: Any) -> CheckpointWriter:
    return CheckpointWriter(folder, **{"keep": 2, "background": True, "stop": True, "warn": heard.append, **settings})


class Gate:
    """Holds the writing thread until it is opened."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.inside.set()
        assert self.open.wait(LONGEST)


def test_weights_that_change_while_they_are_written_are_written_as_they_were(tmp_path: Path) -> None:
    """Training goes on in place; a checkpoint that shares its memory would hold a mixture of updates."""
    gate, weight, moment = Gate(), torch.ones(3), torch.zeros(2)
    made = writer(tmp_path, [], flush=gate)
    training = {"optimizer": {"state": {0: {"exp_avg": moment}}}, "update": 1}
    made.write(1, {"model": {"w": weight}}, training)
    weight.mul_(7)
    moment.add_(1)
    assert gate.inside.wait(LONGEST)
    assert checkpoint.latest(tmp_path, pytest.fail) is None  # no name before all of it is on disk
    gate.open.set()
    made.wait()
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None and found.update == 1
    assert load_file(found.weights)["w"].tolist() == [1, 1, 1]
    assert found.training_state()["optimizer"]["state"][0]["exp_avg"].tolist() == [0, 0]


def test_writing_does_not_hold_up_the_training_thread(tmp_path: Path) -> None:
    gate = Gate()
    made = writer(tmp_path, [], flush=gate)
    made.write(1, {"model": {"w": torch.ones(1)}}, {})
    assert gate.inside.wait(LONGEST)  # write() has returned, and the writing is not done
    made.poll()
    gate.open.set()
    made.close()
    assert checkpoint.latest(tmp_path, pytest.fail) is not None


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_stops_the_run_and_the_one_before_is_kept(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = writer(tmp_path, [], background=background)
    made.write(1, {"model": {"w": torch.ones(1)}}, {})
    made.wait()
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoppedError, match=r"update 2 could not be written: .*No space left.* kept: .*update-00000001"):
        made.write(2, {"model": {"w": torch.ones(1)}}, {})
        made.close()
        assert made.must_stop
        made.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000001"]  # nothing half-written takes room


def test_a_full_disk_is_counted_where_training_is_to_go_on_but_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    made = writer(tmp_path, heard, stop=False)
    made.write(1, {"model": {"w": torch.ones(1)}}, {})
    made.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        made.write(2, {"model": {"w": torch.ones(1)}}, {})
        made.close()
        made.poll()
        assert made.failed == 1 and "update 2 could not be written" in heard[0] and "goes on" in heard[0]
        made.write(3, {"model": {"w": torch.ones(1)}}, {})
        with pytest.raises(StoppedError, match="update 3 could not be written"):
            made.wait(last=True)
    made.write(3, {"model": {"w": torch.ones(1)}}, {})
    made.wait(last=True)
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None and found.update == 3


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".writing-00000002").mkdir()
    checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(1)}}, {}, keep=2)
    checkpoint.sweep_away_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000001"]
