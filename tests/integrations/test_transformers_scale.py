"""Losses of the user's own: how large the sub loss is beside them. If these fail, one branch drowns the other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from masksub import MaskSub, TwoBranchStep
from masksub.core.seeds import MasksOfUpdates
from masksub.core.watching import is_divided
from tests.integrations.hf_trainers import Gradients, Ours, arguments, hf_vit, rows
from tests.integrations.reference import SEED, Batches, batches, build, same_weights, trained


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 5).float())


def soft(data: Batches) -> Batches:
    """Labels as a mixup collator makes them."""
    return [(x, F.one_hot(y, 5) * 0.9 + 0.02) for x, y in data]


def own(criterion: Any) -> Any:
    """A Trainer with a mean as its loss; the model is called without labels."""

    class Own(Ours):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = criterion(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    return Own


def first(data: Batches, model: nn.Module, criterion: Any, target: Any, accumulation: int = 1) -> Any:
    """The core's gradients of the first update, with its own dropout."""
    step = TwoBranchStep(model.train(), criterion, sub=MaskSub(0.5), target=target)
    torch.manual_seed(SEED)
    masks = MasksOfUpdates(SEED)
    for x, y in data:
        step(x, y, generator=masks(0), backward=lambda loss: (loss / accumulation).backward())
    return {name: p.grad for name, p in model.named_parameters()}


LOSSES: dict[str, tuple[Any, Any, str]] = {
    "cross-entropy of soft labels": (soft, F.cross_entropy, "softmax"),
    "binary cross-entropy of class numbers": (list, binary, "sigmoid"),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what", LOSSES)
def test_a_mean_of_one_s_own(what: str, accumulation: int, tmp_path: Path) -> None:
    """``num_items_in_batch`` is B C or B, the mean over B or B C: the sub loss would be 5 times too small or large."""
    labels, criterion, target = LOSSES[what]
    data, seen = labels(batches(accumulation)), Gradients()
    args = arguments(tmp_path, gradient_accumulation_steps=accumulation)
    trainer = own(criterion)(model=hf_vit(), args=args, train_dataset=rows(data), target=target, callbacks=[seen])
    if accumulation == 1:
        trainer.train()
    else:
        with pytest.warns(UserWarning, match="takes the mean over micro-batches"):
            trainer.train()
    expected = first(data, hf_vit(), criterion, target, accumulation)
    torch.testing.assert_close(seen.seen[0], expected, rtol=1e-5, atol=1e-7)


def test_a_mean_as_compute_loss_func(tmp_path: Path) -> None:
    data, seen = soft(batches(1)), Gradients()

    def mean(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        return F.cross_entropy(outputs.logits, labels)

    Ours(model=hf_vit(), args=arguments(tmp_path), train_dataset=rows(data), target="softmax", callbacks=[seen],
         compute_loss_func=mean).train()  # fmt: skip
    expected = first(data, hf_vit(), F.cross_entropy, "softmax")
    torch.testing.assert_close(seen.seen[0], expected, rtol=1e-5, atol=1e-7)


def test_a_first_part_without_labels_decides_nothing(tmp_path: Path) -> None:
    """Its loss is 0 however it is divided; the next part tells that it is a mean."""
    data, seen = batches(4), Gradients()
    data[0][1][:] = -100

    def of_labelled(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum") / (labels != -100).sum().clamp(min=1)

    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = own(of_labelled)(model=hf_vit(), args=args, train_dataset=rows(data), target="softmax", callbacks=[seen])
    with pytest.warns(UserWarning, match="takes the mean over micro-batches"):
        trainer.train()
    expected = hf_vit()
    step = TwoBranchStep(expected.train(), F.cross_entropy, sub=MaskSub(0.5))
    masks = MasksOfUpdates(SEED)
    step(*data[0], generator=masks(0), backward=lambda _: None)  # draws its masks, too
    step(*data[1], generator=masks(0), backward=lambda loss: (loss / 2).backward())
    torch.testing.assert_close(
        seen.seen[0], {name: p.grad for name, p in expected.named_parameters()}, rtol=1e-5, atol=1e-7
    )


class Normalised(nn.Module):
    """A ViT behind a batch norm, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.vit = hf_vit(hidden_dropout_prob=0.1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        return self.vit(self.norm(pixel_values), labels=labels, **kwargs)


class Noisy(Ours):
    """Draws at random in the loss, as mixup does."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        noise = random.random() + np.random.random() + torch.randn_like(inputs["pixel_values"])
        inputs["pixel_values"] = inputs["pixel_values"] + noise
        self.drawn.append(float(noise.sum()))
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_finding_out_leaves_no_trace(tmp_path: Path) -> None:
    """Dropout and batch-norm statistics are those of the core, where nothing is found out."""
    torch.manual_seed(0)
    models = [Normalised(), Normalised()]
    models[1].load_state_dict(models[0].state_dict())
    data = batches(2)

    class Seeded(Gradients):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            torch.manual_seed(SEED)

    seen = Seeded()
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    Ours(model=models[0], args=args, train_dataset=rows(data), callbacks=[seen]).train()
    expected = first(data, models[1], F.cross_entropy, "softmax", 2)
    torch.testing.assert_close(seen.seen[0], expected, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(models[0].buffers(), models[1].buffers()):
        torch.testing.assert_close(ours, theirs)


def test_finding_out_draws_what_is_drawn_again(tmp_path: Path) -> None:
    """Else a loss that draws at random would seem divided, or what comes after would be drawn otherwise."""
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = Noisy(model=hf_vit(), args=args, train_dataset=rows(batches(2)), target="softmax")
    trainer.drawn = []
    with pytest.warns(UserWarning, match="takes the mean over micro-batches"):
        trainer.train()
    assert len(trainer.drawn) == 3 + 2 and len(set(trainer.drawn)) == 2
    assert len(set(trainer.drawn[:4])) == 1


def test_nothing_is_found_out_where_it_does_not_matter(tmp_path: Path) -> None:
    """One micro-batch an update, on one process, with a class number for each row: the mean is the divided sum."""
    trainer = Noisy(model=hf_vit(), args=arguments(tmp_path), train_dataset=rows(batches(3)), target="softmax")
    trainer.drawn = []
    trainer.train()
    assert len(trainer.drawn) == 3


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("beside", ["nothing", "a penalty", "random numbers of its own"])
def test_whether_a_loss_is_divided(beside: str, divided: bool) -> None:
    """A mean taken for a divided loss, or the other way round, scales the sub branch wrongly."""
    model, generator = nn.Linear(3, 5), torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3), torch.arange(8) % 5

    def loss_with(times: int) -> Tensor:
        loss = F.cross_entropy(model(x), y, reduction="sum") / (8 * times if divided else 8)
        if beside == "a penalty":
            return loss + 3 * model.weight.square().sum()
        return loss * (1 + 0.3 * torch.rand((), generator=generator)) if "random" in beside else loss

    assert is_divided(model, loss_with, lambda losses: losses) is divided
    assert is_divided(model, lambda times: torch.zeros(()), lambda losses: losses) is None


@pytest.mark.skipif(not hasattr(hf.Trainer, "loss_is_scaled_for_ga"), reason="older transformers don't ask")
def test_what_a_trainer_says_of_its_loss_is_heeded(tmp_path: Path) -> None:
    """``loss_is_scaled_for_ga = False``: a mean, nothing is found out, and no warning."""
    data, model = batches(2), hf_vit()
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = own(F.cross_entropy)(model=model, args=args, train_dataset=rows(data), target="softmax")
    trainer.loss_is_scaled_for_ga = False
    trainer.train()
    same_weights(model, trained(data, updates=1, accumulation=2, model=hf_vit()))


@pytest.mark.skipif(not hasattr(hf.Trainer, "loss_is_scaled_for_ga"), reason="older transformers don't ask")
def test_a_loss_that_divides_by_the_parts_itself(tmp_path: Path) -> None:
    """``loss_is_scaled_for_ga = True``, and the model takes no count: the sub loss is divided by the parts, too."""
    data, model = batches(4), hf_vit()
    model.accepts_loss_kwargs = False

    class Own(Ours):
        loss_is_scaled_for_ga = True

        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs)
            loss = outputs.loss / self.current_gradient_accumulation_steps
            return (loss, outputs) if return_outputs else loss

    args = arguments(tmp_path, gradient_accumulation_steps=2)
    Own(model=model, args=args, train_dataset=rows(data), target="softmax").train()
    same_weights(model, trained(data, updates=2, accumulation=2, model=hf_vit()))


def test_rows_without_label_where_the_model_knows_no_labels(tmp_path: Path) -> None:
    """``label_names`` is empty then; the sub branch leaves out the rows labelled -100 all the same."""
    (x, y), seen = batches(1)[0], Gradients()
    y[:4] = -100

    def divided(outputs: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="sum") / num_items_in_batch

    args = arguments(tmp_path, label_names=None, remove_unused_columns=False)
    Ours(model=build(), args=args, train_dataset=rows([(x, y)], "x"), target="softmax", callbacks=[seen],
         compute_loss_func=divided).train()  # fmt: skip
    expected = build().train()

    def labelled(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits[4:], target[4:])

    step = TwoBranchStep(expected, F.cross_entropy, sub=MaskSub(0.5), sub_criterion=labelled)
    step(x, y, generator=MasksOfUpdates(SEED)(0))
    torch.testing.assert_close(
        seen.seen[0], {name: p.grad for name, p in expected.named_parameters()}, rtol=1e-5, atol=1e-7
    )
