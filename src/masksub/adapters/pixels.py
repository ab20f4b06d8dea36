"""Any other image model: square blocks of the input are blanked. It saves nothing, but it works everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker
from masksub.core.call import Call
from masksub.core.removal import blank_pixels

DEFAULT_UNIT = 32
"""Side of a block in pixels: 32 in the paper's experiments with convolutional and windowed models."""


class PixelBlocks:
    """Blocks of pixels set to the value that means "nothing"."""

    name = "pixel blocks"
    how: Literal["pixels"] = "pixels"
    where = "the input"

    def matches(self, model: nn.Module) -> bool:
        """True for every model; whether its input is an image is seen at the forward."""
        return True

    def why(self, model: nn.Module) -> str:
        """Why nothing better is known."""
        return "nothing is known of this model but that it takes images"

    def prefix(self, model: nn.Module) -> int:
        """None: the input has pixels only."""
        return 0

    def grid(self, model: nn.Module, call: Call, unit: int | None) -> Grid:
        """Blocks of ``unit`` pixels, those at the right and lower edge possibly smaller."""
        unit, x = DEFAULT_UNIT if unit is None else unit, call.x
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"{type(model).__name__} has nothing to mask: blanking pixels needs floating-point images "
                f"(B, C, H, W), not {x.dtype} of shape {tuple(x.shape)}"
            )
        return Grid(-(-x.shape[-2] // unit), -(-x.shape[-1] // unit))

    @contextmanager
    def masking(self, model: nn.Module, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """The model is left alone; only its input changes."""
        if isinstance(fill, str):
            raise ValueError(
                f"fill = {fill!r}: {type(model).__name__} is masked in pixels and has no mask token; give a number"
            )
        size = DEFAULT_UNIT if unit is None else unit

        def mask(call: Call, keep: Tensor, count: int | None) -> Call:
            return call if count == keep.shape[1] else call.with_x(blank_pixels(call.x, keep, size, fill))

        yield mask
