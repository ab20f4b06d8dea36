"""Worker processes: they change nothing in what is trained on, end when they should, and their death is told."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from masksub.app.data import EvalBatches, TrainBatches, open_source
from masksub.app.errors import InputError, StoppedError
from masksub.app.settings import Augment, Data
from tests.app.test_data_hfds import write_set
from tests.app.test_data_shards import write_shards
from tests.app.test_data_sources import folders, write_images

STRONG = Augment(
    crop="resized", flip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erase=0.5, mixup=0.8, cutmix=1.0, repeats=2
)
DIGITS = Data(name="digits", image_size=8, channels=1, train_images=200, cache="none")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(kind: str, root: Path) -> Data:
    if kind == "folder":
        return folders(write_images(root, {"a": 20, "b": 20}, size=16))
    if kind == "shards":
        path = str(write_shards(root, shards=5, images=8))
        return Data(name="shards", train=path, val=path, channels=1, image_size=8, shard_window=2)
    return write_set(root, 40)


def train_batches(data: Data, workers: int, augment: Augment = STRONG, batch_size: int = 8, **more) -> TrainBatches:
    data = data.model_copy(update={"cache": "none", "workers": workers})
    source = open_source(data, "train", 0)
    return TrainBatches(source, data, augment, seed=0, batch_size=batch_size, num_classes=len(source.classes), **more)


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second)
    )


def workers_left() -> list[psutil.Process]:
    """Child processes that are still there, those of multiprocessing's own bookkeeping left out."""
    children = psutil.Process().children()
    return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]


@pytest.mark.parametrize("kind", ["folder", "shards", "hfds"])
def test_the_samples_are_the_same_for_any_number_of_workers(tmp_path: Path, kind: str) -> None:
    """Bit for bit, with all that is random, in two epochs (workers live on) and from the middle of one."""
    data = settings(kind, tmp_path / "set")
    none = train_batches(data, 0)
    expected = [list(none.epoch(epoch)) for epoch in (0, 1)]
    assert not same(*expected)
    for workers in (1, 2, 4):
        batches = train_batches(data, workers)
        assert all(same(list(batches.epoch(epoch)), expected[epoch]) for epoch in (0, 1)), workers
        assert same(list(batches.epoch(1, start=3)), expected[1][3:]), workers
        batches.close()


def test_no_more_workers_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user of a small machine reads a warning of torch's, in each run of a comparison."""
    data = settings("shards", tmp_path / "set")
    before = {each.pid for each in workers_left()}
    for cores, expected in ((1, 1), (2, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        batches = train_batches(data, 2)
        list(batches.epoch(0))  # torch's warning would be an error here
        assert len({each.pid for each in workers_left()} - before) == expected
        batches.close()


def test_evaluation_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    data = settings("shards", tmp_path / "set").model_copy(update={"cache": "none"})
    source = open_source(data, "val", 0)
    none, two = (
        list(EvalBatches(source, data.model_copy(update={"workers": workers}), STRONG, batch_size=7))
        for workers in (0, 2)
    )
    assert same(none, two) and len(none) == 6


def test_workers_live_on_over_epochs_and_end_with_close() -> None:
    """Starting them anew takes seconds in each epoch where processes are not forked."""
    before = {each.pid for each in workers_left()}
    batches = train_batches(DIGITS, 2)
    list(batches.epoch(0))
    first = {each.pid for each in workers_left()} - before
    list(batches.epoch(1))
    assert {each.pid for each in workers_left()} - before == first and len(first) == 2
    batches.close()
    assert {each.pid for each in workers_left()} <= before
    list(batches.epoch(2))
    del batches
    assert {each.pid for each in workers_left()} <= before, "left over by batches that nobody refers to"


@pytest.mark.parametrize("how", ["closed", "dropped", "error"])
def test_workers_end_where_an_epoch_is_broken_off(how: str) -> None:
    """A request to stop, a diverged loss or a damaged image leaves an epoch in the middle; nothing may keep running."""
    before = {each.pid for each in workers_left()}
    batches = train_batches(DIGITS, 2)
    epoch = batches.epoch(0)
    next(epoch)
    assert len({each.pid for each in workers_left()} - before) == 2
    if how == "closed":
        epoch.close()
    elif how == "dropped":
        del epoch
    else:
        with pytest.raises(KeyError):
            epoch.throw(KeyError())
    assert {each.pid for each in workers_left()} <= before
    evaluation = iter(EvalBatches(open_source(DIGITS, "val", 0), DIGITS, STRONG, batch_size=8))
    next(evaluation)
    evaluation.close()
    assert {each.pid for each in workers_left()} <= before
    assert same(list(batches.epoch(0)), list(train_batches(DIGITS, 0).epoch(0))), "the next epoch is whole"
    batches.close()


def test_a_damaged_image_ends_the_workers(tmp_path: Path) -> None:
    before = {each.pid for each in workers_left()}
    data = settings("folder", tmp_path / "set")
    (tmp_path / "set" / "a" / "3.png").write_text("no image")
    with pytest.raises(InputError, match=r"3\.png can't be decoded") as caught:
        list(train_batches(data, 2, Augment()).epoch(0))
    assert {each.pid for each in workers_left()} <= before, "kept alive by the traceback"
    assert caught.value is not None


def test_two_epochs_at_a_time() -> None:
    """Iterators that share a loader would take each other's batches."""
    batches, none = train_batches(DIGITS, 1), train_batches(DIGITS, 0)
    both = list(zip(batches.epoch(0), batches.epoch(1)))
    assert same([first for first, _ in both], list(none.epoch(0)))
    assert same([second for _, second in both], list(none.epoch(1)))
    batches.close()


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    """The kernel kills workers when memory runs out; the message must say so, wherever the trainer is just then."""
    before = {each.pid for each in workers_left()}
    handler = signal.getsignal(signal.SIGCHLD)
    batches = train_batches(DIGITS, 2)
    epoch = batches.epoch(0)
    next(epoch)
    assert signal.getsignal(signal.SIGCHLD) == handler, "torch's handler raises in the middle of a training step"
    for worker in workers_left():
        if worker.pid not in before:
            os.kill(worker.pid, signal.SIGKILL)
    threading.Event().wait(0.2)  # the signal of the death arrives here
    with pytest.raises(StoppedError, match=r"a process that decodes images was killed .*pid.*data\.workers = 2"):
        list(epoch)
    assert {each.pid for each in workers_left()} <= before
    assert same(list(batches.epoch(0)), list(train_batches(DIGITS, 0).epoch(0)))
    batches.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_group_leave_the_workers_alone(signum: int) -> None:
    """Ctrl-C and SLURM signal all processes of a job; the trainer still has to finish its step, evaluation included."""
    before = {each.pid for each in workers_left()}
    batches = train_batches(DIGITS, 2)
    epoch = batches.epoch(0)
    met = [next(epoch)]
    for worker in workers_left():
        if worker.pid not in before:
            os.kill(worker.pid, signum)
    met += epoch
    assert same(met, list(train_batches(DIGITS, 0).epoch(0)))
    batches.close()
    assert {each.pid for each in workers_left()} <= before


def test_workers_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    """Else each kill -9 leaves processes behind that hold memory and shards open."""
    script = tmp_path / "train.py"
    script.write_text(
        "import psutil, time\n"
        "from tests.app.test_data_workers import DIGITS, train_batches\n"
        "if __name__ == '__main__':\n"
        "    epoch = train_batches(DIGITS, 2).epoch(0)\n"
        "    next(epoch)\n"
        "    print(*(each.pid for each in psutil.Process().children()), flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
        trainer.kill()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_whose_trainer_is_gone_before_it_begins_ends(method: str, tmp_path: Path) -> None:
    """Killed while workers start, a trainer would leave them for ever: torch then watches another process."""
    script = tmp_path / "train.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "from pathlib import Path\n"
        "from masksub.app.data.stream import _begin_worker\n"
        "def work(folder):\n"
        "    (folder / 'pid').write_text(str(os.getpid()))\n"
        "    while not (folder / 'killed').exists():\n"
        "        time.sleep(0.05)\n"
        "    _begin_worker(0)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context(sys.argv[1])\n"
        "    context.Process(target=work, args=(Path(sys.argv[2]),)).start()\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    pid = tmp_path / "pid"
    with subprocess.Popen([sys.executable, str(script), method, str(tmp_path)], env=environment) as trainer:
        end = time.monotonic() + 120
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < end and trainer.poll() is None
            time.sleep(0.05)
        worker = psutil.Process(int(pid.read_text()))
        trainer.kill()
    (tmp_path / "killed").touch()
    try:
        _, alive = psutil.wait_procs([worker], timeout=30)
        assert not alive
    finally:
        if worker.is_running():
            worker.kill()


def test_what_workers_need_can_be_pickled(tmp_path: Path) -> None:
    """Where processes are not forked (macOS, Windows, newer Pythons), images travel to the workers as pickles."""
    for kind in ("folder", "shards", "hfds"):
        images = train_batches(settings(kind, tmp_path / kind), 0)._stream._images
        copy = pickle.loads(pickle.dumps(images))
        (index, first), (again, second) = images[3, 1, 1], copy[3, 1, 1]
        assert index == again == 3 and isinstance(first, torch.Tensor) and torch.equal(first, second)
