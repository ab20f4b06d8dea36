"""If these fail, the cost that reports state is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.flops import step_flops
from tests.models import resnet, vit


def vit_forward(
    tokens: int, patches: int = 16, width: int = 24, depth: int = 2, patch: int = 4, classes: int = 5
) -> int:
    """Operations of the forward of one image, written out: patch embedding, qkv + projection, two attention products,
    MLP of 4 x width, head."""
    embed = 2 * patches * 3 * patch * patch * width
    block = 2 * tokens * width * (3 * width + width) + 2 * 2 * tokens * tokens * width + 2 * tokens * width * 8 * width
    return embed + depth * block + 2 * width * classes


def run(weight: float, ratio: float = 0.5) -> Any:
    def step(model: nn.Module, x: Tensor) -> None:
        y = torch.zeros(len(x), dtype=torch.long, device="meta")
        masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(ratio), weight=weight)(x, y)

    return step


@pytest.mark.parametrize("fused", [True, False])
def test_plain_and_two_branch_step_against_a_hand_count(fused: bool) -> None:
    """Backward costs twice the forward, but for the patch embedding, whose input needs no gradient."""
    model = vit()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    embed = 2 * 16 * 48 * 24
    plain = 3 * vit_forward(17) - embed
    masked = 3 * vit_forward(9) - embed
    assert step_flops(model, run(0.0), (2, 3, 16, 16)) == 2 * plain
    assert step_flops(model, run(0.5), (2, 3, 16, 16)) == 2 * (plain + masked)


def test_pixel_blocks_save_nothing() -> None:
    model = resnet()
    plain = step_flops(model, run(0.0), (2, 3, 64, 64))
    assert step_flops(model, run(0.5), (2, 3, 64, 64)) == 2 * plain > 0


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_grouped_convolutions_against_a_hand_count(groups: int) -> None:
    """8 channels in and out, 3 x 3, 16 x 16 positions; forward, and two gradients of the same cost in the second layer.
    The framework's counter takes the weight's gradient for that of a dense layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    first, second = 2 * 256 * 3 * 8, 2 * 256 * 8 * 8 // groups * 9
    assert step_flops(model, run(0.0), (2, 3, 16, 16)) == 2 * (2 * first + 3 * second)


def test_transposed_convolution_against_a_hand_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 5, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert step_flops(model, run(0.0), (2, 3, 16, 16)) == 2 * (2 * 2 * 256 * 3 * 8 + 3 * 2 * 256 * 8 * 5 * 4)


def test_counting_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = resnet()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    step_flops(model, run(0.5), (2, 3, 64, 64))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
