"""Sections data and augment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Settings, Share

__all__ = ["Augment", "Data"]


class Data(Settings):
    """Where the images come from and how they are held."""

    name: str = "folder"
    """"digits" (embedded, no network), "folder" (class folders, also inside a .zip or .tar), "shards" (tar shards of
    webdataset), or a name of timm's data layer: "torch/cifar10", "hfds/NAME", "hfds/FOLDER"."""
    train: str | None = None
    """What to train on: for "folder", a folder or archive of class folders; for "shards", a folder of .tar files or
    their names with braces, "train-{0000..1023}.tar"."""
    val: str | None = None
    """What to validate on, as data.train."""
    shard_window: Annotated[int, Field(ge=1)] = 16
    """For "shards": shards whose images are shuffled together; the shards are shuffled too."""
    val_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of data.val: hold out this share of each class of the training images, the same ones for every seed."""
    root: str | None = None
    """Where timm's data layer keeps the set, for its names."""
    train_split: str = "train"
    """Split to train on, for timm's names."""
    val_split: str = "validation"
    """Split to validate on, for timm's names."""
    image_key: str = "image"
    """Column of the images, for "hfds/NAME"."""
    label_key: str = "label"
    """Column of the labels, whole numbers, for "hfds/NAME"."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Train on this many images only, chosen at random by the seed; None for all."""
    val_images: Annotated[int, Field(ge=1)] | None = None
    """Validate on this many images only; None for all."""
    image_size: Annotated[int, Field(ge=1)] = 224
    """Side of the square that the model sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1: grey, 3: RGB."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, values 0 to 1; None: 0.5."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; None: 0.5."""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """Hold decoded images in memory, or on the device, and augment in batches. "auto": in memory where they fit in
    cache_share and the augmentation allows it."""
    cache_share: Share = 0.25
    """Share of the free memory that held images may take."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Worker processes that decode images when they are not held."""
    on_error: Literal["stop", "skip"] = "stop"
    """A corrupt image: stop, naming the file, or skip it and count."""
    max_skipped: Annotated[int, Field(ge=0)] = 100
    """With on_error "skip": stop after this many."""


class Augment(Settings):
    """What is done to a training image."""

    crop: Literal["none", "pad", "resized"] = "none"
    """"pad": random crop after padding by crop_padding; "resized": random area and aspect, resized."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zero padding on each side, for crop "pad"."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest share of the area, for crop "resized"."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Repeated augmentation: how often an image comes in an epoch, each time augmented anew. An epoch stays as long as
    it was, so it shows fewer different images."""
    flip: Share = 0.0
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of colour jitter; images are then not held decoded."""
    auto_augment: str | None = None
    """timm's name of an automatic augmentation ("rand-m9-mstd0.5-inc1", "3a"); images are then not held decoded."""
    random_erase: Share = 0.0
    """Probability of random erasing; images are then not held decoded."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0 for none."""
    test_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the side that the centre crop of evaluation keeps."""

    @property
    def per_image(self) -> bool:
        """Whether an operation needs the original image, so that decoded ones can't be held."""
        return self.crop == "resized" or self.color_jitter > 0 or bool(self.auto_augment) or self.random_erase > 0
