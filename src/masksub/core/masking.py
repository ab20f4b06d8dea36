"""Which units of an input stay visible.

Shape letters of this module: B batch, L units of one input, K kept units.

One convention everywhere: the mask is called ``keep`` and ``True`` means visible.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keep_count", "kept_indices", "sample_keep", "sample_keep_among", "sample_keep_blocks"]


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


def sample_keep_among(maskable: Tensor, ratio: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Choose the visible units of rows that have different numbers of them, for example sentences in one batch.

    Args:
        maskable: boolean (B, L), ``True`` = may be masked; the others (special tokens, padding) are left alone.
        ratio: share that is masked, 0 <= ratio < 1. A row with l maskable units keeps ``keep_count(l, ratio)`` of them,
            uniformly among all subsets of that size; a row without any is left as it is.
        generator: source of randomness, as in ``sample_keep``.

    Returns:
        Boolean tensor (B, L), ``True`` = visible; ``True`` wherever ``maskable`` is not.

    Raises:
        ValueError: ratio outside its range.
    """
    keep_count(1, ratio)
    draw_device = generator.device if generator is not None else maskable.device
    order = torch.rand(maskable.shape, generator=generator, device=draw_device).to(maskable.device)
    rank = order.masked_fill(~maskable, 2.0).argsort(dim=1).argsort(dim=1)  # (B, L), maskable units first
    counts = (maskable.sum(dim=1, keepdim=True).double() * (1 - ratio)).long().clamp(min=1)  # as keep_count
    return (rank < counts) | ~maskable


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
