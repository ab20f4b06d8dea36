"""How units that are not visible are removed: tokens dropped, pixels blanked, cells filled.

Shape letters of this module: B batch, L maskable units of one input, N = prefix tokens + L, K kept units, D token
width, A attention heads, C channels, H x W pixels or cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blank_pixels", "cells_of_units", "drop_pairs", "drop_positions", "drop_tokens", "fill_cells", "spread"]


def with_prefix(indices: Tensor, prefix: int) -> Tensor:
    """Indices among all tokens, from those among the units: (B, K) -> (B, prefix + K)."""
    if not prefix:
        return indices
    head = torch.arange(prefix, device=indices.device).expand(indices.shape[0], prefix)
    return torch.cat((head, indices + prefix), dim=1)


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
    # Whole rows of one (B * N, D) matrix: contiguous copies forward, a row-wise add backward.
    flat = with_prefix(indices, prefix) + torch.arange(batch, device=x.device).unsqueeze(1) * length
    return x.reshape(batch * length, width).index_select(0, flat.flatten()).view(batch, -1, width)


def drop_positions(table: Tensor, indices: Tensor) -> Tensor:
    """The rows of a table of positions, for example rotary embeddings, that belong to the chosen units.

    Args:
        table: (L, D), the same for all inputs, or (..., A, L, D) with one for each head, and perhaps for each block.
        indices: (B, K).

    Returns:
        (B, K, D) or (..., B, A, K, D), differentiable.
    """
    rows = table.index_select(-2, indices.flatten())  # (..., B * K, D)
    rows = rows.view(*table.shape[:-2], *indices.shape, table.shape[-1])
    return rows if table.ndim == 2 else rows.movedim(-3, -4)


def drop_pairs(bias: Tensor, indices: Tensor, prefix: int = 0) -> Tensor:
    """The entries of a table of pairs, for example a relative position bias, that belong to pairs of chosen tokens.

    Args:
        bias: (A, N, N) or (1, A, N, N), the same for all inputs.
        indices: (B, K), which of the L = N - prefix units stay.
        prefix: number of tokens before the units, always kept.

    Returns:
        (B, A, prefix + K, prefix + K), differentiable.
    """
    heads, length = bias.shape[-3:-1]
    tokens = with_prefix(indices, prefix)  # (B, N')
    pairs = tokens.unsqueeze(2) * length + tokens.unsqueeze(1)  # (B, N', N')
    flat = bias.reshape(heads, length * length)
    return flat.index_select(1, pairs.flatten()).view(heads, *pairs.shape).transpose(0, 1)


def cells_of_units(indices: Tensor, cols: int, side: int) -> Tensor:
    """The cells that units of side x side cells are made of.

    Args:
        indices: (B, K), among the units, row-major.
        cols: units in a row of the grid.
        side: cells along each side of a unit.

    Returns:
        (B, K * side * side), among the cells, row-major; those of one unit follow each other.
    """
    within = torch.arange(side, device=indices.device)
    rows = (indices // cols).unsqueeze(2) * side + within  # (B, K, side)
    columns = (indices % cols).unsqueeze(2) * side + within
    return (rows.unsqueeze(3) * (cols * side) + columns.unsqueeze(2)).flatten(1)


def spread(keep: Tensor, grid: tuple[int, int], size: tuple[int, int], unit: int | None = None) -> Tensor:
    """A choice of units as a map of the pixels or cells that they cover.

    Args:
        keep: boolean (B, rows * cols), row-major.
        grid: rows and columns of units.
        size: H and W of the map.
        unit: side of a unit in pixels or cells; those at the right and lower edge may be smaller. None: the units
            share H and W evenly.

    Returns:
        Boolean (B, 1, H, W).
    """
    cells = keep.view(-1, 1, *grid)
    if unit is None:
        return F.interpolate(cells.to(torch.uint8), size=size, mode="nearest-exact").bool()
    return cells.repeat_interleave(unit, dim=2).repeat_interleave(unit, dim=3)[..., : size[0], : size[1]]


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
    height, width = x.shape[-2:]
    visible = spread(keep, (-(-height // unit), -(-width // unit)), (height, width), unit)
    return torch.where(visible, x, torch.as_tensor(fill, dtype=x.dtype, device=x.device))


def fill_cells(cells: Tensor, visible: Tensor, value: Tensor | float) -> Tensor:
    """Give masked cells of an embedding one value.

    Args:
        cells: (B, H, W, D) or (B, H * W, D).
        visible: boolean (B, H, W) or (B, H * W).
        value: one number, or (D,).

    Returns:
        New tensor, shape of ``cells``, differentiable with respect to ``cells`` and ``value``.
    """
    value = torch.as_tensor(value, dtype=cells.dtype, device=cells.device)
    return torch.where(visible.unsqueeze(-1), cells, value)
