"""What all families have in common that keep a grid of cells and have masked ones filled.

Shape letters: B batch, L maskable units, H x W cells, D embedding width.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .adapter import Grid, Masker, WrongInputError, find_adapter
from .call import Call
from .intercept import Interceptor, after
from .removal import blank_pixels, fill_cells, spread
from .wrappers import unwrap

__all__ = ["MASK_TOKEN", "CellFill", "Layout", "add_mask_token", "without_mask_token"]

MASK_TOKEN = "mask_token"
"""Name of the one parameter that ``add_mask_token`` gives a model."""

Layout = Literal["NHWC", "NCHW", "NLC"]
DEFAULT_UNIT = 32
"""Side of a masked square in pixels, as in the paper's experiments with windowed models; where cells don't divide it,
the nearest multiple of the cell's side."""


def add_mask_token(model: nn.Module, *, std: float = 0.02) -> nn.Parameter:
    """Give a model the learnable value of masked cells: one parameter, ``model.mask_token`` of shape (1, 1, D).

    Call it before the optimizer is made and before the model is wrapped. ``MaskSub(fill="token")`` then uses it. It is
    of no use after training: ``without_mask_token`` takes it out of a ``state_dict`` for export.

    Args:
        model: the model itself, not a wrapper.
        std: standard deviation of the initial values, normal, from the global generator.

    Raises:
        ValueError: the model is not masked by cells, or has an attribute of that name already.
    """
    if unwrap(model) is not model:
        raise ValueError("the model is wrapped already; give the model itself, before it is compiled or distributed")
    adapter = find_adapter(model)
    if not isinstance(adapter, CellFill):
        raise ValueError(f"{type(model).__name__} is not masked by cells ({adapter.how}), so it needs no mask token")
    if hasattr(model, MASK_TOKEN):
        raise ValueError(f"{type(model).__name__} has a {MASK_TOKEN} already")
    example = next(model.parameters())
    token = nn.Parameter(torch.empty(1, 1, adapter.width(model), dtype=example.dtype, device=example.device))
    nn.init.trunc_normal_(token, std=std)
    model.register_parameter(MASK_TOKEN, token)
    return token


def without_mask_token(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` that the plain model loads: all but the mask token."""
    return {name: value for name, value in state_dict.items() if name != MASK_TOKEN}


@dataclass
class Filling:
    """Which cells of the current batch are filled, and with what; set before each forward.

    Attributes:
        visible: boolean (B, H, W), None where all stay.
        value: a number, or the mask token.
        layout: of the embedding.
        cells: H and W of the embedding at most, pixels left over counted as cells; 0 as long as no choice was made.
        whole: H and W of the embedding at least, pixels left over cut off.
        reached: whether the forward came by the embedding.
    """

    layout: Layout
    visible: Tensor | None = None
    value: Tensor | float = 0.0
    cells: tuple[int, int] = (0, 0)
    whole: tuple[int, int] = (0, 0)
    reached: bool = False

    def fill(self, embedding: Any) -> Any:
        """Fill the masked cells of an embedding, or of the first part of a tuple ``(embedding, size)``.

        Raises:
            RuntimeError: no choice was made for this forward, or the embedding has another number of cells.
        """
        if isinstance(embedding, tuple):
            return (self.fill(embedding[0]), *embedding[1:])
        self.reached = True
        if self.cells == (0, 0):
            raise RuntimeError(
                "the model was not called through the object that was given to applied(), so nothing was drawn to "
                "mask; call that very object"
            )
        if self.visible is None:
            return embedding
        shape = tuple(embedding.shape)
        found: tuple[int, ...] = {"NHWC": shape[1:3], "NCHW": shape[2:4], "NLC": shape[1:2]}[self.layout]
        sizes = itertools.product(
            *zip(self.cells, self.whole)
        )  # a convolution may cut off what is left over, or pad it
        size = next((hw for hw in sizes if found == (hw if self.layout != "NLC" else (hw[0] * hw[1],))), None)
        if size is None:
            raise RuntimeError(
                f"the embedding has {' x '.join(map(str, found))} cells where {self.cells[0]} x {self.cells[1]} were "
                f"expected; masksub can't tell which of them are masked"
            )
        visible = self.visible[:, : size[0], : size[1]]
        if self.layout == "NCHW":
            return fill_cells(embedding.permute(0, 2, 3, 1), visible, self.value).permute(0, 3, 1, 2)
        return fill_cells(embedding, visible.flatten(1) if self.layout == "NLC" else visible, self.value)


class CellFill(ABC):
    """Adapter of a family that keeps its grid: cells of the patch embedding that belong to masked units are filled.

    A unit is a square of pixels, 32 x 32 unless asked otherwise; those at the right and lower edge may be smaller.

    Attributes:
        name: the family, for messages and tables.
        where: the place, in words.
    """

    name: str
    where: str
    how: Literal["fill"] = "fill"
    inside_blocks = False

    def __init__(self) -> None:
        self._interceptor: Interceptor[Filling] = Interceptor(
            lambda m: Filling(self.layout(m)), lambda m, filling: [after(self.embedding(m), filling.fill)]
        )

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """As ``Adapter.matches``."""

    @abstractmethod
    def why(self, model: nn.Module) -> str:
        """As ``Adapter.why``."""

    @abstractmethod
    def embedding(self, model: Any) -> str:
        """Path of the module whose result is the patch embedding."""

    @abstractmethod
    def layout(self, model: Any) -> Layout:
        """How that result lies: (B, H, W, D), (B, D, H, W) or (B, H * W, D)."""

    def _convolutions(self, model: nn.Module) -> list[nn.Conv2d]:
        """Those of the embedding, in order."""
        return [m for m in model.get_submodule(self.embedding(model)).modules() if isinstance(m, nn.Conv2d)]

    def stride(self, model: Any) -> int:
        """Side of a cell in pixels: the strides of the embedding's convolutions, multiplied."""
        return math.prod(convolution.stride[0] for convolution in self._convolutions(model))

    def width(self, model: Any) -> int:
        """D, that of the last convolution of the embedding."""
        return self._convolutions(model)[-1].out_channels

    def overlapping(self, model: Any) -> bool:
        """Whether a cell also sees pixels of its neighbours; masked pixels are then set to 0 before."""
        return any(m.kernel_size[0] > m.stride[0] for m in self._convolutions(model))

    def prefix(self, model: nn.Module) -> int:
        """None: there are cells only."""
        return 0

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """Squares of ``unit`` pixels, a multiple of the cell's side."""
        cell, x = self.stride(model), call.x
        unit = _usual_unit(cell) if unit is None else unit
        if x.ndim != 4:
            raise WrongInputError(f"{type(model).__name__} needs images (B, C, H, W), not {tuple(x.shape)}")
        if unit % cell:
            raise ValueError(f"unit = {unit} px: this model's cells are {cell} x {cell} px; use a multiple of that")
        return Grid(-(-x.shape[-2] // unit), -(-x.shape[-1] // unit))

    @contextmanager
    def masking(self, model: Any, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """As ``Adapter.masking``. ``fill="token"`` takes the parameter that ``add_mask_token`` made."""
        if isinstance(fill, str) and not isinstance(getattr(model, MASK_TOKEN, None), Tensor):
            raise ValueError(
                f"fill = {fill!r}: {type(model).__name__} has no mask token; call masksub.add_mask_token(model) "
                f"before the optimizer is made"
            )
        cell, armed = self.stride(model), False
        size = _usual_unit(cell) if unit is None else unit
        with self._interceptor.applied(model) as filling:

            def mask(call: Call, keep: Tensor, count: int | None) -> Call:
                nonlocal armed
                height, width = call.x.shape[-2:]
                armed, filling.reached, filling.visible = True, False, None
                filling.cells = cells = (-(-height // cell), -(-width // cell))
                filling.whole = (height // cell, width // cell)
                filling.value = getattr(model, MASK_TOKEN).view(-1) if isinstance(fill, str) else fill
                if count == keep.shape[1]:
                    return call
                units = (-(-height // size), -(-width // size))
                filling.visible = spread(keep, units, cells, size // cell).squeeze(1)
                if self.overlapping(model):
                    return call.with_x(blank_pixels(call.x, keep, size))
                return call

            filling.visible, filling.cells = None, (0, 0)
            try:
                yield mask
            finally:
                filling.visible, filling.value = None, 0.0
            if armed and not filling.reached:
                raise RuntimeError(
                    f"{type(model).__name__} ran without passing its embedding ({self.where}), so nothing was masked; "
                    f"its forward is not the one that masksub knows"
                )


def _usual_unit(cell: int) -> int:
    return max(1, round(DEFAULT_UNIT / cell)) * cell
