"""Sub branches: what they change in a model, and putting it back (paper, section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from .adapter import Grid, find_adapter
from .masking import keep_count, sample_keep_blocks
from .wrappers import input_replaced, unwrap

__all__ = ["Branch", "MaskSub"]


class Branch(ABC):
    """A sub branch: for the time of a ``with`` block, the same weights are a smaller model."""

    @abstractmethod
    def applied(
        self, model: nn.Module, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> AbstractContextManager[None]:
        """A context in which ``model(x)`` is the sub branch. On exit, also after an exception, the model is as before.

        Args:
            model: the very object that will be called (a DDP or compiled wrapper, not what is inside).
            keep: fixes the choice of visible units instead of drawing it.
            generator: source of randomness; the global generator of the input's device if None.
        """


class MaskSub(Branch):
    """Mask a share of the input at random (MaskSub, arXiv 2306.11339, section 3.1).

    Tokens are really dropped where the model allows it; elsewhere blocks of pixels are blanked.

    Args:
        ratio: share of units that is masked, 0 <= ratio < 1; 0.5 in the paper. May be changed between steps.
        unit: side in pixels of the square that is masked as one. None: one patch where tokens are dropped, 32 px
            where pixels are blanked.
        fill: value of a blanked pixel, for models masked in pixels; 0 is "nothing" after normalisation.

    Raises:
        ValueError: ratio or unit out of range.
    """

    def __init__(self, ratio: float = 0.5, *, unit: int | None = None, fill: float = 0.0) -> None:
        if unit is not None and unit < 1:
            raise ValueError(f"unit = {unit!r}: the side of a masked square must be at least 1 pixel")
        self.ratio = ratio
        self.unit = unit
        self.fill = fill

    @property
    def ratio(self) -> float:
        """Share of units that is masked, 0 <= ratio < 1."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        keep_count(1, value)  # the one place that knows the range
        self._ratio = value

    def __repr__(self) -> str:
        return f"MaskSub(ratio={self.ratio}, unit={self.unit}, fill={self.fill})"

    @contextmanager
    def applied(
        self, model: nn.Module, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Iterator[None]:
        """A context in which ``model(x)`` sees only a part of x. See ``Branch.applied``.

        A new choice is drawn at every forward, from ``generator`` if given, unless ``keep`` fixes it. Evaluation is
        never masked: outside the context the model is as it was, in training and in eval mode alike.

        Args:
            model: the very object that will be called.
            keep: boolean (B, L), ``True`` = visible; where tokens are dropped, with equally many in each row.
            generator: source of randomness.

        Raises:
            ValueError: at the forward: ``keep`` does not fit the input, or nothing would be masked.
            RuntimeError: at the forward or on exit: the model never came by the place where it is masked.
        """
        inner = unwrap(model)
        adapter = find_adapter(inner)
        with adapter.masking(inner, self.unit, self.fill) as masker:

            def mask(x: Tensor) -> Tensor:
                grid = adapter.grid(inner, x, self.unit)
                if keep is not None:
                    return masker(x, keep.to(x.device), _row_count(keep, x.shape[0], grid.units))
                return masker(x, self._sample(x, grid, generator), keep_count(grid.units, self.ratio))

            with input_replaced(model, mask):
                yield

    def _sample(self, x: Tensor, grid: Grid, generator: torch.Generator | None) -> Tensor:
        if self.ratio > 0 and keep_count(grid.units, self.ratio) == grid.units:
            raise ValueError(
                f"{self!r} masks nothing: an input of shape {tuple(x.shape)} has {grid.rows} x {grid.cols} units and "
                f"keeps {grid.units} of {grid.units}; use a smaller unit or a larger ratio"
            )
        return sample_keep_blocks(
            x.shape[0], (grid.rows, grid.cols), self.ratio, block=grid.block, generator=generator, device=x.device
        )


def _row_count(keep: Tensor, batch: int, units: int) -> int | None:
    """Visible units of each row of a choice made by the caller, None if rows differ."""
    if keep.dtype != torch.bool or keep.shape != (batch, units):
        raise ValueError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}; this input needs torch.bool of shape "
            f"{(batch, units)}, True = visible"
        )
    counts = keep.sum(dim=1)
    first = int(counts[0])
    if int(counts.min()) < 1:
        raise ValueError("keep has a row in which nothing is visible; each row must keep at least one unit")
    return first if bool((counts == first).all()) else None
