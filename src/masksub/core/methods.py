"""The methods that an experiment compares, as settings of the one two-branch step.

One table drives the recipes, the demonstration and the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .batch_norm import BatchNorm
from .branches import Branch, MaskSub
from .dropouts import DropSub
from .pathsub import CoSub, PathSub

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """How a method differs from MaskSub: what it fixes, whatever the recipe says.

    Attributes:
        summary: one line for people.
        ratio: fixed mask ratio, None for the recipe's.
        weight: fixed share of the sub branch, None for the recipe's.
        target: what the sub branch learns.
        drops: what the sub branch drops: units of the input, values (dropout) or residual branches (drop path); "both":
            residual branches in both branches.
    """

    summary: str
    ratio: float | None = None
    weight: float | None = None
    target: Literal["auto", "labels"] = "auto"
    drops: Literal["units", "values", "paths", "both"] = "units"

    def settings(self, ratio: float, weight: float) -> tuple[float, float]:
        """The ratio and weight in force where the recipe asks for these."""
        return ratio if self.ratio is None else self.ratio, weight if self.weight is None else self.weight

    def branch(
        self,
        ratio: float,
        *,
        unit: int | None = None,
        p: float = 0.1,
        efficient: bool = True,
        bn: BatchNorm = "shared",
    ) -> Branch:
        """The sub branch where the recipe asks for these; each branch takes what concerns it."""
        if self.drops == "values":
            return DropSub(p, bn=bn)
        if self.drops == "paths":
            return PathSub(p, efficient=efficient, bn=bn)
        if self.drops == "both":
            return CoSub(p, efficient=efficient, bn=bn)
        return MaskSub(ratio, unit=unit, bn=bn)

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
    "dropsub": Method("sub branch with dropout", ratio=0.0, drops="values"),
    "pathsub": Method("sub branch with drop path", ratio=0.0, drops="paths"),
    "cosub": Method("both branches with drop path, each learning from the other", ratio=0.0, drops="both"),
}
