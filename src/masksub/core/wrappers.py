"""What DistributedDataParallel, fully_shard (FSDP2) and torch.compile make of a model, and how the branches see it."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["gathered", "sharded_modules", "shells", "unwrap", "unwrap_parallel", "without_gradient_sync"]

_STATE_OF_SHARDING = "__composable_api_state_key"
"""Beginning of the names under which ``fully_shard`` keeps its states in a module."""


def unwrap_parallel(model: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel, compiled around or not; or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside any nesting of DistributedDataParallel and ``torch.compile(model)``.

    ``fully_shard`` puts nothing around a model.

    Raises:
        TypeError: DataParallel or FullyShardedDataParallel (FSDP1): their parts of the model can't be reached.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise TypeError("masksub can't see into nn.DataParallel; use DistributedDataParallel, started by torchrun")
        if (first := _fsdp("FullyShardedDataParallel")) is not None and isinstance(model, first):
            raise TypeError(
                "masksub can't see into FullyShardedDataParallel (FSDP1); use torch.distributed.fsdp.fully_shard "
                "(FSDP2; with Accelerate: fsdp_version 2)"
            )
        inner = unwrap_parallel(model)
        inner = getattr(inner, "_orig_mod", inner)
        if inner is model:
            return model
        model = inner


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called on, of a model compiled around or not."""
    # Without a process group nothing is sharded: a loop on one device doesn't pay for the search.
    if not (dist.is_available() and dist.is_initialized()) or (kind := _fsdp("FSDPModule")) is None:
        return []
    return [module for module in model.modules() if isinstance(module, kind)]


def without_gradient_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward leaves the gradients of this process alone.

    DistributedDataParallel and ``fully_shard`` reduce at the end of a backward. Two backwards a step would reduce
    twice; the first one runs in this context. On exit, also after an exception, the model reduces if it did before.
    Models that reduce nothing need nothing.
    """
    if sharded := sharded_modules(model):
        return _unreduced(sharded)
    no_sync = getattr(model, "no_sync", None)
    return cast("AbstractContextManager[None]", no_sync()) if callable(no_sync) else nullcontext()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process holds a shard (a DTensor); any other as it is.

    To be called on all processes: they exchange their shards.
    """
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else cast("Tensor", whole())


def shells(model: nn.Module, memo: dict[int, Any]) -> None:
    """Have ``copy.deepcopy(model, memo)`` make plain modules of those that ``fully_shard`` was called on.

    These refuse to be copied: their hooks and states belong to the sharding. Other models are left to ``deepcopy``.

    Args:
        model: is left alone.
        memo: as for ``copy.deepcopy``, with a plain tensor for each parameter. Gets, for each sharded module, a copy of
            the class that it had before, without hooks.
    """
    copies: list[tuple[Any, Any]] = []
    for module in sharded_modules(model):
        # [FSDP class made for this one, FSDPModule, class before, ...]
        memo[id(module)] = object.__new__(type(module).__mro__[2])
        copies.append((module, memo[id(module)]))
    for module, plain in copies:  # now that each is known, so that one may hold another
        state = {name: value for name, value in vars(module).items() if not name.startswith(_STATE_OF_SHARDING)}
        state.update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
        vars(plain).update(copy.deepcopy(state, memo))


def _fsdp(name: str) -> Any:
    """A class of torch.distributed.fsdp; None where nobody has loaded it, so that no model can be of that class."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, None)


@contextmanager
def _unreduced(modules: list[Any]) -> Iterator[None]:
    # There is no no_sync for these, and what was asked for before can only be read where FSDP keeps it.
    before = [_reduces(module) for module in modules]
    for module in modules:
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for module, (reduce, all_reduce) in zip(modules, before):
            module.set_requires_gradient_sync(reduce, recurse=False)
            module.set_requires_all_reduce(all_reduce, recurse=False)


def _reduces(module: Any) -> tuple[bool, bool]:
    """Whether a sharded module reduces over its shards, and over replicas of these."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch before there could be several
        groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
    return all(group.reduce_grads for group in groups), all(group.all_reduce_grads for group in groups)
