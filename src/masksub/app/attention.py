"""Fused or unfused attention in timm's models: what is faster on this device in this precision.

timm's attention modules carry a flag, ``fused_attn``: True for PyTorch's ``scaled_dot_product_attention``, False for
matrix products and a softmax. Both compute the same. Which is faster is known for some devices (``KNOWN``) and measured
for the others; ``benchmarks/attention.md`` has the figures, and why bfloat16 on a CPU can't be in the table.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from masksub.core.branches import MaskSub
from masksub.core.copies import meta_copy

from .settings import Recipe

__all__ = ["KNOWN", "choose_attention", "measure_attention", "set_attention"]

Attention = Literal["fused", "unfused"]
Precision = Literal["fp32", "bf16", "fp16"]
Call = tuple[tuple[Any, ...], dict[str, Any]]

KNOWN: Mapping[tuple[str, str], Attention] = {
    ("cuda", "fp32"): "fused",
    ("cuda", "bf16"): "fused",
    ("cuda", "fp16"): "fused",
    ("cpu", "fp32"): "fused",  # as fast or faster, and it doesn't keep the (tokens x tokens) weights for backward
}
"""By device type and precision, for modules that timm fuses by itself; those that it holds back are measured."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH, _ROUNDS, _SECONDS = 2, (2, 20), 0.5  # images; fewest and most rounds; when to stop between these


def set_attention(model: nn.Module, how: Attention) -> int:
    """Make all attention of ``model`` fused or unfused; returns the number of modules that have such a choice."""
    modules = _attention_modules(model)
    for module in modules:
        module.fused_attn = how == "fused"
    return len(modules)


def choose_attention(
    model: nn.Module,
    shape: Sequence[int],
    *,
    device: torch.device | str,
    precision: Precision,
    measure: Callable[..., Mapping[Attention, float]] | None = None,
) -> Attention | None:
    """What is faster for training ``model`` on ``device``: from ``KNOWN``, otherwise measured in about a second.

    Copies are what runs: the model is left as it is, wherever it is. Random numbers are as before afterwards.

    Args:
        model: any model.
        shape: shape of its input, batch first.
        device: where it will be trained.
        precision: of the forward, as in a recipe.
        measure: in place of ``measure_attention``.

    Returns:
        None if the model has no such choice; what it has now, if its forward doesn't run on the meta device.
    """
    module = next(iter(_attention_modules(model)), None)
    if module is None:
        return None
    device = torch.device(device)
    known = KNOWN.get((device.type, precision))
    if known is not None and module.fused_attn:
        return known
    calls = _calls(model, shape)
    if not calls:
        return "fused" if module.fused_attn else "unfused"
    seconds = (measure or measure_attention)(module, calls, device=device, precision=precision)
    return "fused" if seconds["fused"] <= seconds["unfused"] else "unfused"


def settle_attention(recipe: Recipe, model: nn.Module, accelerator: Accelerator) -> Recipe:
    """Set the model's attention to the recipe's, the same on every process; the recipe with "auto" replaced."""
    choice: list[Any] = [None if recipe.model.attention == "auto" else recipe.model.attention]
    if choice[0] is None and accelerator.is_main_process:
        shape = (recipe.train.batch_size, recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
        choice[0] = choose_attention(model, shape, device=accelerator.device, precision=recipe.train.precision)
    broadcast_object_list(choice)
    if choice[0] is None:
        return recipe
    set_attention(model, choice[0])
    return recipe.changed("model", attention=choice[0])


def measure_attention(
    module: nn.Module,
    calls: Sequence[Call],
    *,
    device: torch.device,
    precision: Precision,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Attention, float]:
    """Seconds of a forward and backward of a copy of ``module`` over all ``calls``.

    Fused and unfused take turns, so that what else the machine does falls on both. The fastest round counts: it was
    disturbed least.
    """
    trial: Any = copy.deepcopy(module).to(device)
    trial.train()
    modes: tuple[Attention, ...] = ("fused", "unfused")
    best: dict[Attention, float] = dict.fromkeys(modes, float("inf"))
    begin = clock()
    with torch.random.fork_rng([] if device.type == "cpu" else [device.index or 0], device_type=device.type):
        inputs = [_filled(call, device) for call in calls]
        for rounds in range(_ROUNDS[1] + 1):
            for how in modes:
                set_attention(trial, how)
                start = clock()
                for args, kwargs in inputs:
                    with torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32"):
                        out = trial(*args, **kwargs)
                    out.sum().backward()
                torch.get_device_module(device).synchronize()
                if rounds:  # the first round is a warm-up
                    best[how] = min(best[how], clock() - start)
            if rounds >= _ROUNDS[0] and clock() - begin > _SECONDS:
                break
    return best


def _attention_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(getattr(module, "fused_attn", None), bool)]


def _calls(model: nn.Module, shape: Sequence[int]) -> list[Call]:
    """What the first attention module is called with in the main and in the sub branch, on the meta device."""
    calls: list[Call] = []
    x = torch.empty(min(shape[0], _BATCH), *shape[1:], device="meta")
    with contextlib.suppress(Exception):  # a mistake in the input comes up again, with its message, in training
        meta = meta_copy(model)
        meta.train()
        _attention_modules(meta)[0].register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
        meta(x)
        del calls[1:]  # of a module that is used several times in one forward
        with MaskSub(0.5).applied(meta):
            meta(x)
    return calls[:2]


def _filled(call: Call, device: torch.device) -> Call:
    """The same call with real tensors: normal numbers that need a gradient; True, or 0, for other types."""

    def fill(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, dtype=value.dtype, device=device).requires_grad_()
        return torch.full(value.shape, value.dtype == torch.bool, dtype=value.dtype, device=device)

    return tuple(fill(value) for value in call[0]), {name: fill(value) for name, value in call[1].items()}
