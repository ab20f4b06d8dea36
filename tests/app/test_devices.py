"""Processes of a run, and a model held whole or sharded on two of them. Updates are compared with one process's."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import masksub
from masksub.app import gradients, sharding
from masksub.app.devices import create_accelerator, refuse_copies
from masksub.app.errors import InputError
from masksub.app.models import create_optimizer
from masksub.app.settings import Recipe
from tests.models import resnet, vit

UPDATES = 3
LIMIT = 0.5
"""Of the norm of the gradient; the first ones are above it."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2},
    "sgd": {"lr": 0.1, "kwargs": {"momentum": 0.9}},
    "lamb": {"lr": 1e-2},
}


def recipe(optimizer: str = "adamw", **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "folder", "train": "train", "val": "val"},
            "model": {"name": "vit_tiny_patch16_224"},
            "optim": {"name": optimizer, "layer_decay": 0.8, **OPTIMIZERS[optimizer]},
            "train": {"epochs": 1, "device": "cpu", "timeout_seconds": 77, **train},
        }
    )


class Trained:
    """A model and all that belongs to it, on one process or as ``sharding`` describes it."""

    def __init__(self, settings: Recipe, accelerator: Accelerator | None, build: Any = vit) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build()
        self.average = ModelEmaV3(self.model, decay=0.9, use_warmup=True)
        self.accelerator, wrapped = accelerator, self.model
        if accelerator is not None:
            wrapped = sharding.prepare(accelerator, settings, self.model, self.average.module)
        self.optimizer: Any = create_optimizer(settings, self.model)
        if accelerator is not None:
            self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.step = masksub.TwoBranchStep(wrapped, F.cross_entropy, sub=masksub.MaskSub())
        self.done = 0

    def update(self) -> float:
        """One update with the images of all processes, of which each takes its rows; the norm of the gradient."""
        generator = torch.Generator().manual_seed(self.done)
        x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.randint(5, (8,), generator=generator)
        keep = masksub.sample_keep(8, 16, 0.5, generator=generator)
        rows, backward = slice(8), None
        if self.accelerator is not None:
            rows, backward = (
                slice(4 * (rank := self.accelerator.process_index), 4 * rank + 4),
                self.accelerator.backward,
            )
        self.optimizer.zero_grad()
        self.step(x[rows], y[rows], keep=keep[rows], backward=backward)
        norm = gradients.total_norm(self.model)
        gradients.clip(self.model, LIMIT, norm)
        self.optimizer.step()
        self.done += 1
        sharding.share_statistics(self.model)
        self.average.update(self.model, self.done)
        return norm

    def state(self) -> dict[str, Any]:
        return {
            "model": sharding.full_model_state(self.model),
            "average": sharding.full_model_state(self.average.module),
            "optimizer": sharding.full_optimizer_state(self.optimizer),
        }

    def load(self, state: dict[str, Any]) -> None:
        sharding.load_full_model_state(self.model, state["model"])
        sharding.load_full_model_state(self.average.module, state["average"])
        sharding.load_full_optimizer_state(self.optimizer, state["optimizer"])


def copied(state: Any) -> Any:
    """Apart from the memory that it may share with the model."""
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list):
        return [copied(value) for value in state]
    return state.clone() if isinstance(state, Tensor) else state


def updated(settings: Recipe, accelerator: Accelerator | None) -> dict[str, Any]:
    """Some updates, what is saved of them, and the state after one more."""
    trained = Trained(settings, accelerator)
    norms = [trained.update() for _ in range(UPDATES)]
    saved = copied(trained.state())
    trained.update()
    return {"norms": norms, "saved": saved, "next": copied(trained.state())}


def images(number: int) -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(100 + number))


def evaluated(settings: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """The average on more batches in one process than in the other, between updates and after loading."""
    trained = Trained(settings, accelerator)
    trained.update()
    with torch.no_grad(), sharding.whole_weights(trained.average.module):
        outputs = [trained.average.module.eval()(images(n)) for n in range(3 if accelerator.is_main_process else 1)]
    local = [parameter.to_local().numel() for parameter in trained.model.parameters()]
    trained.update()
    after = copied(trained.state())
    with torch.no_grad(), sharding.whole_weights(trained.average.module):
        later = trained.average.module(images(0))
    # Weights that a forward had gathered must not outlive those that are loaded.
    with torch.no_grad():
        trained.model(images(0))
    fresh = {n: t + 1 for n, t in Trained(settings, None).model.state_dict().items()}
    sharding.load_full_model_state(trained.model, fresh)
    with torch.no_grad():
        loaded = trained.model.eval()(images(0))
    return {"outputs": outputs, "local": sum(local), "after": after, "later": later, "loaded": loaded}


def half(settings: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """Norm of the gradient in bf16, and precisions of what is kept."""
    trained = Trained(settings, accelerator)
    norm = trained.update()
    parameters = list(trained.model.parameters())
    kept = {str(each.dtype) for p in parameters for each in (p, p.grad, *trained.optimizer.state[p].values())}
    return {"norm": norm, "kept": kept, "sharded": all(isinstance(p, DTensor) for p in parameters)}


def statistics(settings: Recipe, accelerator: Accelerator) -> dict[str, Tensor]:
    """Running statistics of batch norm after a step with images of this process alone."""
    trained = Trained(settings, accelerator, resnet)
    torch.manual_seed(accelerator.process_index)
    trained.step(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]))
    before = {name: buffer.clone() for name, buffer in trained.model.named_buffers() if "running" in name}
    sharding.share_statistics(trained.model)
    return {"before": before, "after": {n: b.clone() for n, b in trained.model.named_buffers() if "running" in n}}


def worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    )  # fmt: skip
    accelerator = create_accelerator(recipe(device="auto") if not torch.accelerator.is_available() else recipe())
    results: dict[Any, Any] = {"processes": accelerator.num_processes}
    results["timeout"] = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout
    for shard in ("none", "full"):
        for optimizer in OPTIMIZERS if shard == "full" else ("lamb",):
            results[shard, optimizer] = updated(recipe(optimizer, shard=shard), accelerator)
    if rank == 0:
        torch.save(results["full", "lamb"]["saved"], f"{folder}/checkpoint.pt")
    dist.barrier()
    again = Trained(recipe("lamb", shard="full"), accelerator)
    again.load(torch.load(f"{folder}/checkpoint.pt", weights_only=True))
    again.done = UPDATES
    again.update()
    results["resumed"] = again.state()
    results["evaluated"] = evaluated(recipe(shard="full"), accelerator)
    results["statistics"] = statistics(recipe(shard="full"), accelerator)
    bf16 = recipe(precision="bf16", shard="full")
    results["bf16"] = half(bf16, create_accelerator(bf16))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of the two processes left what it got, all in one start."""
    folder = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (str(folder), port), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_close(actual: Any, expected: Any, place: str = "", **tolerances: float) -> None:
    """The same names, kinds and shapes all through, and values within rounding."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected), place
        for name, value in expected.items():
            assert_close(actual[name], value, f"{place}/{name}", **tolerances)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), place
        for number, (one, two) in enumerate(zip(actual, expected)):
            assert_close(one, two, f"{place}/{number}", **tolerances)
    elif isinstance(expected, Tensor):
        assert type(actual) is Tensor, place
        torch.testing.assert_close(actual, expected, msg=lambda m: f"{place}: {m}", **tolerances)
    else:
        assert actual == expected, place


@pytest.mark.parametrize(("shard", "optimizer"), [*(("full", each) for each in OPTIMIZERS), ("none", "lamb")])
def test_two_processes_train_as_one(results: Any, shard: str, optimizer: str) -> None:
    """Weights, their average and the optimizer's state, in the form of one process. Else a run depends on the number of
    processes, or its checkpoint fits only as many."""
    expected = updated(recipe(optimizer), None)
    actual = results[0][shard, optimizer]
    assert min(expected["norms"][:1]) > LIMIT  # clipping is at work
    for rank in range(2):
        torch.testing.assert_close(results[rank][shard, optimizer]["norms"], expected["norms"], rtol=1e-4, atol=0.0)
    for key in ("saved", "next"):
        # AdamW and LAMB divide by the root of small squares, which makes rounding larger.
        assert_close(actual[key], expected[key], f"/{key}", rtol=2e-3, atol=2e-4)
    assert results[1][shard, optimizer]["saved"] == {"model": {}, "average": {}, "optimizer": {}}


def test_a_checkpoint_of_shards_is_gone_on_with(results: Any, folder: Path) -> None:
    """By as many processes bit by bit, and by one within rounding."""
    expected = results[0]["full", "lamb"]["next"]
    assert_close(results[0]["resumed"], expected, rtol=0.0, atol=0.0)
    alone = Trained(recipe("lamb"), None)
    alone.load(torch.load(folder / "checkpoint.pt", weights_only=True))
    alone.done = UPDATES
    alone.update()
    assert_close(alone.state(), expected, rtol=2e-3, atol=2e-4)


def test_processes_evaluate_different_numbers_of_batches(results: Any) -> None:
    """Else the one with more waits for ever; or it sees weights from before an update."""
    alone = Trained(recipe(), None)
    alone.update()
    with torch.no_grad():
        first = [alone.average.module(images(number)) for number in range(3)]
    alone.update()
    with torch.no_grad():
        later = alone.average.module(images(0))
        loaded = Trained(recipe(), None).model.eval()
        for tensor in loaded.state_dict().values():
            tensor += 1
        for rank in range(2):
            seen = results[rank]["evaluated"]
            assert len(seen["outputs"]) == (3, 1)[rank]
            assert_close(seen["outputs"], first[: len(seen["outputs"])], rtol=2e-3, atol=2e-4)
            torch.testing.assert_close(seen["later"], later, rtol=2e-3, atol=2e-4)
            torch.testing.assert_close(seen["loaded"], loaded(images(0)))
    assert_close(results[0]["evaluated"]["after"], alone.state(), rtol=2e-3, atol=2e-4)


def test_each_process_holds_a_part(results: Any) -> None:
    """Also after an evaluation; else nothing is saved by sharding."""
    whole = sum(parameter.numel() for parameter in vit().parameters())
    parts = [results[rank]["evaluated"]["local"] for rank in range(2)]
    assert sum(parts) == whole and max(parts) < 0.6 * whole


def test_bf16_keeps_weights_gradients_and_moments_in_fp32(results: Any) -> None:
    norm = updated(recipe(), None)["norms"][0]
    for rank in range(2):
        assert results[rank]["bf16"]["sharded"]
        assert results[rank]["bf16"]["kept"] == {"torch.float32"}
        assert results[rank]["bf16"]["norm"] == pytest.approx(norm, rel=0.05)
        assert results[rank]["bf16"]["norm"] != pytest.approx(norm, rel=1e-5)  # it did run in bf16


def test_statistics_of_batch_norm_are_those_of_the_main_process(results: Any) -> None:
    main, other = (results[rank]["statistics"] for rank in range(2))
    assert any(not torch.equal(other["before"][name], value) for name, value in main["before"].items())
    for each in (main, other):
        assert_close(each["after"], main["before"], rtol=0.0, atol=0.0)


def test_the_processes_form_one_group_with_the_recipes_timeout(results: Any) -> None:
    """Also on CPUs with train.device "auto", which Accelerate would take for two trainings."""
    for rank in range(2):
        assert results[rank]["processes"] == 2
        assert results[rank]["timeout"].total_seconds() == 77


def test_shards_on_one_process_are_none() -> None:
    settings = recipe(shard="full")
    accelerator = create_accelerator(settings)
    assert not sharding.shards(accelerator, settings)
    model = vit()
    assert sharding.prepare(accelerator, settings, model) is model
    with sharding.whole_weights(model):
        sharding.share_statistics(model)
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_contradicting_launch_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Else Accelerate shards in its own way, and the recipe's train.shard says nothing."""
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match=rf"{name}.*train\.shard"):
        create_accelerator(recipe())


def test_accumulation_of_accelerates_configuration_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert create_accelerator(recipe()).gradient_accumulation_steps == 1


def test_processes_that_cannot_train_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each trains the whole run for itself. Here this process is alone, whatever its environment says."""
    create_accelerator(recipe())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE = 2, but 1 process"):
        create_accelerator(recipe())


def test_copies_started_by_srun_are_refused() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS = 8"):
        refuse_copies(step)
    refuse_copies({**step, "RANK": "3", "WORLD_SIZE": "8"})
    refuse_copies({"SLURM_NTASKS": "8"})  # a batch script itself is one process, however many tasks it may start
    refuse_copies({"SLURM_STEP_NUM_TASKS": "1"})
