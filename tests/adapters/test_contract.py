"""The contract that every adapter keeps. If it fails, masksub changes a user's model or masks it wrongly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from masksub.core.masking import blank_pixels
from tests.models import CASES, Case

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def state(model: nn.Module) -> dict[str, object]:
    """All of a model that a branch could leave changed."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "weights": [id(t) for t in model.state_dict(keep_vars=True).values()],
    }


def test_how_it_is_masked(case: Case) -> None:
    model = case.build()
    adapter = find_adapter(model)
    assert adapter.how == case.how
    assert adapter.grid(model, case.inputs()[0], None).units == case.units


def test_ratio_zero_in_eval_mode_is_bit_equal(case: Case) -> None:
    model, (x, _) = case.build().eval(), case.inputs()
    expected = model(x)
    with masksub.MaskSub(0.0).applied(model):
        assert torch.equal(model(x), expected)


def test_keep_of_all_units_is_bit_equal(case: Case) -> None:
    model, (x, _) = case.build().eval(), case.inputs()
    expected = model(x)
    with masksub.MaskSub(0.5).applied(model, keep=torch.ones(len(x), case.units, dtype=torch.bool)):
        assert torch.equal(model(x), expected)


def test_state_dict_and_model_are_as_before(case: Case) -> None:
    model, (x, _) = case.build(), case.inputs()
    before, keys = state(model), list(model.state_dict())
    with masksub.MaskSub(0.5).applied(model):
        assert list(model.state_dict()) == keys
        model(x)
    assert state(model) == before


def test_model_is_restored_after_an_exception(case: Case) -> None:
    model, (x, _) = case.build().eval(), case.inputs()
    before, expected = state(model), model(x)
    with pytest.raises(KeyError, match="from inside"), masksub.MaskSub(0.5).applied(model):
        model(x)
        raise KeyError("from inside")
    assert state(model) == before
    assert torch.equal(model(x), expected)


def test_masked_units_do_not_matter_and_visible_ones_do(case: Case) -> None:
    """Other pixels in the masked units leave the logits bit-equal; other pixels in the visible ones change them."""
    model, (x, _) = case.build().eval(), case.inputs(2)
    adapter = find_adapter(model)
    grid = adapter.grid(model, x, None)
    unit = x.shape[-2] // grid.rows if case.how == "drop" else 32
    keep = masksub.sample_keep(2, grid.units, 0.5)
    noise = torch.randn_like(x)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        expected = model(x)
        assert torch.equal(model(blank_pixels(x, keep, unit) + (noise - blank_pixels(noise, keep, unit))), expected)
        assert not torch.allclose(model(x + blank_pixels(noise, keep, unit)), expected)


def test_split_and_joint_give_the_same_gradient(case: Case) -> None:
    x, y = case.inputs()
    keep = masksub.sample_keep(len(x), case.units, 0.5)
    one = case.build()
    two = copy.deepcopy(one)
    outs = []
    for model, mode in ((one, "split"), (two, "joint")):
        torch.manual_seed(5)
        step = masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5), mode=mode)  # type: ignore[arg-type]
        outs.append(step(x, y, keep=keep))
    torch.testing.assert_close(outs[0].loss, outs[1].loss)
    torch.testing.assert_close(gradients(one), gradients(two))
    assert len(gradients(one)) == len(list(one.parameters()))


def test_same_generator_same_result_and_another_choice_each_time(case: Case) -> None:
    model, (x, _) = case.build().eval(), case.inputs()
    results = []
    for seed in (7, 7, 8):
        with masksub.MaskSub(0.5).applied(model, generator=torch.Generator().manual_seed(seed)):
            results.append(model(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_wrong_keep_is_refused(case: Case) -> None:
    model, (x, _) = case.build(), case.inputs()
    for keep, message in (
        (torch.ones(len(x), case.units + 1, dtype=torch.bool), "torch.bool of shape"),
        (torch.ones(len(x), case.units), "keep is torch.float32"),
        (torch.zeros(len(x), case.units, dtype=torch.bool), "nothing is visible"),
    ):
        with pytest.raises(ValueError, match=message), masksub.MaskSub(0.5).applied(model, keep=keep):
            model(x)
