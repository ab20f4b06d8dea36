"""What batches for training and for evaluation have in common: a source, held or read, and what was skipped of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from masksub.app.data.held import Holding, choose_holding, hold
from masksub.app.data.skips import Skips
from masksub.app.data.sources import Source, check_labels
from masksub.app.data.stream import Images, Stream
from masksub.app.settings import Augment, Data

__all__ = ["Progress", "Supply"]

Progress = Callable[[int, int], None]


class Supply:
    """The images of one process.

    Attributes:
        held: where decoded images are: "memory", "device", or "none" if they are decoded as they are needed.
    """

    held: Holding

    def __init__(
        self,
        source: Source,
        data: Data,
        augment: Augment,
        *,
        indices: Tensor,
        seed: int | None,
        num_classes: int,
        device: torch.device | str,
    ) -> None:
        """Check the labels, and decide whether images are held; ``_hold`` decodes them.

        Args:
            source: the images.
            data: the recipe's data.
            augment: the recipe's augmentation.
            indices: those of the source that this process needs.
            seed: of the augmentation; None for evaluation.
            num_classes: classes of the model.
            device: where batches go.

        Raises:
            InputError: a label that is no class of the model, or a setting that can't be had.
        """
        self._source, self._data, self._augment = source, data, augment
        self._device = torch.device(device)
        self._indices = self._rows = indices
        self._skips = Skips(data, getattr(source, "problems", ()))
        check_labels(source, num_classes)
        augmented = seed is not None
        self.held = choose_holding(len(indices), data, self._device, augmented and augment.per_image)
        images = Images(source, data, augment, seed)
        self._stream = Stream(images, data, self._skips, self._device, keep=augmented)

    def _hold(self, progress: Progress | None) -> None:
        """Decode the images; ``_rows`` are then the rows of ``_pixels`` and ``_labels`` that hold one."""
        place = self._device if self.held == "device" else torch.device("cpu")
        self._pixels, self._rows = hold(
            self._source,
            self._indices.tolist(),
            self._data,
            self._augment.test_crop,
            self._skips,
            device=place,
            progress=progress,
        )
        self._labels = self._source.labels[self._indices].to(place)

    @property
    def skipped(self) -> int:
        """What this process could not read so far, each image counted once, and what is wrong with the set itself."""
        return len(self._skips)

    @property
    def skipped_files(self) -> list[str]:
        """What was wrong with the first few of them, each with its file."""
        return self._skips.first

    def state_dict(self) -> dict[str, Any]:
        """What was skipped so far, for a checkpoint: all else follows from the seed and the place in training."""
        return {"skipped": self._skips.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what was skipped before a resumption, or by another process; an image counts once in all."""
        self._skips.load_state_dict(state["skipped"])

    def close(self) -> None:
        """End the worker processes; the next batches start new ones."""
        self._stream.close()
