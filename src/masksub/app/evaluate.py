"""Accuracy, loss and calibration of a classifier. Nothing is ever masked here.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["evaluate"]

BINS = 15
"""Bins of the expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    kind: str = "softmax",
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, float]:
    """Evaluate on all batches; sums are exact whatever the batches' sizes.

    The model is put in eval mode and back.

    Args:
        model: classifier, output (B, C).
        batches: pairs (x, y), y integer labels.
        kind: how logits become probabilities: "softmax", or "sigmoid" for BCE recipes.
        reduce: adds up a tensor over processes; the identity for one.
        autocast: context of each forward.

    Returns:
        top1 and top5 in percent (top5 only with more than 5 classes), loss (mean cross-entropy, or mean binary
        cross-entropy for "sigmoid"), calibration_error in percent (15 equal bins of confidence), images.
    """
    training = model.training
    model.eval()
    # A process may have no image where there are few, and must take part in the reduction.
    sums = torch.zeros(4 + 2 * BINS, dtype=torch.float64)
    classes = 0
    try:
        for x, y in batches:
            with autocast():
                output = model(x)
            # Sums are kept in double precision on the CPU: not every accelerator has it.
            logits = getattr(output, "logits", output).float().cpu()
            classes = logits.shape[1]
            sums += _sums(logits, y.cpu(), kind)
    finally:
        model.train(training)
    images, top1, top5, loss, *bins = reduce(sums).tolist()
    if not images:
        raise ValueError("there are no images to evaluate")
    confidence, correct = bins[:BINS], bins[BINS:]
    result = {"top1": 100 * top1 / images, "loss": loss / images}
    if classes > 5:
        result["top5"] = 100 * top5 / images
    result["calibration_error"] = 100 * sum(abs(a - b) for a, b in zip(confidence, correct)) / images
    result["images"] = int(images)
    return result


def _sums(logits: Tensor, y: Tensor, kind: str) -> Tensor:
    """Images, correct in first and first five places, loss, and by bin the sums of confidence and of correct ones."""
    if kind == "sigmoid":
        labels = F.one_hot(y, logits.shape[1]).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1).sum()
        probabilities = logits.sigmoid()
    else:
        loss = F.cross_entropy(logits, y, reduction="sum")
        probabilities = logits.softmax(dim=1)
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = first == y.unsqueeze(1)
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == y).double()
    confidence = confidence.nan_to_num(0.0)  # logits that are no numbers show in the loss
    place = (confidence * BINS).long().clamp_(max=BINS - 1)
    zeros = torch.zeros(BINS, dtype=torch.float64)
    head = torch.stack([torch.tensor(float(len(y))), hits[:, 0].sum(), hits.sum(), loss]).double()
    return torch.cat([head, zeros.index_add(0, place, confidence.double()), zeros.index_add(0, place, correct)])
