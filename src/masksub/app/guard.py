"""Losses and gradients that are not finite, kept away from the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import DivergedError
from .settings import Train
from .state import Standing

__all__ = ["Guard", "mends", "not_finite"]


class Guard:
    """Decides what becomes of an update whose losses or gradients are not finite.

    Args:
        settings: on_nan, max_nan and max_overflows of the recipe.
        standing: its counts go up.
        model: whose batch-norm statistics are put back when an update is left out.
        warn: is told of each update that is left out.
    """

    def __init__(self, settings: Train, standing: Standing, model: nn.Module, warn: Callable[[str], None]) -> None:
        self._settings, self._standing, self._warn = settings, standing, warn
        self._statistics: list[Tensor] = []
        if settings.on_nan == "skip":  # only then does training go on with them
            self._statistics = [
                buffer
                for module in model.modules()
                if isinstance(module, nn.modules.batchnorm._NormBase)
                for buffer in module.buffers(recurse=False)
            ]
        self._kept: list[Tensor] = []

    def begin(self) -> None:
        """Before the first forward of an update."""
        self._kept = [buffer.clone() for buffer in self._statistics]

    def passed(self) -> None:
        """The update was made."""
        self._standing.counts["overflows_in_a_row"] = 0

    def overflowed(self, scale: float) -> None:
        """Gradients in fp16 overflowed; the scaler left the update out and lowers its scale.

        Raises:
            DivergedError: too many in a row.
        """
        counts, limit = self._standing.counts, self._settings.max_overflows
        counts["overflowed_updates"] += 1
        counts["overflows_in_a_row"] += 1
        if counts["overflows_in_a_row"] > limit:
            raise DivergedError(
                f"gradients in fp16 overflowed in {counts['overflows_in_a_row']} updates in a row, more than "
                f"train.max_overflows = {limit} (loss scale {scale:g}). Try train.precision=bf16, a lower optim.lr or "
                f"optim.clip_norm"
            )

    def refuse(self, what: str, why_stopped: Callable[[str], str]) -> None:
        """Something is not finite: end the training, or leave the update out.

        Args:
            what: is not finite.
            why_stopped: makes the message of the end.

        Raises:
            DivergedError: the recipe says stop, or too many were left out.
        """
        if self._settings.on_nan == "stop":
            raise DivergedError(why_stopped(f"{what} is not finite"))
        self._standing.counts["skipped_updates"] += 1
        skipped, limit = self._standing.counts["skipped_updates"], self._settings.max_nan
        if skipped > limit:
            raise DivergedError(why_stopped(f"{what} is not finite once more than train.max_nan = {limit} lets pass"))
        with torch.no_grad():
            for buffer, kept in zip(self._statistics, self._kept, strict=True):
                buffer.copy_(kept)
        self._warn(
            f"update {self._standing.update + 1} is left out: {what} is not finite ({skipped} of at most {limit})"
        )


def mends(precision: str) -> str:
    """What may help a training that diverges. Another precision helps against the small range of fp16 alone."""
    tried = ["a lower optim.lr", "optim.clip_norm"] + ["train.precision=bf16"] * (precision == "fp16")
    return f"{', '.join(tried[:-1])}, or {tried[-1]}"


def not_finite(losses: list[dict[str, float]], names: dict[str, str]) -> str | None:
    """The first branch whose loss is not finite, None if all are.

    Args:
        losses: of each part of an update, by field of the step's output.
        names: field -> name of the branch.
    """
    for part in losses:
        for key, name in names.items():
            if not math.isfinite(part.get(key, 0.0)):
                return name
    return None
