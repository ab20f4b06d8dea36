"""What the method asks of a model family, and the list of families that answer.

The core never learns model types. A family is described once, by an ``Adapter``; ``masksub.adapters`` registers those
that come with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

__all__ = ["Adapter", "Grid", "Masker", "find_adapter", "register", "registered"]


@dataclass(frozen=True)
class Grid:
    """The maskable units of one input: ``rows`` x ``cols`` cells, chosen in squares of ``block`` x ``block`` cells."""

    rows: int
    cols: int
    block: int = 1

    @property
    def units(self) -> int:
        """L, the number of cells: the length of a row of ``keep``."""
        return self.rows * self.cols


Masker = Callable[[Tensor, Tensor, "int | None"], Tensor]
"""Called before each forward with the model's input, ``keep`` (B, L) and the number of visible units of each row (None
if rows differ). Returns the input that the model shall see."""


class Adapter(Protocol):
    """How the inputs of one model family are masked. It intercepts; it never rewrites a forward or touches weights."""

    @property
    def name(self) -> str:
        """The family, for messages and tables."""
        ...

    @property
    def how(self) -> Literal["drop", "fill", "pixels"]:
        """Tokens dropped, cells filled, or pixels blanked."""
        ...

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows how to mask ``model``. Must not import the library it looks for."""
        ...

    def grid(self, model: nn.Module, x: Tensor, unit: int | None) -> Grid:
        """The maskable units of input ``x``.

        Args:
            model: the unwrapped model.
            x: the model's input, batch first.
            unit: side in pixels of the square that is masked as one; None for the family's usual one.

        Raises:
            ValueError: no such unit for this input; the message says which are possible.
        """
        ...

    def masking(self, model: nn.Module, unit: int | None, fill: float) -> AbstractContextManager[Masker]:
        """Prepare ``model``; on exit, also after an exception, it is as before.

        Raises:
            RuntimeError: on exit, if the model ran but never came by the place where it is masked.
        """
        ...


_ADAPTERS: list[Adapter] = []


def register(adapter: Adapter) -> None:
    """Let ``adapter`` answer for the models that it matches, before all adapters registered so far."""
    _ADAPTERS.insert(0, adapter)


def registered() -> tuple[Adapter, ...]:
    """All adapters in the order in which they are asked."""
    return tuple(_ADAPTERS)


def find_adapter(model: nn.Module) -> Adapter:
    """The first registered adapter that matches ``model`` (unwrapped).

    Raises:
        ValueError: none does; the message names those that were asked.
    """
    for adapter in _ADAPTERS:
        if adapter.matches(model):
            return adapter
    names = ", ".join(adapter.name for adapter in _ADAPTERS) or "none"
    raise ValueError(f"{type(model).__name__} can't be masked: no adapter matches (asked: {names})")
