"""The choice between fused and unfused attention. No test depends on how fast anything is."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import timm
import torch
from torch import nn

from masksub.app.attention import choose_attention, measure_attention, set_attention
from tests.models import resnet, vit

SHAPE = (8, 3, 16, 16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many rounds as there must be."""
    monkeypatch.setattr("masksub.app.attention._SECONDS", 0)


def attention_of(model: nn.Module) -> Any:
    return next(module for module in model.modules() if hasattr(module, "fused_attn"))


def flags(model: nn.Module) -> list[bool]:
    return [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]


def times(fused: float, unfused: float, seen: list[Any] | None = None) -> Any:
    def measure(module: nn.Module, calls: Any, **kwargs: Any) -> dict[str, float]:
        if seen is not None:
            seen.append((module, calls, kwargs))
        return {"fused": fused, "unfused": unfused}

    return measure


def test_set_flips_every_module_and_counts_them() -> None:
    model = vit()
    assert set_attention(model, "unfused") == 2  # one a layer
    assert flags(model) == [False, False]
    assert set_attention(model, "fused") == 2
    assert flags(model) == [True, True]
    assert set_attention(resnet(), "fused") == 0


def test_both_compute_the_same() -> None:
    model, x = vit(), torch.randn(*SHAPE)
    logits = {}
    for how in ("fused", "unfused"):
        set_attention(model, how)
        logits[how] = model(x)
    torch.testing.assert_close(logits["fused"], logits["unfused"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_none_without_attention(precision: Any) -> None:
    measure = times(1, 2)
    assert choose_attention(resnet(), (2, 3, 32, 32), device="cpu", precision=precision, measure=measure) is None


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16"), ("cuda:1", "fp16")]
)
def test_what_is_known_is_not_measured(device: str, precision: Any) -> None:
    seen: list[Any] = []
    found = choose_attention(vit(), SHAPE, device=device, precision=precision, measure=times(2, 1, seen))
    assert found == "fused"
    assert not seen


@pytest.mark.parametrize(("fused", "unfused", "expected"), [(1.0, 2.0, "fused"), (2.0, 1.0, "unfused")])
def test_the_faster_one_is_taken(fused: float, unfused: float, expected: str) -> None:
    measure = times(fused, unfused)
    assert choose_attention(vit(), SHAPE, device="cpu", precision="bf16", measure=measure) == expected


def test_what_timm_holds_back_is_measured_even_where_the_answer_is_known() -> None:
    model = vit()
    set_attention(model, "unfused")
    assert choose_attention(model, SHAPE, device="cpu", precision="fp32", measure=times(2, 1)) == "unfused"


def test_both_branches_sizes_are_measured() -> None:
    """16 patches and a class token; 8 of them in the sub branch. A large batch is cut."""
    seen: list[Any] = []
    model = vit()
    choose_attention(model, (512, 3, 16, 16), device="cpu", precision="bf16", measure=times(1, 2, seen))
    [(module, calls, kwargs)] = seen
    assert module is attention_of(model)
    assert [call[0][0].shape[1:] for call in calls] == [(17, 24), (9, 24)]
    assert all(call[0][0].shape[0] < 512 for call in calls)
    assert kwargs == {"device": CPU, "precision": "bf16"}


def test_windowed_attention_and_masks_are_found() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(2, 1), num_heads=(1, 1), window_size=4
    )
    assert choose_attention(swin, (2, 3, 64, 64), device="cpu", precision="bf16") in ("fused", "unfused")


@pytest.mark.parametrize("now", ["fused", "unfused"])
def test_a_forward_that_does_not_run_on_the_meta_device_keeps_what_it_has(now: Any) -> None:
    class ReadsValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vit()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x / x.abs().max().item())

    model, seen = ReadsValues(), []
    set_attention(model, now)
    measure = times(1, 2, seen) if now == "unfused" else times(2, 1, seen)
    assert choose_attention(model, SHAPE, device="cpu", precision="bf16", measure=measure) == now
    assert not seen


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_numbers_are_untouched(training: bool) -> None:
    model = vit(attn_drop_rate=0.5, proj_drop_rate=0.5).train(training)
    model.blocks[0].eval()
    weights = copy.deepcopy(model.state_dict())
    before = flags(model), [module.training for module in model.modules()], torch.get_rng_state()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    assert choose_attention(model, SHAPE, device="cpu", precision="bf16") in ("fused", "unfused")
    after = flags(model), [module.training for module in model.modules()], torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.grad is None and parameter.device == CPU for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), weights, atol=0, rtol=0)


def test_rounds_take_turns_and_the_fastest_counts() -> None:
    """A clock and a module that take 3 s fused and 1 s unfused, each slower by 5 s in one round."""
    now, order = 0.0, []

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused_attn = True
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            order.append(self.fused_attn)
            now += (3 if self.fused_attn else 1) + (5 if len(order) in (3, 4) else 0)
            return x * self.scale

    module = Slow()
    calls = [((torch.empty(2, 3, device="meta"),), {})]
    seconds = measure_attention(module, calls, device=CPU, precision="fp32", clock=lambda: now)
    assert seconds == {"fused": 3, "unfused": 1}
    assert order == list(itertools.islice(itertools.cycle([True, False]), len(order)))
    assert len(order) >= 6  # a warm-up and two rounds
    assert module.fused_attn and module.scale.grad is None
