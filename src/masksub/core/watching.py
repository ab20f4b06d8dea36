"""What a training step of somebody else did with a model: its calls, and the graph that its loss has.

For trainers that have no place for two branches: the one that is there is watched, and the other follows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["calls_seen", "graph"]


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
