"""What a training step of somebody else did with a model: its calls, and the graph that its loss has.

For trainers that have no place for two branches: the one that is there is watched, and the other follows it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["calls_seen", "graph", "is_divided"]


@contextmanager
def calls_seen(model: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """While active, what ``model`` is called with under gradient and what it returns; outside any compiled region.

    The arguments are the caller's, before any hook of the model: a repeated call goes through its hooks again.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    begun: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begun.append((args, dict(kwargs)))  # a hook may change the mapping in place

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        args, kwargs = begun.pop()
        if torch.is_grad_enabled():
            calls.append((args, kwargs, output))

    compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is None:
        handles = (
            model.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        )
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()
        return

    # The hooks of model.compile() would be traced once and then go stale.
    def call(*args: Any, **kwargs: Any) -> Any:
        before(model, args, kwargs)
        output = compiled(*args, **kwargs)
        after(model, args, kwargs, output)
        return output

    model._compiled_call_impl = call
    try:
        yield calls
    finally:
        model._compiled_call_impl = compiled


def graph(start: Any, stop: Any = None) -> tuple[set[Any], set[int]]:
    """Nodes of the autograd graph from ``start``, not beyond ``stop``, and the ids of the parameters they lead to."""
    seen, leaves, todo = set(), set(), [start]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            leaves.add(id(variable))
        if node is not stop:
            todo += [each for each, _ in node.next_functions]
    return seen, leaves


def is_divided(
    model: nn.Module, loss_with: Callable[[int], Tensor], over_processes: Callable[[Tensor], Tensor]
) -> bool | None:
    """Whether a loss is divided by a count that it is given, or is a mean that disregards it.

    Side effects: calls the loss three times, without gradient and in eval mode. Modes and the random numbers of torch,
    numpy and Python are afterwards as before.

    Args:
        model: what the loss calls.
        loss_with: the loss where the count is so many times the right one.
        over_processes: the sum over all processes, so that they decide the same.

    Returns:
        None where the loss is 0, as of rows without labels: it is not known yet.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    losses = []
    try:
        for times in (1, 1024, 1):
            with torch.no_grad(), _random_numbers_kept(model):
                losses.append(loss_with(times).detach().float().mean())
    finally:
        # Up to torch 2.6 at least, autocast keeps casts of weights made without a graph, which would get no gradient.
        torch.clear_autocast_cache()
        for module, mode in modes:
            module.training = mode
    once, many, again = over_processes(torch.stack(losses).nan_to_num()).tolist()
    if once == 0:
        return None
    # Some of it may not be divided, as a penalty beside it. Random numbers from elsewhere move a loss a little anyhow.
    steady = abs(once - again) <= 1e-6 * abs(once)
    return bool(abs(once - many) > 1e-3 * abs(once) if steady else abs(many) < 0.5 * abs(once))


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """What is drawn inside is drawn again after it."""
    numpy: Any = sys.modules.get("numpy")  # torch comes without it, too
    before = random.getstate(), numpy and numpy.random.get_state()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(before[0])
        if numpy:
            numpy.random.set_state(before[1])
