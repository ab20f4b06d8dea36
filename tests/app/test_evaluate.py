"""Against scikit-learn and the definition. If these fail, the reported figures are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from masksub.app.evaluate import BINS, evaluate


class Table(nn.Module):
    """Answers with given logits; the input is the row number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.drop = nn.Dropout(0.5)

    def forward(self, rows: Tensor) -> Tensor:
        return self.drop(self.logits[rows])


def example(images: int = 203, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (images,), generator=generator)
    logits = 2 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), y] += 1.5
    return logits, y


def batches(y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    rows = torch.arange(len(y))
    return list(zip(rows.split(size), y.split(size)))


@pytest.mark.parametrize("size", [203, 64, 1])
def test_against_scikit_learn_whatever_the_batch_size(size: int) -> None:
    logits, y = example()
    model = Table(logits).train()
    result = evaluate(model, batches(y, size))
    probabilities = logits.double().softmax(1).numpy()
    assert result["top1"] == pytest.approx(100 * top_k_accuracy_score(y.numpy(), probabilities, k=1))
    assert result["top5"] == pytest.approx(100 * top_k_accuracy_score(y.numpy(), probabilities, k=5))
    assert result["loss"] == pytest.approx(log_loss(y.numpy(), probabilities), rel=1e-5)
    assert result["images"] == 203
    assert model.training, "the model must be in training mode again"


def test_calibration_error_by_its_definition() -> None:
    logits, y = example()
    probabilities = logits.double().softmax(1).numpy()
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == y.numpy()
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence >= low) & (confidence < low + 1 / BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert evaluate(Table(logits), batches(y, 50))["calibration_error"] == pytest.approx(100 * expected, rel=1e-4)


def test_sigmoid_loss_and_no_top5_for_few_classes() -> None:
    logits, y = example(classes=4)
    result = evaluate(Table(logits), batches(y, 50), kind="sigmoid")
    expected = nn.functional.binary_cross_entropy_with_logits(logits, nn.functional.one_hot(y, 4).float())
    assert result["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "top5" not in result


def test_parts_add_up_over_processes() -> None:
    logits, y = example()
    parts = []
    for rank in range(2):
        evaluate(Table(logits), batches(y, 30)[rank::2], reduce=lambda sums: parts.append(sums) or sums)
    result = evaluate(Table(logits), batches(y, 30)[:1], reduce=lambda _: parts[0] + parts[1])
    assert result == pytest.approx(evaluate(Table(logits), batches(y, 203)))


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(Table(example()[0]), [])
