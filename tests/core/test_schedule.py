"""If these fail, ratio or weight are not what the recipe says at some point of training."""

from __future__ import annotations

import math
from typing import Any

import pytest

from masksub.core.schedule import Constant, Cosine, Linear, Staged


@pytest.mark.parametrize(
    ("schedule", "values", "bounds"),
    [
        (Constant(0.3), [0.3, 0.3, 0.3], (0.3, 0.3)),
        (Linear(0.2, 0.6), [0.2, 0.4, 0.6], (0.2, 0.6)),
        (Linear(0.6, 0.2), [0.6, 0.4, 0.2], (0.2, 0.6)),
        (Cosine(0.2, 0.6), [0.2, 0.4, 0.6], (0.2, 0.6)),
        (Staged([(0, 0.1), (0.5, 0.9)]), [0.1, 0.9, 0.9], (0.1, 0.9)),
    ],
)
def test_start_middle_end_and_bounds(schedule: Any, values: list[float], bounds: tuple[float, float]) -> None:
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(values)
    assert schedule.bounds == bounds


def test_cosine_is_flat_at_the_ends() -> None:
    assert Cosine(0, 1)(0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert Cosine(0, 1)(0.01) < 0.001


def test_a_stage_lasts_until_the_next_begins() -> None:
    schedule = Staged([(0, 0.1), (0.25, 0.2), (0.75, 0.3)])
    assert [schedule(p) for p in (0.2499, 0.25, 0.7499, 0.75)] == [0.1, 0.2, 0.2, 0.3]


@pytest.mark.parametrize(
    "stages", [[], [(0.1, 0.5)], [(0, 0.5), (0, 0.6)], [(0, 0.5), (1.0, 0.6)], [(0, 1), (0.5, 1), (0.4, 1)]]
)
def test_wrong_stages_are_refused(stages: Any) -> None:
    with pytest.raises(ValueError, match="stages begin at"):
        Staged(stages)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
@pytest.mark.parametrize("schedule", [Constant(1), Linear(0, 1), Cosine(0, 1), Staged([(0, 1)])])
def test_progress_out_of_range_is_refused(schedule: Any, progress: float) -> None:
    with pytest.raises(ValueError, match="progress = "):
        schedule(progress)
