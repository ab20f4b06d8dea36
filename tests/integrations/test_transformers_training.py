"""What a Trainer does around the two branches. If these fail, a feature of it is lost or does something else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import masksub
from masksub.core.checkpointing import recomputes
from masksub.core.schedule import Staged
from masksub.core.seeds import MasksOfUpdates
from masksub.integrations.transformers import MaskSubTrainer
from tests.integrations.hf_trainers import Gradients, Ours, arguments, divided, hf_vit, rows
from tests.integrations.reference import SEED, batches, same_weights, trained
from tests.models import vit


@pytest.fixture(autouse=True)
def _settings_end_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Precision and compilation are left behind in the environment and in Accelerate's global state."""
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, os.environ.get(name, "no"))
    yield
    AcceleratorState._reset_state(True)


def test_both_losses_are_logged(tmp_path: Path) -> None:
    """Means over the updates of the window and their micro-batches; they add up to the loss."""
    data, model = batches(8), hf_vit()
    args = arguments(tmp_path, gradient_accumulation_steps=2, logging_strategy="steps", logging_steps=2)
    trainer = Ours(model=model, args=args, train_dataset=rows(data), weight=0.25)
    trainer.train()

    model, masks, seen = hf_vit().train(), MasksOfUpdates(SEED), []
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5), weight=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    for number, (x, y) in enumerate(data):
        seen.append(step(x, y, generator=masks(number // 2), backward=lambda loss: (loss / 2).backward()))
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line, outs in zip(lines, (seen[:4], seen[4:])):
        main, sub = (sum(float(getattr(out, name)) for out in outs) / 4 for name in ("loss_main", "loss_sub"))
        assert (line["loss_main"], line["loss_sub"]) == pytest.approx((main, sub), rel=1e-5)
        assert line["loss"] == pytest.approx(0.75 * main + 0.25 * sub, abs=1e-4)  # transformers 4 rounds it


class Halted(hf.TrainerCallback):
    """Ends training after three updates, as a scheduler of a cluster might."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_resuming_goes_on_as_the_unbroken_training(kind: str, tmp_path: Path) -> None:
    """Bit for bit: same masks, dropout, order of the data, momentum and log, in the middle of an epoch.

    transformers 5 saves its own ViT under older names, and only ``from_pretrained`` finds them again (#43701, #48805).
    """

    def trainer(folder: str, model: nn.Module | None = None, **own: Any) -> MaskSubTrainer:
        args = arguments(tmp_path / folder, optim="adamw_torch", gradient_accumulation_steps=2, num_train_epochs=2,
                         per_device_train_batch_size=4, save_strategy="steps", save_steps=3,
                         logging_strategy="steps", logging_steps=1)  # fmt: skip
        if kind == "timm":
            torch.manual_seed(0)
            own.update(compute_loss_func=divided, target="softmax")
            return MaskSubTrainer(model=vit(drop_rate=0.1), args=args, train_dataset=rows(batches(4), "x"), **own)
        model = hf_vit(hidden_dropout_prob=0.1) if model is None else model
        return MaskSubTrainer(model=model, args=args, train_dataset=rows(batches(4)), **own)

    (unbroken := trainer("a")).train()
    (halted := trainer("b", callbacks=[Halted()])).train()
    found = None if kind == "timm" else hf.ViTForImageClassification.from_pretrained(tmp_path / "b" / "checkpoint-3")
    (resumed := trainer("b", found)).train(resume_from_checkpoint=True)
    assert halted.state.global_step == 3 and resumed.state.global_step == unbroken.state.global_step == 8
    weights = [each.model.state_dict() for each in (unbroken, resumed)]  # type: ignore[union-attr]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    lines = [[line["loss_sub"] for line in each.state.log_history if "loss" in line] for each in (unbroken, resumed)]
    assert lines[0] == lines[1] and len(lines[0]) == 8


def test_saved_weights_are_those_of_the_plain_model(tmp_path: Path) -> None:
    trainer = Ours(model=hf_vit(), args=arguments(tmp_path), train_dataset=rows(batches(2)))
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    loaded, info = hf.ViTForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.state_dict().keys() == hf_vit().state_dict().keys()
    same_weights(loaded, trained(batches(2), updates=2, model=hf_vit()))


def test_evaluation_and_prediction_are_unmasked(tmp_path: Path) -> None:
    """Between updates, at the end, and after an error in the sub branch; their numbers are the plain model's."""
    held, model = batches(1)[0], hf_vit()
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, include_for_metrics=["loss"])
    seen: list[Tensor] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(torch.tensor(prediction.predictions))
        with torch.no_grad():
            torch.testing.assert_close(seen[-1], model(held[0]).logits, rtol=0, atol=0)
        return {}

    trainer = Ours(model=model, args=args, train_dataset=rows(batches(2)), eval_dataset=rows([held]),
                   compute_metrics=metrics)  # fmt: skip
    trainer.train()
    assert len(seen) == 2 and not torch.equal(*seen)
    trainer.predict(rows([held]))  # type: ignore[arg-type]
    assert len(seen) == 3
    assert [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line][-1] == pytest.approx(
        float(F.cross_entropy(seen[-1], held[1])), rel=1e-5
    )


def test_clipping_is_of_the_sum_of_both_branches(tmp_path: Path) -> None:
    unclipped, clipped = Gradients(), Gradients()
    for callback, most in ((unclipped, 0.0), (clipped, 0.1)):
        args = arguments(tmp_path, max_grad_norm=most)
        Ours(model=hf_vit(), args=args, train_dataset=rows(batches(1)), callbacks=[callback]).train()
    norm = torch.stack([each.norm() for each in unclipped.seen[0].values()]).norm()
    assert norm > 0.2
    scaled = {name: each * 0.1 / norm for name, each in unclipped.seen[0].items()}
    torch.testing.assert_close(clipped.seen[0], scaled, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast.*:FutureWarning")  # transformers 4's own
def test_bf16(tmp_path: Path) -> None:
    """Both branches run in bfloat16, as those of the core under autocast."""
    callback, (x, y) = Gradients(), batches(1)[0]
    kinds: set[torch.dtype] = set()
    model = hf_vit()
    model.classifier.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
    Ours(model=model, args=arguments(tmp_path, bf16=True), train_dataset=rows([(x, y)]), callbacks=[callback]).train()
    assert kinds == {torch.bfloat16}
    plain = hf_vit().train()
    with torch.autocast("cpu", torch.bfloat16):
        step = masksub.TwoBranchStep(plain, F.cross_entropy, sub=masksub.MaskSub(0.5))
        step(x, y, generator=MasksOfUpdates(SEED)(0))
    expected = {name: p.grad for name, p in plain.named_parameters()}
    torch.testing.assert_close(callback.seen[0], expected, rtol=0.02, atol=1e-3)


def test_gradient_checkpointing(tmp_path: Path) -> None:
    """Blocks that run again during backward drop what they dropped: the branch is still in force."""
    fields = {field.name for field in dataclasses.fields(hf.TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    models = []
    for on in (False, True):
        models.append(hf_vit())
        args = arguments(tmp_path, **({name: True, f"{name}_kwargs": {"use_reentrant": False}} if on else {}))
        sub = masksub.MaskSub(0.5) + masksub.PathSub(0.5)
        Ours(model=models[-1], args=args, train_dataset=rows(batches(3)), sub=sub).train()
        assert recomputes(models[-1]) == on
    same_weights(*models)


class Graphs(hf.TrainerCallback):
    """Counts what torch.compile has compiled by the end of each update."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_compiled(tmp_path: Path) -> None:
    """Two shapes, compiled once each, and nothing again with evaluation or another update; same weights as eager."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    data, model, graphs = batches(8), hf_vit(), Graphs()
    args = arguments(tmp_path, torch_compile=True, torch_compile_backend="eager", gradient_accumulation_steps=2)
    try:
        Ours(model=model, args=args, train_dataset=rows(data), callbacks=[graphs]).train()
    finally:
        torch._dynamo.reset()
    assert graphs.seen[0] >= 2 and graphs.seen == graphs.seen[:1] * 4
    same_weights(model, trained(data, updates=4, accumulation=2, model=hf_vit()), tolerance=1e-5)


def test_a_schedule_of_the_weight(tmp_path: Path) -> None:
    """Plain for the first half; the log has the sub loss where that branch ran, the main loss of all updates."""
    data, model = batches(4), hf_vit()
    args = arguments(tmp_path, logging_strategy="steps", logging_steps=1)
    trainer = Ours(model=model, args=args, train_dataset=rows(data), weight=Staged([(0, 0.0), (0.5, 0.5)]))
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert ["loss_sub" in line for line in lines] == [False, False, True, True]
    assert all(line["loss_main"] == pytest.approx(line["loss"], abs=1e-4) for line in lines[:2])
    expected: nn.Module = hf_vit().train()
    masks = MasksOfUpdates(SEED)
    step = masksub.TwoBranchStep(expected, F.cross_entropy, sub=masksub.MaskSub(0.5), weight=0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=args.learning_rate)
    for update, (x, y) in enumerate(data):
        step.weight = 0.0 if update < 2 else 0.5
        step(x, y, generator=masks(update))
        optimizer.step()
        optimizer.zero_grad()
    same_weights(model, expected)
