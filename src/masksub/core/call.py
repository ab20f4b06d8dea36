"""The arguments of one forward, and replacing them before the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from .wrappers import unwrap

__all__ = ["Call", "call_of", "calls_replaced"]

_NO_INPUT = frozenset({"labels"})
"""Tensors of a batch that a model may be called with in any order, and that are not its input."""


@dataclass(frozen=True)
class Call:
    """What a model is called with: ``model(*args, **kwargs)``.

    Attributes:
        main: name of the model's input, where the model says it (``main_input_name`` in transformers).
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    main: str | None = None

    @property
    def x(self) -> Tensor:
        """The model's input, batch first.

        Raises:
            TypeError: there is none.
        """
        place = self._place()
        value: Tensor = self.args[place] if isinstance(place, int) else self.kwargs[place]
        return value

    @property
    def has_input(self) -> bool:
        """Whether there is one."""
        return self._find() is not None

    @property
    def named(self) -> str:
        """The argument that is taken for the input, for messages."""
        place = self._place()
        return f"positional argument {place + 1}" if isinstance(place, int) else f"argument {place!r}"

    def with_x(self, x: Tensor) -> Call:
        """The same call with another input."""
        place = self._place()
        if isinstance(place, int):
            return replace(self, args=(*self.args[:place], x, *self.args[place + 1 :]))
        return replace(self, kwargs={**self.kwargs, place: x})

    def _place(self) -> int | str:
        place = self._find()
        if place is None:
            raise TypeError("the model was called without a tensor; masksub has nothing to mask")
        return place

    def _find(self) -> int | str | None:
        """Position or keyword of the input.

        The order of keywords is that of a batch's keys and says nothing: the model's word comes first, then the number
        of dimensions (weights and targets have fewer than images), then floats before integers. A vector, one value for
        each input, is taken only where there is nothing else.
        """
        named = {k: v for k, v in self.kwargs.items() if isinstance(v, Tensor) and k not in _NO_INPUT}
        if self.main in named:
            return self.main
        best = max(named, key=lambda name: (named[name].ndim, named[name].is_floating_point()), default=None)
        positions = [position for position, value in enumerate(self.args) if isinstance(value, Tensor)]
        first = next((position for position in positions if self.args[position].ndim > 1), None)
        return next((place for place in (first, best, *positions) if place is not None), None)


def call_of(model: nn.Module, x: Any) -> Call:
    """The call of a model that ``TwoBranchStep`` makes for this input, one tensor or a mapping of arguments."""
    return _call(model, (), x) if isinstance(x, Mapping) else _call(model, (x,), {})


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    main = getattr(unwrap(model), "main_input_name", None)
    return Call(args, kwargs, main if isinstance(main, str) else None)


@contextmanager
def calls_replaced(model: nn.Module, change: Callable[[Call], Call]) -> Iterator[None]:
    """While active, each call of ``model`` goes through ``change`` first.

    ``change`` runs outside the compiled region, both for ``torch.compile(model)`` (whose wrapper runs its hooks
    eagerly) and for ``model.compile()`` (whose hooks would be traced once and then go stale, so that its call is
    wrapped instead).
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = change(_call(model, args, kwargs))
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
