"""What is done to images on their way to the model: in batches where they are held, one by one where they are not.

Shape letters: B batch, C channels, S side of the image, P padding.

Padding for the random crop is 0 before normalisation: black, as in the usual CIFAR recipes of torchvision and timm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_auto_augment
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from masksub.app.data.decode import evaluation_transform
from masksub.app.errors import InputError
from masksub.app.settings import Augment, Data

__all__ = ["Mixing", "crop_and_flip", "image_transform", "normalise", "seeded"]


def normalise(pixels: Tensor, data: Data) -> Tensor:
    """Scale bytes to 0 to 1, subtract the mean and divide by the standard deviation of each channel.

    Args:
        pixels: uint8 (..., C, S, S).
        data: the recipe's mean and std, 0.5 where it has none.

    Returns:
        New float32 tensor of the same shape and device.
    """
    mean = torch.tensor(data.mean or (0.5,) * data.channels)
    std = torch.tensor(data.std or (0.5,) * data.channels)
    scale, shift = 1 / (255 * std), -mean / std
    shape = (data.channels, 1, 1)
    scale, shift = (each.view(shape).to(pixels.device, non_blocking=True) for each in (scale, shift))
    return pixels.to(torch.float32).mul_(scale).add_(shift)


def crop_and_flip(pixels: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Random crop after padding, and random horizontal flip, each image its own.

    The numbers are drawn on the CPU, so that they are the same on each kind of device.

    Args:
        pixels: uint8 (B, C, S, S).
        augment: ``crop`` ("pad" or "none"), ``crop_padding`` and ``flip``.
        generator: source of randomness, on the CPU.

    Returns:
        uint8 (B, C, S, S).
    """
    batch, _, side, _ = pixels.shape
    padding = augment.crop_padding if augment.crop == "pad" else 0
    draws = torch.rand(3, batch, generator=generator)
    top, left = (draws[:2] * (2 * padding + 1)).long().clamp_(max=2 * padding)  # clamp: rand() times n may round to n
    flipped = (draws[2] < augment.flip).unsqueeze(1)
    steps = torch.arange(side)
    columns = torch.where(flipped, side - 1 - steps, steps) + left.unsqueeze(1)  # (B, S)
    rows = steps + top.unsqueeze(1)  # (B, S)
    if padding:
        pixels = F.pad(pixels, (padding,) * 4)  # (B, C, S + 2P, S + 2P)
    elif not augment.flip:
        return pixels
    rows, columns = rows.to(pixels.device, non_blocking=True), columns.to(pixels.device, non_blocking=True)
    width = pixels.shape[-1]
    source = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, side * side)  # (B, 1, S * S)
    chosen = pixels.flatten(2).gather(2, source.expand(-1, pixels.shape[1], -1))
    return chosen.view(batch, -1, side, side)


class Mixing:
    """timm's mixup and cutmix, with a seed of their own for each batch.

    Args:
        augment: alphas of mixup and cutmix; with both above 0, each batch takes one or the other.
        num_classes: width of the soft labels.
        smoothing: label smoothing, which goes into the soft labels.
    """

    def __init__(self, augment: Augment, num_classes: int, smoothing: float) -> None:
        make: Any = Mixup  # timm's classes are not typed
        self._mixup = make(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix x (B, C, S, S), B even, with itself in reverse order, in place; y (B,) becomes soft (B, classes)."""
        with seeded(seed):
            mixed: tuple[Tensor, Tensor] = self._mixup(x, y)
        return mixed


def image_transform(data: Data, augment: Augment) -> Callable[[Image.Image], Tensor]:
    """timm's training transform for one image, for augmentation that needs the original.

    Order: crop (bicubic), flip, automatic augmentation, colour jitter, random erasing. As in timm, colour jitter is
    left out beside an automatic augmentation, except "3a". Erased areas are filled with normal noise after
    normalisation, the choice of DeiT's recipe and of timm's script.

    Returns:
        Function to a uint8 tensor (C, S, S), or with random erasing to a float32 one that is normalised. It draws from
        the global generators of Python, NumPy and torch: call it inside ``seeded``.

    Raises:
        InputError: a value that timm does not take.
    """
    low, high = augment.crop_scale
    if low > high:
        raise InputError(f"augment.crop_scale = {augment.crop_scale}: the smaller share comes first")
    size = data.image_size
    first: Any
    second: Any
    last: Any
    try:
        first, second, last = create_transform(
            (size, size),
            is_training=True,
            scale=augment.crop_scale,
            hflip=augment.flip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            interpolation="bicubic",
            mean=data.mean or (0.5,) * data.channels,
            std=data.std or (0.5,) * data.channels,
            normalize=False,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"augment.auto_augment = {augment.auto_augment!r} is not known to timm; accepted are names such as "
            f'"rand-m9-mstd0.5-inc1", "augmix-m3-w3", "3a", "v0", "original" ({error or type(error).__name__})'
        ) from error
    steps: list[Any] = list(first.transforms)
    if augment.crop != "resized":
        whole: Any = evaluation_transform(size, augment.test_crop)
        steps[:1] = whole.transforms[:-1]  # all but the conversion to a tensor
        if augment.crop == "pad":
            steps.insert(2, transforms.RandomCrop(size, padding=augment.crop_padding, fill=0))
    for step in second.transforms:
        _mend_posterize(step)
    steps += second.transforms + last.transforms
    if augment.random_erase:
        make: Any = RandomErasing
        steps += [_Normalise(data), make(augment.random_erase, mode="pixel", device="cpu")]
    transform: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return transform


def _mend_posterize(step: Any) -> None:
    """Let timm's automatic augmentation posterize to no bits, which is a black image; Pillow 13 refuses that."""
    operations = [*getattr(step, "ops", ()), *(each for policy in getattr(step, "policy", ()) for each in policy)]
    for operation in operations:
        if operation.aug_fn is timm_auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


class _Normalise:
    def __init__(self, data: Data) -> None:
        self._data = data

    def __call__(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._data)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch, and put their states back at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators as well
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
