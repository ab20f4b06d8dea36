"""Images decoded and augmented as they are needed, by worker processes.

Shape letters: B batch, C channels, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masksub.app.data.augment import image_transform, seeded
from masksub.app.data.decode import ImageError, evaluation_transform
from masksub.app.data.held import Skips
from masksub.app.data.sources import Source
from masksub.app.seeds import mix
from masksub.app.settings import Augment, Data

__all__ = ["Images", "stream"]


class Images(Dataset[tuple[int, Tensor | str]]):
    """Images by index, augmented; a message in place of one that can't be decoded.

    The augmentation of an image depends on (seed, epoch, index) alone: not on the worker, nor on what came before.

    Args:
        source: the images.
        data: the recipe's data.
        augment: the recipe's augmentation.
        place: seed and epoch of the augmentation; None for evaluation.
    """

    def __init__(self, source: Source, data: Data, augment: Augment, place: tuple[int, int] | None) -> None:
        self.source, self._data, self._augment, self._place = source, data, augment, place

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        # Made where it is used: transforms need not be pickled for the workers.
        if self._place is None:
            return evaluation_transform(self._data.image_size, self._augment.test_crop)
        return image_transform(self._data, self._augment)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            image = self.source.read(index)
        except ImageError as error:
            return index, str(error)
        if self._place is None:
            return index, self._transform(image)
        seed, epoch = self._place
        with seeded(mix(seed, "augment", epoch, index)):
            return index, self._transform(image)


def stream(
    images: Images, batches: list[list[int]], data: Data, skips: Skips, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images in the given order, decoded by ``data.workers`` processes (0: in this one).

    Args:
        images: the images.
        batches: indices of each batch.
        data: ``workers``.
        skips: is told of images that can't be decoded; their batch is smaller by so many.
        device: where batches go.

    Yields:
        Pixels (B, C, S, S) on the device, of the transform's type; labels int64 (B,). B is 0 where nothing of a batch
        could be decoded.

    Raises:
        InputError: see ``Skips.add``.
    """
    loader: DataLoader[tuple[int, Tensor | str]] = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=data.workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # without one, the loader draws from the global generator
    )
    for indices, pixels, failures in loader:
        for index, message in failures:
            skips.add(index, message)
        labels = images.source.labels[indices]
        yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _collate(samples: list[tuple[int, Tensor | str]]) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    good = [(index, pixels) for index, pixels in samples if isinstance(pixels, Tensor)]
    failures = [(index, message) for index, message in samples if isinstance(message, str)]
    indices = torch.tensor([index for index, _ in good], dtype=torch.long)
    return indices, torch.stack([pixels for _, pixels in good]) if good else torch.empty(0), failures
