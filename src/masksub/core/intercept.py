"""Standing in for parts of a model for the time of a branch, and putting back what was there.

A part is an attribute of one of the model's modules: a submodule without parameters (``patch_drop``), a method
(``forward``, ``get_embed``) or a value (``p`` of a dropout). What stands in is made once for each model and used again
at each step: a new object would make ``torch.compile`` trace again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

__all__ = ["Interception", "Interceptor", "after", "swapped", "whole"]

State = TypeVar("State")
_MISSING = object()
_IN_FORCE: weakref.WeakKeyDictionary[nn.Module, list[tuple[str, Any]]] = weakref.WeakKeyDictionary()
"""What each module's attributes were before ``swapped``, in the order of swapping."""


@dataclass(frozen=True)
class Interception:
    """One part of a model that something else stands in for.

    Attributes:
        path: of the module that owns the part, as ``get_submodule`` takes it; "" for the model itself.
        name: the owner's attribute.
        make: from what is there to what stands in. The model itself must not be held by it: where ``path`` is "", the
            part must not be a method.
    """

    path: str
    name: str
    make: Callable[[Any], Any]


def after(path: str, change: Callable[[Any], Any], name: str = "forward") -> Interception:
    """The result of a module's method goes through ``change``."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: change(original(*args, **kwargs))

    return Interception(path, name, make)


@contextmanager
def swapped(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """While active, ``owner.name`` is ``value``; afterwards the owner is as before, to the order of its attributes.

    A registered submodule is replaced where it is registered: compiled code notices that, while it overlooks a value
    that shadows it.
    """
    place: dict[str, Any] = owner._modules if name in owner._modules else owner.__dict__
    previous = place.get(name, _MISSING)
    place[name] = value
    in_force = _IN_FORCE.setdefault(owner, [])
    in_force.append((name, previous))
    try:
        yield
    finally:
        in_force.remove((name, previous))
        _put(place, name, previous)


def _put(place: dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        place.pop(name, None)
    else:
        place[name] = value


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While active, the model is as it is without any branch: for copying it from inside of one."""
    undone = []
    for owner in model.modules():
        for name, previous in reversed(_IN_FORCE.get(owner, ())):
            place: dict[str, Any] = owner._modules if name in owner._modules else owner.__dict__
            undone.append((place, name, place.get(name, _MISSING)))
            _put(place, name, previous)
    try:
        yield
    finally:
        for place, name, value in reversed(undone):
            _put(place, name, value)


@dataclass
class _Prepared(Generic[State]):
    """What stands in for the parts of one model, and how the model was when it was made."""

    state: State
    parts: list[tuple[Interception, nn.Module, Any, Any]]
    active: bool = False

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still has the modules and parts that this was made for."""
        try:
            return all(
                model.get_submodule(part.path) is owner and _current(owner, part.name) is previous
                for part, owner, previous, _ in self.parts
            )
        except AttributeError:
            return False


class Interceptor(Generic[State]):
    """Prepares the parts of each model once, and puts them in force.

    Args:
        state: makes what the parts of one model share, for example the choice of visible units.
        interceptions: the parts of a model that look at that state.
    """

    def __init__(
        self, state: Callable[..., State], interceptions: Callable[[Any, State], Sequence[Interception]]
    ) -> None:
        self._state, self._interceptions = state, interceptions
        self._prepared: weakref.WeakKeyDictionary[nn.Module, _Prepared[State]] = weakref.WeakKeyDictionary()

    @contextmanager
    def applied(self, model: nn.Module, *context: Any) -> Iterator[State]:
        """A context in which all parts are in force; yields their state.

        Args:
            model: whose parts.
            context: what ``state`` gets after the model, the first time.

        Raises:
            RuntimeError: they are in force already.
        """
        prepared = self._prepared.get(model)
        if prepared is not None and prepared.active:
            raise RuntimeError(f"{type(model).__name__} is such a sub branch already; applied() can't be nested on it")
        if prepared is None or not prepared.fits(model):
            prepared = self._prepared[model] = self._prepare(model, *context)
        prepared.active = True
        try:
            with ExitStack() as stack:
                for part, owner, _, value in prepared.parts:
                    stack.enter_context(swapped(owner, part.name, value))
                yield prepared.state
        finally:
            prepared.active = False

    def _prepare(self, model: nn.Module, *context: Any) -> _Prepared[State]:
        state = self._state(model, *context)
        parts = []
        for part in self._interceptions(model, state):
            owner = model.get_submodule(part.path)
            value = part.make(getattr(owner, part.name, None))
            parts.append((part, owner, _current(owner, part.name), value))
        return _Prepared(state, parts)


def _current(owner: nn.Module, name: str) -> Any:
    place: dict[str, Any] = owner._modules if name in owner._modules else owner.__dict__
    return place.get(name, _MISSING)
