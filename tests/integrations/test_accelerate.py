"""The step in an Accelerate loop. If these fail, users of Accelerate train something else than MaskSub.

Held against ``tests/integrations/reference.py``: the same model, data and masks in the core's bare loop.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import masksub
from masksub.core.seeds import MasksOfUpdates
from masksub.core.wrappers import gathered, unwrap
from masksub.integrations import accelerate as integration
from masksub.integrations.accelerate import AcceleratedStep
from tests.integrations.reference import (
    BATCH,
    LEARNING_RATE,
    SEED,
    Batches,
    batches,
    build,
    same_weights,
    share,
    trained,
)
from tests.models import vit


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Accelerate keeps its state for the whole process."""
    yield
    forget()


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Loop:
    """An ordinary Accelerate loop, prepared as users do."""

    def __init__(
        self, data: Batches, *, weight: float | None = 0.5, clip: float | None = None, **settings: Any
    ) -> None:
        """Weight None is the loop without masksub; ``data`` has the rows of all processes."""
        self.accelerator = Accelerator(cpu=True, **settings)
        processes = self.accelerator.num_processes
        # Accelerate deals whole batches to the processes in turn: the rows of each are put where it gets them.
        parts = [part for batch in data for rank in range(processes) for part in share([batch], rank, processes)]
        rows = TensorDataset(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
        loader = DataLoader(rows, batch_size=BATCH // processes)
        self.plain = build().train()
        optimizer = torch.optim.SGD(self.plain.parameters(), lr=LEARNING_RATE)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(self.plain, optimizer, loader)
        self.clip = clip
        self.norms: list[float] = []
        self.losses: list[dict[str, float]] = []
        self.step: AcceleratedStep | None = None
        if weight is not None:
            self.step = AcceleratedStep(
                self.accelerator, self.model, F.cross_entropy, sub=masksub.MaskSub(0.5), weight=weight, seed=SEED
            )
            self.accelerator.register_for_checkpointing(self.step)

    def train(self, *, skip: int = 0, stop: int | None = None, into: Path | None = None) -> nn.Module:
        """The model as it was made, after the micro-batches from ``skip`` to ``stop``; saves its state at the end."""
        loader = self.accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
        for number, (x, y) in enumerate(loader, start=skip + 1):
            with self.accelerator.accumulate(self.model):
                if self.step is None:
                    self.accelerator.backward(F.cross_entropy(self.model(x), y))
                else:
                    out = self.step(x, y)
                    if number < 4:
                        self.losses.append(self.step.losses(out))
                if self.clip is not None and self.accelerator.sync_gradients:
                    self.norms.append(float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if number == stop:
                break
        if into is not None:
            self.accelerator.save_state(str(into))
        return self.plain


@pytest.mark.parametrize("accumulation", [1, 4])
def test_same_weights_as_the_bare_loop(accumulation: int) -> None:
    """After one update plain SGD's weights are the gradient; after 20, masks of all updates were the same."""
    for updates in (1, 20):
        data = batches(updates * accumulation)
        ours = Loop(data, gradient_accumulation_steps=accumulation).train()
        same_weights(ours, trained(data, updates=updates, accumulation=accumulation))
        forget()


def test_gradient_of_one_step() -> None:
    loop = Loop(data := batches(1))
    assert loop.step is not None
    loop.step(*data[0])
    reference = build().train()
    plain = masksub.TwoBranchStep(reference, F.cross_entropy, sub=masksub.MaskSub(0.5))
    plain(*data[0], generator=masksub.core.seeds.MasksOfUpdates(SEED)(0))
    for (name, ours), theirs in zip(loop.plain.named_parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-6, msg=name)


def test_accumulation_by_hand_as_the_page_shows_it() -> None:
    """Gradients are those of the mean; each part is an update to Accelerate, and so it is to the masks."""
    data, parts = batches(4), 4
    loop = Loop(data)
    assert loop.step is not None
    for x, y in data:
        out = loop.step(x, y, backward=lambda loss: loop.accelerator.backward(loss / parts))
    assert loop.step.updates == 4
    reference, masks = build().train(), MasksOfUpdates(SEED)
    plain = masksub.TwoBranchStep(reference, F.cross_entropy, sub=masksub.MaskSub(0.5))
    for number, (x, y) in enumerate(data):
        expected = plain(x, y, generator=masks(number), backward=lambda loss: (loss / parts).backward())
    assert torch.equal(out.loss, expected.loss)
    for ours, theirs in zip(loop.plain.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("first", ["labels", "pixel_values"])
def test_a_batch_of_transformers_as_the_page_shows_it(first: str) -> None:
    """With its labels in it, in any order: the model's own loss is left alone, and the masks are those of the image."""
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, num_labels=5)
    model = transformers.ViTForImageClassification(config).train()
    expected, ((x, y),) = copy.deepcopy(model), batches(1)
    accelerator = Accelerator(cpu=True)
    batch = {"labels": y, "pixel_values": x} if first == "labels" else {"pixel_values": x, "labels": y}
    step = AcceleratedStep(
        accelerator, accelerator.prepare(model), nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5), seed=SEED
    )
    out = step(batch, batch["labels"])
    plain = masksub.TwoBranchStep(expected, nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5))
    assert torch.equal(out.loss, plain(x, y, generator=MasksOfUpdates(SEED)(0)).loss)
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_weight_zero_is_the_plain_loop_bit_for_bit(accumulation: int) -> None:
    results = []
    for weight in (0.0, None):
        results.append(Loop(batches(8), weight=weight, gradient_accumulation_steps=accumulation).train())
        forget()
    for ours, theirs in zip(results[0].parameters(), results[1].parameters()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stop", [4, 6])
def test_resumed_training_goes_on_as_the_unbroken_one(stop: int, tmp_path: Path) -> None:
    """In the middle of an epoch, in a new process as far as Accelerate knows; else a resumed run has other masks."""
    data, settings = batches(8), {"gradient_accumulation_steps": 2}
    whole = Loop(data, **settings).train()
    forget()
    Loop(data, **settings).train(stop=stop, into=tmp_path / "state")
    forget()
    again = Loop(data, **settings)
    again.accelerator.load_state(str(tmp_path / "state"))
    assert again.step is not None and again.step.updates == stop // 2
    for ours, theirs in zip(again.train(skip=stop).parameters(), whole.parameters()):
        assert torch.equal(ours, theirs)


def test_saved_weights_load_in_the_plain_model(tmp_path: Path) -> None:
    loop = Loop(batches(2))
    model = loop.train(into=tmp_path / "state")
    loop.accelerator.save_model(loop.model, str(tmp_path / "model"))
    for folder in ("state", "model"):
        plain = vit()
        plain.load_state_dict(load_file(tmp_path / folder / "model.safetensors"))
        same_weights(plain, model, tolerance=0)


def test_evaluation_is_not_masked() -> None:
    loop = Loop(batches(2))
    model = loop.train().eval()
    (x, _), *_ = batches(1)
    plain = vit()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(loop.model.eval()(x), plain.eval()(x))


def test_both_losses_are_told() -> None:
    loop = Loop(batches(3))
    loop.train()
    for losses in loop.losses:
        assert losses["loss"] == pytest.approx((losses["loss_main"] + losses["loss_sub"]) / 2)
        assert losses["loss_main"] != losses["loss_sub"]
    forget()
    plain = Loop(batches(1), weight=0.0)
    plain.train()
    assert plain.losses[0].keys() == {"loss", "loss_main"}


def test_clipping_and_bf16() -> None:
    """The norm that is clipped is that of both branches' gradient, once an update; the forward runs in bf16."""
    data, clip = batches(4), 0.05
    loop = Loop(data, clip=clip, gradient_accumulation_steps=2, mixed_precision="bf16")
    ours = loop.train()
    reference = build().train()
    step = masksub.TwoBranchStep(reference, F.cross_entropy, sub=masksub.MaskSub(0.5))
    masks = masksub.core.seeds.MasksOfUpdates(SEED)
    forward = reference.forward

    def in_bf16(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x).float()

    reference.forward = in_bf16  # type: ignore[method-assign]
    optimizer, norms = torch.optim.SGD(reference.parameters(), lr=LEARNING_RATE), []
    for number, (x, y) in enumerate(data):
        step(x, y, generator=masks(number // 2), backward=lambda loss: (loss / 2).backward())
        if number % 2:
            norms.append(float(nn.utils.clip_grad_norm_(reference.parameters(), clip)))
            optimizer.step()
            optimizer.zero_grad()
    assert min(norms) > clip  # or nothing was clipped
    assert loop.norms == pytest.approx(norms, rel=1e-5)
    same_weights(ours, reference)


def test_the_saved_seed_counts() -> None:
    """Else a training that is resumed with another seed draws other masks than the unbroken one."""
    steps = []
    for seed in (SEED, SEED + 1):
        accelerator = Accelerator(cpu=True)
        steps.append(AcceleratedStep(accelerator, build(), F.cross_entropy, sub=masksub.MaskSub(0.5), seed=seed))
    saved, resumed = steps
    saved(*batches(1)[0])
    resumed.load_state_dict(saved.state_dict())
    assert resumed.updates == 1
    losses = [step(*batches(2)[1]).sub_logits for step in (saved, resumed)]
    assert torch.equal(*losses)


def test_joint_loss_and_a_schedule() -> None:
    """A loop with losses of its own runs one backward, and ratio and weight may change between updates."""
    data = batches(3)
    results = []
    for joint in (False, True):
        loop = Loop(data)
        assert loop.step is not None and isinstance(loop.step.sub, masksub.MaskSub)
        ratio = masksub.schedule.Linear(0.25, 0.75)
        for x, y in loop.loader:
            loop.step.sub.ratio, loop.step.weight = ratio(loop.step.updates / 2), 0.3
            if joint:
                loop.accelerator.backward(loop.step.joint(x, y).loss)
            else:
                loop.step(x, y)
            loop.optimizer.step()
            loop.optimizer.zero_grad()
        assert loop.step.updates == 3
        results.append(loop.plain)
        forget()
    same_weights(*results)


def test_compiled_by_accelerate() -> None:
    """The prepared model is a compiled wrapper; the step must see the model in it."""
    data = batches(2)
    same_weights(Loop(data, dynamo_backend="eager").train(), trained(data, updates=2))


def stand_in(**differing: Any) -> Any:
    """An accelerator as far as the check looks."""
    return SimpleNamespace(
        **{"distributed_type": accelerate.DistributedType.NO, "parallelism_config": None, **differing}
    )


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"distributed_type": accelerate.DistributedType.DEEPSPEED}, "distributed_type = DEEPSPEED: .*DDP or FSDP2"),
        ({"distributed_type": accelerate.DistributedType.MEGATRON_LM}, "distributed_type = MEGATRON_LM"),
        ({"parallelism_config": SimpleNamespace(tp_size=2, cp_size=1)}, "tp_size = 2: .*data parallelism"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=2)}, "cp_size = 2: .*data parallelism"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=1, sp_size=2)}, "sp_size = 2: .*data parallelism"),
    ],
)
def test_what_would_train_wrongly_is_refused(differing: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AcceleratedStep(stand_in(**differing), vit(), F.cross_entropy, sub=masksub.MaskSub())
    AcceleratedStep(stand_in(), vit(), F.cross_entropy, sub=masksub.MaskSub())


@pytest.mark.parametrize(
    ("library", "message"),
    [(None, "needs Accelerate; install"), (SimpleNamespace(__version__="1.9.1"), "1.10 or later, and 1.9.1")],
)
def test_missing_or_old_library(library: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", library)
    spec = importlib.util.spec_from_file_location("loaded_again", integration.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=rf"{message}.*: pip install 'masksub\[accelerate\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


UPDATES = 20
CPU_SHARDS = hasattr(torch.cpu.Stream, "record_event")
"""torch 2.6 can shard on GPUs only."""


def counted_loop(data: Batches, **settings: Any) -> tuple[Loop, list[int]]:
    """A loop on DistributedDataParallel in one bucket, and a place where its reductions are counted."""
    loop = Loop(data, kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=100)], **settings)
    count = [0]

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations by identity
        count[0] += 1
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    loop.model.register_comm_hook(None, hook)
    return loop, count


def sharded_weights(data: Batches) -> dict[str, Tensor]:
    """The weights of a model sharded by ``fully_shard``, whole again, after an update for each batch."""
    accelerator = Accelerator(cpu=True)
    model = build().train()
    fully_shard(model)
    step = AcceleratedStep(accelerator, model, F.cross_entropy, sub=masksub.MaskSub(0.5), seed=SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for x, y in share(data, accelerator.process_index, 2):
        step(x, y)
        optimizer.step()
        optimizer.zero_grad()
    return {name: gathered(value.detach()) for name, value in model.state_dict().items()}


def worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    found: dict[str, Any] = {}
    for accumulation in (1, 4):
        data = batches(UPDATES * accumulation)
        loop, reductions = counted_loop(data, gradient_accumulation_steps=accumulation)
        found[f"weights {accumulation}"] = loop.train().state_dict()
        found[f"reductions {accumulation}"] = reductions[0]
        found[f"losses {accumulation}"] = loop.losses[0]
        GradientState._reset_state()
    for name, stop in (("unbroken", None), ("broken", 4)):
        loop = Loop(batches(8), gradient_accumulation_steps=2)
        found[name] = loop.train(stop=stop, into=Path(folder, name)).state_dict()
        GradientState._reset_state()
    loop = Loop(batches(8), gradient_accumulation_steps=2)
    loop.accelerator.load_state(f"{folder}/broken")
    found["resumed"] = loop.train(skip=4).state_dict()
    if CPU_SHARDS:
        found["sharded"] = sharded_weights(batches(3))
    try:
        AcceleratedStep(loop.accelerator, unwrap(loop.model), F.cross_entropy, sub=masksub.MaskSub())
    except ValueError as error:
        found["not prepared"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    loop.accelerator.wait_for_everyone()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes got, in one start."""
    folder = tmp_path_factory.mktemp("accelerate")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    mp.spawn(worker, (str(folder), port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_are_the_bare_loop_on_the_whole_batch(processes: Any, accumulation: int) -> None:
    reference = trained(batches(UPDATES * accumulation), updates=UPDATES, accumulation=accumulation, processes=2)
    for found in processes:
        model = build()
        model.load_state_dict(found[f"weights {accumulation}"])
        same_weights(model, reference)
        # DistributedDataParallel may rebuild its buckets after the first; one bucket stays one.
        assert found[f"reductions {accumulation}"] == UPDATES
    one, two = (found[f"losses {accumulation}"] for found in processes)
    assert one == two  # each process saw other images: these are means


def test_two_processes_resume_as_unbroken(processes: Any) -> None:
    for found in processes:
        for name, value in found["unbroken"].items():
            assert torch.equal(found["resumed"][name], value), name
        assert not torch.equal(found["resumed"]["head.weight"], found["broken"]["head.weight"])


@pytest.mark.skipif(not CPU_SHARDS, reason="fully_shard of torch 2.6 needs a GPU")
def test_sharded_model(processes: Any) -> None:
    reference = trained(batches(3), updates=3, processes=2)
    for found in processes:
        model = build()
        model.load_state_dict(found["sharded"])
        same_weights(model, reference)


def test_model_that_was_not_prepared_is_refused(processes: Any) -> None:
    """Each process would train a model of its own, and nothing would say so."""
    for found in processes:
        assert "pass what accelerator.prepare returned" in found["not prepared"]
