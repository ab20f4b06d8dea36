"""DistributedDataParallel on two gloo processes. If these fail, training on several GPUs is wrong or reduces twice."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.wrappers import unwrap, without_gradient_sync
from tests.models import resnet, vit

BUILD = {"vit": (vit, 16, 16), "resnet": (resnet, 64, 4)}
CONFIGURATIONS = [
    (kind, mode, train_bn)
    for kind, train_bn in (("vit", False), ("resnet", False), ("resnet", True))
    for mode in ("split", "joint")
]


def whole_batch(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    _, pixels, units = BUILD[kind]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 3, pixels, pixels, generator=generator)
    return x, torch.randint(5, (8,), generator=generator), masksub.sample_keep(8, units, 0.5, generator=generator)


def build(kind: str) -> nn.Module:
    """The resnet's batch norm uses its running statistics: the batch of a process is not the whole batch."""
    torch.manual_seed(0)
    model = BUILD[kind][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def one_configuration(rank: int, kind: str, mode: Any, train_bn: bool) -> tuple[dict[str, Any], list[int]]:
    """Gradients of this process after a step, and the number of reductions in each of several steps."""
    reductions = 0

    def counted(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations by identity
        nonlocal reductions
        reductions += 1
        gradient = bucket.buffer().div_(2)
        return dist.all_reduce(gradient, async_op=True).get_future().then(lambda f: f.value()[0])

    model = build(kind)
    if train_bn:
        model.train()
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=100)
    ddp.register_comm_hook(None, counted)
    x, y, keep = whole_batch(kind)
    rows = slice(4 * rank, 4 * rank + 4)
    step = masksub.TwoBranchStep(ddp, F.cross_entropy, sub=masksub.MaskSub(), mode=mode)
    per_step = []

    def run() -> None:
        before = reductions
        step(x[rows], y[rows], keep=keep[rows])
        per_step.append(reductions - before)

    # Accumulation of three parts, said in either way: nothing is reduced but in the last one, which comes below.
    with ddp.no_sync():
        run()
    with without_gradient_sync(ddp):
        run()
    # Each weight has its own way through the step; the gradient of the last one is compared.
    for number, weight in enumerate((0.5, 0.5, 0.0, 1.0, 0.5)):
        if number:
            ddp.zero_grad()
        step.weight = weight
        run()
    return {name: p.grad for name, p in model.named_parameters()}, per_step


def own_choices() -> list[Tensor]:
    """What this process masks and drops without a generator, seeded as the other process is."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    model, seen = vit().eval(), []
    for sub in (masksub.MaskSub(0.5), masksub.PathSub(0.5), masksub.MaskSub(0.5)):
        with torch.no_grad(), sub.applied(model):
            seen.append(model(x))
    return seen


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {each: one_configuration(rank, *each) for each in CONFIGURATIONS}
    torch.save({**results, "own choices": own_choices()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of the two processes got, all configurations in one start."""
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("kind", "mode", "train_bn"), CONFIGURATIONS)
def test_one_reduction_a_step_and_none_while_accumulating(results: Any, kind: str, mode: Any, train_bn: bool) -> None:
    for rank in range(2):
        assert results[rank][kind, mode, train_bn][1] == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["split", "joint"])
@pytest.mark.parametrize("kind", BUILD)
def test_same_gradient_as_one_process(results: Any, kind: str, mode: Any) -> None:
    model = build(kind)
    x, y, keep = whole_batch(kind)
    masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())(x, y, keep=keep)
    for rank in range(2):
        gradients = results[rank][kind, mode, False][0]
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_each_rank_draws_its_own_masks_and_paths(results: Any) -> None:
    """Processes are seeded alike: else the effective batch has each mask as often as there are processes."""
    one, two = (results[rank]["own choices"] for rank in range(2))
    for mine, other in zip(one, two):
        assert not torch.allclose(mine, other)
    assert not torch.equal(one[0], one[2])  # and another one at each forward


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_batch_norm_in_training_mode(results: Any, mode: Any) -> None:
    """Two forwards before a backward used to fail: broadcast buffers are written over (pytorch#22095)."""
    one, two = (results[rank]["resnet", mode, True][0] for rank in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_unwrap_sees_through_any_nesting() -> None:
    model = vit()
    assert unwrap(model) is model
    assert unwrap(torch.compile(model)) is model  # type: ignore[arg-type]


def test_data_parallel_is_refused() -> None:
    with pytest.raises(TypeError, match="use DistributedDataParallel"):
        unwrap(nn.DataParallel(vit()))
