"""Telling a user that a model is masked in pixels while tokens inside of it could be dropped."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import nn

from .adapter import find_adapter
from .dropping import TokenDrop

__all__ = ["hint", "hint_once", "without_hint"]

_SEEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that have been looked at: the search is not for each step."""


def hint(model: nn.Module) -> str | None:
    """Names the part of a model whose tokens could be dropped, and the line that does it; None if there is none.

    Args:
        model: unwrapped, masked in pixels.
    """
    parts: list[tuple[str, nn.Module]] = []
    for path, part in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in parts)
        if path and not inside and find_adapter(part).how == "drop":
            parts.append((path, part))
    if not parts:
        return None
    path, part = parts[0]
    text = f"{path} is a {type(part).__qualname__}, whose tokens could be dropped"
    place, adapter = None, find_adapter(part)
    # With several, one would be masked and the others not; an overlapping stem would be left as it is.
    if len(parts) == 1 and isinstance(adapter, TokenDrop) and not adapter.overlapping(part):
        place = adapter.token_module(part)
    if place is None:
        return f"{text}, but one name does not say how; see 'A model of your own' in the documentation"
    tokens, prefix = f"{path}.{place}", adapter.prefix(part)
    return f"{text} by masksub.register({type(model).__qualname__}, tokens={tokens!r}, prefix={prefix})"


def hint_once(model: nn.Module) -> None:
    """Warn, the first time that a model is masked in pixels while it need not be."""
    if torch.compiler.is_compiling() or model in _SEEN:
        return
    _SEEN.add(model)
    if (text := hint(model)) is not None:
        warnings.warn(
            f"{type(model).__qualname__} is masked in pixels, and its sub branch costs as much as its main branch: "
            f"{text}",
            stacklevel=2,
        )


def without_hint(model: nn.Module) -> nn.Module:
    """The model, a copy for trials, of which nothing is to be said."""
    _SEEN.add(model)
    return model
