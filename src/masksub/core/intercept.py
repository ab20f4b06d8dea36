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


@dataclass(eq=False)
class _Swap:
    """An attribute that something stands in for, and what was there before."""

    name: str
    previous: Any


_IN_FORCE: weakref.WeakKeyDictionary[nn.Module, list[_Swap]] = weakref.WeakKeyDictionary()
"""By module, in the order of swapping."""


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
    swap = _Swap(name, place.get(name, _MISSING))
    place[name] = value
    in_force = _IN_FORCE.setdefault(owner, [])
    in_force.append(swap)
    try:
        yield
    finally:
        later = next((each for each in in_force[in_force.index(swap) + 1 :] if each.name == name), None)
        in_force.remove(swap)
        if later is None:
            _put(place, name, swap.previous)
        else:  # contexts that are left in another order than they were entered
            later.previous = swap.previous


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
        for swap in reversed(_IN_FORCE.get(owner, ())):
            place: dict[str, Any] = owner._modules if swap.name in owner._modules else owner.__dict__
            undone.append((place, swap.name, place.get(swap.name, _MISSING)))
            _put(place, swap.name, swap.previous)
    try:
        yield
    finally:
        for place, name, value in reversed(undone):
            _put(place, name, value)


@dataclass
class _Prepared(Generic[State]):
    """What stands in for the parts of one model, and how the model was when it was made."""

    state: State
    parts: list[tuple[Interception, weakref.ref[nn.Module], Any, Any]]
    signature: Any
    active: bool = False

    def fits(self, model: nn.Module, signature: Any) -> bool:
        """Whether the model still has the modules and parts that this was made for."""
        if signature != self.signature:
            return False
        try:
            owners = [model.get_submodule(part.path) for part, _, _, _ in self.parts]
        except AttributeError:
            return False
        return all(
            owner is known() and _current(owner, part.name) is previous
            for owner, (part, known, previous, _) in zip(owners, self.parts)
        )


class Interceptor(Generic[State]):
    """Prepares the parts of each model once, and puts them in force.

    Args:
        state: makes what the parts of one model share, for example the choice of visible units.
        interceptions: the parts of a model that look at that state.
        signature: what a model must have kept for its parts to be used again, besides these parts themselves.
    """

    def __init__(
        self,
        state: Callable[..., State],
        interceptions: Callable[[Any, State], Sequence[Interception]],
        signature: Callable[[Any], Any] = lambda _: None,
    ) -> None:
        self._state, self._interceptions, self._signature = state, interceptions, signature
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
        if prepared is None or not prepared.fits(model, self._signature(model)):
            prepared = self._prepared[model] = self._prepare(model, *context)
        prepared.active = True
        try:
            with ExitStack() as stack:
                for part, _, _, value in prepared.parts:
                    stack.enter_context(swapped(model.get_submodule(part.path), part.name, value))
                yield prepared.state
        finally:
            prepared.active = False

    def _prepare(self, model: nn.Module, *context: Any) -> _Prepared[State]:
        state = self._state(model, *context)
        parts = []
        for part in self._interceptions(model, state):
            owner = model.get_submodule(part.path)
            value = part.make(getattr(owner, part.name, None))
            # Held weakly: the owner may be the model itself, which is the key to all this.
            parts.append((part, weakref.ref(owner), _current(owner, part.name), value))
        return _Prepared(state, parts, self._signature(model))


def _current(owner: nn.Module, name: str) -> Any:
    place: dict[str, Any] = owner._modules if name in owner._modules else owner.__dict__
    return place.get(name, _MISSING)
