"""timm's Hiera, whose layers take mask units of 32 x 32 pixels in any number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import loaded


class TimmHiera(TokenDrop):
    """Mask units dropped where the model drops them in its own masked pre-training.

    The recipe's own dropout of units rests in the sub branch.
    """

    name = "timm Hiera"
    where = "after unroll, by the model's own mask units"

    def matches(self, model: nn.Module) -> bool:
        """True for a timm Hiera whose mask units are those that ``unroll`` makes; timm is not imported for it."""
        if not isinstance(model, loaded("timm.models.hiera", ["Hiera"])):
            return False
        hiera: Any = model
        made = [math.prod(strides) for strides in zip(*hiera.unroll.schedule, strict=True)]
        return len(made) == 2 and made == list(hiera.mask_unit_size)

    def why(self, model: nn.Module) -> str:
        """Hiera is made for it."""
        return "attention within mask units and global attention both take any number of mask units"

    def prefix(self, model: Any) -> int:
        """None."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a mask unit; ``unit`` is a multiple of its side in pixels."""
        tall, wide = (a * b for a, b in zip(model.mask_unit_size, model.patch_stride, strict=True))
        return patch_grid(call.x, tuple(model.mask_spatial_shape), (tall, wide), unit)

    def overlapping(self, model: Any) -> bool:
        """True: patches are embedded by an overlapping convolution."""
        return True

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The tokens in the order of units: token n belongs to unit n modulo the number of units."""

        def drop(x: Tensor) -> Tensor:
            batch, length, width = x.shape
            units = choice.units or length
            tokens = x.view(batch, length // units, units, width).transpose(1, 2).flatten(2)  # (B, L, tokens * D)
            kept = choice.drop(tokens)
            return kept.view(batch, kept.shape[1], -1, width).transpose(1, 2).reshape(batch, -1, width)

        return (after("unroll", drop), Interception("", "patch_drop_rate", lambda _: 0.0))
