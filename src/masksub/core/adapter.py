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

from .call import Call
from .packaged import load_packaged

__all__ = [
    "Adapter",
    "Grid",
    "Masker",
    "WrongInputError",
    "find_adapter",
    "grid_of",
    "patch_grid",
    "register",
    "registered",
    "unregister",
]


class WrongInputError(ValueError):
    """What was taken for the input is of another kind than the family takes."""


@dataclass(frozen=True)
class Grid:
    """The units of one batch of inputs: ``rows`` x ``cols`` cells, chosen in squares of ``block`` x ``block`` cells.

    Attributes:
        maskable: boolean (B, L) where inputs of one batch have different units (sentences); None where all of them may
            be masked.
    """

    rows: int
    cols: int
    block: int = 1
    maskable: Tensor | None = None

    @property
    def units(self) -> int:
        """L, the number of cells: the length of a row of ``keep``."""
        return self.rows * self.cols


Masker = Callable[[Call, Tensor, "int | None"], Call]
"""Called before each forward with the model's call, ``keep`` (B, L) and the number of visible units of each row (None
if rows differ). Returns the call that the model shall get."""


class Adapter(Protocol):
    """How the inputs of one model family are masked. It intercepts; it never rewrites a forward or touches weights."""

    @property
    def name(self) -> str:
        """The family, for messages and tables."""
        ...

    @property
    def how(self) -> Literal["drop", "fill", "replace", "pixels"]:
        """Tokens dropped, cells of the embedding filled, tokens replaced by the mask token, or pixels blanked."""
        ...

    @property
    def where(self) -> str:
        """The place in the model, in words."""
        ...

    @property
    def inside_blocks(self) -> bool:
        """Whether something of the masking lies inside of the model's blocks (position tables of an attention)."""
        ...

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows how to mask ``model``. Must not import the library it looks for."""
        ...

    def why(self, model: nn.Module) -> str:
        """Why ``model`` is masked in this way and not a better one, one sentence."""
        ...

    def prefix(self, model: nn.Module) -> int:
        """Number of tokens before the units (class, distillation, registers) that are never masked."""
        ...

    def grid(self, model: nn.Module, call: Call, unit: int | None) -> Grid:
        """The maskable units of one call of the model.

        Args:
            model: the unwrapped model.
            call: what it is called with; its input may be on the meta device.
            unit: side in pixels of the square that is masked as one; None for the family's usual one.

        Raises:
            ValueError: no such unit for this input; the message says which are possible.
        """
        ...

    def masking(self, model: nn.Module, unit: int | None, fill: float | str) -> AbstractContextManager[Masker]:
        """Prepare ``model``; on exit, also after an exception, it is as before.

        Raises:
            ValueError: the family has no such fill.
            RuntimeError: on exit, if the model ran but never came by the place where it is masked.
        """
        ...


def grid_of(adapter: Adapter, model: nn.Module, call: Call, unit: int | None) -> Grid:
    """``adapter.grid``; where the input is none for this model, the error names the argument that was taken for it."""
    if call.has_input and call.x.ndim < 2:  # else the family says what it needs
        raise ValueError(
            f"{type(model).__name__} has nothing to mask: {call.named}, {call.x.dtype} of shape {tuple(call.x.shape)}, "
            f"is what comes nearest to an input among the tensors that it was called with"
        )
    try:
        return adapter.grid(model, call, unit)
    except WrongInputError as error:
        raise WrongInputError(f"{error}; what was taken for the input is {call.named}") from None


def patch_grid(x: Tensor, cells: tuple[int, int], patch: tuple[int, int], unit: int | None) -> Grid:
    """The grid of an image model that cuts its input into patches.

    Args:
        x: the input, (B, C, H, W).
        cells: rows and columns of patches.
        patch: height and width of a patch in pixels.
        unit: side in pixels of the square that is masked as one, a multiple of the patch size; None for one patch.

    Raises:
        ValueError: not an image, or the patches do not divide the unit.
    """
    if x.ndim != 4:
        raise WrongInputError(f"a vision transformer needs images (B, C, H, W), not an input of shape {tuple(x.shape)}")
    if unit is None:
        return Grid(*cells)
    tall, wide = patch
    if unit % tall or tall != wide:
        raise ValueError(
            f"unit = {unit} px: this model's patches are {tall} x {wide} px; use a multiple of that where they are "
            f"square, or None"
        )
    return Grid(*cells, block=unit // tall)


_ADAPTERS: list[Adapter] = []


def register(adapter: Adapter) -> None:
    """Let ``adapter`` answer for the models that it matches, before all adapters registered so far."""
    load_packaged()  # they come first
    _ADAPTERS.insert(0, adapter)


def unregister(adapter: Adapter) -> None:
    """Take back ``register``."""
    _ADAPTERS.remove(adapter)


def registered() -> tuple[Adapter, ...]:
    """All adapters in the order in which they are asked."""
    load_packaged()
    return tuple(_ADAPTERS)


def find_adapter(model: nn.Module) -> Adapter:
    """The first registered adapter that matches ``model`` (unwrapped).

    Raises:
        ValueError: none does; the message names those that were asked.
    """
    adapters = registered()
    for adapter in adapters:
        if adapter.matches(model):
            return adapter
    names = ", ".join(adapter.name for adapter in adapters) or "none"
    raise ValueError(f"{type(model).__name__} can't be masked: no adapter matches (asked: {names})")
