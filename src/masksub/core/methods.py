"""The methods that an experiment compares, as settings of the one two-branch step.

One table drives the recipes, the demonstration and the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """How a method differs from MaskSub: what it fixes, whatever the recipe says.

    Attributes:
        summary: one line for people.
        ratio: fixed mask ratio, None for the recipe's.
        weight: fixed share of the sub branch, None for the recipe's.
        target: what the sub branch learns.
    """

    summary: str
    ratio: float | None = None
    weight: float | None = None
    target: Literal["auto", "labels"] = "auto"

    def settings(self, ratio: float, weight: float) -> tuple[float, float]:
        """The ratio and weight in force where the recipe asks for these."""
        return ratio if self.ratio is None else self.ratio, weight if self.weight is None else self.weight

    def step_arguments(self) -> dict[str, Any]:
        """Keyword arguments of TwoBranchStep that are fixed for the whole training."""
        return {"target": self.target}


METHODS: dict[str, Method] = {
    "plain": Method("the recipe as it is, no sub branch", ratio=0.0, weight=0.0),
    "masksub": Method("masked sub branch that learns the main branch's output"),
    "direct-mask": Method(
        "masking in plain training: the masked input alone, with true labels", weight=1.0, target="labels"
    ),
    "true-label-sub": Method("masked sub branch with true labels in place of the relaxed target", target="labels"),
    "self-distill": Method("sub branch without masking: self-distillation", ratio=0.0),
}
