"""Whether a model runs its blocks again during backward (gradient checkpointing)."""

from __future__ import annotations

from torch import nn

__all__ = ["recomputes"]

_FLAGS = ("grad_checkpointing", "gradient_checkpointing")  # timm's and transformers' names


def recomputes(model: nn.Module) -> bool:
    """True where timm's or transformers' switch for gradient checkpointing is on; other ways are not seen."""
    return any(getattr(module, flag, False) is True for module in model.modules() for flag in _FLAGS)
