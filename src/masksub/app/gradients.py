"""Norm and clipping of a model's gradient, sharded or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["clip", "total_norm"]


def total_norm(model: nn.Module) -> float:
    """Norm of all gradients together; with sharded ones all processes must ask."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(_whole(norm))


def clip(model: nn.Module, limit: float, norm: float) -> None:
    """Scale all gradients so that their norm is ``limit`` at most.

    Args:
        model: its gradients change.
        limit: above 0.
        norm: as ``total_norm`` gave it.
    """
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, torch.tensor(norm))


def _whole(norm: Tensor) -> Tensor:
    full = getattr(norm, "full_tensor", None)
    return full() if full is not None else norm
