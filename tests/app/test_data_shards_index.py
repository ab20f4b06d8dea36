"""The index of tar shards, and reading by it."""

from __future__ import annotations

import itertools
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from masksub.app.data import TrainBatches, open_source
from masksub.app.data.handles import Handles
from masksub.app.errors import InputError
from masksub.app.settings import Augment
from tests.app.test_data_shards import opened, sample, settings, values, write_shard, write_shards


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def no_scan(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers are read from now on."""
    from masksub.app.data import shard_index

    scanned: list[str] = []
    scan = shard_index.scan
    monkeypatch.setattr(shard_index, "scan", lambda path, name: scanned.append(name) or scan(path, name))
    return scanned


def test_headers_are_read_once_and_again_only_where_a_shard_changed(tmp_path: Path, monkeypatch) -> None:
    """Reading all headers of ImageNet at each start takes minutes; an index of old shards reads garbage."""
    root, scanned = write_shards(tmp_path / "set"), no_scan(monkeypatch)
    told: list[tuple[int, int]] = []
    first = open_source(settings(root), "train", 0, lambda *each: told.append(each))
    assert sorted(scanned) == [f"train-000{n}.tar" for n in range(4)] and told == [(n, 4) for n in range(1, 5)]
    assert len(list(root.glob(".masksub-*.npz"))) == 1 and not list(root.glob("*.part"))
    scanned.clear()
    assert values(opened(root)) == values(first) and not scanned
    write_shard(root / "train-0002.tar", sample(77) | sample(78))
    assert values(opened(root)) == [*range(20), 77, 78, *range(30, 40)] and scanned == ["train-0002.tar"]
    scanned.clear()
    stat = (root / "train-0001.tar").stat()
    os.utime(root / "train-0001.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    opened(root)
    assert scanned == ["train-0001.tar"], "the same size with another time is another shard"
    scanned.clear()
    root.rename(tmp_path / "moved")
    assert values(opened(tmp_path / "moved"))[0] == 0 and not scanned, "an index moves with its shards"


@pytest.mark.parametrize("content", [b"", b"no index", b"half", b"pickle"])
def test_a_damaged_index_is_made_again(tmp_path: Path, monkeypatch, content: bytes) -> None:
    """Nothing in an index may run code or point outside of a shard."""
    root, scanned = write_shards(tmp_path / "set"), no_scan(monkeypatch)
    opened(root)
    (index,) = root.glob(".masksub-*.npz")
    whole = index.read_bytes()
    flag = tmp_path / "executed"
    if content == b"pickle":
        content = pickle.dumps(_Touch(flag))
    index.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    scanned.clear()
    assert values(opened(root)) == list(range(40)) and len(scanned) == 4 and not flag.exists()
    assert index.read_bytes() != content


def test_an_index_of_an_earlier_version_is_made_again(tmp_path: Path, monkeypatch) -> None:
    """It lacks the problems that were not looked for then."""
    from masksub.app.data import shard_index

    root, scanned = write_shards(tmp_path / "set"), no_scan(monkeypatch)
    with monkeypatch.context() as before:
        before.setattr(shard_index, "_VERSION", 1)
        opened(root)
    scanned.clear()
    opened(root)
    assert len(scanned) == 4


def test_machines_that_write_one_index_do_not_share_a_part_of_it(tmp_path: Path, monkeypatch) -> None:
    """Processes of two nodes can have the same number, and locks do not reach over every network disk."""
    root, parts = write_shards(tmp_path / "set"), []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: parts.append(self.name) or replace(self, to))
    for _ in "ab":
        opened(root)
        (index,) = root.glob(".masksub-*.npz")
        index.unlink()
    assert len(set(parts)) == len(parts) == 2 and all(part.endswith(".part") for part in parts)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_index_that_points_outside_of_a_shard(tmp_path: Path) -> None:
    from masksub.app.data.shard_index import _pack, _unpack, index_of

    root = write_shards(tmp_path / "set", shards=1)
    (shard,) = index_of([root / "train-0000.tar"], root)
    assert _unpack(_pack([shard]))[0].members == shard.members
    shard.spans[3, 1] = 10**12
    with pytest.raises(ValueError, match="outside"):
        _unpack(_pack([shard]))


@pytest.mark.parametrize("cache", ["writable", "not writable"])
def test_shards_on_a_disk_that_can_not_be_written_to(tmp_path: Path, monkeypatch, cache: str) -> None:
    """Usual for shared data: the index goes to the user's cache, and if that fails too, training still runs."""
    root, scanned = write_shards(tmp_path / "set"), no_scan(monkeypatch)
    if cache == "not writable":
        (tmp_path / "cache").write_text("a file where the folder should be")
    open_file = Path.open

    def refuse(self: Path, mode: str = "r", *more, **named):
        if "w" in mode and self.parent == root:
            raise OSError(30, "Read-only file system")
        return open_file(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", refuse)
    assert values(opened(root)) == values(opened(root)) == list(range(40))
    assert len(scanned) == (4 if cache == "writable" else 8)
    assert not list(root.glob(".masksub*"))
    if cache == "writable":
        assert len(list((tmp_path / "cache" / "masksub").glob("*.npz"))) == 1


def test_shards_stay_open_and_are_not_scanned_for_an_image(tmp_path: Path, monkeypatch) -> None:
    """Opening a file on a network disk for each image would halve the speed."""
    source = opened(write_shards(tmp_path / "set"))
    calls: list[str] = []
    open_descriptor = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: calls.append(str(path)) or open_descriptor(path, *more))
    monkeypatch.setattr(tarfile, "open", None)
    assert values(source) == values(source) == list(range(40))
    assert len(calls) == 4


def test_handles_are_limited_and_closed(tmp_path: Path) -> None:
    """A thousand shards must not use up a thousand descriptors."""
    for number in range(6):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 10)
    handles = Handles(limit=2)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    for _ in "ab":
        for number in range(6):
            assert handles.read(tmp_path / str(number), 3, 4) == bytes([number]) * 4
    assert len(handles) == 2
    assert handles.read(tmp_path / "5", 8, 100) == bytes([5]) * 2
    if before is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    with pytest.raises(FileNotFoundError):
        handles.read(tmp_path / "none", 0, 1)


def test_a_shard_that_shrank_after_it_was_listed(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set", shards=1)
    source = opened(root)
    os.truncate(root / "train-0000.tar", 550)
    with pytest.raises(InputError, match=r"0000\.png in .*train-0000\.tar can't be read: the shard ends inside it"):
        source.read(0)


def train_batches(root: Path, augment: Augment | None = None, *, batch_size: int = 8, rank=0, world=1, **more):
    data = settings(root, cache="none", workers=0, **more)
    source = open_source(data, "train", 0)
    return TrainBatches(
        source, data, augment or Augment(), seed=0, batch_size=batch_size, rank=rank, world=world, num_classes=3
    )


def numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()


def test_images_are_shuffled_within_windows_of_shuffled_shards(tmp_path: Path) -> None:
    """Else a network disk is read at random places of all shards at a time, or classes come in the order of writing."""
    root = write_shards(tmp_path / "set", shards=12, images=8)
    batches = train_batches(root, shard_window=3)
    seen, partners = [], []
    for epoch in range(4):
        order = [number for x, _ in batches.epoch(epoch) for number in numbers(x)]
        assert sorted(order) == list(range(96)), "each image once"
        windows = [order[start : start + 24] for start in range(0, 96, 24)]
        shards = [sorted({number // 8 for number in window}) for window in windows]
        assert [len(each) for each in shards] == [3] * 4, "each window has the images of three shards"
        assert all(window != sorted(window) for window in windows)
        seen.append(order)
        partners.append(sorted(shards))
    assert len({*map(tuple, seen)}) == 4
    assert any(first != partners[0] for first in partners[1:]), "the same shards always meet"
    one = [number // 8 for x, _ in train_batches(root, shard_window=1).epoch(0) for number in numbers(x)]
    assert all(len({*one[start : start + 8]}) == 1 for start in range(0, 96, 8)) and one != sorted(one)


def test_taken_up_in_the_middle(tmp_path: Path) -> None:
    """Bit for bit, on a fresh object, and reading none of the images before."""
    root = write_shards(tmp_path / "set", shards=6, images=8)
    augment = Augment(crop="resized", flip=0.5, mixup=0.5, repeats=2)
    whole = list(train_batches(root, augment, shard_window=2).epoch(3))
    rest = list(train_batches(root, augment, shard_window=2).epoch(3, start=4))
    assert len(rest) == len(whole) - 4 == 2
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(whole[4:], rest))


def test_a_subset_of_the_images_keeps_its_shards(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set", shards=6, images=8)
    batches = train_batches(root, shard_window=1, train_images=24, batch_size=1)
    shards = [number // 8 for x, _ in batches.epoch(0) for number in numbers(x)]
    changes = sum(first != second for first, second in itertools.pairwise(shards))
    assert len(shards) == 24 and changes == len({*shards}) - 1


def test_processes_that_start_together_make_one_index(tmp_path: Path, monkeypatch) -> None:
    """Eight processes of a machine must not read all headers eight times."""
    root, scanned = write_shards(tmp_path / "set"), no_scan(monkeypatch)
    with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, as processes do
        lengths = list(pool.map(lambda _: len(opened(root)), range(3)))
    assert lengths == [40] * 3 and len(scanned) == 4
