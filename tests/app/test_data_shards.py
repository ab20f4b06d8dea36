"""Tar shards: what is listed, what is refused, and that images are read from where they lie."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from masksub.app.data import open_data, open_source
from masksub.app.data.shard_names import expand, find_shards
from masksub.app.errors import InputError
from masksub.app.settings import Data


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def grey(value: int, kind: str = "PNG", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, kind)
    return file.getvalue()


def sample(number: int, label: int | None = None) -> dict[str, bytes]:
    """The members of image ``number``, of that grey value; the label is its last digit modulo 3."""
    label = number % 10 % 3 if label is None else label
    return {f"{number:04d}.png": grey(number), f"{number:04d}.cls": str(label).encode()}


def write_shard(path: Path, members: dict[str, bytes] | list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(root: Path, shards: int = 4, images: int = 10, name: str = "train") -> Path:
    """Shards NAME-000N.tar, whose images have the grey values N * images + 0, 1, ..."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for image in range(images):
            members |= sample(shard * images + image)
        write_shard(root / f"{name}-{shard:04d}.tar", members)
    return root


def settings(train: Path | str, **more) -> Data:
    more = {"name": "shards", "train": str(train), "val": str(train), "channels": 1, "image_size": 8, **more}
    return Data(**more)


def opened(train: Path | str, **more):
    return open_source(settings(train, **more), "train", 0)


def values(source) -> list[int]:
    return [source.read(index).getpixel((0, 0)) for index in range(len(source))]


# What is listed


@pytest.mark.parametrize("form", ["", "train-{0000..0003}.tar", "train-000{0,1,2,3}.tar", "train-{0000..0001}.tar"])
def test_folders_and_patterns(tmp_path: Path, form: str) -> None:
    """Images, labels and order must be those of the shards, and messages must name member and shard."""
    root = write_shards(tmp_path / "set")
    source = opened(root / form)
    count = 20 if "0001}" in form else 40
    assert values(source) == list(range(count)) and len(source) == count
    assert source.labels.tolist() == [number % 10 % 3 for number in range(count)] and source.labels.dtype == torch.int64
    assert source.classes == ["0", "1", "2"]
    assert source.where(0) == f"0000.png in {root}/train-0000.tar"
    assert source.where(13) == f"0013.png in {root}/train-0001.tar"
    assert values(pickle.loads(pickle.dumps(source))) == list(range(count))


def test_a_single_shard_and_all_kinds_of_members(tmp_path: Path) -> None:
    """Suffixes in any case, folders in keys, labels in JSON, labels before or far from their image."""
    path = write_shard(
        tmp_path / "one.tar",
        [
            ("a/x.cls", b"2\n"),
            ("b/x.JPEG", grey(10, "JPEG")),
            ("a/x.webp", grey(20, "WEBP")),
            ("./y.png", grey(30)),
            ("y.json", json.dumps({"label": 1, "text": "a dog"}).encode()),
            ("z.jpg", grey(40, "JPEG")),
            ("z.json", b'{"cls": 0}'),
            ("y.txt", b"not looked at"),
            ("y.seg.png", b"not looked at either"),
            (".hidden.png", b""),
            ("__MACOSX/z.png", b""),
            ("b/x.cls", b" 2 "),
            ("lonely.cls", b"7"),
        ],
    )
    source = opened(path)
    found = {source.where(index).split(" in ")[0]: int(source.labels[index]) for index in range(len(source))}
    assert found == {"b/x.JPEG": 2, "a/x.webp": 2, "y.png": 1, "z.jpg": 0}


def test_names_that_take_a_long_header(tmp_path: Path) -> None:
    """Names over 100 characters and of other alphabets have headers of their own, which move the image."""
    long = "d" * 120 + "/" + "ä" * 60
    members = {f"{long}.png": grey(9), f"{long}.cls": b"0"}
    assert values(opened(write_shard(tmp_path / "pax.tar", members))) == [9]
    with tarfile.open(tmp_path / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    source = opened(tmp_path / "gnu.tar")
    assert values(source) == [9] and source.where(0).startswith(long)


def test_braces() -> None:
    """As a shell expands them."""
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{8..10}") == ["8", "9", "10"]
    assert expand("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand("plain.tar") == ["plain.tar"]
    assert len(expand("{0..999}/{0..999}")) == 10**6
    for wrong, message in {
        "x-{0..": "pairs",
        "x-{{0..1}}": "pairs",
        "x-{3..1}": "counts down",
        "x-{a..c}": "neither a range",
        "x-{abc}": "neither a range",
        "{0..999999999999}": "more than 1,000,000",
        "{0..999}/{0..1000}": "more than 1,000,000",
    }.items():
        with pytest.raises(InputError, match=message):
            expand(wrong)


def test_an_existing_name_with_braces_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x{1}.tar", sample(1))
    assert find_shards(str(path), "data.train") == ([path], [])


def test_paths_without_shards(tmp_path: Path) -> None:
    """What was looked for, and where, must be said before training."""
    (tmp_path / "empty").mkdir()
    write_shard(tmp_path / "x.tar", sample(1))
    for path, message in {
        "empty": r"data\.train = .*empty: there are no \.tar files",
        "no/x-{0..3}.tar": r"none of its 4 shard\(s\) is there, .*no/x-0\.tar being the first \(the nearest .*: ",
        "x-{0..3}.tar.gz": r"x-0\.tar\.gz is no \.tar; .*not compressed",
        "{x,x}.tar": r"names .*x\.tar twice",
    }.items():
        with pytest.raises(InputError, match=message):
            opened(tmp_path / path)
    with pytest.raises(InputError, match=r"data\.train = s3://bucket/x\.tar: shards are read from disks"):
        opened("s3://bucket/x.tar")
    with pytest.raises(InputError, match=r"data\.train is missing"):
        open_source(Data(name="shards"), "train", 0)


# Class names


def test_class_names_beside_the_shards(tmp_path: Path) -> None:
    """Validation shards without names of their own take those of training; else runs could not be evaluated."""
    train, val = write_shards(tmp_path / "train"), write_shards(tmp_path / "val", shards=1)
    (train / "classes.txt").write_text("ant\nbee\ncow\ndog\n\n")
    data = settings(train, val=str(val))
    for source in open_data(data, 0):
        assert source.classes == ["ant", "bee", "cow", "dog"]
    (val / "classes.json").write_text('{"cow": 1, "bee": 0, "ant": 2}')
    _, other = open_data(data, 0)
    assert other.classes == ["ant", "bee", "cow", "dog"]
    assert other.labels[:3].tolist() == [1, 2, 0], "labels follow the names"
    (train / "classes.txt").unlink()
    assert open_data(data, 0)[0].classes == ["bee", "cow", "ant"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "ant\n\nbee", "a name for each label"),
        ("classes.txt", "ant\nbee\nant", "'ant' comes twice"),
        ("classes.json", '["ant", 3]', "a name for each label"),
        ("classes.json", '{"ant": 1, "bee": 2}', "without gaps"),
        ("classes.json", '{"ant": "x"}', "without gaps"),
        ("classes.json", '["ant"', "can't be read"),
        ("classes.json", "[" * 100_000, "can't be read|RecursionError"),
    ],
)
def test_class_names_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    root = write_shards(tmp_path / "set", shards=1)
    (root / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}.*({message})"):
        opened(root)


def test_more_labels_than_class_names(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set", shards=1)
    (root / "classes.txt").write_text("ant\nbee")
    message = r"0002\.png in .*train-0000\.tar: its label is 2, out of range; with 2 class names, 0 to 1 are accepted"
    with pytest.raises(InputError, match=message + r" \(3 such in all\)"):
        opened(root)
    assert len(opened(root, on_error="skip")) == 7


def test_fewer_classes_in_validation(tmp_path: Path) -> None:
    """A validation set whose largest label is missing must not be refused, nor get other labels."""
    train = write_shards(tmp_path / "train")
    val = write_shard(tmp_path / "val.tar", sample(0) | sample(1))
    assert open_data(settings(train, val=str(val)), 0)[1].labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"has 1 class\(es\) that the training data .* lacks: '2'"):
        open_data(settings(val, val=str(train)), 0)
