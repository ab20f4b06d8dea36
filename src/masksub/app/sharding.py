"""A model on several processes: the whole of it on each (DDP), or weights, gradients and optimizer sharded (FSDP2).

The order of calls, on all processes alike:

    model = create_model(...)
    average = ModelEmaV3(model, ...)                    # copies the model, which can't be done once it is sharded
    wrapped = prepare(accelerator, recipe, model, average.module)
    optimizer = accelerator.prepare_optimizer(create_optimizer(recipe, model))   # of the sharded parameters
    ...
    optimizer.step()
    share_statistics(model)
    average.update(model, step)
    with whole_weights(average.module):
        evaluate(average.module, ...)

What is saved has the same form however the model was held: names, shapes and numbers of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from masksub.core.batch_norm import batch_norms
from masksub.core.residual import exits_of
from masksub.core.wrappers import gathered, sharded_modules

from .errors import InputError
from .settings import Recipe

__all__ = [
    "full_model_state",
    "full_optimizer_state",
    "load_full_model_state",
    "load_full_optimizer_state",
    "prepare",
    "shards",
    "share_statistics",
    "whole_weights",
]


def shards(accelerator: Accelerator, recipe: Recipe) -> bool:
    """Whether the model will be sharded: it is asked for, and there are processes to share it."""
    return recipe.train.shard == "full" and accelerator.num_processes > 1


def prepare(accelerator: Accelerator, recipe: Recipe, model: nn.Module, average: nn.Module | None = None) -> nn.Module:
    """Put the model on its device, and make it one that trains on all processes together.

    Sharded, a block's weights are gathered when it is run, in fp32; gradients are reduced in fp32. With bf16 autocast
    casts what it does on one device, so that the figures are the same. Weights gathered in bf16 would halve that part
    of the traffic, and fail in layers that autocast leaves in fp32.

    Args:
        accelerator: device, precision and processes.
        recipe: ``train.shard`` says how.
        model: as it was created. Sharded, its parameters are other ones afterwards: make the optimizer then.
        average: the module of the moving average, a copy of ``model``; gets the same device and shards.

    Returns:
        What is to be called in training; ``model`` itself where it is sharded.

    Raises:
        InputError: fp16 with shards.
    """
    if average is not None:
        average.to(accelerator.device)
    if not shards(accelerator, recipe):
        prepared: nn.Module = accelerator.prepare_model(model)
        return prepared
    if recipe.train.precision == "fp16":
        raise InputError("train.precision = 'fp16': not together with train.shard = 'full'; use 'bf16' or 'fp32'")
    accelerator.prepare_model(model, evaluation_mode=True)  # the device, and autocast as on one process; no DDP
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in (model, average):
        if module is not None:
            _shard(module, mesh)
    return model


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    blocks = [model.get_submodule(path) for path in exits_of(model) if path]
    for block in reversed(blocks):  # one within another goes first
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """For evaluation: while active, each process holds all weights, and a forward needs no other process.

    So processes may evaluate different numbers of batches, and one may stop. A model that is not sharded is left alone.

    Args:
        model: not trained, nor its weights changed, inside. All processes must enter.
    """
    modules = sharded_modules(model)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # In training blocks are gathered again for the backward; the root, whose backward is last, is kept.
            module.set_reshard_after_forward(module is not model, recurse=False)


def share_statistics(model: nn.Module) -> None:
    """After an update: running statistics of batch norm become those of the main process, on all.

    Each process sees its own images. Without this they evaluate with different statistics, and those of one are saved.

    Args:
        model: the model itself. Nothing happens on one process or without batch norm.
    """
    if not _several():
        return
    statistics = [
        buffer
        for name in batch_norms(model)
        for buffer in model.get_submodule(name).buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    if not statistics:
        return
    together = torch.cat([buffer.flatten() for buffer in statistics])  # one message, not one for each layer
    dist.broadcast(together, 0)
    for buffer, values in zip(statistics, torch.split(together, [buffer.numel() for buffer in statistics])):
        buffer.copy_(values.view_as(buffer))


def full_model_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with whole tensors on the CPU, which the model on one process loads as it is.

    Args:
        model: the model itself, sharded or not; also the module of a moving average. All processes must ask.

    Returns:
        On the main process the state, which may share memory with the model; {} on the others.
    """
    state: dict[str, Tensor] = _whole(model.state_dict())
    return state


def load_full_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what ``full_model_state`` gave; all of it must fit, as for ``load_state_dict``.

    Args:
        model: as there. All processes must call.
        state: on each process; sharded, the values of the main process count.

    Raises:
        RuntimeError: names or shapes that do not fit.
    """
    own = model.state_dict()  # also lets go of gathered weights, which would outlive the new ones
    model.load_state_dict({name: _placed(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors on the CPU: tensors and plain values only.

    Args:
        optimizer: of a model sharded or not, wrapped by Accelerate or not. All processes must ask.

    Returns:
        On the main process the state, which may share memory with the optimizer's; {} on the others.
    """
    state: dict[str, Any] = _whole(optimizer.state_dict())
    return state


def load_full_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load what ``full_optimizer_state`` gave, also from another number of processes.

    Args:
        optimizer: with the same parameters in the same groups. All processes must call.
        state: on each process; sharded, the values of the main process count.

    Raises:
        InputError: an optimizer that keeps something else than numbers and tensors of the parameter's shape, and can't
            be sharded.
        ValueError: other groups or parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    owner = dict(zip(numbers, parameters))
    placed = {}
    for number, values in state["state"].items():
        parameter = owner.get(number)
        if isinstance(parameter, DTensor):
            for name, value in values.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise InputError(
                        f"optim.name: {type(optimizer).__name__} keeps {name} of shape {tuple(value.shape)} for a "
                        f"parameter of {tuple(parameter.shape)}, which can't be sharded; use train.shard = 'none'"
                    )
            values = {name: _placed(value, parameter) for name, value in values.items()}
        placed[number] = values
    optimizer.load_state_dict({**state, "state": placed})


def _placed(value: Any, like: Any) -> Any:
    """A whole tensor in the shards of another, from the main process; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


def _whole(state: Any) -> Any:
    main = not _several() or dist.get_rank() == 0

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            whole = gathered(value.detach())  # by all processes, also where it is not kept
            return whole.to("cpu") if main else None
        if isinstance(value, dict):
            return {name: convert(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(convert, value))
        return value

    converted = convert(dict(state))
    return converted if main else {}


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
