"""Ratio and weight over training: pure functions of progress, from 0 (first step) to 1 (end).

Each schedule is a small frozen object that is called with the progress and returns the value. ``bounds`` gives its
smallest and largest value, for checking a range before training starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Constant", "Cosine", "Linear", "Schedule", "Staged"]


class Schedule(Protocol):
    """A value over training."""

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, 0 <= progress <= 1; ValueError outside."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value over training."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        """The value; ``progress`` is only checked."""
        _check(progress)
        return self.value

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.value, self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """start + (end - start) * progress, exact at both ends."""
        _check(progress)
        return self.start * (1 - progress) + self.end * progress

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(self.start, self.end), max(self.start, self.end)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` to ``end``: flat at both ends, steepest in the middle."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, exact at both ends."""
        _check(progress)
        done = (1 - math.cos(math.pi * progress)) / 2
        return self.start * (1 - done) + self.end * done

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return min(self.start, self.end), max(self.start, self.end)


@dataclass(frozen=True, init=False)
class Staged:
    """Constant stages: ``[(0.0, 0.25), (0.5, 0.5)]`` is 0.25 in the first half of training and 0.5 in the second.

    Args:
        stages: pairs (progress at which the stage begins, value); the first begins at 0, each later than the one
            before, all before 1.

    Raises:
        ValueError: stages that do not satisfy this.
    """

    stages: tuple[tuple[float, float], ...]

    def __init__(self, stages: Sequence[tuple[float, float]]) -> None:
        object.__setattr__(self, "stages", tuple((float(begin), float(value)) for begin, value in stages))
        begins = [begin for begin, _ in self.stages]
        if not begins or begins[0] != 0 or begins[-1] >= 1 or any(b <= a for a, b in itertools.pairwise(begins)):
            raise ValueError(
                f"stages begin at {begins}: the first must begin at 0, each later than the one before, all before 1"
            )

    def __call__(self, progress: float) -> float:
        """The value of the last stage that has begun."""
        _check(progress)
        return next(value for begin, value in reversed(self.stages) if progress >= begin)

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value."""
        values = [value for _, value in self.stages]
        return min(values), max(values)


def _check(progress: float) -> None:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress = {progress!r}: training progress runs from 0 to 1")
