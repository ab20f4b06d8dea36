"""Batches for evaluation: each image once, over all processes.

Shape letters: B batch, C channels, S side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from masksub.app.data.augment import normalise
from masksub.app.data.sources import Source
from masksub.app.data.supply import Progress, Supply
from masksub.app.settings import Augment, Data

__all__ = ["EvalBatches"]


class EvalBatches(Supply):
    """Normalised batches for evaluation: each image once over all processes, in the source's order, not augmented.

    Attributes:
        held: where decoded images are, as for ``TrainBatches``.
        rounds: batches of the process with the most images, the same number on all processes; no process has more.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        augment: Augment,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Check the labels, and decode this process's images if they are to be held.

        Args:
            source: images to evaluate on.
            data: the recipe's data.
            augment: the recipe's augmentation; ``test_crop`` is used.
            batch_size: images of one batch; the last may be smaller.
            rank: number of this process, which takes every ``world``-th image.
            world: number of processes.
            device: where batches go.
            progress: called with (done, total) while images are decoded to be held.

        Raises:
            InputError: a label that is no class, an image that can't be decoded, or a setting that can't be had.
        """
        indices = torch.arange(len(source))[rank::world]  # none where there are more processes than images
        super().__init__(
            source, data, augment, indices=indices, seed=None, num_classes=len(source.classes), device=device
        )
        self._batch_size = batch_size
        self.rounds = -(-len(source) // (world * batch_size))
        if self.held != "none":
            self._hold(progress)

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._parts())

    def _parts(self) -> list[Tensor]:
        rows = self._rows
        return [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs x float32 (B, C, S, S), y int64 (B,)."""
        if self.held == "none":
            pairs = self._stream.batches([(index, 0, 0) for index in part.tolist()] for part in self._parts())
        else:
            pairs = (
                (self._pixels[rows].to(self._device), self._labels[rows].to(self._device))
                for rows in (part.to(self._pixels.device) for part in self._parts())
            )
        for x, y in pairs:
            if len(y):
                yield normalise(x, self._data), y
