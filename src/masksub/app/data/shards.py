"""Images in tar shards of webdataset, read from where they lie: no unpacking, no streaming order.

Because each image has a place in an index, shards are a source like any other: an epoch's order is a function of
(seed, epoch), a run is taken up again in mid-epoch without reading what came before, and evaluation sees each image
once, whatever the number of processes and workers.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from masksub.app.data.class_names import class_names
from masksub.app.data.decode import ImageError, load_image
from masksub.app.data.handles import Handles
from masksub.app.data.shard_index import index_of
from masksub.app.data.shard_names import find_shards
from masksub.app.data.shard_scan import Shard
from masksub.app.errors import InputError
from masksub.app.settings import Data

__all__ = ["Shards"]


class Shards:
    """The images of a set of shards, in the order of the shards and of the members in each.

    Class names come from classes.txt (a name a line) or classes.json (a list of names, or an object from name to
    label) beside the shards, else beside those of ``other``; without either, they are the labels as text.

    Attributes:
        shards: (N,) int64, number of each image's shard; ``order`` shuffles by it.
        problems: what can't be used, each with shard and member; empty where ``data.on_error`` is "stop".
    """

    def __init__(
        self,
        path: str,
        data: Data,
        key: str,
        other: tuple[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """List the images; none is decoded.

        Args:
            path: a folder of .tar files, a .tar file, or names with braces.
            data: ``channels`` and ``on_error``.
            key: what the path is called in messages.
            other: path and key of the other images of the run.
            progress: called with (done, total) shards while headers are read, the first time.

        Raises:
            InputError: no shards, or something wrong with one and ``data.on_error`` is "stop"; the message names shard
                and member.
        """
        paths, missing = find_shards(path, key)
        self.name, self._channels, self._paths = path, data.channels, paths
        base = _common_folder(paths)
        index = index_of([each.absolute() for each in paths], base, progress)
        names = class_names(base)
        if names is None and other is not None:
            names = class_names(_common_folder(find_shards(*other)[0]))
        labels = np.concatenate([each.labels for each in index])
        if names is None:
            names = [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
        self.classes = names

        members = [member for each in index for member in each.members]
        number = np.repeat(np.arange(len(index)), [len(each.members) for each in index])
        usable = labels < len(names)
        usual = _usual_number(index)
        self.problems = [f"{each} is missing: {key} = {path} names it{usual}" for each in missing]
        for shard, where in zip(index, paths):
            for member, what in shard.problems:
                left = f"; what comes after it is lost, {len(shard.members)} images are left{usual}"
                self.problems.append(f"{member} in {where}: {what}" if member else f"{where}: {what}{left}")
        self.problems += [
            f"{members[row]} in {paths[number[row]]}: its label is {labels[row]}, out of range; with {len(names)} "
            f"class names, 0 to {len(names) - 1} are accepted"
            for row in (~usable).nonzero()[0]
        ]
        if self.problems and data.on_error == "stop":
            more = f" ({len(self.problems)} such in all)" if len(self.problems) > 1 else ""
            raise InputError(f"{self.problems[0]}{more}. Repair or remove it, or set data.on_error=skip")
        if not usable.any():
            raise InputError(
                f"{key} = {path}: no image with a label in {len(paths)} shard(s); accepted are members KEY.jpg, .jpeg, "
                f".png or .webp with KEY.cls or KEY.json{'. ' if self.problems else ''}{'; '.join(self.problems[:3])}"
            )
        self.labels = torch.from_numpy(labels[usable])
        self.shards = torch.from_numpy(number[usable])
        self._spans = np.concatenate([each.spans for each in index])[usable]
        # One text in place of millions: each worker process would copy those as it counts references to them.
        self._members = "\n".join(member for member, good in zip(members, usable) if good).encode()
        ends = (np.frombuffer(self._members, dtype=np.uint8) == ord("\n")).nonzero()[0]
        self._ends = np.append(ends, len(self._members))
        self._handles = Handles(limit=max(64, 2 * data.shard_window))

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """The member and its shard."""
        start = self._ends[index - 1] + 1 if index else 0
        member = self._members[start : self._ends[index]].decode()
        return f"{member} in {self._paths[int(self.shards[index])]}"

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            ImageError: it can't be read or decoded.
        """
        start, size = (int(each) for each in self._spans[index])
        try:
            content = self._handles.read(self._paths[int(self.shards[index])], start, size)
        except OSError as error:
            raise ImageError(f"{self.where(index)} can't be read: {error.strerror or error}") from error
        if len(content) < size:
            raise ImageError(f"{self.where(index)} can't be read: the shard ends inside it")
        return load_image(content, self._channels, self.where(index))


def _usual_number(index: Sequence[Shard]) -> str:
    """How many images a whole shard of the set has, for a message on one of which nobody knows how many it had."""
    whole = [len(each.members) for each in index if not any(member == "" for member, _ in each.problems)]
    usual = f"; the whole shards of the set have {statistics.median_low(whole)} images (median)" if whole else ""
    return f"{usual}; counted as one"


def _common_folder(paths: list[Path]) -> Path:
    return Path(os.path.commonpath([each.absolute().parent for each in paths]))
