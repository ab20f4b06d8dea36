"""Losses of both branches between two lines of metrics."""

from __future__ import annotations

import math
from typing import Any

import torch

from masksub.core.step import StepOutput

__all__ = ["BRANCHES", "LossWindow"]

BRANCHES = {"loss_main": "main", "loss_sub": "sub"}
"""Field of a step's output -> the branch's name for people."""


class LossWindow:
    """Sums of the losses since the last line of metrics, part of a run's state.

    Args:
        sums: loss name -> sum.
        count: number of steps that were added.
    """

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count
        self.last: dict[str, float] = {}
        self.gradient_norm: float | None = None

    def add(self, out: StepOutput) -> None:
        """Add one step; the one place where training waits for the accelerator."""
        losses = {"loss": out.loss, "loss_main": out.loss_main, "loss_sub": out.loss_sub}
        present = {key: value.float() for key, value in losses.items() if value is not None}
        self.last = dict(zip(present, torch.stack(list(present.values())).tolist()))
        self.count += 1
        for key, value in self.last.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def not_finite(self) -> str | None:
        """The branch whose loss is not a number, if any, since the last line of metrics."""
        for key, name in BRANCHES.items():
            if not math.isfinite(self.sums.get(key, 0.0)):
                return f"{name} branch"
        return None

    def state(self) -> dict[str, Any]:
        """Arguments that make an equal window."""
        return {"sums": self.sums, "count": self.count}

    def means(self, place: dict[str, Any]) -> dict[str, Any]:
        """A line of metrics: ``place``, the mean losses, and the ratio of the branches' losses."""
        losses = {key: value / self.count for key, value in self.sums.items()}
        record = {"kind": "train", **place, **losses, "gradient_norm": self.gradient_norm}
        if losses.get("loss_main") and "loss_sub" in losses:
            record["loss_sub_over_main"] = losses["loss_sub"] / losses["loss_main"]
        return record
