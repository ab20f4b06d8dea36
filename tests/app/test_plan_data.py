"""If these fail, a plan counts the images of another set, and its hours are those of nobody's training."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksub.app.errors import InputError
from masksub.app.plan.data import DataSize, data_size
from masksub.app.recipe import load_recipe
from tests.app.plan_made_up import recipe


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of the sets is."""
    monkeypatch.chdir(tmp_path)


def size(name: str, train: str | None = None, *changes: str) -> DataSize:
    more = [] if train is None else [f"data.train={train}", f"data.val={train}"]
    return data_size(recipe(f"data.name={name}", *more, "data.train_images=null", *changes), None, None)


SIZES = {
    "ImageNet-1k": (1_281_167, 1000),
    "ImageNet-21k": (14_197_122, 21_841),
    "CIFAR-10,": (50_000, 10),
    "CIFAR-100": (50_000, 100),
}


@pytest.mark.parametrize(
    ("name", "train", "known"),
    [
        ("folder", "imagenet/train", "ImageNet-1k"),
        ("folder", "/data/ImageNet-1k/images/train", "ImageNet-1k"),
        ("folder", "/data/ILSVRC/Data/CLS-LOC/train", "ImageNet-1k"),
        ("folder", "sets/imagenet.zip", "ImageNet-1k"),
        ("folder", "ILSVRC2012_train.tar", "ImageNet-1k"),
        ("shards", "sets/imagenet1k-train-{0000..1023}.tar", "ImageNet-1k"),
        ("shards", "in1k/train-{0000..1023}.tar", "ImageNet-1k"),
        ("shards", "shards/imagenet21k-{0000..2047}.tar", "ImageNet-21k"),
        ("folder", "imagenet_22k/train", "ImageNet-21k"),
        ("hfds/timm/imagenet-1k-wds", None, "ImageNet-1k"),
        ("hfds/ILSVRC/imagenet-1k", None, "ImageNet-1k"),
        ("torch/imagenet", None, "ImageNet-1k"),
        ("torch/cifar10", None, "CIFAR-10,"),
        ("hfds/uoft-cs/cifar100", None, "CIFAR-100"),
        ("folder", "cifar10/train.zip", "CIFAR-10,"),
    ],
)
def test_public_sets_are_known_by_name(name: str, train: str | None, known: str) -> None:
    found = size(name, train)
    assert (found.images, found.classes) == SIZES[known] and found.source.startswith(known.rstrip(","))
    assert found.source.endswith("as data.train says" if train else "as data.name says")


@pytest.mark.parametrize(
    "other",
    [
        *("food101", "frgfm/imagenette", "imagenet100", "tiny-imagenet", "imagenet-r", "imagenet-a", "imagenet-v2"),
        *("imagenet12k", "timm/imagenet-12k-wds", "imagenet-mini", "mini_imagenet", "imagenet_subset", "imagenet-200"),
        *("train_22k", "main21k", "imagenet-21k-p", "imagenet-w21", "cifar10.1", "cifar10-c", "cifar1000", "imagenetx"),
        *("imagenet/part-of-it", "imagenet/val", "imagenet-sketch/train", "cats"),
    ],
)
def test_sets_with_names_alike_are_not_taken_for_them(other: str) -> None:
    """Nor is a recipe's data.train, which means nothing to timm's names."""
    for name, train in ((f"hfds/{other}", "imagenet/train"), (f"hfds/{other}", None), ("folder", other)):
        wanted = f"data.train = '{other}'" if name == "folder" else f"data.name = '{name}'"
        with pytest.raises(InputError, match=r"give --images and --classes") as caught:
            size(name, train)
        assert str(caught.value).startswith(wanted)


def test_the_recipes_own_folder_is_not_counted_for_another_set() -> None:
    with pytest.raises(InputError, match=r"data\.name = 'hfds/food101'"):
        data_size(load_recipe("deit3/vit_base_400", ["data.name=hfds/food101"]), None, None)


def test_parts_of_a_known_set() -> None:
    assert size("folder", "imagenet/train", "data.train_images=5000").images == 5000
    held_out = ("data.val=null", "data.val_share=0.1")
    assert size("folder", "imagenet/train", *held_out).images == 1_281_167 - 128_117
    given = data_size(recipe("data.name=torch/cifar10", "data.train_images=null"), None, 7)
    assert (given.images, given.classes) == (50_000, 7) and given.source.startswith("classes given; the other of")
