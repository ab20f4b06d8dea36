"""If these fail, ``inspect`` tells a user something else than training will do."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import masksub
from masksub import DropSub, MaskSub, PathSub
from masksub.core.measurement import peak_memory
from tests.core.test_flops import vit_forward
from tests.models import CASES, resnet, vit


def image(size: int = 16, batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def test_a_vit_is_described_and_left_alone() -> None:
    model = vit(reg_tokens=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = masksub.inspect(model, image())
    assert (found.how, found.units, found.visible, found.prefix) == ("drop", 16, 8, 4)
    assert (found.drop_paths, found.drop_paths_on_part, len(found.dropouts)) == (4, 4, 4)
    assert found.batch_norms == [] and not any("not all" not in text for text in found.warnings)
    assert found.time_ratio is not None and found.memory_ratio is not None and found.seconds_plain is not None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert json.loads(json.dumps(found.as_dict()))["how"] == "drop"
    for text in ("tokens dropped", "8 of 16, and 4 prefix tokens", "patch_drop", "x a plain step"):
        assert text in str(found)


def test_operations_are_those_of_a_hand_count() -> None:
    """17 tokens whole, 9 masked; backward is twice the forward, but for the input of the embedding."""
    embed = 2 * 16 * 48 * 24
    plain, masked = 3 * vit_forward(17) - embed, 3 * vit_forward(9) - embed
    found = masksub.inspect(vit(), image(), measure=False)
    assert found.flops_plain == plain and found.flop_ratio == pytest.approx((plain + masked) / plain)
    assert found.time_ratio is None
    assert masksub.inspect(vit(), image(), sub=DropSub(0.1), measure=False).flop_ratio == 2.0
    half = masksub.inspect(vit(), image(), sub=PathSub(0.5), measure=False).flop_ratio
    assert half is not None and 1.5 < half < 1.53


def test_what_a_user_should_know_is_a_warning() -> None:
    found = masksub.inspect(resnet(), image(64), measure=False)
    assert found.how == "pixels" and len(found.batch_norms) == 13
    assert any("nothing is saved" in text for text in found.warnings)
    assert any('bn="main"' in text for text in found.warnings)
    with pytest.raises(ValueError, match="1 x 1 units and keeps 1 of 1"):
        masksub.inspect(resnet(), image(32), measure=False)
    found = masksub.inspect(vit(img_size=8, patch_size=4), image(8), sub=MaskSub(0.3), measure=False)
    assert any("with 4 units, ratio 0.3 masks 50%" in text for text in found.warnings)


class Around(nn.Module):
    """Something of a user's own around a model whose tokens could be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.backbone(x)
        return out


def test_a_vit_inside_of_something_else_is_pointed_out() -> None:
    model = Around()
    model.backbone = vit(img_size=64)
    found = masksub.inspect(model, image(64), measure=False)
    assert found.how == "pixels"
    line = "masksub.register(Around, tokens='backbone.patch_drop', prefix=1)"
    assert any(text.startswith("backbone is a VisionTransformer") and line in text for text in found.warnings)


def around(size: int = 64) -> Around:
    torch.manual_seed(0)
    model = Around()
    model.backbone = vit(img_size=size)
    return model


def warned(model: nn.Module, sub: masksub.MaskSub, weight: float = 0.5) -> list[str]:
    """What two steps warn of."""
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=sub, weight=weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            step(image(64), torch.arange(8) % 5)
    return [str(each.message) for each in caught]


def test_training_says_once_that_tokens_could_be_dropped() -> None:
    """Else a user who never asks for an inspection pays for whole inputs, and nothing tells."""
    (text,) = warned(model := around(), MaskSub(0.5))
    assert text.startswith("Around is masked in pixels")
    assert "masksub.register(Around, tokens='backbone.patch_drop', prefix=1)" in text
    assert warned(model, MaskSub(0.5)) == []
    assert len(warned(around(), MaskSub(0.5))) == 1  # of another model it is said again
    assert len(warned(around(), MaskSub(0.5) + PathSub(0.25))) == 1  # copies for trials are silent


def test_nothing_is_said_where_nothing_is_to_be_done() -> None:
    assert warned(around(), MaskSub(0.5), weight=0.0) == []
    assert warned(around(), MaskSub(0.0)) == []
    assert warned(resnet(), MaskSub(0.5)) == []
    assert warned(vit(img_size=64), MaskSub(0.5)) == []
    masksub.register(Around, tokens="backbone.patch_drop", prefix=1)
    try:
        assert warned(around(), MaskSub(0.5)) == []
    finally:
        masksub.unregister(Around)
    with warnings.catch_warnings():  # pixels are what one wants: the line of docs/masking.md
        warnings.filterwarnings("ignore", "Around is masked in pixels")
        masksub.TwoBranchStep(around(), F.cross_entropy, sub=MaskSub(0.5))(image(64), torch.arange(8) % 5)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_said_outside_of_compiled_code(in_place: bool) -> None:
    """A search for parts inside of a graph would break it at each of them."""
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = around()
    if in_place:
        model.compile(backend=backend)
    compiled = model if in_place else torch.compile(model, backend=backend)
    assert len(warned(compiled, MaskSub(0.5))) == 1
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["swin", "bert", "hf vit"])
def test_other_ways_of_masking(name: str) -> None:
    case = CASES[name] if name in CASES else next(c for n, c in CASES.items() if n.removeprefix("hf ") == name)
    found = masksub.inspect(case.model(), case.inputs()[0])
    assert found.how == case.how and found.flop_ratio is not None and found.flop_ratio > 1
    assert found.memory_ratio is not None


def test_a_step_that_would_fail_is_an_error() -> None:
    with pytest.raises(ValueError, match="changes nothing"):
        masksub.inspect(resnet(), image(64), sub=DropSub(0.1), measure=False)


def test_what_masks_nothing_is_not_asked_for_units() -> None:
    """PathSub works on models that take no images."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop_path = nn.Linear(8, 8), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.drop_path(self.fc(x))
            return out

    found = masksub.inspect(nn.Sequential(Block(), Block()), torch.randn(8, 8), sub=PathSub(0.5), measure=False)
    assert found.units == 0 and (found.drop_paths, found.drop_paths_on_part) == (2, 2)


def test_a_model_with_a_forward_of_its_own_is_refused_rather_than_run() -> None:
    """A copy would share that function, and the trial would run the user's own model."""
    model = resnet().train()
    forward = model.forward
    model.forward = lambda *args: forward(*args)  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="has a forward that is a function put on it"):
        masksub.inspect(model, image(64), sub=PathSub(0.5))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_to_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="has nothing to mask"):
        masksub.inspect(nn.Linear(3, 2), torch.randn(4, 3))


def test_peak_memory_against_a_known_answer() -> None:
    """4 + 8 - 4 + 2 MiB held: the peak is at 12."""

    def run() -> None:
        a = torch.empty(4 << 20, dtype=torch.uint8)
        b = torch.empty(8 << 20, dtype=torch.uint8)
        del a
        c = torch.empty(2 << 20, dtype=torch.uint8)
        del b, c

    assert peak_memory(run, torch.device("cpu")) == 12 << 20
