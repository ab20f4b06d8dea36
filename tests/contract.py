"""The contract that every adapter keeps: for the small cases of the tests, and for the zoo of whole libraries."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from masksub.core.dropouts import dropout_sites
from masksub.core.masking import sample_keep_among
from masksub.core.paths import find_paths
from masksub.core.residual import exits_of
from tests.cases.case import Case, call_of, logits_of


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


def some_keep(case: Case, model: nn.Module, x: object, ratio: float = 0.5) -> Tensor:
    """A choice of visible units for this input, as the adapter's grid allows it."""
    grid = find_adapter(model).grid(model, call_of(x), None)  # type: ignore[arg-type]
    if grid.maskable is not None:
        return sample_keep_among(grid.maskable, ratio)
    return masksub.sample_keep(call_of(x).x.shape[0], grid.units, ratio)  # type: ignore[arg-type]


def how_it_is_masked(case: Case) -> None:
    model = case.model()
    adapter = find_adapter(model)
    assert adapter.how == case.how
    assert adapter.prefix(model) == case.prefix
    assert adapter.grid(model, call_of(case.inputs()[0]), None).units == case.units
    assert adapter.where and adapter.why(model)


def ratio_zero_in_eval_mode_is_bit_equal(case: Case) -> None:
    model, (x, _) = case.model().eval(), case.inputs()
    expected = logits_of(model, x)
    with masksub.MaskSub(0.0).applied(model):
        assert torch.equal(logits_of(model, x), expected)


def keep_of_all_units_is_bit_equal(case: Case) -> None:
    model, (x, _) = case.model().eval(), case.inputs()
    expected = logits_of(model, x)
    everything = torch.ones(len(expected), case.units, dtype=torch.bool)
    with masksub.MaskSub(0.5).applied(model, keep=everything):
        assert torch.equal(logits_of(model, x), expected)


def state_dict_and_model_are_as_before(case: Case) -> None:
    model, (x, _) = case.model(), case.inputs()
    logits_of(model, x)  # what a model caches at its first forward is its own matter
    before, keys = state(model), list(model.state_dict())
    with masksub.MaskSub(0.5).applied(model):
        assert list(model.state_dict()) == keys
        logits_of(model, x)
    assert state(model) == before


def model_is_restored_after_an_exception(case: Case) -> None:
    model, (x, _) = case.model().eval(), case.inputs()
    expected = logits_of(model, x)
    before = state(model)
    with pytest.raises(KeyError, match="from inside"), masksub.MaskSub(0.5).applied(model):
        logits_of(model, x)
        raise KeyError("from inside")
    assert state(model) == before
    assert torch.equal(logits_of(model, x), expected)


def masked_units_do_not_matter_and_visible_ones_do(case: Case) -> None:
    """Other content in the masked units leaves the logits bit-equal; in the visible ones it changes them."""
    model, (x, _) = case.model().eval(), case.inputs(2)
    grid = find_adapter(model).grid(model, call_of(x), None)
    keep = some_keep(case, model, x)
    cells = (grid.rows, grid.cols)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        expected = logits_of(model, x)
        assert torch.equal(logits_of(model, case.changed(x, keep, cells, visible=False)), expected)
        assert not torch.allclose(logits_of(model, case.changed(x, keep, cells, visible=True)), expected)


def masking_changes_the_logits(case: Case) -> None:
    """Else the sub branch is the main branch."""
    model, (x, _) = case.model().eval(), case.inputs()
    plain = logits_of(model, x)
    with masksub.MaskSub(0.5).applied(model):
        assert not torch.allclose(logits_of(model, x), plain)


def dropped_units_are_those_not_kept(case: Case) -> None:
    """Two choices with other units give other logits; the same choice gives the same."""
    model, (x, _) = case.model().eval(), case.inputs()
    first = some_keep(case, model, x)
    second = some_keep(case, model, x)
    assert not torch.equal(first, second)
    results = []
    for keep in (first, first, second):
        with masksub.MaskSub(0.5).applied(model, keep=keep):
            results.append(logits_of(model, x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def split_and_joint_give_the_same_gradient(case: Case) -> None:
    x, y = case.inputs()
    one = case.model()
    keep = some_keep(case, one, x)
    two = copy.deepcopy(one)
    outs = []
    for model, mode in ((one, "split"), (two, "joint")):
        torch.manual_seed(5)
        step = masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5), mode=mode)  # type: ignore[arg-type]
        outs.append(step(x, y, keep=keep))
    torch.testing.assert_close(outs[0].loss, outs[1].loss)
    torch.testing.assert_close(gradients(one), gradients(two))
    assert gradients(one).keys() == {name for name, p in one.named_parameters() if p.requires_grad} - case.unused


def same_generator_same_result_and_another_choice_each_time(case: Case) -> None:
    model, (x, _) = case.model().eval(), case.inputs()
    results = []
    for seed in (7, 7, 8):
        with masksub.MaskSub(0.5).applied(model, generator=torch.Generator().manual_seed(seed)):
            results.append(logits_of(model, x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def wrong_keep_is_refused(case: Case) -> None:
    model, (x, _) = case.model(), case.inputs()
    rows = call_of(x).x.shape[0]
    for keep, message in (
        (torch.ones(rows, case.units + 1, dtype=torch.bool), "torch.bool of shape"),
        (torch.ones(rows, case.units), "keep is torch.float32"),
        (torch.zeros(rows, case.units, dtype=torch.bool), "nothing is visible"),
    ):
        with pytest.raises(ValueError, match=message), masksub.MaskSub(0.5).applied(model, keep=keep):
            logits_of(model, x)


def has_residuals(model: nn.Module, x: object) -> bool:
    """Whether the model runs a residual branch that PathSub knows; some have places and use none."""
    return bool(exits_of(model)) and bool(find_paths(model, call_of(x), (), False).residuals)  # type: ignore[arg-type]


def other_branches_leave_the_model_as_it_was(case: Case) -> None:
    """Dropout and drop path in a branch, where the model has places for them; at rate 0 they change nothing."""
    model, (x, _) = case.model().eval(), case.inputs()
    expected = logits_of(model, x)
    before = state(model)
    branches: list[tuple[masksub.Branch, masksub.Branch]] = []
    if has_residuals(model, x):
        branches.append((masksub.PathSub(0.5), masksub.PathSub(0.0)))
    if dropout_sites(model):
        branches.append((masksub.DropSub(0.5), masksub.DropSub(0.0)))
    for branch, nothing in branches:
        with branch.applied(model):
            assert not torch.equal(logits_of(model, x), expected), f"{branch} changes nothing"
        with nothing.applied(model):
            assert torch.equal(logits_of(model, x), expected), f"{nothing} changes something"
    assert state(model) == before
    assert torch.equal(logits_of(model, x), expected)


@contextmanager
def rest_frozen() -> Iterator[None]:
    """Collecting garbage looks through what was made inside, and not through all that the tests have imported."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def a_changing_ratio_beside_drop_path_and_then_all_is_freed(case: Case) -> None:
    """Schedules begin with nothing masked: what was found out about the model then must hold later. And a sweep over
    models fills the memory if one that was masked is not freed. Both need PathSub beside MaskSub, which is costly.
    """
    with rest_frozen():
        model, (x, y) = case.model().eval(), case.inputs()
        mask = masksub.MaskSub(0.0)
        sub = mask + masksub.PathSub(0.5) if has_residuals(model, x) else mask
        expected, before = logits_of(model, x), state(model)
        for ratio in (0.0, 0.5):
            mask.ratio = ratio
            with sub.applied(model):
                changed = not torch.equal(logits_of(model, x), expected)
                assert changed == (ratio > 0 or sub is not mask), f"{sub}: changed: {changed}"
        assert state(model) == before
        step = masksub.TwoBranchStep(model.train(), nn.CrossEntropyLoss(), sub=sub)
        for ratio in (0.0, 0.5, 0.0) if sub is not mask else (0.5,):
            mask.ratio = ratio
            assert step(x, y).loss.isfinite()
        gone = weakref.ref(model)
        del model, step, before
        gc.collect()
        assert gone() is None, "something still holds the model"


CHECKS = (
    how_it_is_masked,
    ratio_zero_in_eval_mode_is_bit_equal,
    keep_of_all_units_is_bit_equal,
    state_dict_and_model_are_as_before,
    model_is_restored_after_an_exception,
    masked_units_do_not_matter_and_visible_ones_do,
    masking_changes_the_logits,
    dropped_units_are_those_not_kept,
    split_and_joint_give_the_same_gradient,
    same_generator_same_result_and_another_choice_each_time,
    wrong_keep_is_refused,
    other_branches_leave_the_model_as_it_was,
    a_changing_ratio_beside_drop_path_and_then_all_is_freed,
)
"""All of the contract; each raises an error, or fails as ``pytest.raises`` does, where it is broken."""
