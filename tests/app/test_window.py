"""Figures of a line of metrics. If these fail, reports tell of a calm or of an agreement that was not there."""

from __future__ import annotations

import pytest
import torch

from masksub.app.window import LossWindow, read_losses
from masksub.core.step import StepOutput


def step(main: float, sub: float | None, *same: bool) -> dict[str, float]:
    """One step whose branches give the same label where ``same`` says so."""
    logits = torch.eye(2)[torch.zeros(len(same), dtype=torch.long)]
    other = torch.eye(2)[torch.tensor([0 if each else 1 for each in same], dtype=torch.long)]
    losses = torch.tensor(main), None if sub is None else torch.tensor(sub)
    return read_losses(StepOutput(torch.tensor(main), *losses, logits, None if sub is None else other))


def test_spread_maximum_and_agreement_by_hand() -> None:
    window = LossWindow()
    window.add(step(1.0, 2.0, True, False))
    window.add(step(3.0, 4.0, True, True))
    line = window.means({"update": 2})
    assert line["loss_main"] == 2.0 and line["loss_main_std"] == pytest.approx(1.0) and line["loss_main_max"] == 3.0
    assert line["agreement"] == 75.0 and "squared" not in line


def test_a_run_that_goes_on_in_the_middle_of_a_line_writes_the_same_line() -> None:
    whole, before = LossWindow(), LossWindow()
    for window in (whole, before):
        window.add(step(5.0, 1.0, True))
    after = LossWindow(**before.state())
    for window in (whole, after):
        window.add(step(1.0, 1.0, False))
    assert whole.means({}) == after.means({})


def test_without_a_sub_branch_there_is_no_agreement() -> None:
    window = LossWindow()
    window.add(step(1.0, None, True))
    assert "agreement" not in window.means({})


def test_where_only_the_sub_branch_is_trained_its_loss_is_told() -> None:
    window = LossWindow()
    for loss in (2.0, 4.0):
        window.add(read_losses(StepOutput(torch.tensor(loss), None, torch.tensor(loss), None, torch.zeros(1, 2))))
    line = window.means({})
    assert line["loss_main_max"] == 4.0 and line["loss_main_std"] == pytest.approx(1.0) and "loss_main" not in line
