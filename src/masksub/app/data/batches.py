"""Training batches of a run: which images, in which order, on which process, and where an epoch is taken up again.

The order is a function of (seed, epoch), the augmentation one of (seed, epoch, place in it). Nothing is stored but what
was skipped, and an epoch that is started in the middle goes on as the unbroken one would have.

Shape letters: B batch, C channels, S side, N images of the source.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from masksub.app.data.augment import Mixing, crop_and_flip, image_transform, normalise
from masksub.app.data.order import epoch_order, of_process
from masksub.app.data.sources import Source
from masksub.app.data.supply import Progress, Supply
from masksub.app.errors import InputError
from masksub.app.settings import Augment, Data
from masksub.core.seeds import generator, mix

__all__ = ["TrainBatches"]


class TrainBatches(Supply):
    """Shuffled, augmented, normalised batches for one process.

    Batch number b of all processes together is a run of ``batch_size * world`` images of the epoch's order; each
    process takes its part of it. So two processes with batches of B make the same updates as one with 2B. With
    ``augment.repeats`` the copies of an image follow each other in that order, and go to different processes.

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
        super().__init__(
            source,
            data,
            augment,
            indices=torch.arange(len(source)),
            seed=seed,
            num_classes=num_classes,
            device=device,
        )
        self._seed, self._batch_size, self._rank, self._world = seed, batch_size, rank, world
        self._update, self._accumulate = batch_size * world * accumulate, accumulate
        self._mixing = Mixing(augment, num_classes, smoothing) if augment.mixup or augment.cutmix else None
        self._count()
        if self.held == "none":
            image_transform(data, augment)  # wrong settings end here
            return
        self._hold(progress)
        self._count()

    def _count(self) -> None:
        images = len(self._rows)
        if images < self._update:
            raise InputError(
                f"{self._source.name} has {images} images to train on, fewer than the {self._update} of one update "
                f"(train.batch_size {self._batch_size} x {self._world} process(es) x {self._accumulate} part(s))"
            )
        self.batches_per_epoch = images // self._update * self._accumulate
        self.images_per_epoch = self.batches_per_epoch * self._batch_size * self._world

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
        pairs = (self._from_held if self.held != "none" else self._from_files)(epoch, start)
        for batch, (x, y) in zip(batches, pairs, strict=True):
            if x.dtype == torch.uint8:
                x = normalise(x, self._data)
            if self._mixing is not None:
                x, y = self._mixing(x, y, mix(self._seed, "mixup", epoch, batch, self._rank))
            yield x, y

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Indices of the source of each batch of this process, and numbers of the copies, both (batches, B)."""
        repeats = self._augment.repeats
        both = epoch_order(
            self._rows,
            images=self.images_per_epoch,
            seed=self._seed,
            epoch=epoch,
            repeats=repeats,
            shards=getattr(self._source, "shards", None),
            window=self._data.shard_window,
        )
        indices, copies = (
            of_process(
                each,
                batches=self.batches_per_epoch,
                batch_size=self._batch_size,
                repeats=repeats,
                rank=self._rank,
                world=self._world,
            )
            for each in both
        )
        return indices, copies

    def _from_held(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = self._order(epoch)[0][start:].to(self._pixels.device)
        for batch, indices in enumerate(chosen, start):
            # Drawn for each place in the batch, so that copies of an image are not augmented alike.
            draws = generator(self._seed, "augment", epoch, batch, self._rank)
            pixels = crop_and_flip(self._pixels[indices], self._augment, draws)
            yield pixels.to(self._device), self._labels[indices].to(self._device)

    def _from_files(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        both = zip(*(each[start:] for each in self._order(epoch)))
        plan = ([(i, epoch, copy) for i, copy in zip(indices.tolist(), copies.tolist())] for indices, copies in both)
        for x, y in self._stream.batches(plan):
            count = len(y) // 2 * 2 if self._mixing is not None else len(y)
            if count == 0:
                raise InputError(
                    f"no image of a batch of {self._batch_size} could be decoded: {'; '.join(self._skips.first)}"
                )
            yield x[:count], y[:count]
