"""Trainers of the user's own, and what is refused. If these fail, own code is skipped, or runs wrong silently."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import masksub.integrations.transformers as integration
from masksub import CoSub, MaskSub, TwoBranchStep
from masksub.core.seeds import MasksOfUpdates
from masksub.integrations.transformers import MaskSubMixin, MaskSubTrainer
from tests.integrations.hf_trainers import InOrder, Ours, arguments, divided, hf_vit, rows
from tests.integrations.reference import LEARNING_RATE, SEED, batches, same_weights


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0]))


class Own:
    """What a user wrote for the Trainer: a column that training_step takes out, class weights, a mean as the loss."""

    losses = 0
    steps = 0

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        self.steps += 1
        assert inputs.pop("importance").shape == (8,)
        return super().training_step(model, inputs, *args)  # type: ignore[misc, no-any-return]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        self.losses += 1
        inputs.pop("importance", None)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class Before(MaskSubMixin, Own, InOrder):  # type: ignore[misc]  # training_step takes *args
    """The mixin put before a Trainer with these methods."""


class Derived(Own, Ours):  # type: ignore[misc]
    """These methods in a class derived from ours."""


@pytest.mark.parametrize(("way", "steps"), [(Before, 8), (Derived, 4)])
def test_own_methods_keep_their_meaning(way: Any, steps: int, tmp_path: Path) -> None:
    """compute_loss is the main loss alone, wherever it is defined; a mean is taken as one with accumulation."""
    data, model = batches(4), hf_vit()
    table = [{**row, "importance": torch.tensor(1.0)} for row in rows(data)]
    args = arguments(tmp_path, gradient_accumulation_steps=2, remove_unused_columns=False)
    trainer = way(model=model, args=args, train_dataset=table, target="softmax")
    told = rf"of {way.__name__}.compute_loss is not divided .* takes the mean over micro-batches"
    with pytest.warns(UserWarning, match=told):
        trainer.train()
    # Three calls more find out once that the loss is a mean.
    assert (trainer.steps, trainer.losses) == (steps, 4 + 3)
    expected, masks = hf_vit().train(), MasksOfUpdates(SEED)
    step = TwoBranchStep(expected, weighted, sub=MaskSub(0.5), target="softmax")
    optimizer = torch.optim.SGD(expected.parameters(), lr=LEARNING_RATE)
    for number, (x, y) in enumerate(data):
        step(x, y, generator=masks(number // 2), backward=lambda loss: (loss / 2).backward())
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    same_weights(model, expected)


def test_names_of_one_s_own(tmp_path: Path) -> None:
    """``self.weight`` is free for class weights; an argument of that name behind the mixin would never arrive."""

    class Kept(Ours):
        def __init__(self, *args: Any, class_weights: Tensor, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.weight = self.target = class_weights

    trainer = Kept(
        model=hf_vit(), args=arguments(tmp_path), train_dataset=rows(batches(1)), class_weights=torch.ones(5)
    )
    trainer.train()
    assert trainer.sub_weight == 0.5

    class Weighted(InOrder):
        def __init__(self, *args: Any, weight: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    with pytest.raises(TypeError, match=r"Weighted.__init__ has the argument 'weight'"):

        class Mixed(MaskSubMixin, Weighted):
            pass


def test_the_mixin_comes_first() -> None:
    """In the other order the Trainer would never ask it, and train plainly."""
    with pytest.raises(TypeError, match=r"class Wrong\(MaskSubMixin, InOrder\)"):

        class Wrong(InOrder, MaskSubMixin):
            pass


def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(outputs.logits, labels)


class TwoCalls(Ours):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        model(**inputs)
        return super().compute_loss(model, inputs, return_outputs=return_outputs)


class Adversarial(InOrder):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        super().training_step(model, dict(inputs), *args)
        return super().training_step(model, dict(inputs), *args)


class MixedAdversarial(MaskSubMixin, Adversarial):  # type: ignore[misc]  # training_step takes *args
    pass


class NoStep(Ours):
    def training_step(self, model: nn.Module, inputs: Any, *_: Any) -> Tensor:
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach()


class Passing(Ours):
    """A binary cross-entropy, although the labels go to the model, which then takes its problem for another."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        loss = F.binary_cross_entropy_with_logits(outputs.logits, F.one_hot(inputs["labels"], 5).float())
        return (loss, outputs) if return_outputs else loss


class Tokens(Ours):
    """Logits (B, L, C)."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        outputs.logits = outputs.logits[:, None]
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class NoLoss(InOrder):
    training_step = NoStep.training_step


class MixedNoLoss(MaskSubMixin, NoLoss):
    pass


FLOATS = [(x, F.one_hot(y, 5).float()) for x, y in batches(1)]
REFUSED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "a regression": (Ours, {"num_labels": 1}, {}, {}, "is a regression"),
    "a declared regression": (Ours, {"problem_type": "regression"}, {}, {}, "is a regression"),
    "an own loss": (Ours, {}, {"compute_loss_func": divided}, {}, "the loss is your own"),
    "an own loss beside the model's": (Passing, {}, {}, {}, "the loss is your own"),
    "a token's classes": (Tokens, {}, {}, {}, "logits have shape .*a classifier's"),
    "a mean of one's own": (Ours, {}, {"compute_loss_func": mean, "target": "softmax"},
                            {"gradient_accumulation_steps": 2}, "compute_loss_func is not divided"),
    "two calls": (TwoCalls, {}, {"target": "softmax"}, {}, "called the model 2 times"),
    "two losses a step": (MixedAdversarial, {}, {}, {}, "called compute_loss twice"),
    "a divided loss of soft labels": (Ours, {}, {"compute_loss_func": divided, "target": "softmax"}, {},
                                      "counts each number of the soft labels"),
    "an own training_step": (NoStep, {}, {}, {}, "never called super"),
    "no compute_loss": (MixedNoLoss, {}, {}, {}, "never called self.compute_loss"),
    "weight 1": (Ours, {}, {"weight": 1.0}, {}, "weight = 1.0"),
    "another target": (Ours, {}, {"target": "labels"}, {}, "target = 'labels'"),
    "CoSub": (Ours, {}, {"sub": CoSub(0.1)}, {}, "both its branches"),
    "an optimizer in the backward": (Ours, {}, {}, {"optim": "lomo"}, "updates the weights during backward"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    """Each would train something else than is asked for, without a word."""
    way, config, own, settings, message = REFUSED[what]
    data = FLOATS if config.get("problem_type") == "regression" or "soft labels" in what else batches(2)
    if config.get("num_labels") == 1:
        data = [(x, y.float()) for x, y in data]
    with pytest.raises(ValueError, match=message):
        way(model=hf_vit(**config), args=arguments(tmp_path, **settings), train_dataset=rows(data), **own).train()


class Penalised(Ours):
    """In training a term more than in evaluation; the outputs only where they are asked for."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss + outputs.logits.logsumexp(1).square().mean()


def test_the_main_loss_is_the_one_of_training(tmp_path: Path) -> None:
    """Not the one that the same method computes for evaluation."""
    data, model = batches(2), hf_vit()
    Penalised(model=model, args=arguments(tmp_path), train_dataset=rows(data), target="softmax").train()
    expected, masks = hf_vit().train(), MasksOfUpdates(SEED)

    def penalised(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels) + logits.logsumexp(1).square().mean()

    step = TwoBranchStep(expected, penalised, sub=MaskSub(0.5), target="softmax")
    optimizer = torch.optim.SGD(expected.parameters(), lr=LEARNING_RATE)
    for number, (x, y) in enumerate(data):
        step(x, y, generator=masks(number))
        optimizer.step()
        optimizer.zero_grad()
    same_weights(model, expected)


class Toggle(hf.TrainerCallback):
    """The weight of each update, set when the one before has ended."""

    def __init__(self, weights: list[float]) -> None:
        self.weights, self.trainer = weights, None

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.trainer.sub_weight = self.weights[min(state.global_step, len(self.weights) - 1)]  # type: ignore[attr-defined]


def test_a_weight_that_a_callback_changes(tmp_path: Path) -> None:
    """From 0 and to 0 again: no false alarm, and each line has the losses of its own updates."""
    weights = [0.0, 0.5, 0.5, 0.0, 0.0, 0.5]
    toggle = Toggle(weights)
    args = arguments(tmp_path, logging_steps=2, logging_strategy="steps")
    trainer = Ours(model=hf_vit(), args=args, train_dataset=rows(batches(6)), weight=0.0, callbacks=[toggle])
    toggle.trainer = trainer
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [("loss_main" in line, "loss_sub" in line) for line in lines] == [(True, True)] * 3
    # The first update ran before there was anything to log; in the others both losses are near log 5.
    assert all(1 < line[name] < 2.5 for line in lines for name in ("loss_main", "loss_sub"))


def test_a_weight_that_comes_later_is_checked_too(tmp_path: Path) -> None:
    """Settings that don't fit are let through with weight 0."""
    trainer = Ours(model=hf_vit(), args=arguments(tmp_path), train_dataset=rows(batches(1)), weight=0.0)
    trainer.train()
    trainer.sub_weight = 0.5
    trainer.args.ddp_static_graph = True
    with pytest.raises(ValueError, match="ddp_static_graph"):
        trainer.train()


SETTINGS: dict[str, dict[str, Any]] = {
    "nn.DataParallel": {"args.n_gpu": 2},
    "DeepSpeed": {"is_deepspeed_enabled": True},
    "FSDP1": {"accelerator.state": SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))},
    "tensor, context or sequence": {"accelerator.parallelism_config": SimpleNamespace(cp_size=2, tp_size=1)},
    "ddp_static_graph": {"args.ddp_static_graph": True},
    "SageMaker": {"args.parallel_mode": SimpleNamespace(value="sagemaker_model_parallel")},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_do_not_fit_are_refused(what: str) -> None:
    """On a stand-in with the Trainer's attributes: this machine can't run them."""
    args = SimpleNamespace(n_gpu=1, optim="sgd", parallel_mode=SimpleNamespace(value="not_parallel"))
    accelerator = SimpleNamespace(state=SimpleNamespace(), parallelism_config=None)
    trainer: Any = SimpleNamespace(args=args, accelerator=accelerator, is_deepspeed_enabled=False, model=nn.Identity())
    integration._check_settings(trainer)
    for path, value in SETTINGS[what].items():
        *holder, name = path.split(".")
        setattr(getattr(trainer, holder[0]) if holder else trainer, name, value)
    with pytest.raises(ValueError, match=what):
        integration._check_settings(trainer)


@pytest.mark.parametrize("library", ["transformers", "accelerate"])
def test_an_old_library_names_the_command(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{library}.__version__", "1.2.0")
    with pytest.raises(ImportError, match=rf"{library} .* finds 1.2.0: pip install -U 'masksub\[transformers\]'"):
        runpy.run_path(str(integration.__file__))


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'masksub\[transformers\]'"):
        runpy.run_path(str(integration.__file__))


def test_the_ready_class_is_both() -> None:
    assert issubclass(MaskSubTrainer, MaskSubMixin) and issubclass(MaskSubTrainer, hf.Trainer)
