"""Whose inputs the running statistics of batch norm see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .intercept import swapped

__all__ = ["BatchNorm", "batch_norms", "statistics_kept"]

BatchNorm = Literal["shared", "main"]


def check_batch_norm(bn: str) -> None:
    """Raise ValueError for anything but "shared" and "main"."""
    if bn not in ("shared", "main"):
        raise ValueError(f"bn = {bn!r}: 'shared' (both branches update the statistics) or 'main' (only the main one)")


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the layers that have running statistics."""
    return [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def statistics_kept(model: nn.Module, bn: BatchNorm) -> Iterator[None]:
    """With "main", forwards inside leave running statistics and their counters as they are.

    A layer in training mode still normalises by its batch; one in eval mode still by its running statistics.
    """
    with ExitStack() as stack:
        if bn == "main":
            # track_running_stats=False would make a layer in eval mode normalise by its batch only if it had no
            # statistics; they stay where they are.
            for module in model.modules():
                if isinstance(module, _BatchNorm) and module.track_running_stats:
                    stack.enter_context(swapped(module, "track_running_stats", False))
        yield
