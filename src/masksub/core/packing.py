"""Units of a hierarchical model, kept ones only, one under another as a tall image.

Most of such a model works on each cell alone, or on all cells at once, and takes the tall image as it is; so do
convolutions and pools whose windows don't reach beyond a unit. Where windows overlap, as in depthwise convolutions, the
kept units are laid back on the grid with zeros elsewhere, and taken from it again: a neighbour that was masked is to
them what lies beyond the border of the image.

Shape letters: B batch, L units of one input, K kept units, R x S grid of units (L = R * S), u cells along each side of
a unit, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Grid, WrongInputError
from .call import Call
from .dropping import Choice, TokenDrop
from .intercept import Interception
from .removal import blank_pixels, drop_tokens

__all__ = ["PackedUnits", "pack", "packable", "packed_table", "unpack"]


def pack(x: Tensor, indices: Tensor, units: tuple[int, int]) -> Tensor:
    """Kept units of a map, one under another.

    Args:
        x: (B, C, R * u, S * u).
        indices: (B, K), which units stay.
        units: R and S.

    Returns:
        (B, C, K * u, u), differentiable.

    Raises:
        RuntimeError: the map can't be cut into square units.
    """
    (batch, channels, height, width), (rows, cols) = x.shape, units
    side = width // cols
    if side == 0 or (height, width) != (rows * side, cols * side):
        raise RuntimeError(f"a map of {height} x {width} cells can't be cut into {rows} x {cols} square units")
    cut = x.reshape(batch, channels, rows, side, cols, side).permute(0, 2, 4, 1, 3, 5)  # (B, R, S, C, u, u)
    kept = drop_tokens(cut.reshape(batch, rows * cols, -1), indices)  # (B, K, C * u * u)
    kept = kept.view(batch, -1, channels, side, side).transpose(1, 2)  # (B, C, K, u, u)
    return kept.reshape(batch, channels, -1, side)


def unpack(x: Tensor, indices: Tensor, units: tuple[int, int]) -> Tensor:
    """Undo ``pack``, with zeros in the place of units that were not kept.

    Args:
        x: (B, C, K * u, u).
        indices: (B, K).
        units: R and S.

    Returns:
        (B, C, R * u, S * u), differentiable.
    """
    (batch, channels, _, side), (rows, cols) = x.shape, units
    kept = x.reshape(batch, channels, -1, side, side).transpose(1, 2)  # (B, K, C, u, u)
    kept = kept.reshape(batch * indices.shape[1], -1)
    flat = indices + torch.arange(batch, device=x.device).unsqueeze(1) * (rows * cols)
    grid = x.new_zeros(batch * rows * cols, kept.shape[1]).index_copy(0, flat.flatten(), kept)
    grid = grid.view(batch, rows, cols, channels, side, side).permute(0, 3, 1, 4, 2, 5)  # (B, C, R, u, S, u)
    return grid.reshape(batch, channels, rows * side, cols * side)


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _overlaps(layer: Any) -> bool:
    """Whether windows of a convolution or pool reach beyond its stride."""
    dilation = _pair(getattr(layer, "dilation", 1))
    reach = [(k - 1) * d + 1 for k, d in zip(_pair(layer.kernel_size), dilation, strict=True)]
    return any(r > s for r, s in zip(reach, _pair(layer.stride), strict=True))


def packable(model: nn.Module) -> bool:
    """False where a pool's windows overlap, or don't lie in one unit: zeros are no neutral neighbours to it."""
    pools = [m for m in model.modules() if isinstance(m, (nn.AvgPool2d, nn.MaxPool2d))]
    adaptive = [m for m in model.modules() if isinstance(m, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))]
    return not any(map(_overlaps, pools)) and all(_pair(m.output_size) == (1, 1) for m in adaptive)


def packed_table(choice: Choice, table: Callable[[int, int], Tensor], side: int) -> Tensor:
    """A map of positions for the kept units; asked for only where some are masked.

    Args:
        choice: of units.
        table: from height and width of the whole map to (1, C, height, width).
        side: u.

    Returns:
        (B, C, K * u, u).
    """
    assert choice.indices is not None, "asked for only where units are masked"
    rows, cols = choice.cells
    whole = table(rows * side, cols * side)
    return pack(whole.expand(len(choice.indices), -1, -1, -1), choice.indices, choice.cells)


class PackedUnits(TokenDrop):
    """Adapter of a family whose kept units are packed at the stem, and laid out again for overlapping windows only.

    The image itself keeps its size: another one would make ``torch.compile`` give up static shapes. Batch norm sees
    kept cells alone. Images that units don't divide can't be packed: pixels of masked units are blanked in them, at the
    full cost.
    """

    inside_blocks = True
    where = "before the stem; kept units one under another, laid out for overlapping convolutions with zeros elsewhere"

    @abstractmethod
    def stride(self, model: Any) -> int:
        """Side of a unit in pixels: that of a cell of the last stage."""

    @abstractmethod
    def entry(self, model: Any) -> str:
        """Path of the module that gets the image; not a convolution itself."""

    def prefix(self, model: Any) -> int:
        """None."""
        return 0

    def why(self, model: nn.Module) -> str:
        """What the neighbours of masked units see."""
        return (
            "most layers work on each cell alone or on all at once; overlapping convolutions see zeros where units are "
            "masked, as beyond the border"
        )

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a square as large as a cell of the last stage; ``unit`` is a multiple of that in pixels."""
        side, x = self.stride(model), call.x
        if x.ndim != 4:
            raise WrongInputError(f"{type(model).__name__} needs images (B, C, H, W), not {tuple(x.shape)}")
        if unit is not None and unit % side:
            raise ValueError(f"unit = {unit} px: this model's units are {side} x {side} px; use a multiple of that")
        return Grid(-(-x.shape[-2] // side), -(-x.shape[-1] // side), block=1 if unit is None else unit // side)

    def without_masked(self, model: Any, call: Call, keep: Tensor, grid: Grid, fill: float, choice: Choice) -> Call:
        """The call as it is, for its masked units go before the stem; blanked where they can't be packed."""
        side = self.stride(model)
        if call.x.shape[-2] % side == 0 and call.x.shape[-1] % side == 0:
            return call
        choice.indices = None
        return call.with_x(blank_pixels(call.x, keep, side, fill))

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The stem, and each convolution whose windows overlap."""

        def enter(original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
            def forward(x: Tensor) -> Any:
                choice.arrive()
                return original(x if choice.indices is None else pack(x, choice.indices, choice.cells))

            return forward

        def lift(original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                if choice.indices is None:
                    return original(x)
                return pack(original(unpack(x, choice.indices, choice.cells)), choice.indices, choice.cells)

            return forward

        lifted = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d) and _overlaps(module)]
        return [
            Interception(self.entry(model), "forward", enter),
            *(Interception(path, "forward", lift) for path in lifted),
        ]
