"""The loop that all integrations are held against, against the formula by hand. If it fails, so do they, unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import masksub
from masksub.core.seeds import MasksOfUpdates
from tests.integrations.reference import LEARNING_RATE, SEED, batches, build, same_weights, trained

UPDATES = 10


def by_hand(accumulation: int, autocast: bool = False) -> nn.Module:
    """The paper's loss without ``TwoBranchStep``: both forwards, backward outside of autocast, plain SGD."""
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    branch, masks = masksub.MaskSub(0.5), MasksOfUpdates(SEED)
    for number, (x, y) in enumerate(batches(UPDATES * accumulation)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
            loss_main = F.cross_entropy(logits, y) / 2 / accumulation
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            branch.applied(model, generator=masks(number // accumulation)),
        ):
            sub_logits = model(x)
            target = logits.detach().float().softmax(dim=1)
            loss_sub = F.cross_entropy(sub_logits.float(), target) / 2 / accumulation
        if autocast:  # in one backward the gradients of the two would be added up in bf16
            loss_main.backward()
            loss_sub.backward()
        else:
            (loss_main + loss_sub).backward()
        if (number + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulation", [1, 4])
def test_reference_is_the_formula(accumulation: int) -> None:
    ours = trained(batches(UPDATES * accumulation), updates=UPDATES, accumulation=accumulation)
    same_weights(ours, by_hand(accumulation))


def test_autocast_and_scaler_around_the_step() -> None:
    """The step runs backward inside of autocast, where the page puts it; the gradient must be that of one outside."""
    model = build().train()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scaler, masks = torch.amp.GradScaler("cpu", init_scale=1024.0), MasksOfUpdates(SEED)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5))
    for number, (x, y) in enumerate(batches(UPDATES * 2)):
        with torch.autocast("cpu", torch.bfloat16):
            step(x, y, generator=masks(number // 2), backward=lambda loss: scaler.scale(loss / 2).backward())
        if number % 2:
            scaler.step(optimizer)  # unscales
            scaler.update()
            optimizer.zero_grad()
    same_weights(model, by_hand(2, autocast=True))
