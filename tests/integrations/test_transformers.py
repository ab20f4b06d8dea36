"""The Trainer's integration against the core. If these fail, the Trainer's users train something else than MaskSub."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import masksub
from masksub.core.seeds import MasksOfUpdates
from masksub.integrations.transformers import MaskSubTrainer
from tests.integrations.hf_trainers import (
    Gradients,
    InOrder,
    Ours,
    arguments,
    divided,
    hf_ast,
    hf_bert,
    hf_vit,
    rows,
)
from tests.integrations.reference import LEARNING_RATE, SEED, batches, build, same_weights, trained

MEANS = "is not divided by num_items_in_batch"
"""What is said of a loss that the Trainer would take too large."""


def gradients(model: nn.Module, x: Any, y: Tensor, criterion: Callable[..., Tensor] = F.cross_entropy) -> Any:
    """Those of the core's first step."""
    step = masksub.TwoBranchStep(model.train(), criterion, sub=masksub.MaskSub(0.5))
    step(x, y, generator=MasksOfUpdates(SEED)(0))
    return {name: p.grad for name, p in model.named_parameters()}


def first_gradients(trainer: hf.Trainer) -> Any:
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return seen.seen[0]


def uneven(data: list[tuple[Any, Tensor]], updates: list[list[int]], model: nn.Module) -> nn.Module:
    """The core's loop on micro-batches of different size: each counts by its labelled rows."""
    valid = [y != -100 for _, y in data]
    optimizer = torch.optim.SGD(model.train().parameters(), lr=LEARNING_RATE)
    masks = MasksOfUpdates(SEED)
    for update, members in enumerate(updates):
        optimizer.zero_grad()
        total = sum(int(valid[number].sum()) for number in members)
        for number in members:
            x, y = data[number]
            labelled = valid[number]

            def soft(logits: Tensor, target: Tensor, labelled: Tensor = labelled) -> Tensor:
                return F.cross_entropy(logits[labelled], target[labelled])

            step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5), sub_criterion=soft)
            share = int(labelled.sum()) / total
            step(x, y, generator=masks(update), backward=lambda loss, share=share: (share * loss).backward())
        optimizer.step()
    return model


def sentences() -> dict[str, Tensor]:
    """Eight sentences of 4 to 11 tokens, delimiters included, padded to 11."""
    ids = torch.randint(5, 40, (8, 11), generator=torch.Generator().manual_seed(4))
    length = torch.arange(8) % 8 + 4
    place = torch.arange(11)
    ids[:, 0] = 1
    ids[torch.arange(8), length - 1] = 2
    attention = (place < length[:, None]).long()
    return {"input_ids": ids * attention, "attention_mask": attention, "token_type_ids": torch.zeros_like(ids)}


def spectrograms() -> dict[str, Tensor]:
    return {"input_values": torch.randn(8, 32, 16, generator=torch.Generator().manual_seed(4))}


INPUTS: dict[str, tuple[Callable[..., nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "image": (hf_vit, lambda: {"pixel_values": batches(1)[0][0]}),
    "text": (hf_bert, sentences),
    "audio": (hf_ast, spectrograms),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_same_gradient_as_the_core(kind: str, tmp_path: Path) -> None:
    model, inputs = INPUTS[kind]
    x, y = inputs(), torch.arange(8) % 5
    data = [{**{name: value[row] for name, value in x.items()}, "labels": y[row]} for row in range(8)]
    ours = first_gradients(Ours(model=model(), args=arguments(tmp_path), train_dataset=data))
    assert sum(float(each.norm()) for each in ours.values()) > 0.1
    torch.testing.assert_close(ours, gradients(model(), x, y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("own_loss", [False, True])
def test_same_weights_as_the_core_after_20_updates(accumulation: int, own_loss: bool, tmp_path: Path) -> None:
    """With the model's loss, and with a ``compute_loss_func`` around a model of timm that knows no labels."""
    size = 8 // accumulation
    data, model = batches(20 * accumulation, size), build() if own_loss else hf_vit()
    expected = trained(data, updates=20, accumulation=accumulation, model=build() if own_loss else hf_vit())
    own: dict[str, Any] = {"compute_loss_func": divided, "target": "softmax"} if own_loss else {}
    args = arguments(tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=size)
    Ours(model=model, args=args, train_dataset=rows(data, "x" if own_loss else "pixel_values"), **own).train()
    same_weights(model, expected)


def test_a_loss_that_is_a_mean_is_taken_as_one(tmp_path: Path) -> None:
    """BERT of transformers 5 accepts ``num_items_in_batch`` and drops it: 4 parts would count 4 times (#47688)."""
    x, y = sentences(), torch.arange(8) % 5
    data = [{**{name: value[row] for name, value in x.items()}, "labels": y[row]} for row in range(8)]
    parts = [({name: v[i : i + 2] for name, v in x.items()}, y[i : i + 2]) for i in (0, 2, 4, 6)]
    model = hf_bert()
    args = arguments(tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    trainer = Ours(model=model, args=args, train_dataset=data)
    if trainer.model_accepts_loss_kwargs:
        with pytest.warns(UserWarning, match=MEANS):
            trainer.train()
    else:
        trainer.train()
    same_weights(model, uneven(parts, [[0, 1, 2, 3]], hf_bert()))


def test_unequal_parts_and_rows_without_label(tmp_path: Path) -> None:
    """The last update has two micro-batches instead of four, the last of them 5 rows; three rows are labelled -100."""
    data = batches(6)
    data[5] = (data[5][0][:5], data[5][1][:5])
    data[1][1][:2] = data[4][1][3] = -100
    model = hf_vit()
    args = arguments(tmp_path, gradient_accumulation_steps=4)
    Ours(model=model, args=args, train_dataset=rows(data)).train()
    same_weights(model, uneven(data, [[0, 1, 2, 3], [4, 5]], hf_vit()))


def test_label_smoothing_is_the_main_branch_s_alone(tmp_path: Path) -> None:
    data, model = batches(2), hf_vit()
    trainer = Ours(model=model, args=arguments(tmp_path, label_smoothing_factor=0.2), train_dataset=rows(data))
    trainer.train()
    smooth = partial(F.cross_entropy, label_smoothing=0.2)
    same_weights(model, trained(data, updates=2, model=hf_vit(), criterion=smooth))


def test_several_labels_a_row_have_a_sigmoid_target(tmp_path: Path) -> None:
    """With accumulation, where the loss of transformers (a mean) would count twice."""
    data = [(x, F.one_hot(y, 5).float()) for x, y in batches(4)]
    model = hf_vit(problem_type="multi_label_classification")
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    with pytest.warns(UserWarning, match=MEANS):
        Ours(model=model, args=args, train_dataset=rows(data)).train()
    criterion = F.binary_cross_entropy_with_logits
    same_weights(model, trained(data, updates=2, accumulation=2, model=hf_vit(), criterion=criterion))


def test_weight_0_is_the_trainer_s_own_result(tmp_path: Path) -> None:
    """With dropout, accumulation, AdamW, shuffling and clipping: bit for bit, and the same log.

    Also where the Trainer's own loss is too large (several labels a row, see above).
    """
    weights, logs = [], []
    data = rows([(x, F.one_hot(y, 5).float()) for x, y in batches(6)])
    for trainer_class, own in ((hf.Trainer, {}), (MaskSubTrainer, {"weight": 0.0})):
        model = hf_vit(hidden_dropout_prob=0.1, problem_type="multi_label_classification")
        args = arguments(tmp_path, optim="adamw_torch", max_grad_norm=0.1, gradient_accumulation_steps=2,
                         logging_strategy="steps", logging_steps=1)  # fmt: skip
        trainer = trainer_class(model=model, args=args, train_dataset=data, **own)
        trainer.train()
        weights.append(model.state_dict())
        logs.append([(line.get("loss"), line.get("grad_norm"), line.keys()) for line in trainer.state.log_history])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert logs[0] == logs[1] and len(logs[0]) == 4


class Counted(hf.TrainerCallback):
    """Counts the reductions of DistributedDataParallel in each update, through its communication hook."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.now = 0
        self.per_update: list[int] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        def reduce(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations by identity
            self.now += 1
            gradient = bucket.buffer().div_(2)
            return dist.all_reduce(gradient, async_op=True).get_future().then(lambda f: f.value()[0])

        self.trainer.model_wrapped.register_comm_hook(None, reduce)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.per_update.append(self.now)
        self.now = 0


def worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, GLOO_SOCKET_IFNAME="lo")
    results: dict[str, Any] = {}
    for own_loss, accumulation in ((False, 1), (False, 4), (True, 4)):
        data, counted = batches(3 * accumulation, 16 // accumulation), Counted()
        own: dict[str, Any] = {"compute_loss_func": divided, "target": "softmax"} if own_loss else {}
        args = arguments(Path(folder), gradient_accumulation_steps=accumulation,
                         per_device_train_batch_size=8 // accumulation, ddp_backend="gloo", ddp_bucket_cap_mb=100,
                         logging_strategy="steps", logging_steps=3, average_tokens_across_devices=True)  # fmt: skip
        model = build() if own_loss else hf_vit()
        trainer = Ours(model=model, args=args, train_dataset=rows(data, "x" if own_loss else "pixel_values", 2),
                       callbacks=[counted], **own)  # fmt: skip
        counted.trainer = trainer
        trainer.train()
        logged = trainer.state.log_history[0]
        results[f"{own_loss} {accumulation}"] = model.state_dict(), counted.per_update, logged
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """The same weights as the core's, one reduction an update, and a log of the mean over both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (str(tmp_path), port), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for own_loss, accumulation in ((False, 1), (False, 4), (True, 4)):
        name = f"{own_loss} {accumulation}"
        expected = trained(batches(3 * accumulation, 16 // accumulation), updates=3, accumulation=accumulation,
                           processes=2, model=build() if own_loss else hf_vit())  # fmt: skip
        for weights, per_update, logged in (each[name] for each in results):
            ours = build() if own_loss else hf_vit()
            ours.load_state_dict(weights)
            same_weights(ours, expected)
            assert per_update[1:] == [1] * 2, name  # the first may use smaller buckets
            assert logged["loss"] == pytest.approx((logged["loss_main"] + logged["loss_sub"]) / 2, abs=1e-4)
        both = [each[name][2] for each in results]
        assert both[0]["loss_main"] == both[1]["loss_main"] and both[0]["loss_sub"] == both[1]["loss_sub"]


def test_the_same_data_in_the_plain_trainer_gives_other_weights(tmp_path: Path) -> None:
    """The comparison of this file can fail: without the sub branch the weights are far from those of the core."""
    data, model = batches(5), hf_vit()
    InOrder(model=model, args=arguments(tmp_path), train_dataset=rows(data)).train()
    with pytest.raises(AssertionError, match="differs by"):
        same_weights(model, trained(data, updates=5, model=hf_vit()), tolerance=1e-3)
