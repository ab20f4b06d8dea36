"""What all families have in common whose tokens can be dropped.

Shape letters: B batch, L maskable units, K kept units, D token width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .adapter import Grid, Masker
from .call import Call
from .intercept import Interception, Interceptor, after
from .masking import kept_indices
from .removal import cells_of_units, drop_pairs, drop_positions, drop_tokens, spread

__all__ = ["Choice", "KeepTokens", "TokenDrop"]


class Choice:
    """Which units of the current batch are visible; set before each forward, outside whatever is compiled.

    Args:
        prefix: number of tokens before the units, never dropped.

    Attributes:
        units: L, 0 as long as no choice was made. Where a unit is several tokens, L and K count tokens.
        indices: (B, K), None where all units stay.
        cells: rows and columns of the grid that the L tokens come from.
        reached: whether the forward came by a place where tokens are dropped.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.units = 0
        self.indices: Tensor | None = None
        self.cells = (0, 0)
        self.reached = False

    def arrive(self) -> None:
        """Note that the forward came by a place where units are dropped.

        Raises:
            RuntimeError: no choice was made for this forward.
        """
        self.reached = True
        if self.units == 0:
            raise RuntimeError(
                "the model was not called through the object that was given to applied(), so nothing was drawn to "
                "mask; call that very object"
            )

    def drop(self, x: Tensor, prefix: int | None = None) -> Tensor:
        """Drop tokens of x (B, prefix + L, D) -> (B, prefix + K, D).

        Raises:
            RuntimeError: no choice was made for this forward, or the model has another number of tokens.
        """
        prefix = self.prefix if prefix is None else prefix
        self.arrive()
        if self.indices is None:
            return x
        if x.shape[1] != prefix + self.units:
            raise RuntimeError(
                f"the model has {x.shape[1]} tokens where {prefix} prefix tokens + {self.units} units were expected; "
                f"masksub can't tell which of them to drop"
            )
        return drop_tokens(x, self.indices, prefix)

    def positions(self, table: Tensor) -> Tensor:
        """Rows of a table of positions; the table itself where all units stay.

        Args:
            table: (L, D) -> (B, 1, K, D), the 1 for attention heads; (..., A, L, D) -> (..., B, A, K, D).
        """
        if self.indices is None:
            return table
        rows = drop_positions(table, self.indices)
        return rows.unsqueeze(1) if table.ndim == 2 else rows

    def pairs(self, bias: Tensor) -> Tensor:
        """Entries of a table ([1,] A, N, N) -> (B, A, prefix + K, prefix + K); itself where all units stay."""
        return bias if self.indices is None else drop_pairs(bias, self.indices, self.prefix)


class KeepTokens(nn.Module):
    """Stands where a model has a module for dropping patches. No parameters, no buffers.

    Args:
        choice: which units stay.
        with_indices: return ``(x, indices)``, as timm's PatchDropoutWithIndices does.
    """

    def __init__(self, choice: Choice, *, with_indices: bool = False) -> None:
        super().__init__()
        self.choice = choice
        self.with_indices = with_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Drop tokens of x (B, prefix + L, D)."""
        x = self.choice.drop(x)
        return (x, self.choice.indices) if self.with_indices else x


class TokenDrop(ABC):
    """Adapter of a family whose tokens can be dropped; a family says where, and how its inputs are cut.

    Attributes:
        name: the family, for messages and tables.
        where: the place, in words.
    """

    name: str
    where: str
    how: Literal["drop"] = "drop"
    inside_blocks: bool = False

    def __init__(self) -> None:
        self._interceptor: Interceptor[Choice] = Interceptor(lambda m: Choice(self.prefix(m)), self.interceptions)

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """As ``Adapter.matches``."""

    @abstractmethod
    def prefix(self, model: Any) -> int:
        """Number of tokens before the units where they are dropped."""

    @abstractmethod
    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """As ``Adapter.grid``."""

    @abstractmethod
    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """Where tokens are dropped, and what must follow the choice (rotary tables, position biases)."""

    def side(self, model: Any) -> int:
        """Tokens along each side of a unit; more than 1 where later layers join square groups of tokens.

        The tokens of one unit then follow each other, row by row.
        """
        return 1

    def overlapping(self, model: Any) -> bool:
        """Whether a unit's token also sees pixels of its neighbours (convolutional stems).

        The pixels of masked units are then blanked before, so that nothing of them reaches a visible token.
        """
        return False

    def without_masked(self, model: Any, call: Call, keep: Tensor, grid: Grid, fill: float, choice: Choice) -> Call:
        """The call that the model gets; from some stems pixels of masked units must be kept away."""
        if not self.overlapping(model):
            return call
        visible = spread(keep, (grid.rows, grid.cols), (call.x.shape[-2], call.x.shape[-1]))
        blank = torch.as_tensor(fill, dtype=call.x.dtype, device=call.x.device)
        return call.with_x(torch.where(visible, call.x, blank))

    def token_module(self, model: Any) -> str | None:
        """What ``masksub.register`` has to name for a user's own module around the model: the path of the module whose
        result is all tokens, where nothing else must follow the choice. None: a name is not enough, or is not known.
        """
        return None

    def why(self, model: nn.Module) -> str:
        """Why the family is masked this way, one sentence."""
        return "attention and MLP take any number of tokens"

    @contextmanager
    def masking(self, model: Any, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """As ``Adapter.masking``. The recipe's own patch dropout, if any, stays with the main branch."""
        if isinstance(fill, str):
            raise ValueError(f"fill = {fill!r}: {type(model).__name__} drops tokens, nothing is filled; leave it out")
        armed = False
        with self._interceptor.applied(model) as choice:

            def mask(call: Call, keep: Tensor, count: int | None) -> Call:
                nonlocal armed
                if count is None:
                    raise ValueError(
                        "keep has rows with different numbers of visible units; dropped tokens need equal rows"
                    )
                grid, side = self.grid(model, call, None), self.side(model)
                armed, choice.reached, choice.units = True, False, keep.shape[1] * side**2
                choice.cells = (grid.rows * side, grid.cols * side)
                choice.indices = None if count == keep.shape[1] else kept_indices(keep, count)
                if choice.indices is None:
                    return call
                if side > 1:
                    choice.indices = cells_of_units(choice.indices, grid.cols, side)
                return self.without_masked(model, call, keep, grid, fill, choice)

            choice.units, choice.indices = 0, None
            try:
                yield mask
            finally:
                choice.indices = None
            if armed and not choice.reached:
                raise RuntimeError(
                    f"{type(model).__name__} ran without passing the place where its tokens are dropped "
                    f"({self.where}), so nothing was masked; its forward is not the one that masksub knows"
                )


def drop_after(path: str, choice: Choice) -> Interception:
    """Drop tokens from the result (B, prefix + L, D) of the module at ``path``."""
    return after(path, choice.drop)
