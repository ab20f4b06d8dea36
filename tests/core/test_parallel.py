"""DistributedDataParallel on two gloo processes. If these fail, training on several GPUs is wrong or reduces twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.wrappers import unwrap
from tests.models import resnet, vit

BUILD = {"vit": (vit, 16, 16), "resnet": (resnet, 64, 4)}


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


def worker(rank: int, kind: str, mode: Any, train_bn: bool, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
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
    for _ in range(3):
        ddp.zero_grad()
        before = reductions
        step(x[rows], y[rows], keep=keep[rows])
        per_step.append(reductions - before)
    with ddp.no_sync():  # the user's own accumulation: nothing is reduced
        before = reductions
        step(x[rows], y[rows], keep=keep[rows])
        per_step.append(reductions - before)
        ddp.zero_grad()
    step(x[rows], y[rows], keep=keep[rows])
    torch.save(({n: p.grad for n, p in model.named_parameters()}, per_step), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", ["split", "joint"])
@pytest.mark.parametrize("kind", BUILD)
def test_same_gradient_as_one_process_and_one_reduction_a_step(kind: str, mode: Any, tmp_path: Path) -> None:
    mp.spawn(worker, (kind, mode, False, str(tmp_path)), nprocs=2)
    model = build(kind)
    x, y, keep = whole_batch(kind)
    masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())(x, y, keep=keep)
    for rank in range(2):
        gradients, per_step = torch.load(tmp_path / f"{rank}.pt")
        assert per_step == [1, 1, 1, 0]
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_batch_norm_in_training_mode(mode: Any, tmp_path: Path) -> None:
    """Two forwards before a backward used to fail: broadcast buffers are written over (pytorch#22095)."""
    mp.spawn(worker, ("resnet", mode, True, str(tmp_path)), nprocs=2)
    (one, reduced), (two, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert reduced == [1, 1, 1, 0]
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_unwrap_sees_through_any_nesting() -> None:
    model = vit()
    assert unwrap(model) is model
    assert unwrap(torch.compile(model)) is model  # type: ignore[arg-type]
