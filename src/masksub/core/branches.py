"""Sub branches: what they change in a model, and putting it back (paper, section 3)."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from .adapter import Grid, find_adapter, grid_of
from .batch_norm import BatchNorm, check_batch_norm, statistics_kept
from .call import Call, calls_replaced
from .hints import hint_once
from .masking import keep_count, sample_keep_among, sample_keep_blocks
from .ranks import rank_generator
from .wrappers import unwrap

__all__ = ["Branch", "MaskSub", "RateBranch"]


class Branch(ABC):
    """A sub branch: for the time of a ``with`` block, the same weights are a smaller model.

    Branches add up: ``MaskSub(0.5) + PathSub(0.1)`` masks and drops paths.

    Args:
        bn: what the branch does to running statistics of batch norm. "shared": both branches update them (the paper's
            behaviour), so that evaluation normalises by a mixture of whole and masked inputs. "main": the branch
            normalises by its own batch and updates nothing, so that evaluation, which never masks, normalises by whole
            inputs alone.
    """

    mutual = False
    """Whether both branches of a step are drawn from this branch and learn from each other (CoSub)."""

    def __init__(self, bn: BatchNorm = "shared") -> None:
        check_batch_norm(bn)
        self.bn = bn

    @contextmanager
    def applied(
        self, model: nn.Module, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Iterator[None]:
        """A context in which ``model(x)`` is the sub branch. On exit, also after an exception, the model is as before.

        A new choice is drawn at every forward. Evaluation is never touched: outside the context the model is as it was;
        inside it the branch is in force in training and in eval mode alike. With gradient checkpointing run backward
        inside the context too.

        Args:
            model: the very object that will be called (a DDP or compiled wrapper, not what is inside).
            keep: fixes the choice of visible units instead of drawing it: boolean (B, L), ``True`` = visible.
            generator: source of randomness; if None, the global generator of the input's device, in distributed
                training one that also depends on the rank.

        Raises:
            ValueError: on entry or at the forward: the branch would change nothing, or ``keep`` does not fit.
            RuntimeError: at the forward or on exit: the model never came by the place that is changed.
        """
        with self._changed(model, keep, generator, ()), statistics_kept(unwrap(model), self.bn):
            yield

    def inside_blocks(self, model: nn.Module) -> bool:
        """Whether the branch changes what happens inside of the model's blocks.

        Where blocks are run again during backward (gradient checkpointing), it must then be in force there too.
        """
        return True

    def at_ratio(self, ratio: float) -> Branch:
        """The branch with another mask ratio, for trials; itself where it masks nothing."""
        return self

    @abstractmethod
    def _changed(
        self, model: nn.Module, keep: Tensor | None, generator: torch.Generator | None, beside: Sequence[Branch]
    ) -> AbstractContextManager[None]:
        """The context of ``applied``, but for batch norm; ``beside`` are other branches that are in force too."""

    def __add__(self, other: object) -> Branch:
        if not isinstance(other, Branch):
            return NotImplemented
        return _Sum(*(part for side in (self, other) for part in (side.parts if isinstance(side, _Sum) else (side,))))


class RateBranch(Branch):
    """A branch that drops at a rate.

    Args:
        p: the rate, 0 <= p < 1. May be changed between steps.
        bn: batch-norm statistics, see ``Branch``.

    Raises:
        ValueError: p out of range.
    """

    def __init__(self, p: float, bn: BatchNorm = "shared") -> None:
        super().__init__(bn)
        self.p = p

    @property
    def p(self) -> float:
        """The rate, 0 <= p < 1."""
        return self._p

    @p.setter
    def p(self, value: float) -> None:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"p = {value!r}: the rate of {type(self).__name__} must satisfy 0 <= p < 1")
        self._p = value


class _Sum(Branch):
    """Several branches in force at once."""

    def __init__(self, *parts: Branch) -> None:
        kinds = [type(part) for part in parts]
        if twice := next((kind.__name__ for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"{' + '.join(map(repr, parts))}: {twice} stands there twice; give it one rate")
        if any(part.mutual for part in parts):
            raise ValueError(f"{' + '.join(map(repr, parts))}: CoSub draws both branches and can't be added to others")
        super().__init__("main" if any(part.bn == "main" for part in parts) else "shared")
        # Masks first: PathSub steps in only at the forward, and what steps in last must go first.
        self.parts = tuple(sorted(parts, key=lambda part: not isinstance(part, MaskSub)))

    def inside_blocks(self, model: nn.Module) -> bool:
        """Whether one of the parts does."""
        return any(part.inside_blocks(model) for part in self.parts)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))

    @contextmanager
    def _changed(
        self, model: nn.Module, keep: Tensor | None, generator: torch.Generator | None, beside: Sequence[Branch]
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                others = [each for each in self.parts if each is not part]
                stack.enter_context(part._changed(model, keep, generator, others))
            yield


class MaskSub(Branch):
    """Mask a share of the input at random (MaskSub, arXiv 2306.11339, section 3.1).

    Tokens are really dropped where the model allows it; elsewhere cells of the embedding are filled, tokens of a text
    replaced by the mask token, or blocks of pixels blanked.

    Args:
        ratio: share of units that is masked, 0 <= ratio < 1; 0.5 in the paper. May be changed between steps.
        unit: side in pixels of the square that is masked as one. None: one patch where tokens are dropped, 32 px
            where cells are filled or pixels blanked.
        fill: value of a masked cell or pixel, where these are not dropped; 0 is "nothing" after normalisation. "token":
            the learnable mask token of a model masked by cells, see ``add_mask_token``.
        bn: batch-norm statistics, see ``Branch``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        ratio: float = 0.5,
        *,
        unit: int | None = None,
        fill: float | Literal["token"] = 0.0,
        bn: BatchNorm = "shared",
    ) -> None:
        super().__init__(bn)
        if unit is not None and (unit < 1 or unit != int(unit)):
            raise ValueError(f"unit = {unit!r}: the side of a masked square is a whole number of pixels, at least 1")
        if isinstance(fill, str) and fill != "token":
            raise ValueError(f"fill = {fill!r}: a number, or 'token' for the model's learnable mask token")
        self.ratio = ratio
        self.unit = unit
        self.fill = fill

    def inside_blocks(self, model: nn.Module) -> bool:
        """Where batch norm is held, or position tables inside of blocks follow the choice."""
        return self.bn == "main" or find_adapter(unwrap(model)).inside_blocks

    @property
    def ratio(self) -> float:
        """Share of units that is masked, 0 <= ratio < 1."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        keep_count(1, value)  # the one place that knows the range
        self._ratio = value

    def at_ratio(self, ratio: float) -> Branch:
        """The same but for the ratio."""
        other = copy.copy(self)
        other.ratio = ratio
        return other

    def __repr__(self) -> str:
        return f"MaskSub(ratio={self.ratio}, unit={self.unit}, fill={self.fill!r}, bn={self.bn!r})"

    @contextmanager
    def _changed(
        self, model: nn.Module, keep: Tensor | None, generator: torch.Generator | None, beside: Sequence[Branch]
    ) -> Iterator[None]:
        inner = unwrap(model)
        adapter = find_adapter(inner)
        with adapter.masking(inner, self.unit, self.fill) as masker:

            def mask(call: Call) -> Call:
                grid = grid_of(adapter, inner, call, self.unit)
                if adapter.how == "pixels" and self.ratio > 0:
                    hint_once(inner)
                if keep is not None:
                    device = call.x.device
                    return masker(call, keep.to(device), _row_count(keep, call.x.shape[0], grid.units))
                return masker(call, *self._sample(call.x, grid, generator or rank_generator(call.x.device)))

            with calls_replaced(model, mask):
                yield

    def _sample(self, x: Tensor, grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, int | None]:
        """A choice for this batch, and its number of visible units in each row (None if rows differ)."""
        if grid.maskable is not None:
            keep = sample_keep_among(grid.maskable, self.ratio, generator=generator)
            return keep, None  # a text of one word stays whole; of two, one goes at any ratio above 0
        count = keep_count(grid.units, self.ratio)
        if self.ratio > 0 and count == grid.units:
            raise ValueError(
                f"{self!r} masks nothing: an input of shape {tuple(x.shape)} has {grid.rows} x {grid.cols} units and "
                f"keeps {grid.units} of {grid.units}; use a smaller unit or a larger ratio"
            )
        cells = (grid.rows, grid.cols)
        keep = sample_keep_blocks(x.shape[0], cells, self.ratio, block=grid.block, generator=generator, device=x.device)
        return keep, count


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
