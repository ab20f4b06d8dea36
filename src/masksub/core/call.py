"""The arguments of one forward, and replacing them before the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

__all__ = ["Call", "calls_replaced"]

_NO_INPUT = frozenset({"labels"})
"""Tensors of a batch that a model may be called with in any order, and that are not its input."""


@dataclass(frozen=True)
class Call:
    """What a model is called with: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The model's input: the first tensor among the arguments but labels, batch first.

        Raises:
            TypeError: there is none.
        """
        for value in self.args:
            if isinstance(value, Tensor):
                return value
        for name, value in self.kwargs.items():
            if isinstance(value, Tensor) and name not in _NO_INPUT:
                return value
        raise TypeError("the model was called without a tensor; masksub has nothing to mask")

    def with_x(self, x: Tensor) -> Call:
        """The same call with another input."""
        for position, value in enumerate(self.args):
            if isinstance(value, Tensor):
                return replace(self, args=(*self.args[:position], x, *self.args[position + 1 :]))
        for name, value in self.kwargs.items():
            if isinstance(value, Tensor) and name not in _NO_INPUT:
                return replace(self, kwargs={**self.kwargs, name: x})
        raise AssertionError("x was asked for first")


@contextmanager
def calls_replaced(model: nn.Module, change: Callable[[Call], Call]) -> Iterator[None]:
    """While active, each call of ``model`` goes through ``change`` first.

    ``change`` runs outside the compiled region, both for ``torch.compile(model)`` (whose wrapper runs its hooks
    eagerly) and for ``model.compile()`` (whose hooks would be traced once and then go stale, so that its call is
    wrapped instead).
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = change(Call(args, kwargs))
        return call.args, dict(call.kwargs)

    compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is None:
        handle = model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = hook(model, args, kwargs)
            return compiled(*args, **kwargs)

        model._compiled_call_impl = call
        try:
            yield
        finally:
            model._compiled_call_impl = compiled
