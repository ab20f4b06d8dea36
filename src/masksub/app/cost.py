"""What a training step costs, in floating-point operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from masksub.core.adapter import find_adapter
from masksub.core.call import Call
from masksub.core.flops import step_flops
from masksub.core.masking import keep_count
from masksub.core.methods import METHODS
from masksub.core.step import TwoBranchStep

from .errors import InputError
from .settings import Recipe

__all__ = ["FlopTable"]


class FlopTable:
    """Operations of a training step for one image, counted once for each number of visible units.

    Args:
        model: the model, not yet wrapped.
        criterion: the main branch's criterion.
        recipe: method, image size and sub branch.
        classes: number of classes.

    Raises:
        InputError: the model has nothing to mask.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, recipe: Recipe, classes: int) -> None:
        self._model, self._criterion, self._recipe, self._classes = model, criterion, recipe, classes
        self._known: dict[tuple[int, bool], float] = {}
        size = recipe.data.image_size
        # The whole batch: drop path on a part of it rounds.
        self._shape = (recipe.train.batch_size, recipe.data.channels, size, size)
        self._units = 1
        if METHODS[recipe.method].settings(0.5, 0.5)[0] > 0:
            x = torch.empty(self._shape, device="meta")
            with _wrong_input():
                self._units = find_adapter(model).grid(model, Call((x,)), recipe.sub.unit).units

    def per_image(self, ratio: float, weight: float) -> float:
        """Operations of forward and backward of the branches that run at this ratio and weight.

        Raises:
            InputError: the masked forward is not possible.
        """
        key = (keep_count(self._units, ratio), weight > 0)
        if key not in self._known:
            with _wrong_input():
                self._known[key] = step_flops(self._model, self._step(ratio, weight), self._shape) / self._shape[0]
        return self._known[key]

    def _step(self, ratio: float, weight: float) -> Any:
        soft = not isinstance(self._criterion, nn.CrossEntropyLoss)
        method, wanted = METHODS[self._recipe.method], self._recipe.sub
        sub = method.branch(ratio, unit=wanted.unit, p=wanted.p, efficient=wanted.efficient, bn=wanted.bn)
        arguments = method.step_arguments()

        def step(model: nn.Module, x: Tensor) -> None:
            y = torch.zeros((len(x), self._classes) if soft else (len(x),), device="meta")
            TwoBranchStep(model, self._criterion, sub=sub, weight=weight, **arguments)(x, y if soft else y.long())

        return step


@contextlib.contextmanager
def _wrong_input() -> Iterator[None]:
    """What the core refuses is the user's input here."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"sub: {error}") from error
