"""Images decoded once and kept, in memory or on the device, where they fit.

Shape letters: N images, C channels, S side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import psutil
import torch
from torch import Tensor

from masksub.app.data.decode import ImageError, prepare
from masksub.app.data.skips import Skips
from masksub.app.data.sources import Source
from masksub.app.errors import InputError
from masksub.app.settings import Data

__all__ = ["Holding", "choose_holding", "hold"]

Holding = Literal["memory", "device", "none"]


def choose_holding(count: int, data: Data, device: torch.device, per_image: bool) -> Holding:
    """Where the decoded images are to be held.

    Each process of a machine holds the images of its own, so the share of the memory is divided among them.

    Args:
        count: N, images to hold.
        data: ``cache``, ``cache_share``, ``image_size`` and ``channels``.
        device: where the model is.
        per_image: the augmentation needs original images.

    Raises:
        InputError: holding is asked for by name and is not possible.
    """
    if data.cache == "none" or (data.cache == "auto" and per_image):
        return "none"
    asked = f'data.cache = "{data.cache}"'
    if per_image:
        raise InputError(
            f'{asked}: crop "resized", color_jitter, auto_augment and random_erase need the original images, which are '
            f'then not held; accepted beside them are "auto" and "none"'
        )
    needed = count * data.channels * data.image_size**2
    place: Holding = "device" if data.cache == "device" else "memory"
    if place == "device" and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed <= data.cache_share * free:
        return place
    if data.cache == "auto":
        return "none"
    raise InputError(
        f"{asked}: {count} images of {data.channels} x {data.image_size} x {data.image_size} bytes take "
        f"{needed / 2**20:,.0f} MiB, more than data.cache_share = {data.cache_share:g} of the {free / 2**20:,.0f} MiB "
        f'that are free; set cache: "none" or raise cache_share'
    )


def hold(
    source: Source,
    indices: Sequence[int],
    data: Data,
    test_crop: float,
    skips: Skips,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode images in a pool of threads; PIL lets other threads run meanwhile.

    Args:
        source: where they come from.
        indices: which of its images, N of them.
        data: ``image_size`` and ``channels``.
        test_crop: see ``prepare``.
        skips: is told of images that can't be decoded.
        device: where the result lies.
        progress: called with (done, N), about 100 times at most.

    Returns:
        uint8 (N, C, S, S), and int64 (M,), the rows that hold an image: M = N where none was skipped.

    Raises:
        InputError: see ``Skips.add``.
    """
    total = len(indices)
    held = torch.zeros(total, data.channels, data.image_size, data.image_size, dtype=torch.uint8, device=device)
    usable = torch.ones(total, dtype=torch.bool)
    step = max(1, -(-total // 100))

    def decode(start: int) -> tuple[int, Tensor, list[tuple[int, str]]]:
        rows, failures = [], []
        for row in range(start, min(start + step, total)):
            try:
                image = source.read(indices[row])
                rows.append(prepare(image, data.image_size, test_crop, data.channels))
            except ImageError as error:
                failures.append((row, str(error)))
                rows.append(torch.zeros(held.shape[1:], dtype=torch.uint8))
        return start, torch.stack(rows), failures

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for start, pixels, failures in pool.map(decode, range(0, total, step)):
            held[start : start + len(pixels)] = pixels.to(device)
            for row, message in failures:
                usable[row] = False
                skips.add(indices[row], message)
            if progress is not None:
                progress(start + len(pixels), total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return held, usable.nonzero().flatten()
