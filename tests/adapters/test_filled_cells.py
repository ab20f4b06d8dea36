"""Which cells of an embedding are filled. If it fails, other cells are masked than those of the masked units."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import masksub
from masksub.adapters.timm_windows import _PLACES
from masksub.core.adapter import find_adapter
from masksub.core.call import Call
from tests.cases.case import call_of, logits_of
from tests.models import CASES, Case

FILLED = {name: case for name, case in CASES.items() if case.how == "fill"}


def embedding_of(model: nn.Module, x: Any) -> Tensor:
    """The embedding that the model goes on with, as (B, H, W, D)."""
    adapter: Any = find_adapter(model)
    seen: list[Any] = []
    module = model.get_submodule(adapter.embedding(model))
    handle = module.register_forward_hook(lambda _, args, result: seen.append(result))
    with torch.no_grad():
        logits_of(model, x)
    handle.remove()
    (result,) = seen
    cells: Tensor = result[0] if isinstance(result, tuple) else result
    if adapter.layout(model) == "NCHW":
        return cells.permute(0, 2, 3, 1)
    if adapter.layout(model) == "NLC":
        side = round(cells.shape[1] ** 0.5)
        return cells.view(len(cells), side, side, -1)
    return cells


@pytest.mark.parametrize("case", FILLED.values(), ids=FILLED.keys())
def test_exactly_the_cells_of_masked_units_take_the_value(case: Case) -> None:
    model, (x, _) = case.model().eval(), case.inputs(2)
    adapter: Any = find_adapter(model)
    grid, size, cell = adapter.grid(model, call_of(x), None), call_of(x).x.shape[-1], adapter.stride(model)
    assert case.units == grid.units == grid.rows**2
    keep = masksub.sample_keep(2, case.units, 0.5)
    keep[0, 1], keep[0, grid.cols] = True, False  # not the same when rows and columns change places
    seen = x
    if adapter.overlapping(model):  # a visible cell sees blank pixels where its neighbour is masked
        pixels = keep.view(2, 1, grid.rows, grid.cols).repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
        seen = x * pixels
    plain = embedding_of(model, seen)
    with masksub.MaskSub(0.5, fill=0.25).applied(model, keep=keep):
        filled = embedding_of(model, x)
    assert plain.shape == filled.shape and plain.shape[1] == size // cell
    unit = case.unit // cell
    for batch in range(2):
        for row in range(size // cell):
            for col in range(size // cell):
                there = filled[batch, row, col]
                visible = bool(keep[batch, (row // unit) * grid.cols + col // unit])
                expected = plain[batch, row, col] if visible else torch.full_like(there, 0.25)
                assert torch.equal(there, expected), (batch, row, col, visible)


def test_cells_that_do_not_divide_32_px_have_units_near_it() -> None:
    with torch.device("meta"):
        model = timm.create_model("sequencer2d_s")
    grid = find_adapter(model).grid(model, Call((torch.empty(1, 3, 224, 224, device="meta"),)), None)
    assert (grid.rows, grid.cols) == (7, 7)  # 35 px: 5 cells of 7 px


def test_another_number_of_cells_than_expected_is_an_error() -> None:
    """A model that pads, or crops, its input on its own would have the wrong cells filled."""

    class Padding(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = nn.functional.pad(self.inner(x), (0, 0, 0, 4, 0, 4))
            return result

    case = FILLED["swin"]
    model: Any = case.model()
    model.patch_embed = Padding(model.patch_embed)
    x, _ = case.inputs()
    wrong = pytest.raises(RuntimeError, match="20 x 20 cells where 16 x 16 were expected")
    with wrong, masksub.MaskSub(0.5).applied(model):
        model(x)


def test_a_call_that_does_not_pass_the_branch_is_an_error() -> None:
    """Nothing was drawn for it, so nothing would be masked."""
    case = FILLED["swin"]
    inner = case.model()
    wrapped: Any = torch.compile(inner, backend="eager")
    with pytest.raises(RuntimeError, match="nothing was drawn"), masksub.MaskSub(0.5).applied(wrapped):
        inner(case.inputs()[0])


@pytest.mark.parametrize(("module", "name"), _PLACES)
def test_each_class_of_the_table_is_that_of_its_models(module: str, name: str) -> None:
    kind = getattr(getattr(timm.models, module), name)
    with torch.device("meta"):
        model = timm.create_model(timm.list_models(module=module)[0])
    assert isinstance(model, kind)
