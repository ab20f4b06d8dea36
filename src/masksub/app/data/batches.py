"""Batches of a run: which images, in which order, on which process, and where an epoch is taken up again.

The order is a function of (seed, epoch), the augmentation one of (seed, epoch, place in it). Nothing is stored, and an
epoch that is started in the middle goes on as the unbroken one would have.

Shape letters: B batch, C channels, S side, N images of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from masksub.app.data.augment import Mixing, crop_and_flip, image_transform, normalise
from masksub.app.data.held import Skips, choose_holding, hold
from masksub.app.data.sources import Source, check_labels
from masksub.app.data.stream import Images, stream
from masksub.app.errors import InputError
from masksub.app.seeds import generator, mix
from masksub.app.settings import Augment, Data

__all__ = ["EvalBatches", "TrainBatches"]

Progress = Callable[[int, int], None]


class TrainBatches:
    """Shuffled, augmented, normalised batches for one process.

    Batch number b of all processes together is a run of ``batch_size * world`` images of the epoch's order; each
    process takes its part of it. So two processes with batches of B make the same updates as one with 2B.

    Attributes:
        images_per_epoch: images of an epoch, over all processes; what does not fill an update is left out, other
            images in each epoch.
        batches_per_epoch: batches of an epoch for this process, a multiple of ``accumulate``.
        held: where decoded images are: "memory", "device", or "none" if they are decoded as they are needed.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        augment: Augment,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        num_classes: int,
        smoothing: float = 0.0,
        progress: Progress | None = None,
    ) -> None:
        """Check the input, and decode the images if they are to be held.

        Args:
            source: training images.
            data: the recipe's data.
            augment: the recipe's augmentation.
            seed: the recipe's seed.
            batch_size: B, images of one batch of this process; even for mixup and cutmix.
            accumulate: batches of one update.
            rank: number of this process.
            world: number of processes.
            device: where batches go.
            num_classes: classes of the model.
            smoothing: label smoothing; used with mixup and cutmix alone, which make soft labels.
            progress: called with (done, total) while images are decoded to be held.

        Raises:
            InputError: a label that is no class of the model, fewer images than one update takes, an image that can't
                be decoded, or a setting that can't be had.
        """
        self._source, self._data, self._augment = source, data, augment
        self._seed, self._batch_size, self._rank, self._world = seed, batch_size, rank, world
        self._device = torch.device(device)
        self._update = batch_size * world * accumulate
        self._accumulate = accumulate
        self._skips = Skips(data)
        self._mixing = Mixing(augment, num_classes, smoothing) if augment.mixup or augment.cutmix else None
        check_labels(source, num_classes)
        self._usable = torch.arange(len(source))
        self._count()
        self.held = choose_holding(len(source), data, self._device, augment.per_image)
        if self.held == "none":
            image_transform(data, augment)  # wrong settings end here
            return
        place = self._device if self.held == "device" else torch.device("cpu")
        self._pixels, self._usable = hold(
            source, range(len(source)), data, augment.test_crop, self._skips, device=place, progress=progress
        )
        self._labels = source.labels.to(place)
        self._count()

    def _count(self) -> None:
        images = len(self._usable)
        if images < self._update:
            raise InputError(
                f"{self._source.name} has {images} images to train on, fewer than the {self._update} of one update "
                f"(train.batch_size {self._batch_size} x {self._world} process(es) x train.accumulate "
                f"{self._accumulate})"
            )
        self.batches_per_epoch = images // self._update * self._accumulate
        self.images_per_epoch = self.batches_per_epoch * self._batch_size * self._world

    @property
    def skipped(self) -> int:
        """Images that could not be decoded so far, each counted once."""
        return len(self._skips)

    @property
    def skipped_files(self) -> list[str]:
        """What was wrong with the first few of them, each with its file."""
        return self._skips.first

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch for this process.

        Args:
            epoch: number of the epoch, from 0.
            start: first batch to yield; those before it are not decoded.

        Yields:
            x float32 (B, C, S, S), normalised; y int64 (B,), or with mixup or cutmix soft labels float32
            (B, classes). Where images are decoded as they are needed, a damaged one that is skipped makes its batch
            smaller by one; with mixup and cutmix, which pair images, by an even number.

        Raises:
            InputError: damaged images that stop the run, or a batch with no image left.
        """
        batches = range(start, self.batches_per_epoch)
        chosen = self._order(epoch)[start:]  # (batches, B)
        pairs = self._from_held(chosen, epoch, start) if self.held != "none" else self._from_files(chosen, epoch)
        for batch, (x, y) in zip(batches, pairs, strict=True):
            if x.dtype == torch.uint8:
                x = normalise(x, self._data)
            if self._mixing is not None:
                x, y = self._mixing(x, y, mix(self._seed, "mixup", epoch, batch, self._rank))
            yield x, y

    def _order(self, epoch: int) -> Tensor:
        """Indices of the source of each batch of this process, (batches, B)."""
        shuffled = torch.randperm(len(self._usable), generator=generator(self._seed, "order", epoch))
        order = self._usable[shuffled[: self.images_per_epoch]]
        return order.view(self.batches_per_epoch, self._world, self._batch_size)[:, self._rank]

    def _from_held(self, chosen: Tensor, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = chosen.to(self._pixels.device)
        for batch, indices in enumerate(chosen, start):
            draws = generator(self._seed, "augment", epoch, batch, self._rank)
            pixels = crop_and_flip(self._pixels[indices], self._augment, draws)
            yield pixels.to(self._device), self._labels[indices].to(self._device)

    def _from_files(self, chosen: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        images = Images(self._source, self._data, self._augment, (self._seed, epoch))
        for x, y in stream(images, chosen.tolist(), self._data, self._skips, self._device):
            count = len(y) // 2 * 2 if self._mixing is not None else len(y)
            if count == 0:
                raise InputError(
                    f"no image of a batch of {self._batch_size} could be decoded: {'; '.join(self._skips.first)}"
                )
            yield x[:count], y[:count]


class EvalBatches:
    """Normalised batches for evaluation: each image once over all processes, in the source's order, not augmented.

    Attributes:
        held: where decoded images are, as for ``TrainBatches``.
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
        self._source, self._data, self._augment, self._batch_size = source, data, augment, batch_size
        self._device = torch.device(device)
        self._skips = Skips(data)
        check_labels(source, len(source.classes))
        self._indices = torch.arange(rank, len(source), world)
        self.held = choose_holding(len(self._indices), data, self._device, per_image=False)
        if self.held == "none":
            return
        place = self._device if self.held == "device" else torch.device("cpu")
        self._pixels, rows = hold(
            source, self._indices.tolist(), data, augment.test_crop, self._skips, device=place, progress=progress
        )
        self._rows = rows
        self._labels = source.labels[self._indices].to(place)

    @property
    def skipped(self) -> int:
        """Images that could not be decoded so far, each counted once."""
        return len(self._skips)

    @property
    def skipped_files(self) -> list[str]:
        """What was wrong with the first few of them, each with its file."""
        return self._skips.first

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._parts(self._indices if self.held == "none" else self._rows))

    def _parts(self, indices: Tensor) -> list[Tensor]:
        return [indices[start : start + self._batch_size] for start in range(0, len(indices), self._batch_size)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs x float32 (B, C, S, S), y int64 (B,)."""
        if self.held == "none":
            images = Images(self._source, self._data, self._augment, None)
            batches = [each.tolist() for each in self._parts(self._indices)]
            pairs = stream(images, batches, self._data, self._skips, self._device)
        else:
            pairs = (
                (self._pixels[rows].to(self._device), self._labels[rows].to(self._device))
                for rows in (part.to(self._pixels.device) for part in self._parts(self._rows))
            )
        for x, y in pairs:
            if len(y):
                yield normalise(x, self._data), y
