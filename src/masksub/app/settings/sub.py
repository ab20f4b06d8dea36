"""Section sub: the sub branch, and values that change over training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from masksub.core.schedule import Constant, Cosine, Linear, Schedule, Staged

from .base import Ratio, Settings, Share

__all__ = ["Sub"]


class ConstantValue(Settings):
    """One value throughout."""

    kind: Literal["constant"]
    value: float

    def schedule(self) -> Schedule:
        """The schedule."""
        return Constant(self.value)


class Ramp(Settings):
    """From start to end."""

    kind: Literal["linear", "cosine"]
    start: float
    end: float

    def schedule(self) -> Schedule:
        """The schedule."""
        return (Linear if self.kind == "linear" else Cosine)(self.start, self.end)


class Stages(Settings):
    """Constant stages: pairs (progress at which a stage begins, value)."""

    kind: Literal["staged"]
    stages: list[tuple[float, float]]

    @model_validator(mode="after")
    def _check(self) -> Stages:
        Staged(self.stages)
        return self

    def schedule(self) -> Schedule:
        """The schedule."""
        return Staged(self.stages)


OverTraining = Annotated[ConstantValue | Ramp | Stages, Field(discriminator="kind")]


class Sub(Settings):
    """The sub branch."""

    ratio: Ratio | OverTraining = 0.5
    """Share of the units that is masked, 0 <= ratio < 1; or a schedule."""
    weight: Share | OverTraining = 0.5
    """Share of the sub branch in the loss, 0 <= weight <= 1; or a schedule."""
    unit: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels of the square that is masked as one; None: a patch where tokens are dropped, else 32."""
    p: Ratio = 0.1
    """For dropsub, pathsub and cosub: rate of dropout or drop path, 0 <= p < 1."""
    efficient: bool = True
    """For pathsub and cosub: run each residual branch only on the images that keep it."""
    bn: Literal["shared", "main"] = "shared"
    """Running statistics of batch norm see both branches ("shared", the paper) or the main branch alone ("main")."""
    mode: Literal["split", "joint"] = "split"
    """"split": one branch after the other, memory of one; "joint": one loss, one backward."""

    @model_validator(mode="after")
    def _check(self) -> Sub:
        low, high = self.ratio_schedule.bounds
        if low < 0 or high >= 1:
            raise ValueError(f"ratio runs from {low} to {high}: it must satisfy 0 <= ratio < 1 all along")
        low, high = self.weight_schedule.bounds
        if low < 0 or high > 1:
            raise ValueError(f"weight runs from {low} to {high}: it must satisfy 0 <= weight <= 1 all along")
        return self

    @property
    def ratio_schedule(self) -> Schedule:
        """The ratio over training."""
        return Constant(self.ratio) if isinstance(self.ratio, float) else self.ratio.schedule()

    @property
    def weight_schedule(self) -> Schedule:
        """The weight over training."""
        return Constant(self.weight) if isinstance(self.weight, float) else self.weight.schedule()
