"""Floating-point operations of a training step, counted from shapes.

The count covers matrix products, convolutions and attention, forward and backward, two operations for each
multiply-add. It runs on the meta device: no arithmetic, no random numbers, the model is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .intercept import whole
from .wrappers import unwrap

__all__ = ["meta_copy", "on_meta", "step_flops"]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model, without any branch in force, on the meta device; weights are not copied."""
    model = unwrap(model)
    with whole(model):
        return _meta_copy(model)


def _meta_copy(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def on_meta(x: Any) -> Any:
    """A tensor, or the tensors of a mapping, without values."""
    if isinstance(x, Mapping):
        return {name: on_meta(value) for name, value in x.items()}
    return torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x


def step_flops(
    model: nn.Module,
    step: Callable[[nn.Module, Any], Any],
    x: Sequence[int] | Tensor | Mapping[str, Any],
    *,
    meta: bool = True,
) -> int:
    """Operations of ``step(model, x)`` for an input of this shape.

    Fused attention is taken apart into its matrix products: the framework's counter has no formula for the CPU's
    fused kernel and would count it as zero (pytorch#195460).

    Args:
        model: any model; a copy on the meta device is what ``step`` gets.
        step: runs forward, and backward where wanted.
        x: shape of a floating-point input, batch first; or an example, a tensor or a mapping of arguments.
        meta: count on the meta device, without arithmetic. False, for models that look at values: run the step on a
            copy, with the example as it is.

    Returns:
        Number of floating-point operations.
    """
    if meta:
        trial = meta_copy(model)
        x = on_meta(x) if isinstance(x, (Tensor, Mapping)) else torch.empty(*x, device="meta")
    else:
        with whole(unwrap(model)):
            trial = copy.deepcopy(unwrap(model))
    with sdpa_kernel(SDPBackend.MATH):
        step(trial, x)  # what a branch finds out about a model at its first step is no part of the count
        with FlopCounterMode(display=False) as counter:
            step(trial, x)
    return int(counter.get_total_flops())
