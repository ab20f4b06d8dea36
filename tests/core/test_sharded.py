"""fully_shard (FSDP2) on two gloo processes. If these fail, training a sharded model is wrong, reduces twice or hangs.

The reference is the plain model on each process's part of the batch, drawn alike, and the mean of the two gradients.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import masksub
from masksub.core.wrappers import gathered, sharded_modules, unwrap, without_gradient_sync
from tests.models import resnet, vit

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of torch 2.6 needs a GPU"
)

ROWS = 4
"""Images of each process."""


def vit_recomputing() -> nn.Module:
    model = vit()
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    return model


def swin() -> nn.Module:
    """With the learnable value of masked cells, which belongs to the root."""
    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2),
        num_classes=5,
    )  # fmt: skip
    masksub.add_mask_token(model)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 16),
    "vit recomputing": (vit_recomputing, 16),
    "resnet": (resnet, 64),
    "swin": (swin, 64),
}
SUBS: dict[str, Callable[[], Any]] = {
    "mask": lambda: masksub.MaskSub(0.5),
    "token": lambda: masksub.MaskSub(0.5, fill="token"),
    "path": lambda: masksub.PathSub(0.5),
    "mask and path": lambda: masksub.MaskSub(0.5) + masksub.PathSub(0.5),
    "drop": lambda: masksub.DropSub(0.3),
    "co": lambda: masksub.CoSub(0.5),
}
CONFIGURATIONS = [
    ("vit", "mask", "split"),
    ("vit", "mask", "joint"),
    ("vit", "path", "split"),
    ("vit", "mask and path", "split"),
    ("vit", "drop", "joint"),
    ("vit", "co", "split"),
    ("vit recomputing", "mask", "split"),
    ("resnet", "mask", "split"),
    ("resnet", "path", "split"),
    ("swin", "token", "split"),
]
WEIGHTS = (0.5, 0.0, 1.0, 0.3)
"""Each has its own way through the step."""


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind][0]()


def sharded(model: nn.Module) -> nn.Module:
    """Each block, and the rest."""
    blocks = [module for module in model.modules() if "Block" in type(module).__name__]
    assert blocks
    for module in (*blocks, model):
        fully_shard(module)
    return model


def part(kind: str, rank: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels of a process."""
    generator = torch.Generator().manual_seed(10 * number + rank)
    pixels = MODELS[kind][1]
    return torch.randn(ROWS, 3, pixels, pixels, generator=generator), torch.randint(5, (ROWS,), generator=generator)


def stepped(step: Any, kind: str, rank: int, number: int = 0) -> Any:
    """One step with the randomness of a process."""
    torch.manual_seed(10 * number + rank)
    return step(*part(kind, rank, number), generator=torch.Generator().manual_seed(10 * number + rank))


class Counted:
    """Counts reductions: calls of the function of torch.distributed that FSDP2 takes, by its names over versions."""

    def __init__(self) -> None:
        self.calls = self._depth = 0
        names = [name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name)]
        for name in names:
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, reduce: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.calls += self._depth == 0  # one may call the other
            self._depth += 1
            try:
                return reduce(*args, **kwargs)
            finally:
                self._depth -= 1

        return counting

    def since(self, before: int) -> int:
        return self.calls - before


def one_configuration(rank: int, kind: str, sub: str, mode: Any, counted: Counted) -> dict[str, Any]:
    model = sharded(build(kind))
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=SUBS[sub](), mode=mode)
    groups, reductions, gradients = len(sharded_modules(model)), [], []
    for weight in WEIGHTS:
        model.zero_grad()
        step.weight = weight
        before = counted.calls
        stepped(step, kind, rank)
        reductions.append(counted.since(before))
        gradients.append(_gradients(model))
    # Three parts make one update; those before the last reduce nothing, and say so in either way.
    model.zero_grad()
    before = counted.calls
    with without_gradient_sync(model):
        stepped(step, kind, rank, 0)
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    stepped(step, kind, rank, 1)
    accumulated = counted.since(before)
    model.set_requires_gradient_sync(True)  # type: ignore[operator]
    before = counted.calls
    stepped(step, kind, rank, 2)
    return {
        "groups": groups,
        "reductions": reductions,
        "gradients": gradients,
        "while accumulating": accumulated,
        "at the last part": counted.since(before),
        "accumulated": _gradients(model),
    }


def _gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else gathered(p.grad).clone() for n, p in model.named_parameters()}


def after_an_exception(rank: int, counted: Counted) -> dict[str, Any]:
    """Reductions of a step after one that failed between the branches, and what was asked for before."""

    def failing(logits: Tensor, y: Tensor) -> Tensor:
        raise ArithmeticError

    model = sharded(build("vit"))
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(), target="softmax")
    step.criterion = failing
    with pytest.raises(ArithmeticError):
        stepped(step, "vit", rank)
    step.criterion = F.cross_entropy
    model.zero_grad()
    before = counted.calls
    stepped(step, "vit", rank)
    first = counted.since(before)
    # What the user had asked of a module stays: here to reduce over shards, but not over replicas.
    model.set_requires_all_reduce(False)  # type: ignore[operator]
    with without_gradient_sync(model), without_gradient_sync(model):
        pass
    group = model._get_fsdp_state()._fsdp_param_group  # type: ignore[operator]
    return {
        "reductions": first,
        "groups": len(sharded_modules(model)),
        "kept": (group.reduce_grads, group.all_reduce_grads),
    }


def loss_alone(rank: int) -> dict[str, Tensor | None]:
    """Gradient by the caller's own backward of the joint loss."""
    model = sharded(build("vit"))
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())
    torch.manual_seed(rank)
    step.loss(*part("vit", rank), generator=torch.Generator().manual_seed(rank)).backward()
    return _gradients(model)


def evaluated(rank: int) -> dict[str, Any]:
    """Logits of eval mode and within a branch there, before and after a step and a change of the weights."""
    model = sharded(build("vit")).eval()
    x, _ = part("vit", 0)
    seen = {}
    with torch.no_grad():
        seen["whole"] = model(x)
        with masksub.MaskSub(0.0).applied(model):
            seen["ratio 0"] = model(x)
        with masksub.MaskSub(0.5).applied(model, generator=torch.Generator().manual_seed(0)):
            seen["masked"] = model(x)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub())
    stepped(step, "vit", rank)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.step()
    with torch.no_grad():
        seen["after a step"] = model(x)
    return seen


def own_masks(rank: int) -> Tensor:
    """The masked forward without a generator, seeded as the other process is."""
    model = sharded(build("vit")).eval()
    torch.manual_seed(0)
    with torch.no_grad(), masksub.MaskSub(0.5).applied(model):
        return model(part("vit", 0)[0])


def refusal() -> str:
    try:
        unwrap(FullyShardedDataParallel(vit(), device_id=torch.device("cpu")))
    except TypeError as error:
        return str(error)
    return ""


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    counted = Counted()
    results: dict[Any, Any] = {each: one_configuration(rank, *each, counted) for each in CONFIGURATIONS}
    results["exception"] = after_an_exception(rank, counted)
    results["loss"] = loss_alone(rank)
    results["evaluated"] = evaluated(rank)
    results["own masks"] = own_masks(rank)
    results["refusal"] = refusal()
    if rank == 0:  # the compiler takes a second to load
        results["compiled"] = len(sharded_modules(torch.compile(sharded(build("vit")))))  # type: ignore[arg-type]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of the two processes got, all configurations in one start."""
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@functools.cache
def expected(kind: str, sub: str, mode: Any) -> list[dict[str, Tensor]]:
    """The mean over processes of the plain model's gradients, for each weight and for three parts."""
    totals: list[dict[str, Tensor]] = [{} for _ in (*WEIGHTS, "parts")]
    for rank in range(2):
        model = build(kind)
        step = masksub.TwoBranchStep(model, F.cross_entropy, sub=SUBS[sub](), mode=mode)
        for total, weight, parts in zip(totals, (*WEIGHTS, WEIGHTS[-1]), (*[1] * len(WEIGHTS), 3)):
            model.zero_grad()
            step.weight = weight
            for number in range(parts):
                stepped(step, kind, rank, number)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad / 2
    return totals


def assert_same(gradients: dict[str, Tensor | None], reference: dict[str, Tensor]) -> None:
    assert {name for name, gradient in gradients.items() if gradient is not None} == reference.keys()
    for name, gradient in reference.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "sub", "mode"), CONFIGURATIONS)
def test_one_reduction_a_step_and_none_while_accumulating(results: Any, kind: str, sub: str, mode: str) -> None:
    for rank in range(2):
        result = results[rank][kind, sub, mode]
        assert result["groups"] > 2
        assert result["reductions"] == [result["groups"]] * len(WEIGHTS)
        assert result["while accumulating"] == 0
        assert result["at the last part"] == result["groups"]


@pytest.mark.parametrize(("kind", "sub", "mode"), CONFIGURATIONS)
def test_same_gradient_as_the_plain_model(results: Any, kind: str, sub: str, mode: str) -> None:
    for number, reference in enumerate(expected(kind, sub, mode)[:-1]):
        for rank in range(2):
            assert_same(results[rank][kind, sub, mode]["gradients"][number], reference)


@pytest.mark.parametrize(("kind", "sub", "mode"), CONFIGURATIONS)
def test_three_parts_add_up(results: Any, kind: str, sub: str, mode: str) -> None:
    """Else accumulation loses the gradient of a part, or of a branch in it."""
    for rank in range(2):
        assert_same(results[rank][kind, sub, mode]["accumulated"], expected(kind, sub, mode)[-1])


def test_an_exception_leaves_no_model_that_never_reduces(results: Any) -> None:
    for rank in range(2):
        result = results[rank]["exception"]
        assert result["reductions"] == result["groups"]
        assert result["kept"] == (True, False)


def test_the_joint_loss_has_the_same_gradient(results: Any) -> None:
    """For trainers that run the backward themselves."""
    for rank in range(2):
        assert_same(results[rank]["loss"], expected("vit", "mask", "split")[0])


def test_evaluation(results: Any) -> None:
    model = build("vit").eval()
    x, _ = part("vit", 0)
    with torch.no_grad():
        whole = model(x)
        with masksub.MaskSub(0.5).applied(model, generator=torch.Generator().manual_seed(0)):
            masked = model(x)
    gradients = []
    for rank in range(2):
        model = build("vit").eval()
        stepped(masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub()), "vit", rank)
        gradients.append([p.grad for p in model.parameters()])
    with torch.no_grad():
        for parameter, one, two in zip(model.parameters(), *gradients):
            parameter -= 0.1 * (one + two) / 2
        after = model(x)
    for rank in range(2):
        seen = results[rank]["evaluated"]
        assert torch.equal(seen["whole"], whole) and torch.equal(seen["ratio 0"], whole)
        assert torch.equal(seen["masked"], masked)
        torch.testing.assert_close(seen["after a step"], after)


def test_each_rank_draws_its_own_masks(results: Any) -> None:
    assert not torch.allclose(results[0]["own masks"], results[1]["own masks"])


def test_fsdp1_is_refused(results: Any) -> None:
    """Else the wrapper is taken for a model of no known family, whose pixels are blanked where tokens should go."""
    assert "use torch.distributed.fsdp.fully_shard" in results[0]["refusal"]


def test_sharding_is_seen_through_compile(results: Any) -> None:
    assert results[0]["compiled"] == results[0]["vit", "mask", "split"]["groups"]


def test_a_model_that_is_not_sharded_has_no_sharded_modules() -> None:
    assert sharded_modules(vit()) == []
