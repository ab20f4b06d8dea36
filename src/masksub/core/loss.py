"""The relaxed target and the sub branch's loss (paper, section 3.2).

Shape letters: B batch, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TargetKind", "relaxed_target", "soft_loss", "soft_loss_like"]

TargetKind = Literal["softmax", "sigmoid"]
Reduction = Literal["mean", "sum", "sum-classes"]


def relaxed_target(logits: Tensor, kind: TargetKind) -> Tensor:
    """The main branch's own output as a target that carries no gradient.

    Args:
        logits: (B, C), any floating type.
        kind: "softmax" for cross-entropy recipes, "sigmoid" for binary cross-entropy recipes.

    Returns:
        (B, C) probabilities, detached, in float32 (float64 for float64 logits).

    Raises:
        ValueError: another kind, or logits that are not (B, C).
    """
    _check_logits(logits)
    if kind == "softmax":
        return _full_precision(logits.detach()).softmax(dim=-1)
    if kind == "sigmoid":
        return _full_precision(logits.detach()).sigmoid()
    raise ValueError(f"kind = {kind!r}: a relaxed target is 'softmax' or 'sigmoid'")


def soft_loss(logits: Tensor, target: Tensor, kind: TargetKind, reduction: Reduction = "mean") -> Tensor:
    """Plain (binary) cross-entropy against soft targets: no label smoothing, no threshold, no class weights.

    Args:
        logits: (B, C).
        target: (B, C) probabilities.
        kind: "softmax": cross-entropy; "sigmoid": binary cross-entropy of each class.
        reduction: "mean" over rows (and classes for "sigmoid"); "sum" over all; "sum-classes" ("sigmoid" only): sum
            over classes, mean over rows.

    Returns:
        Scalar in at least float32.
    """
    _check_logits(logits)
    logits = _full_precision(logits)
    if kind == "softmax":
        return F.cross_entropy(logits, target, reduction="sum" if reduction == "sum" else "mean")
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if reduction == "sum":
        return loss.sum()
    return loss.sum(dim=-1).mean() if reduction == "sum-classes" else loss.mean()


def soft_loss_like(criterion: Callable[..., Any]) -> tuple[TargetKind, Callable[[Tensor, Tensor], Tensor]]:
    """The relaxed target and the plain soft loss that go with a main branch's criterion.

    Both losses are averaged the same way, so that ``weight`` means what it says. Known: torch's cross-entropy and BCE
    with logits (modules and functions), timm's LabelSmoothingCrossEntropy, SoftTargetCrossEntropy and
    BinaryCrossEntropy. A subclass with a forward of its own is another criterion and is refused.

    Returns:
        The kind of target, and a function ``(sub_logits, target) -> scalar``.

    Raises:
        ValueError: the criterion is not known, or weighs classes; the message says what to pass instead.
    """
    described = _describe(criterion)
    if isinstance(described, str):
        raise ValueError(
            f"target='auto' {described}. Pass target='softmax' (or 'sigmoid') for the plain soft loss, averaged over "
            f"the batch, or target= and sub_criterion=, a function (sub_logits, target) -> scalar"
        )
    kind, reduction = described
    return kind, functools.partial(soft_loss, kind=kind, reduction=reduction)


def _describe(criterion: Callable[..., Any]) -> tuple[TargetKind, Reduction] | str:
    """Kind and reduction of a known criterion, or why it is not known."""
    keywords: dict[str, Any] = {}
    while isinstance(criterion, functools.partial):
        keywords = {**criterion.keywords, **keywords}
        criterion = criterion.func
    name = _KNOWN.get(_origin(criterion))
    if name is None:
        return f"does not know the criterion {criterion!r}"

    def setting(key: str, default: Any = None) -> Any:
        return keywords.get(key, getattr(criterion, key, default))

    if setting("weight") is not None or setting("pos_weight") is not None:
        return f"does not carry the class weights of {criterion!r} over to the sub branch"
    if setting("sum_classes", False):
        return name, "sum-classes"
    if keywords.keys() & {"size_average", "reduce"}:
        return f"does not know the old size_average and reduce of {criterion!r}; say reduction="
    reduction = setting("reduction", "mean")
    if reduction not in ("mean", "sum"):
        return f"needs a criterion that returns one number, not reduction={reduction!r}"
    return name, reduction


_KNOWN: dict[str, TargetKind] = {
    "torch.nn.modules.loss.CrossEntropyLoss": "softmax",
    "torch.nn.functional.cross_entropy": "softmax",
    "timm.loss.cross_entropy.LabelSmoothingCrossEntropy": "softmax",
    "timm.loss.cross_entropy.SoftTargetCrossEntropy": "softmax",
    "torch.nn.modules.loss.BCEWithLogitsLoss": "sigmoid",
    "torch.nn.functional.binary_cross_entropy_with_logits": "sigmoid",
    "timm.loss.binary_cross_entropy.BinaryCrossEntropy": "sigmoid",
}


def _origin(criterion: Callable[..., Any]) -> str:
    """Where the formula of a criterion is written: the class that defines its forward, or the function."""
    if isinstance(criterion, nn.Module):
        for cls in type(criterion).__mro__:
            if "forward" in vars(cls):
                return f"{cls.__module__}.{cls.__qualname__}"
    if hasattr(criterion, "__wrapped__"):
        return ""  # carries the name of what it wraps, and is another formula
    return f"{getattr(criterion, '__module__', '')}.{getattr(criterion, '__qualname__', '')}"


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; a classifier's logits are (batch, classes)")


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
