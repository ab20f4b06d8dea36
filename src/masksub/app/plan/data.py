"""How many images and classes a recipe's data have: counted for digits and class folders here, else by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from masksub.app.data import open_source
from masksub.app.errors import InputError
from masksub.app.settings import Data, Recipe

__all__ = ["DataSize", "data_size"]

KNOWN = (
    (r"(imagenet|in)[-_]?2[12]k", 14_197_122, 21_841, "ImageNet-21k in full"),
    (r"imagenet([-_]?(1k|2012))?|in[-_]?1k|ilsvrc([-_]?2012)?", 1_281_167, 1000, "ImageNet-1k"),
    (r"cifar[-_]?100", 50_000, 100, "CIFAR-100"),
    (r"cifar[-_]?10", 50_000, 10, "CIFAR-10"),
)
"""Training images and classes of public sets, by the whole of their name: ImageNet-R, Tiny ImageNet and Imagenette are
other sets, and so is whatever else has more in its name."""

_ARCHIVE = r"(\.(tar|tgz|zip|tar\.gz))?"
_NUMBERS = r"([-_.]?\{[^{}]*\})?"
_SPLIT = r"([-_.]?(train|training))?"
_ENDING = rf"{_SPLIT}([-_.]?(wds|shards))?{_SPLIT}{_NUMBERS}{_ARCHIVE}"
"""What may follow a set's name in that of a file: "imagenet1k-train-{0000..1023}.tar"."""
_WITHIN = rf"(data|cls-loc|images|raw|wds|shards|train|training){_NUMBERS}{_ARCHIVE}"
"""Folders and files below the one that has the set's name: "ILSVRC/Data/CLS-LOC/train"."""


@dataclass(frozen=True)
class DataSize:
    """How many images and classes there are, and how that is known."""

    images: int
    classes: int
    source: str


def data_size(recipe: Recipe, images: int | None, classes: int | None) -> DataSize:
    """Images and classes: those given, else those of the data where they are here, else of a public set by its name.

    Raises:
        InputError: none of them tells.
    """
    if images is not None and classes is not None:
        return DataSize(images, classes, "given")
    data = recipe.data
    if data.name == "digits" or (data.name == "folder" and data.train is not None and Path(data.train).exists()):
        source = open_source(data, "train", recipe.seed)
        counted: DataSize | None = DataSize(len(source), len(source.classes), source.name)
    else:
        counted = _by_name(data)
    if counted is None:
        missing = " and ".join(o for o, v in (("--images", images), ("--classes", classes)) if v is None)
        key, value = _named(data)
        raise InputError(
            f"{key} = {value!r}: the data are not here to be counted, and are no set that the plan knows by that name; "
            f"give {missing}"
        )
    both = images is classes  # both None
    told = counted.source if both else f"{'images' if images else 'classes'} given; the other of {counted.source}"
    return DataSize(images or counted.images, classes or counted.classes, told)


def _named(data: Data) -> tuple[str, str]:
    """The key that says what is trained on, and its value; ``data.train`` means nothing to timm's names."""
    return ("data.train", data.train or "") if data.name in {"folder", "shards"} else ("data.name", data.name)


def _by_name(data: Data) -> DataSize | None:
    key, value = _named(data)
    parts = [part for part in re.split(r"[/\\]", value.lower()) if part]
    while len(parts) > 1 and re.fullmatch(_WITHIN, parts[-1]):
        parts.pop()
    for pattern, images, classes, name in KNOWN:
        if parts and re.fullmatch(f"({pattern}){_ENDING}", parts[-1]):
            images -= round(images * (data.val_share or 0))
            return DataSize(min(images, data.train_images or images), classes, f"{name}, as {key} says")
    return None
