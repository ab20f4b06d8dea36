"""Where a model's residual branches begin and end, found by watching it run on shapes alone.

A block computes ``x + branch(x)``. Models that were made for drop path have a place at the end of the branch, the
*exit*: ``drop_path(branch(x))``, also where the rate is 0 and the place holds nothing. The *entry* is the submodule
from which on the branch is run on a part of the batch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .call import Call
from .copies import meta_copy, real_copy
from .packaged import load_packaged

__all__ = ["TRIAL_BATCH", "Residual", "bare_copy", "exits_of", "is_drop_path", "register_exits", "trial_call", "watch"]

TRIAL_BATCH = 13
"""Inputs of the trial batch: some are left to drop, and hardly another dimension is a multiple of it."""

Tensors = dict[Any, tuple[int, bool]]
"""By position or name of an argument, in a tuple also the place there."""

_DROP_PATH = re.compile(r"(^|_)drop_path\d*$|^stochastic_depth$")
_EXITS: dict[str, tuple[str, ...]] = {}


@dataclass
class Residual:
    """One residual branch of a block.

    Attributes:
        block: path of the block in the model.
        exit: path, from the block, of what stands at the end of the branch.
        use: which call of the exit in one forward of the model; some blocks have one for two branches.
        place: number of the branch within one run of its block.
        called: paths, from the block, of the submodules that the branch goes through, in order.
        entry: that of them from which on the branch is run on a part of the batch; None where it is run whole.
        inside: for each submodule of the branch that gets more than one tensor: by position or name of the argument (in
            a tuple also the place there), its number of dimensions, and whether it has one row for each input.
    """

    block: str
    exit: str
    use: int
    place: int
    called: tuple[str, ...] = ()
    entry: str | None = None
    inside: dict[str, Tensors] = field(default_factory=dict)


def register_exits(kinds: Mapping[str, tuple[str, ...]]) -> None:
    """Name the exits of block classes that were not made for drop path.

    Args:
        kinds: by the qualified name of the class: paths, from the block, of the submodules whose result is added to the
            stream. Those that a version of the library doesn't have are passed over.
    """
    _EXITS.update(kinds)


def is_drop_path(name: str) -> bool:
    """Whether an attribute of this name is the block's own place for drop path."""
    return _DROP_PATH.search(name) is not None


def exits_of(model: nn.Module) -> dict[str, list[str]]:
    """All exits: by the path of the block, the paths of its exits from there."""
    load_packaged()
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        # A place that holds nothing at rate 0 is an attribute that is None.
        names = [*module._modules, *(name for name, value in vars(module).items() if value is None)]
        exits = [name for name in names if is_drop_path(name)]
        for kind in type(module).__mro__:
            listed = _EXITS.get(f"{kind.__module__}.{kind.__qualname__}", ())
            exits += [name for name in listed if _has(module, name)]
        if exits:
            found[path] = list(dict.fromkeys(exits))
    return found


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def bare_copy(model: nn.Module, *, meta: bool = True) -> nn.Module:
    """A copy without hooks and branches: those of others are not to be run for a trial.

    Args:
        model: the unwrapped model.
        meta: on the meta device, else where the model is, with its weights.
    """
    bare = meta_copy(model) if meta else real_copy(model)
    _clear_hooks(bare)
    return bare


def _clear_hooks(model: nn.Module) -> None:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def trial_call(call: Call, *, meta: bool = True) -> Call:
    """The same call with TRIAL_BATCH inputs: on the meta device, else those that are there, repeated."""
    batch = call.x.shape[0]

    def trial(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim and value.shape[0] == batch:
            value = value.detach()[torch.arange(TRIAL_BATCH) % batch]
        return torch.empty_like(value, device="meta") if meta else value

    kwargs = {name: trial(value) for name, value in call.kwargs.items()}
    return replace(call, args=tuple(map(trial, call.args)), kwargs=kwargs)


def watch(model: nn.Module, call: Call) -> list[Residual]:
    """Run a model and see what its blocks call, in which order, between one exit and the next.

    Args:
        model: a bare copy; places for drop path that hold nothing hold an Identity afterwards.
        call: a trial call for it.

    Returns:
        The residual branches, in the order in which they end.
    """
    residuals: list[Residual] = []
    uses: defaultdict[tuple[str, str], int] = defaultdict(int)
    # What a block has called since it began or since its last exit.
    called: defaultdict[str, list[tuple[str, Tensors]]] = defaultdict(list)
    ended: defaultdict[str, int] = defaultdict(int)
    calls: defaultdict[tuple[str, str], int] = defaultdict(int)

    def begin(block: str) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...]) -> None:
            called[block].clear()
            ended[block] = 0

        return hook

    def note(block: str, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[block, name] += 1
            called[block].append((name, _further_tensors(args, kwargs)))

        return hook

    def end(block: str, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = Call(args, kwargs).x.shape[0]
            if rows % TRIAL_BATCH:
                raise ValueError(
                    f"{block}.{name} gets {rows} rows for {TRIAL_BATCH} inputs: residual branches are dropped by "
                    f"input, which must come first"
                )
            seen, called[block] = called[block], []
            if not is_drop_path(name):  # a module that does its own work can be entered itself
                calls[block, name] += 1
                seen = [*seen, (name, _further_tensors(args, kwargs))]
            # What is still running when the exit is reached (the exit lies in it) can't be entered anew.
            names = dict.fromkeys(each for each, _ in seen if not name.startswith(f"{each}."))
            place, ended[block] = ended[block], ended[block] + 1
            inside = {each: tensors for each, tensors in seen if tensors}
            residuals.append(Residual(block, name, uses[block, name], place, tuple(names), None, inside))
            uses[block, name] += 1

        return hook

    for path, names in exits_of(model).items():
        block = model.get_submodule(path)
        block.register_forward_pre_hook(begin(path))
        for name, child in _parts(block, names):
            child.register_forward_pre_hook(note(path, name), with_kwargs=True)
        for name in names:
            if "." not in name and is_drop_path(name):  # nothing there, or one for several blocks
                setattr(block, name, nn.Identity())
            block.get_submodule(name).register_forward_pre_hook(end(path, name), with_kwargs=True)
    with torch.no_grad():
        model(*call.args, **call.kwargs)
    _clear_hooks(model)
    for residual in residuals:  # what is called elsewhere too, or more than once, is no entry
        once = (
            name
            for name in residual.called
            if calls[residual.block, name] == sum(name in r.called for r in residuals if r.block == residual.block)
        )
        residual.called = tuple(once)
    return residuals


def _parts(block: nn.Module, exits: list[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What a block calls on the way to its exits: its children, those in lists, and those beside a deeper exit."""
    for name, child in block.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child, exits, f"{path}.")
        elif path not in exits:
            yield path, child
            if any(exit.startswith(f"{path}.") for exit in exits):
                yield from _parts(child, exits, f"{path}.")


def _further_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensors:
    """All tensors but the first, also those in tuples: dimensions, and whether they have a row for each input."""
    tensors: dict[Any, Tensor] = {}
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in named:
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, tuple):
            tensors.update({(key, i): each for i, each in enumerate(value) if isinstance(each, Tensor)})
    return {key: (t.ndim, t.ndim > 0 and t.shape[0] == TRIAL_BATCH) for key, t in list(tensors.items())[1:]}
