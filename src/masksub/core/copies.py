"""Copies of a model for trials, which leave the model itself alone."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .hints import without_hint
from .intercept import whole
from .wrappers import gathered, shells, unwrap

__all__ = ["meta_copy", "on_meta", "real_copy"]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model, without any branch in force, on the meta device; weights are not copied."""
    return _copy(unwrap(model), _without_values)


def real_copy(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model, without any branch in force, with its weights, where the model is."""
    return _copy(unwrap(model), lambda tensor: gathered(tensor.detach()).clone())


def on_meta(x: Any) -> Any:
    """A tensor, or the tensors of a mapping, without values."""
    if isinstance(x, Mapping):
        return {name: on_meta(value) for name, value in x.items()}
    return torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x


def _without_values(tensor: Tensor) -> Tensor:
    # The whole tensor's shape, also where this process holds a shard of it.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _copy(model: nn.Module, convert: Any) -> nn.Module:
    with whole(model):
        for path, module in model.named_modules():
            if isinstance(vars(module).get("forward"), types.FunctionType):
                raise ValueError(
                    f"{path or 'the model'} ({type(module).__name__}) has a forward that is a function put on it; a "
                    f"copy for a trial would share it and run the model itself. Make it a method of a subclass"
                )
        memo: dict[int, Any] = {}
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(convert(parameter), requires_grad=parameter.requires_grad)
        # Some models keep what they computed last, with its graph, which can't be copied.
        for tensor in (*model.buffers(), *_kept_results(model)):
            memo[id(tensor)] = convert(tensor)
        shells(model, memo)
        return without_hint(copy.deepcopy(model, memo))


def _kept_results(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for value in vars(module).values():
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            yield from (each for each in values if isinstance(each, Tensor) and not isinstance(each, nn.Parameter))
