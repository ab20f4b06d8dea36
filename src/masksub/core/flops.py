"""Floating-point operations of a training step, counted from shapes.

The count covers matrix products, convolutions and attention, forward and backward, two operations for each
multiply-add. It runs on the meta device: no arithmetic, no random numbers, the model is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .wrappers import unwrap

__all__ = ["meta_copy", "step_flops"]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model on the meta device; weights are not copied."""
    model = unwrap(model)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def step_flops(
    model: nn.Module, step: Callable[[nn.Module, Tensor], Any], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> int:
    """Operations of ``step(model, x)`` for an input of this shape.

    Fused attention is taken apart into its matrix products: the framework's counter has no formula for the CPU's
    fused kernel and would count it as zero (pytorch#195460).

    Args:
        model: any model; a copy on the meta device is what ``step`` gets.
        step: runs forward, and backward where wanted.
        shape: shape of the input, batch first.
        dtype: type of the input.

    Returns:
        Number of floating-point operations.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(meta_copy(model), torch.empty(*shape, dtype=dtype, device="meta"))
    return int(counter.get_total_flops())
