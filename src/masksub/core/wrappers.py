"""What DistributedDataParallel and torch.compile put around a model, and how the branches see through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["input_replaced", "unwrap", "unwrap_parallel", "without_gradient_sync"]


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel, compiled around or not; or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside any nesting of DistributedDataParallel and ``torch.compile(model)``.

    Raises:
        TypeError: DataParallel, whose copies of the model can't be reached from outside.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise TypeError("masksub can't see into nn.DataParallel; use DistributedDataParallel, started by torchrun")
        inner = unwrap_parallel(model)
        inner = getattr(inner, "_orig_mod", inner)
        if inner is model:
            return model
        model = inner


def without_gradient_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward leaves the gradients of this process alone.

    DistributedDataParallel reduces at the end of a backward. Two backwards a step would reduce twice; the first one
    runs in this context. Models without a ``no_sync`` of their own need nothing.
    """
    no_sync = getattr(model, "no_sync", None)
    return cast("AbstractContextManager[None]", no_sync()) if callable(no_sync) else nullcontext()


@contextmanager
def input_replaced(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, the first tensor that ``model`` is called with goes through ``replace``.

    ``replace`` runs outside the compiled region, both for ``torch.compile(model)`` (whose wrapper runs its hooks
    eagerly) and for ``model.compile()`` (whose hooks would be traced once and then go stale, so that its call is
    wrapped instead).

    Raises:
        TypeError: at the call, if the model gets no tensor at all.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:position], replace(value), *args[position + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: replace(value)}
        raise TypeError(f"{type(model).__name__} was called without a tensor; masksub has nothing to mask")

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
