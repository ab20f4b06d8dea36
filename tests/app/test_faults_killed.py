"""A training that is killed, in real processes: it goes on, and ends bit-equal to the one that was not.

If these fail, a week of training is lost to a fault of the machine, or its result depends on where the fault struck.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from masksub.app import checkpoint
from masksub.app.runs import RunFolder
from tests.app.faults_made_up import (
    ENVIRONMENT,
    LONGEST,
    RECIPE,
    SMALL,
    UPDATES,
    AtCall,
    AtUpdate,
    ClockBackwards,
    Commands,
    Fault,
    Send,
    assert_same_end,
    comparable,
    kill_group,
    newest,
    wait_for,
)

METHODS = {
    "masksub": ("train.ema_decay=0.9", "augment.mixup=0.8", "model.kwargs.proj_drop_rate=0.1"),
    "plain": ("method=plain", "train.ema_decay=0.9", "augment.cutmix=1.0", "model.kwargs.drop_path_rate=0.2"),
    "dropsub": ("method=dropsub", "sub.p=0.3", "model.kwargs.drop_path_rate=0.2"),
    "pathsub": ("method=pathsub", "sub.p=0.3", "train.checkpoint_in_background=false"),
    "accumulated, decoded as needed": (
        "train.batch_size=8", "train.accumulate=2", "data.cache=none", "data.workers=1", "optim.clip_norm=1.0",
    ),
}  # fmt: skip
FAST = "masksub"


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Unbroken runs by method, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("wholes")

    class Wholes(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            run = folder / name.split(",")[0]
            done = commands.train(str(run), *METHODS[name])
            assert done.code == 0, done.stderr
            self[name] = run
            return run

    with Commands(folder) as commands:
        yield Wholes()


def killed(commands: Commands, run: str, fault: Fault, *overrides: str) -> None:
    """Train, or go on where there is a run, until the fault kills the process."""
    done = commands.train(run, *overrides, "--resume", faults=[fault])
    assert done.code == -signal.SIGKILL, f"the fault did not strike: {done.code} {done.stderr}"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "," in name else []) for name in METHODS]
)
def test_killed_twice_and_resumed_is_bit_equal(
    name: str, commands: Commands, tmp_path: Path, wholes: dict[str, Path]
) -> None:
    """In the middle of an epoch: work is done again; then once more, in another epoch."""
    killed(commands, "broken", AtUpdate(11, Send()), *METHODS[name])
    assert newest(tmp_path / "broken").update == 8
    killed(commands, "broken", AtUpdate(21, Send()), *METHODS[name])
    assert newest(tmp_path / "broken").update == 16
    done = commands.resume("broken")
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", wholes[name])


MOMENTS: dict[str, tuple[Fault, int]] = {
    # fault, update of the checkpoint that is used afterwards (0: not told)
    "before the first update": (AtUpdate(100, Send(), task="reading images"), 0),
    "in the first epoch": (AtUpdate(3, Send()), 0),
    "while evaluating": (AtUpdate(1, Send(), task="evaluating"), 0),
    "before a line of metrics": (AtCall("open", r"metrics\.jsonl.* a", number=6), 0),
    "a checkpoint folder is begun": (AtCall("open", r"\.writing-00000016", number=1), 8),
    "its second file": (AtCall("open", r"\.writing-00000016", number=2), 8),
    "it is whole, without its name": (AtCall("os.rename", r"\.writing-00000016"), 8),
    "the oldest is being removed": (AtCall("os.remove", r"model\.safetensors|training\.pt|manifest\.json"), UPDATES),
    "before the summary": (AtCall("os.rename", r"summary\.json"), UPDATES),
}
FAST_MOMENTS = ("while evaluating", "its second file", "it is whole, without its name", "the oldest is being removed")


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=[] if m in FAST_MOMENTS else [pytest.mark.slow]) for m in MOMENTS]
)
def test_killed_at_a_bad_moment(moment: str, commands: Commands, tmp_path: Path, wholes: dict[str, Path]) -> None:
    """Between any two calls to the file system the run folder is one that can be gone on with."""
    fault, update = MOMENTS[moment]
    killed(commands, "broken", fault, *METHODS[FAST])
    found = checkpoint.latest(tmp_path / "broken" / "checkpoints", lambda _: None)
    done = commands.train("broken", *METHODS[FAST], "--resume")
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", wholes[FAST])
    if update:
        assert found is not None and found.update == update
        assert f"update {update} of {UPDATES}" in done.stderr


def test_killed_while_a_checkpoint_is_written_by_the_real_command(tmp_path: Path, wholes: dict[str, Path]) -> None:
    """No server, no fault inside: the command from a shell, killed from outside with all that it started."""
    command = [sys.executable, "-m", "masksub", "train", RECIPE, *SMALL, *METHODS[FAST], "--out", "broken", "--resume"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "broken" / "checkpoints" / "*update-*")
    finally:
        kill_group(process)
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=LONGEST,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "broken", wholes[FAST])


def test_killed_while_resuming(commands: Commands, tmp_path: Path, wholes: dict[str, Path]) -> None:
    """The records after the checkpoint are dropped in one stroke: killed there, the run is as before."""
    killed(commands, "broken", AtUpdate(14, Send()), *METHODS[FAST])
    before = comparable(tmp_path / "broken")
    killed(commands, "broken", AtCall("os.rename", r"metrics\.jsonl"), *METHODS[FAST])
    assert comparable(tmp_path / "broken") == before
    done = commands.resume("broken")
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path / "broken", wholes[FAST])


def test_a_clock_that_goes_backwards_changes_nothing(
    commands: Commands, tmp_path: Path, wholes: dict[str, Path]
) -> None:
    """The newest checkpoint is the one of the highest update, whatever the dates of the files say."""
    killed(commands, "broken", AtUpdate(21, Send()), *METHODS[FAST])
    for age, path in enumerate(sorted((tmp_path / "broken" / "checkpoints").glob("update-*"))):
        os.utime(path, (2e9 - 1e6 * age,) * 2)
    done = commands.resume("broken", faults=[ClockBackwards(1e9)])
    assert done.code == 0, done.stderr
    assert f"update 16 of {UPDATES}" in done.stderr
    assert_same_end(tmp_path / "broken", wholes[FAST])
    summary = RunFolder(tmp_path / "broken").summary()
    assert summary is not None and summary["train_seconds"] > 0 and summary["images_per_second"] > 0
    seconds = [record["seconds"] for record in RunFolder(tmp_path / "broken").metrics()]
    assert seconds == sorted(seconds)


@pytest.fixture(scope="module")
def killed_late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its third epoch, with the checkpoints of updates 8 and 16."""
    folder = tmp_path_factory.mktemp("late")
    with Commands(folder) as commands:
        killed(commands, "run", AtUpdate(21, Send()), *METHODS[FAST])
    return folder / "run"


def altered(path: Path) -> None:
    """One bit in the middle is turned over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("model.safetensors", altered, "model.safetensors is altered: its checksum differs"),
        ("training.pt", cut, "training.pt is cut short"),
        ("ema.safetensors", Path.unlink, "ema.safetensors is missing"),
        ("manifest.json", cut, "manifest.json is missing or unreadable"),
        pytest.param("training.pt", altered, "training.pt is altered: its checksum differs", marks=pytest.mark.slow),
        pytest.param("model.safetensors", cut, "model.safetensors is cut short", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(
    file: str,
    damage: Callable[[Path], object],
    reason: str,
    killed_late: Path,
    commands: Commands,
    tmp_path: Path,
    wholes: dict[str, Path],
) -> None:
    shutil.copytree(killed_late, tmp_path / "broken")
    damage(tmp_path / "broken" / "checkpoints" / "update-00000016" / file)
    done = commands.resume("broken")
    assert done.code == 0, done.stderr
    assert "update-00000016 is refused" in done.stderr and reason in done.stderr
    assert f"update 8 of {UPDATES}" in done.stderr and "Traceback" not in done.stderr
    assert_same_end(tmp_path / "broken", wholes[FAST])


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_killed_before_each_call_to_the_file_system(
    share: int, commands: Commands, tmp_path: Path, wholes: dict[str, Path]
) -> None:
    """Every fourth of all calls that touch the run folder, from the first one on to the end of the run."""
    number, run = 1 + share, tmp_path / "broken"
    while True:
        fault = AtCall("open|os\\.(rename|remove|mkdir|rmdir|truncate)|shutil.*", r"broken", number=number)
        done = commands.train("broken", *METHODS[FAST], "--resume", faults=[fault])
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL, f"call {number}: {done.stderr}"
        done = commands.train("broken", *METHODS[FAST], "--resume")
        assert done.code == 0, f"call {number}: {done.stderr}"
        assert_same_end(run, wholes[FAST])
        shutil.rmtree(run)
        number += 4
    assert number > 20, "the fault struck often"
