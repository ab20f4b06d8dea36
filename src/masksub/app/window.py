"""Losses of both branches between two lines of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from masksub.core.step import StepOutput

__all__ = ["BRANCHES", "LossWindow", "read_losses"]

BRANCHES = {"loss_main": "main", "loss_sub": "sub"}
"""Field of a step's output -> the branch's name for people."""


def read_losses(out: StepOutput) -> dict[str, float]:
    """Losses of a step as numbers, and the branches' agreement; here training waits for the accelerator."""
    losses = {"loss": out.loss, "loss_main": out.loss_main, "loss_sub": out.loss_sub}
    present = {key: value.float() for key, value in losses.items() if value is not None}
    if out.logits is not None and out.sub_logits is not None:
        same = out.logits.argmax(dim=-1) == out.sub_logits.argmax(dim=-1)
        present["agreement"] = 100 * same.float().mean()
    return dict(zip(present, torch.stack(list(present.values())).tolist()))


class LossWindow:
    """Sums of the losses since the last line of metrics, part of a run's state.

    Args:
        sums: name -> sum over the steps: losses, agreement, and the square of the trained loss.
        count: number of steps that were added.
        largest: the largest trained loss of a step.
        gradient_norm: of the last step.
    """

    def __init__(
        self,
        sums: dict[str, float] | None = None,
        count: int = 0,
        largest: float = -math.inf,
        gradient_norm: float | None = None,
    ) -> None:
        self.sums = dict(sums or {})
        self.count, self.largest = count, largest
        self.last: dict[str, float] = {}
        self.gradient_norm = gradient_norm

    def add(self, losses: dict[str, float]) -> None:
        """Add one step, see ``read_losses``."""
        self.last = losses
        self.count += 1
        trained = losses.get("loss_main", losses["loss"])
        self.largest = max(self.largest, trained)
        for key, value in (*losses.items(), ("squared", trained * trained)):
            self.sums[key] = self.sums.get(key, 0.0) + value

    def state(self) -> dict[str, Any]:
        """Arguments that make an equal window."""
        return {
            "sums": self.sums, "count": self.count, "largest": self.largest, "gradient_norm": self.gradient_norm
        }  # fmt: skip

    @classmethod
    def of_all(cls, windows: Iterable[LossWindow]) -> LossWindow:
        """One window of several processes' steps; the gradient, which they share, is the first one's."""
        windows = list(windows)
        keys = {key: None for window in windows for key in window.sums}
        return cls(
            {key: sum(window.sums.get(key, 0.0) for window in windows) for key in keys},
            sum(window.count for window in windows),
            max(window.largest for window in windows),
            windows[0].gradient_norm,
        )

    def means(self, place: dict[str, Any]) -> dict[str, Any]:
        """A line of metrics: ``place``; means over the steps since the last line of the losses and of the branches'
        agreement (percent of the images to which both give the same label); the main loss's standard deviation and
        maximum over these steps, the sub loss's where there is no main one; the ratio of the branches' losses.
        """
        losses = {key: value / self.count for key, value in self.sums.items()}
        trained = losses.get("loss_main", losses["loss"])
        losses["loss_main_std"] = math.sqrt(max(0.0, losses.pop("squared") - trained * trained))
        losses["loss_main_max"] = self.largest
        record = {"kind": "train", **place, **losses, "gradient_norm": self.gradient_norm}
        if losses.get("loss_main") and "loss_sub" in losses:
            record["loss_sub_over_main"] = losses["loss_sub"] / losses["loss_main"]
        return record
