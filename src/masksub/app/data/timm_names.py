"""Data sets by their names in timm's data layer: "torch/cifar10", "torch/image_folder", "hfds/NAME".

timm opens them; images are read one by one here, because timm's own reading goes on to the next image at a damaged
one.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset

from masksub.app.data.decode import ImageError, load_image, to_channels
from masksub.app.errors import InputError
from masksub.app.settings import Data

__all__ = ["TimmDataset"]

_TRAIN = {"train", "training"}
_EVAL = {"val", "valid", "validation", "eval", "evaluation", "test"}


class TimmDataset:
    """A data set with random access from timm's data layer.

    Nothing is downloaded for "torch/" names. After "hfds/" comes a name of the Hugging Face hub, or the path of a
    folder of parquet files ("hfds//data/pets", "hfds/./pets"); ``data.image_key`` and ``data.label_key`` name its
    columns.
    """

    def __init__(self, name: str, root: str | None, split: str, data: Data, key: str) -> None:
        """Open the set and list its labels.

        Args:
            name: as ``data.name``.
            root: as ``data.root``.
            split: training or validation images, as timm or the set calls them.
            data: channels and columns.
            key: what the split is called in messages.

        Raises:
            InputError: a name that timm does not know or that can only be streamed, or nothing under ``root``.
        """
        kind = name.partition("/")[0].lower()
        self.name, self._channels = f"{name} ({split})", data.channels
        if kind not in {"torch", "hfds"}:
            raise InputError(
                f"data.name = {name!r}: accepted of timm's names are torch/... and hfds/...; others are streamed in an "
                f"order of their own, so that a run could not be resumed exactly"
            )
        if kind == "hfds" and importlib.util.find_spec("datasets") is None:
            raise InputError(f"data.name = {name!r} needs the library datasets: pip install 'masksub[datasets]'")
        if kind == "torch":
            if root is None:
                raise InputError(f"data.root is missing: data.name = {name!r} needs the folder that holds the set")
            if not Path(root).is_dir():
                raise InputError(f"data.root = {root}: there is no such folder; {name} is looked for in it")
            # timm takes any split that it does not know for the test images.
            if split not in _TRAIN | _EVAL:
                raise InputError(
                    f"{key} = {split!r} is no split of {name}; accepted are {', '.join(sorted(_TRAIN | _EVAL))}"
                )
        try:
            keys = {"input_key": data.image_key, "target_key": data.label_key} if kind == "hfds" else {}
            self._set: Any = create_dataset(name, root=root, split=split, download=False, **keys)
        except Exception as error:  # each library has its own way to say that a set is not there
            at = root if root is not None else "the cache of Hugging Face datasets"
            raise InputError(f"data.name = {name!r}, {key} = {split!r}: not found in {at}: {error}") from error
        if kind == "torch" and hasattr(self._set, "find_classes") and Path(self._set.root) == Path(str(root)):
            raise InputError(
                f"data.root = {root}, {key} = {split!r}: there is no such folder; {name} expects "
                f"{root}/{split}/CLASS/IMAGE"
            )
        self.labels, self.classes = self._labels(name)

    def _labels(self, name: str) -> tuple[torch.Tensor, list[str]]:
        reader = getattr(self._set, "reader", None)
        if reader is not None:
            found = list(reader.dataset.column_names)
            # timm asks for a column of images, and where there is none the library makes an empty one.
            if len(reader.dataset) and reader.dataset.data.column(reader.image_key).null_count == len(reader.dataset):
                found.remove(reader.image_key)
            for key in (reader.image_key, reader.label_key):
                if key not in found:
                    raise InputError(
                        f"data.name = {name!r}: there is no column {key!r}; the set has "
                        f"{', '.join(map(repr, found))}. Name those of images and labels: data.image_key, "
                        f"data.label_key"
                    )
            targets: Any = list(reader.dataset[reader.label_key])
            index_of = reader.class_to_idx
        else:
            targets = getattr(self._set, "targets", None)
            index_of = getattr(self._set, "class_to_idx", None)
        try:
            labels = torch.as_tensor(targets) if targets is not None else torch.empty(0)
        except (TypeError, ValueError):  # text, or lists of different lengths
            labels = torch.empty(0)
        if labels.ndim != 1 or len(labels) != len(self._set) or labels.is_floating_point():
            raise InputError(
                f"data.name = {name!r}: one whole number as label for each image is accepted; this set has none"
            )
        if isinstance(getattr(self._set, "classes", None), list):
            names = self._set.classes
            # ImageNet has several names for each class.
            classes = [each if isinstance(each, str) else ", ".join(each) for each in names]
        elif index_of:
            classes = sorted(index_of, key=index_of.__getitem__)
        else:
            classes = [str(label) for label in range(int(labels.max()) + 1)]
        return labels.long(), classes

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """The file, where the set has files; else the image's number."""
        samples = getattr(self._set, "samples", None)
        return str(samples[index][0]) if samples is not None else f"image {index} of {self.name}"

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            ImageError: it can't be read or decoded.
        """
        if getattr(self._set, "samples", None) is not None:
            return load_image(self.where(index), self._channels)
        reader = getattr(self._set, "reader", None)
        try:
            if reader is not None:
                with reader[index][0] as file:
                    content = file.read() if not isinstance(file, io.BytesIO) else file.getvalue()
                return load_image(content, self._channels, self.where(index))
            return to_channels(self._set[index][0], self._channels)
        except ImageError:
            raise
        except Exception as error:  # as in load_image: anything may come from a damaged set
            raise ImageError(f"{self.where(index)} can't be read: {error}") from error
