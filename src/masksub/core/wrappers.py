"""What DistributedDataParallel and torch.compile put around a model, and how the branches see through it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["unwrap", "unwrap_parallel", "without_gradient_sync"]


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
