"""One image file to pixels, strictly: what can't be decoded in full is an error that names the file.

Shape letters: C channels (1 grey or 3 RGB), S side of the square that the model sees.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from timm.data.transforms_factory import create_transform
from torch import Tensor

from masksub.app.errors import InputError

__all__ = ["ImageError", "load_image", "prepare"]

_CHANNELS_MODE = {1: "L", 3: "RGB"}


class ImageError(InputError):
    """One image can't be decoded. The message names its file; ``data.on_error: skip`` passes over it."""


def load_image(file: str | Path | bytes, channels: int, where: str | None = None) -> Image.Image:
    """Decode an image file in full.

    Every PIL mode is accepted: palettes are resolved, transparency is dropped, CMYK is converted, 16-bit grey keeps
    its upper 8 bits, 1-bit becomes 0 and 255. Pixels without a known range (32-bit integer or float) are an error.

    Args:
        file: path, or the bytes of a file.
        channels: 1 for a result of mode "L", 3 for "RGB".
        where: what messages call the file; the path if None.

    Raises:
        ImageError: missing, not an image, truncated, corrupt, or larger than PIL's ``Image.MAX_IMAGE_PIXELS``.

    Side effects: turns PIL's ``LOAD_TRUNCATED_IMAGES`` off, which another library may have turned on.
    """
    if where is None:
        where = "an image in memory" if isinstance(file, bytes) else str(file)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise ImageError(f"{image.width} x {image.height} pixels, more than the {limit} that are accepted")
            image.load()
            return to_channels(image, channels)
    except Exception as error:  # PIL raises nearly anything at a damaged file
        size = len(file) if isinstance(file, bytes) else _size(file)
        reason = "it is empty, 0 bytes" if size == 0 else _reason(error)
        raise ImageError(f"{where} can't be decoded: {reason}") from error


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode "L" (channels = 1) or "RGB" (channels = 3)."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in {"PNG", "PPM"}):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(max=255).astype(np.uint8))
    elif mode in {"I", "F"}:
        raise ImageError(f"its pixels are of mode {mode!r}, 32 bits of unknown range; accepted are 8 and 16 bits")
    elif mode in {"P", "PA"} and "transparency" in image.info:
        image = image.convert("RGBA")  # without this step PIL warns that transparency is lost
    wanted = _CHANNELS_MODE[channels]
    if image.mode not in {"1", "L", "LA", "RGB", "RGBA"}:
        image = image.convert("RGB")  # CMYK and others have no direct way to grey
    return image if image.mode == wanted else image.convert(wanted)


def prepare(image: Image.Image, size: int, test_crop: float, channels: int) -> Tensor:
    """What the model sees of an image in evaluation, before normalisation.

    The shorter side is resized (bicubic) to ``floor(size / test_crop)``, which is no change where it has that length
    already; then the middle is cut out. It is timm's evaluation transform.

    Args:
        image: of any mode.
        size: S, side of the result.
        test_crop: share of the side that is kept, above 0 to 1.
        channels: C, 1 or 3.

    Returns:
        uint8 tensor (C, S, S).
    """
    pixels: Tensor = evaluation_transform(size, test_crop)(to_channels(image, channels))
    return pixels


@lru_cache(maxsize=16)
def evaluation_transform(size: int, test_crop: float) -> Callable[[Image.Image], Tensor]:
    """timm's resize, centre crop and conversion to uint8 (C, S, S)."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (size, size), is_training=False, interpolation="bicubic", crop_pct=test_crop, normalize=False
    )
    return transform


def _size(file: str | Path) -> int | None:
    try:
        return Path(file).stat().st_size
    except OSError:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a format that PIL reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
