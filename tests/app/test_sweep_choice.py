"""The choice among the settings of a sweep. If these fail, a setting is recommended that the figures don't back."""

from __future__ import annotations

from typing import Any

import pytest

from masksub.app.evidence.choice import choose, sweep_of
from masksub.app.evidence.model import Run, SweepPoint
from masksub.app.evidence.statistics import mean_interval

KEYS = ("sub.ratio", "sub.weight")


def point(ratio: Any, weight: Any, top1: list[float], *, flops: float | None = None, failed: int = 0) -> SweepPoint:
    runs = [Run("", seed, "complete", value) for seed, value in enumerate(top1)]
    runs += [Run("", len(top1) + number, "failed", None, "NaN") for number in range(failed)]
    cost = flops if flops is not None or not top1 else 2 - ratio
    return SweepPoint({"sub.ratio": ratio, "sub.weight": weight}, tuple(runs), mean_interval(top1), None, cost)


def test_the_highest_mean_is_recommended_where_it_is_told_apart() -> None:
    points = [point(0.25, 0.5, [97.0, 97.1, 97.2]), point(0.75, 0.5, [95.0, 95.1, 95.3])]
    found = sweep_of(KEYS, points)
    assert (found.recommended, found.best) == (0, 0)


def test_a_cheaper_setting_that_is_not_told_apart_is_recommended() -> None:
    """Differences of 0.5, -0.2 and 0.1: the interval contains 0."""
    points = [
        point(0.25, 0.5, [97.5, 97.0, 97.2]),
        point(0.75, 0.5, [97.0, 97.2, 97.1]),
        point(0.9, 0.5, [90, 90.1, 90.3]),
    ]
    found = sweep_of(KEYS, points)
    assert (found.recommended, found.best) == (1, 0)


def test_a_cheaper_setting_that_is_clearly_lower_is_not_recommended() -> None:
    """Few seeds that vary much can't tell two settings apart; that does not make them equal."""
    points = [point(0.5, 0.5, [91.0, 92.0, 93.0]), point(0.75, 0.5, [60.0, 95.0, 70.0])]
    assert choose(points) == 0
    assert choose([point(0.5, 0.5, [91.0, 92.0, 93.0]), point(0.75, 0.5, [91.2, 91.1, 93.0])]) == 1  # within 0.58


def test_of_equal_cost_the_nearest_to_the_paper() -> None:
    """FLOPs that differ in the last digits are the same; the weight costs nothing."""
    points = [
        point(0.5, 0.9, [97.5, 97.0, 97.2], flops=1.0),
        point(0.5, 0.5, [97.0, 97.2, 97.1], flops=1.0000001),
        point(0.5, 0.1, [97.2, 97.1, 97.0], flops=1.0),
    ]
    assert choose(points) == 1


def test_with_two_seeds_noise_is_no_reason_for_the_cheaper_one() -> None:
    """An interval over two seeds contains everything: the cheapest setting would always win."""
    assert choose([point(0.25, 0.5, [97.0, 97.8]), point(0.9, 0.5, [60.0, 60.1])]) == 0
    assert choose([point(0.25, 0.5, [97.0]), point(0.9, 0.5, [60.0])]) == 0
    assert choose([point(0.25, 0.5, [97.0]), point(0.75, 0.5, [97.0])]) == 1  # the same: then the cheaper


def test_settings_with_fewer_complete_seeds_are_not_recommended() -> None:
    """The seeds that did not diverge may be the lucky ones."""
    points = [point(0.25, 0.5, [95.0, 95.2, 95.1]), point(0.75, 0.5, [98.0, 98.1], failed=1)]
    found = sweep_of(KEYS, points)
    assert (found.recommended, found.best) == (0, 1)


def test_nothing_complete() -> None:
    found = sweep_of(KEYS, [point(0.25, 0.5, [], failed=3)])
    assert (found.recommended, found.best, found.sensitivity, found.pareto) == (None, None, {}, ())
    assert choose([]) is None


def test_sensitivity_is_the_larger_loss_of_the_nearest_neighbours() -> None:
    means = {
        (0.25, 0.5): 96.0,
        (0.5, 0.5): 97.0,
        (0.75, 0.5): 95.5,
        (0.9, 0.5): 50.0,
        (0.5, 0.25): 96.8,
        (0.25, 0.9): 0.0,
    }
    points = [point(*at, [mean]) for at, mean in means.items()]
    found = sweep_of(KEYS, points)
    assert found.recommended == 1
    assert found.sensitivity == {"sub.ratio": pytest.approx(1.5), "sub.weight": pytest.approx(0.2)}


def test_sensitivity_without_neighbours_or_with_better_ones() -> None:
    """A neighbour that lacks a seed may have a higher mean: nothing is lost there. A schedule has no neighbour."""
    points = [point(0.25, 0.5, [95.0, 95.0, 95.0]), point(0.5, 0.5, [98.0, 98.0], failed=1)]
    assert sweep_of(KEYS, points).sensitivity == {"sub.ratio": 0.0}
    ramp = {"kind": "linear", "start": 0.0, "end": 0.5}
    points = [point(ramp, 0.5, [97.0], flops=1.0), point(0.5, 0.5, [95.0])]
    assert sweep_of(KEYS, points).sensitivity == {}


def test_pareto_front_by_rising_compute() -> None:
    """Beaten: the one at 1.25 by the one at 1.1, which is better and cheaper, and the worse of two of one price."""
    points = [
        point(0.25, 0.5, [97.0], flops=1.75),
        point(0.75, 0.5, [95.0], flops=1.25),
        point(0.9, 0.5, [96.0], flops=1.1),
        point(0.25, 0.9, [96.5], flops=1.75),
        point(0.25, 0.7, [97.0], flops=1.75),  # equal in both: neither beats the other
    ]
    assert sweep_of(KEYS, points).pareto == (2, 0, 4)
