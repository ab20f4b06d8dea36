"""Floating-point operations of a training step, counted from shapes.

The count covers matrix products, convolutions and attention, forward and backward, two operations for each
multiply-add. It runs on the meta device: no arithmetic, no random numbers, the model is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .copies import meta_copy, on_meta, real_copy

__all__ = ["step_flops"]


def _convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    *settings: Any,
    out_shape: Any = None,
) -> int:
    """Each wanted gradient costs what the forward does.

    The framework's own formula takes grouped convolutions for dense ones in the gradient of the weight: for a depthwise
    convolution of C channels it counts C times too many.
    """
    transposed, wanted = settings[4], settings[7]  # of bias, stride, padding, dilation, ..., output mask
    positions = math.prod((x if transposed else grad_out)[2:])
    forward = 2 * x[0] * positions * math.prod(weight)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}


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
        trial = real_copy(model)
    with sdpa_kernel(SDPBackend.MATH):
        step(trial, x)  # what a branch finds out about a model at its first step is no part of the count
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            step(trial, x)
    return int(counter.get_total_flops())
