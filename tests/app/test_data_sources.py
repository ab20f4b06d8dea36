"""Sources: what is listed, under which label, and what is said of input that is wrong."""

from __future__ import annotations

import importlib.util
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masksub.app.data import open_data, open_path, open_source
from masksub.app.data.sources import View, check_labels
from masksub.app.errors import InputError
from masksub.app.recipe import load_recipe
from masksub.app.settings import Data
from tests.conftest import shared


def write_images(root: Path, classes: dict[str, int], size: int = 8) -> Path:
    """ROOT/CLASS/N.png, each image of one grey value of its own: 50 * (class number) + N."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            Image.new("L", (size, size), 50 * number + image).save(root / name / f"{image}.png")
    return root


def pack(folder: Path, archive: Path, top: str = "") -> Path:
    """A .zip or .tar(.*) of a folder, its content below ``top``."""
    files = sorted(folder.rglob("*"))
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for each in files:
                file.write(each, top + each.relative_to(folder).as_posix())
    else:
        mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}[archive.suffix]
        with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
            for each in files:
                file.add(each, top + each.relative_to(folder).as_posix(), recursive=False)
    return archive


def values(source) -> list[int]:
    """The grey value of each image."""
    return [source.read(index).getpixel((0, 0)) for index in range(len(source))]


def folders(train: Path, val: Path | None = None, **more) -> Data:
    return Data(train=str(train), val=str(val or train), channels=1, image_size=8, **more)


# Digits


def test_digits_split_is_disjoint_and_the_same_for_all_seeds() -> None:
    """Otherwise test images would be trained on, or runs judged on different images."""
    data = Data(name="digits", channels=1, image_size=8)
    train, val = open_data(data, seed=0)
    assert (len(train), len(val)) == (1297, 500)
    places = {source.where(index) for source in (train, val) for index in range(len(source))}
    assert len(places) == 1797
    again = open_data(data, seed=1)
    assert again[1].where(0) == val.where(0) and torch.equal(again[1].labels, val.labels)


def test_digits_are_scikit_learns_with_full_contrast() -> None:
    """An image must go with its label, and 16 must become 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source(Data(name="digits", channels=1, image_size=8), "val", 0)
    number = int(source.where(7).split()[1])
    assert np.array_equal(np.asarray(source.read(7)), np.round(digits.images[number] * 255 / 16).astype(np.uint8))
    assert source.labels[7] == digits.target[number] and source.classes == [str(each) for each in range(10)]
    assert open_source(Data(name="digits", image_size=8), "val", 0).read(7).mode == "RGB"


def test_train_subset_depends_on_the_seed_and_val_subset_does_not() -> None:
    """Runs with different seeds must be judged on the same images."""
    data = Data(name="digits", channels=1, image_size=8, train_images=100, val_images=50)
    (train0, val0), (train1, val1), (train0_again, _) = (open_data(data, seed) for seed in (0, 1, 0))
    assert len(train0) == 100 and len(val0) == 50

    def places(source):
        return [source.where(index) for index in range(len(source))]

    assert places(train0) == places(train0_again) != places(train1)
    assert places(val0) == places(val1)
    assert len(set(places(train0))) == 100
    whole = open_source(Data(name="digits", channels=1, image_size=8), "val", 0)
    label_of = dict(zip(places(whole), whole.labels.tolist()))
    assert [label_of[place] for place in places(val0)] == val0.labels.tolist()


def test_a_held_out_share_of_each_class_is_disjoint_and_the_same_for_all_seeds(tmp_path: Path) -> None:
    """Else a comparison over seeds would judge each seed on other images, or on images it was trained on."""
    root = write_images(tmp_path / "all", {"cat": 10, "dog": 5, "eel": 2, "fox": 1})
    data = Data(train=str(root), val_share=0.2, channels=3)
    train, val = open_data(data, seed=0)
    files = [[source.where(index) for index in range(len(source))] for source in (train, val)]
    assert not set(files[0]) & set(files[1]) and len(files[0]) + len(files[1]) == 18
    assert torch.bincount(val.labels, minlength=4).tolist() == [2, 1, 1, 0], "never all of a class"
    assert val.classes == train.classes
    again = open_data(data, seed=7)
    assert [again[1].where(index) for index in range(len(val))] == files[1]
    few = open_source(data.model_copy(update={"train_images": 3}), "train", 0)
    assert {few.where(index) for index in range(3)} <= set(files[0])


def test_a_share_and_a_folder_to_validate_on_exclude_each_other() -> None:
    for wrong in (["data.val=b", "data.val_share=0.2"], ["data.name=digits", "data.val_share=0.2"], []):
        with pytest.raises(InputError, match=r"data\.val"):
            load_recipe("cifar10/vit_tiny", ["data.train=a", "data.val=null", *wrong])
    # These recipes hold out; who adds a folder to validate on has not written data.val_share and must be told of it.
    with pytest.raises(InputError, match=r"data\.val_share=null to use data\.val"):
        load_recipe("own/vit_small_finetune", ["data.train=a", "data.val=b"])


def test_more_images_than_there_are() -> None:
    with pytest.raises(InputError, match=r"data\.train_images = 1298: .*1297 images"):
        open_data(Data(name="digits", image_size=8, train_images=1298), 0)


# Class folders


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"])
@pytest.mark.parametrize("top", ["", "val/", "data/small/val/"])
def test_folder_and_archives_list_the_same(tmp_path: Path, kind: str, top: str) -> None:
    """Packing a folder must not change images, labels or order."""
    root = write_images(tmp_path / "set", {"cat": 2, "dog": 3})
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    path = root if kind == "folder" else pack(root, tmp_path / f"set{kind}", top)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(folders(path), "train", 0)
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1] and source.labels.dtype == torch.int64
    assert values(source) == [0, 1, 50, 51, 52]
    assert values(pickle.loads(pickle.dumps(source))) == [0, 1, 50, 51, 52]
    inside = "" if kind == "folder" else top
    assert f"{inside}cat/0.png" in source.where(0) and str(path) in source.where(0)
    assert sorted(tmp_path.rglob("*")) == before, "something was written to disk"


def test_the_shared_cifar_archive() -> None:
    """A real archive with a top folder."""
    source = open_source(Data(train=str(shared("data/cifar10/val.zip")), image_size=32), "train", 0)
    assert len(source) == 5000 and len(source.classes) == 10
    assert source.labels.bincount().tolist() == [500] * 10
    assert source.read(4999).size == (32, 32) and source.read(0).mode == "RGB"
    assert source.where(0).startswith("val/airplane/0000.jpg in ")


def test_labels_follow_the_names_of_the_training_classes(tmp_path: Path) -> None:
    """With a class missing in validation, labels by position would be off by one from there on."""
    train = write_images(tmp_path / "train", {"ant": 1, "bee": 1, "cow": 1})
    val = write_images(tmp_path / "val", {"ant": 1, "cow": 2})
    _, opened = open_data(folders(train, val), 0)
    assert opened.labels.tolist() == [0, 2, 2] and opened.classes == ["ant", "bee", "cow"]
    assert open_path(val, ["cow", "ant"], 1).labels.tolist() == [1, 0, 0]
    assert values(opened) == [0, 50, 51]


def test_classes_that_training_lacks(tmp_path: Path) -> None:
    train = write_images(tmp_path / "train", {"ant": 1, "cow": 1})
    val = write_images(tmp_path / "val", {"ant": 1, "bee": 1})
    with pytest.raises(InputError, match=r"val has 1 class\(es\) that the training data .*train lacks: 'bee'; .*'ant'"):
        open_data(folders(train, val), 0)
    with pytest.raises(InputError, match=r"val has 1 class\(es\) that the run lacks: 'bee'; accepted are 'ant', 'cow'"):
        open_path(val, ["ant", "cow"], 1)


# What is wrong with the input


def test_missing_path_names_the_nearest_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "set.zip"
    with pytest.raises(InputError) as error:
        open_source(folders(path), "val", 0)
    assert f"data.val = {path}" in str(error.value) and f"(the nearest that exists: {tmp_path})" in str(error.value)


def test_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("a,b")
    with pytest.raises(InputError, match=r"set\.csv is neither a folder nor an archive; accepted are .*\.zip, \.tar"):
        open_source(folders(path), "train", 0)


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("damage", ["cut", "cut between members", "other"])
def test_corrupt_archive(tmp_path: Path, kind: str, damage: str) -> None:
    """tarfile alone takes the end of a file that is cut short for the end of the archive: half the images, silently."""
    path = pack(write_images(tmp_path / "set", {"a": 20, "b": 20}), tmp_path / f"set{kind}")
    content = path.read_bytes()
    blocks = len(content) // 2 // 1024 * 1024  # each image takes a block for its header and one for itself
    cut = {"cut": content[: blocks + 700], "cut between members": content[:blocks], "other": b"no archive" * 100}
    path.write_bytes(cut[damage])
    with pytest.raises(InputError, match=rf"set\{kind} can't be read as an archive: .*damaged or cut short"):
        open_source(folders(path), "train", 0)


def test_encrypted_zip(tmp_path: Path) -> None:
    path = pack(write_images(tmp_path / "set", {"a": 1}), tmp_path / "set.zip")
    content = path.read_bytes()
    place = content.rindex(b"PK\x01\x02") + 8  # flags of the last directory entry
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(InputError, match=r"a/0\.png in .*set\.zip is encrypted"):
        open_source(folders(path), "train", 0)


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar"])
def test_layout_that_is_not_class_folders(tmp_path: Path, kind: str) -> None:
    """Images in the wrong place must never be given a label by guess."""

    def opened(name: str):
        path = tmp_path / name
        open_source(folders(path if kind == "folder" else pack(path, tmp_path / f"{name}{kind}")), "train", 0)

    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing.* has no class folders .*/CLASS/IMAGE"):
        opened("nothing")
    write_images(tmp_path / "flat", {".": 1, "cat": 1})
    with pytest.raises(InputError, match=r"0\.png in .*flat.* is in no class folder; .*/CLASS/IMAGE"):
        opened("flat")
    write_images(tmp_path / "deep" / "train", {"cat": 1, "dog": 1})
    write_images(tmp_path / "deep" / "val", {"cat": 1, "dog": 1})
    with pytest.raises(InputError, match=r"train/cat/0\.png in .*deep.* lies deeper than a class folder"):
        opened("deep")
    write_images(tmp_path / "empty", {"cat": 1, "dog": 0, "eel": 0})
    with pytest.raises(InputError, match=r"class folder 'dog', 'eel' of .*empty.* has no images"):
        opened("empty")


@pytest.mark.parametrize("kind", [".zip", ".tar"])
@pytest.mark.parametrize("name", ["../../cat/evil.png", "/cat/evil.png", "cat/../../../evil.png"])
def test_members_that_lead_out_of_the_archive(tmp_path: Path, kind: str, name: str) -> None:
    """Archives are never unpacked; a name that leads out of one is passed over or refused, and writes nothing."""
    path = pack(write_images(tmp_path / "a" / "b" / "set", {"cat": 1}), tmp_path / f"set{kind}")
    content = (tmp_path / "a" / "b" / "set" / "cat" / "0.png").read_bytes()
    if kind == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)
    else:
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    if name.startswith("/"):
        with pytest.raises(InputError, match="evil"):
            open_source(folders(path), "train", 0)
    else:
        assert values(open_source(folders(path), "train", 0)) == [0]
    assert sorted(tmp_path.rglob("*")) == before and not Path("/cat/evil.png").exists()


def test_a_link_in_a_tar_is_not_followed(tmp_path: Path) -> None:
    path = pack(write_images(tmp_path / "set", {"cat": 1}), tmp_path / "set.tar")
    with tarfile.open(path, "a") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            link = tarfile.TarInfo(f"cat/link{number}.png")
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    assert values(open_source(folders(path), "train", 0)) == [0]


def test_label_out_of_range() -> None:
    """A label of -1 or of a class too many would end in a device assertion hours later."""
    source = open_source(Data(name="digits", image_size=8), "train", 0)
    with pytest.raises(InputError, match=r"image \d+ \(image \d+ of scikit.*\) has label 9; with 9 .* 0 to 8 are acc"):
        check_labels(source, 9)
    labels = source.labels.clone()
    labels[5] = -1
    with pytest.raises(InputError, match=r"image 5 \(.*\) has label -1; .* \(1 outside\)"):
        check_labels(View(source, torch.arange(len(labels)), labels, source.classes), 10)


# timm's names


def write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        name = "test_batch" if number == 5 else f"data_batch_{number + 1}"
        content = {"data": generator.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 1, 2, number]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {index}" for index in range(10)]}))


def test_torch_cifar10_through_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The train split must be the training files, and the labels theirs."""
    import torchvision.datasets.cifar as cifar

    write_cifar(tmp_path)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # the checksums are those of the real files
    train, val = open_data(Data(name="torch/cifar10", root=str(tmp_path), image_size=32), 0)
    assert (len(train), len(val)) == (20, 4)
    assert val.labels.tolist() == [0, 1, 2, 5] and val.classes[5] == "class 5"
    first = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)[0].reshape(3, 32, 32)
    assert np.array_equal(np.asarray(train.read(0)).transpose(2, 0, 1), first)
    assert val.where(3) == "image 3 of torch/cifar10 (validation)"
    with pytest.raises(
        InputError, match=r"data\.train_split = 'trian' is no split of torch/cifar10; accepted are .*train"
    ):
        open_data(Data(name="torch/cifar10", root=str(tmp_path), train_split="trian"), 0)


def test_torch_image_folder_through_timm(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 2, "bee": 1})
    write_images(tmp_path / "validation", {"ant": 1, "bee": 1})
    train, val = open_data(Data(name="torch/image_folder", root=str(tmp_path), channels=1), 0)
    assert values(train) == [0, 1, 50] and train.labels.tolist() == [0, 0, 1] and val.classes == ["ant", "bee"]
    assert train.where(1) == str(tmp_path / "train" / "ant" / "1.png")
    with pytest.raises(InputError, match=r"data\.val_split = 'test': there is no such folder; .*/test/CLASS/IMAGE"):
        open_data(Data(name="torch/image_folder", root=str(tmp_path), val_split="test"), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "torch/cifar10"}, r"data\.root is missing: data\.name = 'torch/cifar10'"),
        ({"name": "torch/cifar10", "root": "/no/such"}, r"data\.root = /no/such: there is no such folder"),
        ({"name": "torch/cifar10", "root": "."}, r"'torch/cifar10', data\.train_split = 'train': not found in \.:"),
        ({"name": "torch/cifar11", "root": "."}, r"data\.name = 'torch/cifar11'.*Unknown torchvision dataset cifar11"),
        ({"name": "tfds/mnist"}, r"data\.name = 'tfds/mnist': accepted .* torch/\.\.\. and hfds/"),
        ({"name": "cifar10"}, r"data\.name = 'cifar10': accepted are \"digits\", \"folder\", \"shards\""),
        ({"name": "folder", "val": "x"}, r"data\.train is missing"),
    ],
)
def test_names_that_lead_nowhere(settings: dict[str, str], message: str) -> None:
    """What was looked for, and where, must be said before training."""
    with pytest.raises(InputError, match=message):
        open_data(Data(**settings), 0)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="the library datasets is installed")
def test_hugging_face_sets_need_their_library() -> None:
    with pytest.raises(InputError, match=r"pip install datasets"):
        open_data(Data(name="hfds/mnist"), 0)
