"""A model of the user's own: the user names the module after which tokens can be dropped."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from masksub.core.adapter import Grid, patch_grid, registered
from masksub.core.adapter import register as register_adapter
from masksub.core.adapter import unregister as unregister_adapter
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.residual import bare_copy, trial_call

__all__ = ["NamedTokens", "register", "unregister"]


class _ReachedError(Exception):
    """The tokens have been seen; the rest of the forward is of no interest."""


class NamedTokens(TokenDrop):
    """Tokens dropped from the result of a named module. Arguments as for ``register``."""

    def __init__(self, model_class: type[nn.Module], tokens: str, prefix: int, patch: int | None) -> None:
        super().__init__()
        self.model_class, self.tokens, self.patch, self._prefix = model_class, tokens, patch, prefix
        self.name = f"{model_class.__name__}, registered"
        self.where = f"after {tokens}"
        self._lengths: weakref.WeakKeyDictionary[nn.Module, dict[tuple[tuple[int, ...], int], int]] = (
            weakref.WeakKeyDictionary()
        )

    def matches(self, model: nn.Module) -> bool:
        """True for the registered class and its subclasses."""
        return isinstance(model, self.model_class)

    def why(self, model: nn.Module) -> str:
        """The user says so."""
        return f"registered: tokens can be dropped after {self.tokens}"

    def prefix(self, model: Any) -> int:
        """As registered."""
        return self._prefix

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """As many units as the named module gives tokens for such an input, but for the prefix.

        Raises:
            ValueError: the module gives no tokens (B, N, D), or not as many as the patch size says.
        """
        self._check(model)
        units = self._length(model, call) - self._prefix
        if units < 1:
            raise ValueError(
                f"{self.tokens} of {type(model).__name__} gives {units + self._prefix} tokens, prefix = "
                f"{self._prefix}: nothing is left to mask"
            )
        if self.patch is None:
            if unit is not None:
                raise ValueError(
                    f"unit = {unit} px: {type(model).__name__} was registered without a patch size; pass patch= to "
                    f"masksub.register, or leave unit out"
                )
            return Grid(1, units)
        rows, cols = call.x.shape[-2] // self.patch, call.x.shape[-1] // self.patch
        if rows * cols != units:
            raise ValueError(
                f"patch = {self.patch} px gives {rows} x {cols} patches, but {self.tokens} of {type(model).__name__} "
                f"gives {units} tokens after a prefix of {self._prefix}"
            )
        return patch_grid(call.x, (rows, cols), (self.patch, self.patch), unit)

    def token_module(self, model: Any) -> str:
        """As registered."""
        return self.tokens

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of the named module.

        Raises:
            ValueError: there is no such module.
        """
        self._check(model)
        return (drop_after(self.tokens, choice),)

    def _length(self, model: nn.Module, call: Call) -> int:
        """Tokens for such an input, found once as long as the sizes of the weights stay."""
        known = self._lengths.setdefault(model, {})
        key = (tuple(call.x.shape[1:]), sum(p.numel() for p in model.parameters()))
        if key not in known:
            known[key] = _count_tokens(model, self.tokens, call)
        return known[key]

    def _check(self, model: nn.Module) -> None:
        if self.tokens not in (known := dict(model.named_modules())):
            children = ", ".join(name for name in known if name and "." not in name)
            raise ValueError(f"tokens = {self.tokens!r}: {type(model).__name__} has no such module; it has {children}")


def _count_tokens(model: nn.Module, path: str, call: Call) -> int:
    """Run a copy up to the module: on shapes alone, or where the model looks at values, on those of the call."""
    seen: list[Any] = []

    def see(_: nn.Module, __: Any, result: Any) -> None:
        seen.append(result)
        raise _ReachedError

    for meta in (True, False):
        bare, trial = bare_copy(model, meta=meta), trial_call(call, meta=meta)
        bare.get_submodule(path).register_forward_hook(see)
        try:
            with torch.no_grad():
                bare(*trial.args, **trial.kwargs)
        except _ReachedError:
            pass
        except (RuntimeError, NotImplementedError):
            if meta and not call.x.is_meta:
                continue
            raise
        break
    result = seen[0] if seen else None
    if not isinstance(result, Tensor) or result.ndim != 3:
        what = f"of shape {tuple(result.shape[1:])} each" if isinstance(result, Tensor) else type(result).__name__
        told = f"its result is {what}, not tokens (B, N, D)" if seen else "the forward never calls it"
        raise ValueError(f"tokens = {path!r}: {told}")
    return int(result.shape[1])


def register(model_class: type[nn.Module], *, tokens: str, prefix: int = 0, patch: int | None = None) -> None:
    """Say where a model of your own can have its tokens dropped. Once, after the class is defined.

    What comes after the named module must take any number of tokens, and must have no table of positions that goes by
    the place in the sequence: absolute position embeddings are to be added before; for rotary or relative ones write
    an adapter.

    Args:
        model_class: the class; its subclasses are meant too. Registering it again replaces what was said before.
        tokens: path of the module whose result is (B, N, D), as ``model.get_submodule`` takes it.
        prefix: number of class or register tokens at the front, never dropped.
        patch: side of a patch in pixels, for square patches in row-major order; needed only for ``MaskSub(unit=...)``.

    Raises:
        TypeError: not a class of modules.
        ValueError: a value out of range.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise TypeError(f"model_class = {model_class!r}: give the class, a subclass of torch.nn.Module")
    if prefix < 0 or (patch is not None and patch < 1):
        raise ValueError(f"prefix = {prefix!r}, patch = {patch!r}: prefix is 0 or more, patch 1 or more")
    unregister(model_class)
    register_adapter(NamedTokens(model_class, tokens, prefix, patch))


def unregister(model_class: type[nn.Module]) -> None:
    """Take back ``register``; nothing happens if there is nothing to take back."""
    for adapter in registered():
        if isinstance(adapter, NamedTokens) and adapter.model_class is model_class:
            unregister_adapter(adapter)
