"""Hostile and damaged input, through the command. If these fail, a file from elsewhere runs code or writes where it
must not, or one bad image ends a week of training without a name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masksub.app.runs import RunFolder
from tests.app.faults_made_up import AtUpdate, Commands, Done, Send, newest

IMAGES = (
    "data.train_images=null", "data.val_images=null", "train.epochs=1", "train.batch_size=4", "optim.warmup_epochs=0",
)  # fmt: skip


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    (tmp_path / "work").mkdir()
    with Commands(tmp_path / "work") as commands:
        yield commands


@pytest.fixture
def escaped(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile input would make; none of them may."""
    yield tmp_path / "escaped"
    assert not (tmp_path / "escaped").exists(), "code was run, or a file was written outside"


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_the_hostile_pickle_is_one(tmp_path: Path) -> None:
    """Else the tests below would pass for nothing."""
    torch.save({"weight": Hostile(tmp_path / "made")}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "made").exists()


def assert_refused(done: Done, *named: str) -> None:
    """Wrong input: one message that names it."""
    assert done.code == 2, (done.code, done.stderr)
    assert "Traceback" not in done.stderr
    for part in named:
        assert part in done.stderr, done.stderr


def as_torch_file(path: Path, escaped: Path) -> None:
    torch.save({"weight": Hostile(escaped)}, path)


def as_plain_pickle(path: Path, escaped: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(escaped)))


@pytest.mark.parametrize("write", [as_torch_file, as_plain_pickle])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_hostile_pickle_as_weights_is_refused(
    name: str, write: Callable[[Path, Path], None], commands: Commands, escaped: Path
) -> None:
    write(commands.cwd / name, escaped)
    assert_refused(commands.train("run", f"model.weights={name}"), name)
    assert not (commands.cwd / "run").exists()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of updates 8 and 11."""
    folder = tmp_path_factory.mktemp("stopped")
    with Commands(folder) as commands:
        done = commands.train("run", faults=[AtUpdate(11, Send(signal.SIGTERM))])
    assert done.code == 143, done.stderr
    return folder / "run"


@pytest.mark.parametrize("write", [as_torch_file, as_plain_pickle])
def test_a_hostile_pickle_as_checkpoint_is_refused(
    write: Callable[[Path, Path], None], commands: Commands, escaped: Path, stopped: Path
) -> None:
    """With a manifest that fits: who can put a file there can put its checksum there too."""
    shutil.copytree(stopped, commands.cwd / "run")
    last = newest(commands.cwd / "run").path
    write(last / "training.pt", escaped)
    content = (last / "training.pt").read_bytes()
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (last / "manifest.json").write_text(json.dumps(manifest))
    done = commands.resume("run")
    assert "Traceback" not in done.stderr
    assert last.name in done.stderr and "training.pt" in done.stderr and "refused" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["../../other", "/etc/passwd"])
def test_a_manifest_that_names_files_elsewhere_is_refused(name: str, commands: Commands, stopped: Path) -> None:
    """It is a list of files in the checkpoint's own folder."""
    shutil.copytree(stopped, commands.cwd / "run")
    last = newest(commands.cwd / "run").path
    (last / "../../other").write_text("x")
    manifest = json.loads((last / "manifest.json").read_text())
    content = (last / name).read_bytes() if name.startswith("/") else b"x"
    manifest["files"] = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (last / "manifest.json").write_text(json.dumps(manifest))
    done = commands.resume("run")
    assert f"{last.name} is refused" in done.stderr, done.stderr
    assert done.code == 0 and "update 8 of" in done.stderr, "the one before is used"


TAGS = {
    "object": "!!python/object/apply:os.mkdir [{path}]",
    "new": "!!python/object/new:os.mkdir [{path}]",
    "name": "!!python/name:os.system ''",
    "module": "!!python/module:os ''",
    "own": "!anything {{a: 1}}",
}


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_with_object_tags_is_refused(tag: str, commands: Commands, escaped: Path, stopped: Path) -> None:
    """As a recipe, as an override, and as the recipe of a run."""
    value = TAGS[tag].format(path=escaped)
    text = (stopped / "recipe.yaml").read_text()
    recipe = commands.cwd / "r.yaml"
    recipe.write_text(text.replace("seed: 0", f"seed: {value}"))
    assert recipe.read_text() != text
    assert_refused(commands.run("train", "r.yaml", "--out", "run"), "seed", "r.yaml", "is refused")
    if tag == "object":
        assert_refused(commands.train("run", f"model.kwargs.depth={value}"), "depth", "is refused")
    assert not (commands.cwd / "run").exists()
    shutil.copytree(stopped, commands.cwd / "run")
    shutil.copy(recipe, commands.cwd / "run" / "recipe.yaml")
    assert_refused(commands.resume("run"), "seed", "recipe.yaml", "is refused")


# Images.


def png(number: int = 0, side: int = 8) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def huge() -> bytes:
    """A PNG of a few bytes that says it has 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )


def class_folder(path: Path, each: int = 8) -> Path:
    """Two classes of random images."""
    for label in ("a", "b"):
        (path / label).mkdir(parents=True)
        for number in range(each):
            (path / label / f"{number}.png").write_bytes(png(number))
    return path


def train_on(commands: Commands, train: str, *overrides: str) -> Done:
    val = commands.cwd / "val"
    if not val.exists():
        class_folder(val, each=3)
    named = () if any(each.startswith("data.name") for each in overrides) else ("data.name=folder",)
    return commands.train("run", *IMAGES, *named, f"data.train={train}", f"data.val={val}", *overrides)


def test_images_as_made_here_can_be_trained_on(commands: Commands) -> None:
    """Else the tests below would pass for nothing."""
    class_folder(commands.cwd / "train")
    done = train_on(commands, "train")
    assert done.code == 0, done.stderr


BAD = {"corrupt": png(3)[:-60], "empty": b"", "huge": huge(), "text": b"no image"}


@pytest.mark.parametrize(
    ("kind", "cache"),
    [(kind, "memory") for kind in BAD]
    + [("corrupt", "none"), *(pytest.param(kind, "none", marks=pytest.mark.slow) for kind in ("empty", "huge"))],
)
def test_a_bad_image_stops_with_its_name_or_is_skipped_and_counted(kind: str, cache: str, commands: Commands) -> None:
    folder = class_folder(commands.cwd / "train")
    (folder / "a" / "3.png").write_bytes(BAD[kind])
    how = (f"data.cache={cache}", "data.workers=1", "augment.flip=0.5")
    done = train_on(commands, "train", *how)
    assert done.code == 2, done.stderr
    assert "a/3.png" in done.stderr and "data.on_error" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(commands.cwd / "run", ignore_errors=True)
    done = train_on(commands, "train", *how, "data.on_error=skip", "train.epochs=2")
    assert done.code == 0, done.stderr
    summary = RunFolder(commands.cwd / "run").summary()
    assert summary is not None and summary["skipped_images"] == 1, "met twice, counted once"
    assert "a/3.png" in done.stderr
    shutil.rmtree(commands.cwd / "run")
    (folder / "b" / "5.png").write_bytes(BAD[kind])
    done = train_on(commands, "train", *how, "data.on_error=skip", "data.max_skipped=1")
    assert done.code == 2, done.stderr
    assert "data.max_skipped = 1" in done.stderr and "Traceback" not in done.stderr


def shard(path: Path, numbers: range) -> Path:
    """A tar of images with their labels beside them."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for suffix, content in (("png", png(number)), ("cls", str(number % 2).encode())):
                add(archive, f"{number:04d}.{suffix}", content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes, **more: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def train_on_shards(commands: Commands, *overrides: str) -> Done:
    shard(commands.cwd / "held-out" / "0.tar", range(100, 106))
    shards = ("data.name=shards", "data.val=held-out")
    return commands.train("run", *IMAGES, "data.train=shards", *shards, *overrides)


def test_a_truncated_shard_stops_with_its_name_or_is_skipped_and_counted(commands: Commands) -> None:
    for number in range(3):
        shard(commands.cwd / "shards" / f"train-{number}.tar", range(number * 8, number * 8 + 8))
    done = train_on_shards(commands)
    assert done.code == 0, done.stderr
    shutil.rmtree(commands.cwd / "run")
    bad = commands.cwd / "shards" / "train-1.tar"
    content = bad.read_bytes()
    bad.write_bytes(content[: content.rindex(b"0014.png") + 700])
    done = train_on_shards(commands)
    assert done.code == 2, done.stderr
    assert "train-1.tar" in done.stderr and "data.on_error" in done.stderr and "Traceback" not in done.stderr
    assert not (commands.cwd / "run").exists()
    done = train_on_shards(commands, "data.on_error=skip")
    assert done.code == 0, done.stderr
    summary = RunFolder(commands.cwd / "run").summary()
    assert summary is not None and summary["skipped_images"] >= 1
    assert "train-1.tar" in done.stderr


def escaping_zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for label in ("a", "b"):
            for number in range(4):
                archive.writestr(f"{label}/{number}.png", png(number))
        archive.writestr(name, png())


def escaping_tar(path: Path, name: str) -> None:
    with tarfile.open(path, "w") as archive:
        for label in ("a", "b"):
            for number in range(4):
                add(archive, f"{label}/{number}.png", png(number))
        add(archive, name, png())


@pytest.mark.parametrize(
    "name", ["../../escaped", "../../escaped/x.png", "a/../../../escaped/x.png", "/{root}/escaped"]
)
@pytest.mark.parametrize("write", [escaping_zip, escaping_tar])
def test_an_archive_whose_members_escape_writes_nothing_outside(
    write: Callable[[Path, str], None], name: str, commands: Commands, escaped: Path
) -> None:
    """Nothing is unpacked. Where such a member is an image it is refused by name or passed over: it makes no class."""
    suffix = {"escaping_zip": ".zip", "escaping_tar": ".tar"}[write.__name__]
    name = name.replace("/{root}", str(escaped.parent))
    before = {path for path in escaped.parent.rglob("*") if "work" not in path.parts}
    write(commands.cwd / f"train{suffix}", name)
    done = train_on(commands, f"train{suffix}")
    if done.code:
        assert_refused(done, f"train{suffix}", name)
        assert not (commands.cwd / "run").exists()
    else:
        assert RunFolder(commands.cwd / "run").classes() == ["a", "b"]
    assert "Traceback" not in done.stderr
    assert {path for path in escaped.parent.rglob("*") if "work" not in path.parts} == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", ["folder", "shards"])
def test_a_link_in_an_archive_or_shard_is_not_followed(
    name: str, kind: bytes, commands: Commands, tmp_path: Path
) -> None:
    """It names a file of the machine, which would otherwise become an image of the training: seven, not eight."""
    (tmp_path / "private.png").write_bytes(png(99))
    archive = commands.cwd / "shards" / "0.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as members:
        for number in range(8):
            label = number % 2
            if number == 7:
                add(members, "b/7.png", b"", type=kind, linkname=str(tmp_path / "private.png"))
            else:
                add(members, f"{'ab'[label]}/{number}.png", png(number))
            if name == "shards":
                add(members, f"{'ab'[label]}/{number}.cls", str(label).encode())
    overrides = ("train.batch_size=8", "data.on_error=skip")
    in_folder = name == "folder"
    done = train_on(commands, "shards/0.tar", *overrides) if in_folder else train_on_shards(commands, *overrides)
    assert done.code == 2, done.stderr
    assert "7 images to train on" in done.stderr or "b/7.png" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
