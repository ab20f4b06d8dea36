"""torchvision's models beyond the contract: an independent forward, and those with auxiliary outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import masksub
from tests.cases.torchvision import CASES


def test_a_vit_computes_what_its_parts_give_for_the_visible_patches_alone() -> None:
    """Positions go with their patches, and the class token stays first."""
    case = CASES["torchvision vit"]
    model: Any = case.model().eval()
    x, _ = case.inputs(2)
    keep = masksub.sample_keep(2, case.units, 0.5)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        logits = model(x)
    for row in range(2):
        patches = model._process_input(x[row : row + 1])[0]  # (L, D)
        places = model.encoder.pos_embedding[0]
        tokens = [model.class_token[0, 0] + places[0]]
        tokens += [patches[i] + places[1 + i] for i in range(case.units) if keep[row, i]]
        features = model.encoder.ln(model.encoder.layers(torch.stack(tokens).unsqueeze(0)))
        torch.testing.assert_close(model.heads(features[:, 0])[0], logits[row])


def test_a_swin_computes_what_its_parts_give_for_filled_cells() -> None:
    case = CASES["torchvision swin v2"]
    model: Any = case.model().eval()
    x, _ = case.inputs(2)
    keep = torch.tensor([[True, True, False, False], [True, False, True, False]])
    with masksub.MaskSub(0.5, fill=0.25).applied(model, keep=keep):
        logits = model(x)
    cells = model.features[0](x)  # (B, 16, 16, D), units of 8 x 8 cells
    cells[0, 8:] = 0.25
    cells[1, :, 8:] = 0.25
    features = model.permute(model.norm(model.features[1:](cells)))
    torch.testing.assert_close(model.head(model.flatten(model.avgpool(features))), logits)


@pytest.mark.parametrize(
    ("name", "size", "modes"), [("googlenet", 64, ("split", "joint")), ("inception_v3", 299, ("split",))]
)
def test_auxiliary_outputs_are_left_out_of_the_loss(name: str, size: int, modes: tuple[Any, ...]) -> None:
    """In training mode these return a named tuple whose ``.logits`` the step takes, in either mode alike."""
    kwargs = {"num_classes": 3, "init_weights": False, "aux_logits": True}
    one: nn.Module = torchvision.models.get_model(name, weights=None, **kwargs)
    x, y = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    models = {mode: copy.deepcopy(one).train() for mode in modes}
    keep = masksub.sample_keep(2, (-(-size // 32)) ** 2, 0.5)
    losses = []
    for mode, model in models.items():
        torch.manual_seed(3)
        step = masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(0.5), mode=mode)
        losses.append(step(x, y, keep=keep).loss)
    torch.testing.assert_close(losses[0], losses[-1])
    without = {key for key, p in model.named_parameters() if p.grad is None}
    assert without == {key for key, _ in one.named_parameters() if key.lower().startswith("aux")} != set()
