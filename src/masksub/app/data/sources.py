"""Where images come from: one small interface over class folders, archives, tar shards, the digits and timm's names.

Opening lists names and labels; no image is decoded until ``read``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

from masksub.app.data.decode import to_channels
from masksub.app.data.files import ClassFolders
from masksub.app.data.shards import Shards
from masksub.app.data.timm_names import TimmDataset
from masksub.app.errors import InputError
from masksub.app.settings import Data
from masksub.core.seeds import generator

__all__ = ["Digits", "Source", "View", "check_labels", "open_data", "open_path", "open_source"]

DIGITS_TEST = 500
"""Test images of the digits: the last ones of a fixed permutation. The other 1,297 are for training."""


class Source(Protocol):
    """Labelled images. It can be read by several threads, and pickled.

    A source may also have ``shards``, (N,) int64, the file in which each image lies where reading from many files at a
    time is slow (see ``order``), and ``problems``, messages about what can't be used of it.
    """

    name: str
    """Path or data set name, for messages."""
    classes: list[str]
    """Class names; the index is the label."""
    labels: torch.Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        """N, number of images."""

    def read(self, index: int) -> Image.Image:
        """Decode one image, mode "L" or "RGB" as ``data.channels`` says; ImageError if that fails."""

    def where(self, index: int) -> str:
        """File (and archive) of an image, for messages."""


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey values 0 to 16 scaled to 0 to 255.

    The set's own order follows the writers, so it is shuffled first, always in the same way whatever the seed.
    """

    def __init__(self, which: Literal["train", "val"], channels: int) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))
        self._numbers = order[:-DIGITS_TEST] if which == "train" else order[-DIGITS_TEST:]
        self._pixels = np.round(digits.images[self._numbers] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
        self._channels = channels
        self.name = f"digits ({'training' if which == 'train' else 'test'} images)"
        self.classes = [str(name) for name in digits.target_names]
        self.labels = torch.from_numpy(digits.target[self._numbers].astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """One digit."""
        return to_channels(Image.fromarray(self._pixels[index]), self._channels)

    def where(self, index: int) -> str:
        """Its number in scikit-learn's order."""
        return f"image {self._numbers[index]} of scikit-learn's digits"


class View:
    """Some images of a source, or the same images under other labels."""

    def __init__(self, source: Source, indices: torch.Tensor, labels: torch.Tensor, classes: list[str]) -> None:
        self._source, self._indices = source, indices
        self.name, self.labels, self.classes = source.name, labels, classes
        shards: torch.Tensor | None = getattr(source, "shards", None)
        self.shards = None if shards is None else shards[indices]
        self.problems: list[str] = getattr(source, "problems", [])

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Image.Image:
        """Decode one image."""
        return self._source.read(int(self._indices[index]))

    def where(self, index: int) -> str:
        """File (and archive) of an image."""
        return self._source.where(int(self._indices[index]))


def open_source(
    data: Data, which: Literal["train", "val"], seed: int, progress: Callable[[int, int], None] | None = None
) -> Source:
    """Open the training or validation images of a recipe; none is decoded.

    Args:
        data: the recipe's data.
        which: "train" or "val". With ``data.train_images`` the subset is drawn by ``seed``; with ``data.val_images``
            it is the same for all seeds, so that runs are judged on the same images. Neither is stratified by class.
        seed: the recipe's seed.
        progress: called with (done, total) while the headers of tar shards are read, the first time.

    Raises:
        InputError: nothing there, or not what is accepted.
    """
    source: Source
    if data.name == "digits":
        source = Digits(which, data.channels)
    elif data.name == "folder":
        key = "train" if data.val_share is not None else which
        path = data.train if key == "train" else data.val
        if path is None:
            raise InputError(f'data.{key} is missing: data.name "folder" needs a folder or archive')
        source = ClassFolders(path, data.channels, key=f"data.{key}")
        if data.val_share is not None:
            source = _held_out(source, data.val_share, which)
    elif data.name == "shards":
        source = _shards(data, which, progress)
    elif "/" in data.name:
        split = data.train_split if which == "train" else data.val_split
        source = TimmDataset(data.name, data.root, split, data, key=f"data.{which}_split")
    else:
        raise InputError(
            f'data.name = {data.name!r}: accepted are "digits", "folder", "shards", and names of timm\'s data layer '
            f'such as "torch/cifar10" and "hfds/NAME"'
        )
    check_labels(source, len(source.classes))
    count = data.train_images if which == "train" else data.val_images
    if count is None:
        return source
    if count > len(source):
        raise InputError(f"data.{which}_images = {count}: {source.name} has {len(source)} images")
    place = ("train images", seed) if which == "train" else ("val images",)
    chosen = torch.randperm(len(source), generator=generator(*place))[:count].sort().values
    return View(source, chosen, source.labels[chosen], source.classes)


def _shards(data: Data, which: Literal["train", "val"], progress: Callable[[int, int], None] | None) -> Shards:
    (path, key), other = (data.train, "data.train"), (data.val, "data.val")
    if which == "val":
        (path, key), other = other, (path, key)
    if path is None:
        raise InputError(f'{key} is missing: data.name "shards" needs tar shards')
    return Shards(path, data, key, None if other[0] is None else (other[0], other[1]), progress)


def _held_out(source: Source, share: float, which: Literal["train", "val"]) -> Source:
    """The share of each class that is held out, or the rest of it; the same whatever the seed."""
    held_out = torch.zeros(len(source), dtype=torch.bool)
    for label in range(len(source.classes)):
        images = (source.labels == label).nonzero().flatten()
        shuffled = images[torch.randperm(len(images), generator=generator("held out", label))]
        # At least one of two and more, and never all.
        held_out[shuffled[: min(len(images) - 1, max(1, round(share * len(images))))]] = True
    chosen = (held_out if which == "val" else ~held_out).nonzero().flatten()
    return View(source, chosen, source.labels[chosen], source.classes)


def open_data(data: Data, seed: int, progress: Callable[[int, int], None] | None = None) -> tuple[Source, Source]:
    """Open training and validation images, the labels of both being indices of the training classes.

    ``progress`` is as for ``open_source``.

    Raises:
        InputError: as ``open_source``, or validation has classes that training lacks. The other way round is accepted.
    """
    train, val = open_source(data, "train", seed, progress), open_source(data, "val", seed, progress)
    return train, _relabelled(val, train.classes, f"the training data {train.name}")


def open_path(path: str | Path, classes: list[str], channels: int) -> Source:
    """Open a folder or archive whose labels become indices of ``classes``, matched by name.

    Args:
        path: folder or archive of class folders.
        classes: class names of a run.
        channels: 1 for grey, 3 for RGB.

    Raises:
        InputError: nothing there, not what is accepted, or a class that ``classes`` lacks.
    """
    return _relabelled(ClassFolders(path, channels), classes, "the run")


def check_labels(source: Source, num_classes: int) -> None:
    """See to it that each label is one of the model's classes.

    Raises:
        InputError: the first label outside 0 to num_classes - 1.
    """
    outside = ((source.labels < 0) | (source.labels >= num_classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise InputError(
            f"{source.name}: image {first} ({source.where(first)}) has label {int(source.labels[first])}; with "
            f"{num_classes} classes, labels from 0 to {num_classes - 1} are accepted ({len(outside)} outside)"
        )


def _relabelled(source: Source, classes: list[str], owner: str) -> Source:
    if source.classes == classes:
        return source
    number = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in number]
    if unknown:
        raise InputError(
            f"{source.name} has {len(unknown)} class(es) that {owner} lacks: {', '.join(map(repr, unknown[:5]))}; "
            f"accepted are {', '.join(map(repr, classes[:10]))}{', ...' if len(classes) > 10 else ''}"
        )
    translate = torch.tensor([number[name] for name in source.classes])
    return View(source, torch.arange(len(source)), translate[source.labels], classes)
