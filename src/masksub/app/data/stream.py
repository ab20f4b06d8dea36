"""Images decoded and augmented as they are needed, by worker processes.

Shape letters: B batch, C channels, S side.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from multiprocessing.connection import wait
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masksub.app.cores import available_cores
from masksub.app.data.augment import image_transform, seeded
from masksub.app.data.decode import ImageError, evaluation_transform
from masksub.app.data.skips import Skips
from masksub.app.data.sources import Source
from masksub.app.errors import StoppedError
from masksub.app.settings import Augment, Data
from masksub.core.seeds import mix

__all__ = ["Images", "Place", "Stream"]

Place = tuple[int, int, int]
"""Index of the image, epoch, and number of the copy in it."""

_REQUESTS = (signal.SIGINT, signal.SIGTERM)


class Images(Dataset[tuple[int, Tensor | str]]):
    """Images by place, augmented; a message in place of one that can't be decoded.

    The augmentation of an image depends on (seed, epoch, index, copy) alone: not on the worker, nor on what came
    before.

    Args:
        source: the images.
        data: the recipe's data.
        augment: the recipe's augmentation.
        seed: of the augmentation; None for evaluation.
    """

    def __init__(self, source: Source, data: Data, augment: Augment, seed: int | None) -> None:
        self.source, self._data, self._augment, self._seed = source, data, augment, seed

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        # Made where it is used: transforms need not be pickled for the workers.
        if self._seed is None:
            return evaluation_transform(self._data.image_size, self._augment.test_crop)
        return image_transform(self._data, self._augment)

    def __getitem__(self, place: Place) -> tuple[int, Tensor | str]:
        index, epoch, copy = place
        try:
            image = self.source.read(index)
        except ImageError as error:
            return index, str(error)
        if self._seed is None:
            return index, self._transform(image)
        # The first copy is augmented as without repeats.
        parts = (epoch, index, copy) if copy else (epoch, index)
        with seeded(mix(self._seed, "augment", *parts)):
            return index, self._transform(image)


class _Plan:
    """The batches that a loader is to make next; a loader that is kept gets new ones in each epoch."""

    batches: Iterable[list[Place]] = ()

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.batches)


class Stream:
    """Batches in a given order, decoded by ``data.workers`` processes (0: in this one), no more than there are cores.

    Workers live on from one epoch to the next if ``keep``, else end with it. They end where an epoch is broken off.
    SIGINT and SIGTERM, which a terminal or a scheduler sends to all processes, don't end them: the process that trains
    decides when.

    Args:
        images: the images.
        data: ``workers``.
        skips: is told of images that can't be decoded; their batch is smaller by so many.
        device: where batches go.
        keep: let workers live on.
    """

    def __init__(self, images: Images, data: Data, skips: Skips, device: torch.device, *, keep: bool = False) -> None:
        # More processes than cores gain nothing, and torch warns. The samples are the same for any number of them.
        self._workers = min(data.workers, available_cores())
        self._images, self._skips, self._device = images, skips, device
        self._keep = keep and self._workers > 0
        self._idle: _Loader | None = None

    def batches(self, plan: Iterable[list[Place]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode in this order.

        Args:
            plan: places of each batch.

        Yields:
            Pixels (B, C, S, S) on the device, of the transform's type; labels int64 (B,). B is 0 where nothing of a
            batch could be decoded.

        Raises:
            InputError: see ``Skips.add``.
            StoppedError: a worker was killed.
        """
        loader, self._idle = self._idle, None  # so that two epochs at a time get one each
        if loader is None:
            loader = _Loader(self._images, self._workers, self._keep, pin=self._device.type == "cuda")
        whole = False
        try:
            for indices, pixels, failures in loader.run(plan):
                for index, message in failures:
                    self._skips.add(index, message)
                labels = self._images.source.labels[indices]
                yield pixels.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
            whole = True
        finally:
            if whole and self._keep and self._idle is None:
                self._idle = loader
            else:
                loader.close()

    def close(self) -> None:
        """End the workers that were kept."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None


class _Loader:
    """torch's loader with workers that a signal to the group does not end, and whose death is told in plain words."""

    def __init__(self, images: Images, workers: int, keep: bool, *, pin: bool) -> None:
        self._plan, self._workers = _Plan(), workers
        self._iterator: Any = None
        self._loader: DataLoader[tuple[int, Tensor | str]] = DataLoader(
            images,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            generator=torch.Generator(),  # without one, the loader draws from the global generator
            worker_init_fn=_begin_worker,
            persistent_workers=keep,
        )

    def run(self, plan: Iterable[list[Place]]) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, str]]]]:
        self._plan.batches = plan
        try:
            with _own_child_signals(), _no_request_while_they_start():
                self._iterator = iter(self._loader)
            yield from self._iterator
        except RuntimeError as error:
            if not re.search(r"DataLoader worker \(pid", str(error)):
                raise
            raise StoppedError(
                f"a process that decodes images was killed ({error}). Often the memory ran out: try fewer than "
                f"data.workers = {self._workers}, or give the machine or container more memory and shared memory "
                f"(/dev/shm)"
            ) from error

    def close(self) -> None:
        # What an error's traceback holds on to would not be collected, and its workers would go on.
        shut_down = getattr(self._iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        # They ignore SIGTERM, so that one which hangs would keep this process from ending.
        for worker in getattr(self._iterator, "_workers", ()):
            if worker.is_alive():
                worker.kill()
        self._iterator = None


@contextlib.contextmanager
def _own_child_signals() -> Iterator[None]:
    """Take back torch's handler of SIGCHLD: it raises wherever this process is just then, as in an optimizer step.

    That a worker is gone is noticed without it, within seconds of waiting for its batch.
    """
    signum = getattr(signal, "SIGCHLD", None)
    if signum is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signum)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signum, before)


@contextlib.contextmanager
def _no_request_while_they_start() -> Iterator[None]:
    """Hold requests to stop back from new workers until they ignore them; this process gets them a moment later."""
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is None:
        yield
        return
    before = mask(signal.SIG_BLOCK, _REQUESTS)  # workers inherit it
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int) -> None:
    """In a new worker: requests to stop are for the process that trains; the end of that one is the worker's too."""
    for signum in _REQUESTS:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        # torch's own watch looks at the process's parent from later on: one that was killed before is not missed, and
        # a server that forks workers is taken for it. This pipe is the trainer's, whoever forked and whenever it ended.
        threading.Thread(target=_end_with, args=(trainer.sentinel,), name="trainer", daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _collate(samples: list[tuple[int, Tensor | str]]) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    good = [(index, pixels) for index, pixels in samples if isinstance(pixels, Tensor)]
    failures = [(index, message) for index, message in samples if isinstance(message, str)]
    indices = torch.tensor([index for index, _ in good], dtype=torch.long)
    return indices, torch.stack([pixels for _, pixels in good]) if good else torch.empty(0), failures
