"""Accuracy of a model on masked images, and how far its masked output is from the whole one.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksub.app.evaluate import evaluate
from masksub.core.branches import MaskSub
from masksub.core.loss import TargetKind
from masksub.core.seeds import generator

from .branch_gradients import evaluating, spread

__all__ = ["divergence", "masked_accuracy"]


class _Recording(nn.Module):
    """A model whose outputs are kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        self.outputs.append(output.detach().float().cpu())
        return output


def masked_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    ratios: Sequence[float],
    *,
    unit: int | None,
    kind: TargetKind,
    seed: int,
    draws: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate at several mask ratios, in eval mode, the images masked as the model's adapter masks them.

    Args:
        model: classifier, output (B, C); left as it is.
        batches: pairs (x, y), y integer labels; gone through several times.
        ratios: 0 <= ratio < 1; the first is 0, the whole image.
        unit: side in pixels of what is masked as one, as for ``MaskSub``.
        kind: "softmax" or "sigmoid", how logits become probabilities.
        seed: of the masks; they depend on the ratio and the draw too, not on the device.
        draws: sets of masks at each ratio above 0.
        progress: called with (done, total) passes over the images.

    Returns:
        For each ratio: ratio, draws, top1_percent, agreement_percent (images whose most probable class is that of the
        whole image) and kl (mean KL(whole || masked), see ``divergence``), each as by ``spread`` over draws; loss and
        calibration_error_percent, means over draws. At ratio 0 they are those of ``evaluate``, exactly.
    """
    assert ratios[0] == 0
    whole: Tensor | None = None
    points: list[dict[str, Any]] = []
    total = 1 + draws * (len(ratios) - 1)
    done = 0
    for ratio in ratios:
        seen: dict[str, list[float]] = {key: [] for key in ("top1", "loss", "calibration_error", "agreement", "kl")}
        for draw in range(draws if ratio > 0 else 1):
            recording = _Recording(model)
            masks = generator(seed, "analyze", "evaluation masks", repr(ratio), draw)
            with evaluating(model), MaskSub(ratio, unit=unit).applied(model, generator=masks):
                result = evaluate(recording, batches, kind=kind)
            logits = torch.cat(recording.outputs)
            whole = logits if whole is None else whole
            same = whole.argmax(dim=1) == logits.argmax(dim=1)
            result.update(agreement=100 * float(same.double().mean()), kl=divergence(whole, logits, kind))
            for key, values in seen.items():
                values.append(result[key])
            done += 1
            if progress is not None:
                progress(done, total)
        points.append(
            {
                "ratio": ratio,
                "draws": len(seen["top1"]),
                "top1_percent": spread(seen["top1"]),
                "agreement_percent": spread(seen["agreement"]),
                "kl": spread(seen["kl"]),
                "loss": spread(seen["loss"])["mean"],
                "calibration_error_percent": spread(seen["calibration_error"])["mean"],
            }
        )
    return points


def divergence(main: Tensor, sub: Tensor, kind: TargetKind) -> float:
    """Mean KL(main || sub) over images, in nats.

    Args:
        main: logits (N, C).
        sub: logits (N, C).
        kind: "softmax"; or "sigmoid", where each class is a distribution of its own and the mean goes over classes too,
            as in the loss.
    """
    main, sub = main.double(), sub.double()
    if kind == "softmax":
        return float(F.kl_div(sub.log_softmax(1), main.log_softmax(1), log_target=True, reduction="batchmean"))
    present = F.kl_div(F.logsigmoid(sub), F.logsigmoid(main), log_target=True, reduction="none")
    absent = F.kl_div(F.logsigmoid(-sub), F.logsigmoid(-main), log_target=True, reduction="none")
    return float((present + absent).mean())
