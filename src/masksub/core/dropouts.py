"""DropSub: dropout in the sub branch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .batch_norm import BatchNorm
from .branches import Branch, RateBranch
from .intercept import swapped
from .packaged import load_packaged
from .wrappers import unwrap

__all__ = ["DropSub", "dropout_sites", "register_dropouts"]

_SITES: dict[str, tuple[str, ...]] = {}
_STAND_INS: weakref.WeakKeyDictionary[nn.Module, nn.Dropout] = weakref.WeakKeyDictionary()
"""By place that holds nothing: what stands there in the branch, the same at each step."""


def register_dropouts(kinds: Mapping[str, tuple[str, ...]]) -> None:
    """Name the dropouts on the outputs of attention and MLP.

    Args:
        kinds: by the qualified name of a class, or "" for any class: paths, from there, of its dropouts. Those that a
            version of the library doesn't have are passed over.
    """
    _SITES.update(kinds)


def dropout_sites(model: nn.Module) -> list[str]:
    """Paths of the dropouts on the outputs of attention and MLP, whatever their rate is."""
    load_packaged()
    found = []
    for path, module in model.named_modules():
        names = list(_SITES.get("", ()))
        for kind in type(module).__mro__:
            names += _SITES.get(f"{kind.__module__}.{kind.__qualname__}", ())
        for name in dict.fromkeys(names):
            try:
                site = module.get_submodule(name)
            except AttributeError:
                continue
            if isinstance(site, (_DropoutNd, nn.Identity)):  # some hold nothing at rate 0
                found.append(f"{path}.{name}" if path else name)
    return list(dict.fromkeys(found))


class DropSub(RateBranch):
    """Dropout on the outputs of attention and MLP, in the sub branch only (DropSub, arXiv 2306.11339).

    Within the branch ``p`` stands in place of the recipe's own rates there, also where these are 0. What is dropped is
    drawn from the global generator of the device, as dropout does.

    Args:
        p: probability that a value is dropped, 0 <= p < 1. May be changed between steps.
        bn: batch-norm statistics, see ``Branch``.

    Raises:
        ValueError: p out of range; when applied: the model has no such dropout.
    """

    def __init__(self, p: float = 0.1, *, bn: BatchNorm = "shared") -> None:
        super().__init__(p, bn)

    def __repr__(self) -> str:
        return f"DropSub(p={self.p}, bn={self.bn!r})"

    @contextmanager
    def _changed(
        self, model: nn.Module, keep: Tensor | None, generator: torch.Generator | None, beside: Sequence[Branch]
    ) -> Iterator[None]:
        if keep is not None and not beside:
            raise ValueError(f"keep was given, but {self!r} masks nothing")
        inner = unwrap(model)
        sites = dropout_sites(inner)
        if not sites:
            raise ValueError(
                f"{self!r} changes nothing: {type(inner).__name__} has no dropout on the outputs of attention or MLP "
                f"that masksub knows (see masksub.adapters.residuals)"
            )
        with ExitStack() as stack:
            for path in sites:
                site = inner.get_submodule(path)
                if isinstance(site, nn.Identity):
                    owner, _, name = path.rpartition(".")
                    stand_in = _STAND_INS.setdefault(site, nn.Dropout())
                    stack.enter_context(swapped(inner.get_submodule(owner), name, stand_in))
                    site = stand_in
                stack.enter_context(swapped(site, "p", self.p))
                stack.enter_context(swapped(site, "training", True))
            yield
