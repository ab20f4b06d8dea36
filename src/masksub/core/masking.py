"""Which units of an input stay visible, and how the others are removed.

Shape letters of this module: B batch, L maskable units of one input, N = prefix tokens + L, K kept units,
D token width, C channels, H x W pixels.

One convention everywhere: the mask is called ``keep`` and ``True`` means visible.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["KeepTokens", "blank_pixels", "keep_count", "kept_indices", "sample_keep", "sample_keep_blocks"]


def keep_count(units: int, ratio: float) -> int:
    """Number of units that stay visible: exactly ``max(1, int(units * (1 - ratio)))``.

    The expression is evaluated in double precision as written, so ``keep_count(20, 0.9)`` is 1: 20 * (1 - 0.9) is
    1.9999999999999996.

    Args:
        units: L, maskable units of one input, at least 1.
        ratio: share that is masked, 0 <= ratio < 1.

    Raises:
        ValueError: a value outside its range.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"ratio = {ratio!r}: the share of units to mask must satisfy 0 <= ratio < 1")
    if units < 1:
        raise ValueError(f"units = {units!r}: there must be at least one unit to choose from")
    return max(1, int(units * (1 - ratio)))


def sample_keep(
    batch: int,
    units: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Choose the visible units of each row, uniformly among all subsets of the right size (paper, section 3.1).

    Args:
        batch: B, number of rows.
        units: L, maskable units of each row.
        ratio: share that is masked, 0 <= ratio < 1; each row keeps ``keep_count(units, ratio)``.
        generator: source of randomness; the global generator of the device if None. A generator of another device is
            accepted: numbers are drawn where it lives and the result is moved.
        device: device of the result; the generator's, else the CPU.

    Returns:
        Boolean tensor (B, L), ``True`` = visible.

    Raises:
        ValueError: ratio or units outside their range.
    """
    return sample_keep_blocks(batch, (1, units), ratio, block=1, generator=generator, device=device)


def sample_keep_blocks(
    batch: int,
    grid: tuple[int, int],
    ratio: float,
    *,
    block: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Choose the visible cells of a grid in square blocks, with exactly the same count in each row.

    Blocks are put in a random order and kept whole until the count is reached. The one block at the border of the
    count is kept in part, so that rows stay equally long and tokens can be dropped whatever the grid and the ratio.
    ``block=1`` is the uniform choice of ``sample_keep``.

    Args:
        batch: B, number of rows.
        grid: rows and columns of cells; L is their product, cells are in row-major order.
        ratio: share that is masked, 0 <= ratio < 1.
        block: side of a block in cells, at least 1; blocks at the right and lower edge may be smaller.
        generator: source of randomness, as in ``sample_keep``.
        device: device of the result, as in ``sample_keep``.

    Returns:
        Boolean tensor (B, L), ``True`` = visible.

    Raises:
        ValueError: a value outside its range.
    """
    rows, cols = grid
    kept = keep_count(rows * cols, ratio)
    if block < 1:
        raise ValueError(f"block = {block!r}: the side of a block must be at least 1 cell")
    out_device = torch.device(device) if device is not None else generator.device if generator else torch.device("cpu")
    draw_device = generator.device if generator is not None else out_device

    order = torch.rand(batch, rows * cols, generator=generator, device=draw_device)  # (B, L)
    if block > 1:
        block_rows, block_cols = -(-rows // block), -(-cols // block)
        noise = torch.rand(batch, block_rows * block_cols, generator=generator, device=draw_device)
        rank = noise.argsort(dim=1).argsort(dim=1)  # (B, blocks): place of each block in its row's random order
        row = torch.arange(rows, device=draw_device) // block
        col = torch.arange(cols, device=draw_device) // block
        order = (
            order + rank[:, (row[:, None] * block_cols + col).flatten()]
        )  # whole blocks first, cells within at random
    visible = order.argsort(dim=1)[:, :kept]  # (B, K)
    keep = torch.zeros(batch, rows * cols, dtype=torch.bool, device=draw_device)
    return keep.scatter_(1, visible, True).to(out_device)


def kept_indices(keep: Tensor, count: int) -> Tensor:
    """Indices of the visible units in their original order.

    ``count`` is passed in because reading it from ``keep`` would make a GPU wait.

    Args:
        keep: boolean (B, L) with ``count`` visible units in each row.
        count: K.

    Returns:
        Integer tensor (B, K), ascending in each row.
    """
    return keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def drop_tokens(x: Tensor, indices: Tensor, prefix: int = 0) -> Tensor:
    """Remove all tokens but the prefix and the chosen ones.

    Args:
        x: (B, N, D), the prefix tokens first.
        indices: (B, K), which of the L = N - prefix units stay.
        prefix: number of class, distillation or register tokens, never dropped.

    Returns:
        (B, prefix + K, D), differentiable.
    """
    batch, length, width = x.shape
    if prefix:
        head = torch.arange(prefix, device=x.device).expand(batch, prefix)
        indices = torch.cat((head, indices + prefix), dim=1)
    # Whole rows of one (B * N, D) matrix: contiguous copies forward, a row-wise add backward.
    flat = indices + torch.arange(batch, device=x.device).unsqueeze(1) * length
    return x.reshape(batch * length, width).index_select(0, flat.flatten()).view(batch, -1, width)


class KeepTokens(nn.Module):
    """Stands at the place of a model where tokens can be dropped while the sub branch is in force.

    It has no parameters and no buffers. ``indices`` is set from outside before each forward, so that the random
    choice is made outside whatever part of the model is compiled.

    Args:
        prefix: number of prefix tokens, never dropped.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.units = 0
        self.indices: Tensor | None = None
        self.reached = False

    def forward(self, x: Tensor) -> Tensor:
        """Drop tokens of x (B, N, D) -> (B, prefix + K, D); with no indices set, x is passed on.

        Raises:
            RuntimeError: no choice was made for this forward, or the model has another number of tokens.
        """
        self.reached = True
        if self.units == 0:
            raise RuntimeError(
                "the model was not called through the object that was given to applied(), so nothing was drawn to "
                "mask; call that very object"
            )
        if self.indices is None:
            return x
        if x.shape[1] != self.prefix + self.units:
            raise RuntimeError(
                f"the model has {x.shape[1]} tokens where {self.prefix} prefix tokens + {self.units} units were "
                f"expected; masksub can't tell which of them to drop"
            )
        return drop_tokens(x, self.indices, self.prefix)


def blank_pixels(x: Tensor, keep: Tensor, unit: int, fill: float = 0.0) -> Tensor:
    """Set the masked square blocks of an image to one value.

    Args:
        x: (B, C, H, W), floating point, normalised as the model expects it.
        keep: boolean (B, ceil(H / unit) * ceil(W / unit)), row-major, ``True`` = visible.
        unit: side of a block in pixels; blocks at the right and lower edge may be smaller.
        fill: value of a masked pixel; 0 is the mean colour after normalisation.

    Returns:
        New tensor (B, C, H, W).
    """
    batch, _, height, width = x.shape
    cells = keep.view(batch, 1, -(-height // unit), -(-width // unit))
    pixels = cells.repeat_interleave(unit, dim=2).repeat_interleave(unit, dim=3)[..., :height, :width]
    return torch.where(pixels, x, torch.as_tensor(fill, dtype=x.dtype, device=x.device))
