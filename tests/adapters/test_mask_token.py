"""The learnable value of masked cells. If it fails, a user's model or its export has a parameter it should not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from masksub.core.filling import MASK_TOKEN
from tests.cases.case import logits_of
from tests.models import CASES, Case, resnet, vit

FILLED = {name: case for name, case in CASES.items() if case.how == "fill"}
SWIN = FILLED["swin"]
with_all = pytest.mark.parametrize("case", FILLED.values(), ids=FILLED.keys())


def two_branches(model: nn.Module, **kwargs: Any) -> masksub.TwoBranchStep:
    return masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5, fill="token"), **kwargs)


def parameters(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@with_all
def test_exactly_one_parameter_is_added_and_it_is_asked_for(case: Case) -> None:
    model = case.model()
    before, keys = parameters(model), list(model.state_dict())
    with masksub.MaskSub(0.5).applied(model):
        logits_of(model, case.inputs()[0])
    assert parameters(model) == before and list(model.state_dict()) == keys, "nothing was asked for"
    token = masksub.add_mask_token(model)
    assert parameters(model) - before == {MASK_TOKEN}
    assert token is model.mask_token and token.shape == (1, 1, find_adapter(model).width(model))  # type: ignore[attr-defined]
    assert 0 < token.abs().max() < 0.2, "normal, standard deviation 0.02"


@with_all
def test_it_is_what_masked_cells_take_and_it_learns(case: Case) -> None:
    model, (x, y) = case.model().eval(), case.inputs()
    token = masksub.add_mask_token(model)
    keep = masksub.sample_keep(len(y), case.units, 0.5)
    value = torch.randn(token.shape, generator=torch.Generator().manual_seed(3))
    results = []
    with torch.no_grad():
        plain = logits_of(model, x)
        for factor in (0.0, 1.0):
            token.copy_(factor * value)
            assert torch.equal(logits_of(model, x), plain), "outside of the branch it has no effect"
            with masksub.MaskSub(0.5, fill="token").applied(model, keep=keep):
                results.append(logits_of(model, x))
        with masksub.MaskSub(0.5, fill=0.0).applied(model, keep=keep):
            assert torch.equal(logits_of(model, x), results[0]), "a token of zeros is the constant 0"
    assert not torch.allclose(*results)
    two_branches(model.train())(x, y, keep=keep)
    assert token.grad is not None and token.grad.abs().sum() > 0


def test_its_gradient_is_that_of_the_logits() -> None:
    """Compared with a difference quotient, in double precision."""
    model, (x, _) = SWIN.model().eval().double(), SWIN.inputs()
    token = masksub.add_mask_token(model)
    keep = masksub.sample_keep(len(x), SWIN.units, 0.5)
    direction = torch.randn(token.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)

    def total() -> Tensor:
        with masksub.MaskSub(0.5, fill="token").applied(model, keep=keep):
            return logits_of(model, x.double()).sum()

    (gradient,) = torch.autograd.grad(total(), token)
    with torch.no_grad():
        token += 1e-5 * direction
        above = total()
        token -= 2e-5 * direction
        below = total()
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-5, atol=1e-8)


def test_one_context_sees_the_token_as_it_is_at_each_forward() -> None:
    """An optimizer may step, and no_grad may be in force on entry, while the branch is."""
    model, (x, _) = SWIN.model().eval(), SWIN.inputs()
    token = masksub.add_mask_token(model)
    keep = masksub.sample_keep(len(x), SWIN.units, 0.5)
    with torch.no_grad():
        context = masksub.MaskSub(0.5, fill="token").applied(model, keep=keep)
        context.__enter__()
    first = logits_of(model, x)
    first.sum().backward()
    assert token.grad is not None
    with torch.no_grad():
        token += torch.randn(token.shape)
    assert not torch.allclose(logits_of(model, x), first)
    context.__exit__(None, None, None)


def test_without_it_the_plain_model_loads_strictly() -> None:
    model = SWIN.model()
    masksub.add_mask_token(model)
    state = model.state_dict()
    assert MASK_TOKEN in state
    exported = masksub.without_mask_token(state)
    plain = SWIN.build()
    plain.load_state_dict(exported, strict=True)
    x, _ = SWIN.inputs()
    assert torch.equal(plain.eval()(x), model.eval()(x))
    assert MASK_TOKEN in state, "the original is left as it is"


@pytest.mark.parametrize("mode", ["split", "joint"])
def test_it_is_trained_like_any_parameter(mode: Any) -> None:
    model, (x, y) = SWIN.model(), SWIN.inputs()
    token = masksub.add_mask_token(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = token.detach().clone()
    two_branches(model, mode=mode)(x, y)
    optimizer.step()
    assert not torch.equal(token, before)


def test_the_fill_is_refused_without_a_token() -> None:
    model, (x, y) = SWIN.model(), SWIN.inputs()
    with pytest.raises(ValueError, match="has no mask token"):
        two_branches(model)(x, y)


@pytest.mark.parametrize("build", [vit, resnet])
def test_models_masked_otherwise_have_no_token(build: Any) -> None:
    model = build()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="not masked by cells"):
        masksub.add_mask_token(model)
    with pytest.raises(ValueError, match="fill = 'token'"), masksub.MaskSub(0.5, fill="token").applied(model):
        pass
    assert list(model.state_dict()) == before


def test_a_second_token_is_refused() -> None:
    model = SWIN.model()
    masksub.add_mask_token(model)
    with pytest.raises(ValueError, match="has a mask_token already"):
        masksub.add_mask_token(model)


def test_a_unit_that_the_cells_do_not_divide_is_refused() -> None:
    model, (x, _) = SWIN.model(), SWIN.inputs()
    refused = pytest.raises(ValueError, match=r"unit = 30 px: .* cells are 4 x 4 px")
    with refused, masksub.MaskSub(0.5, unit=30).applied(model):
        model(x)
