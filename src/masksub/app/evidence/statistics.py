"""Means, and differences of paired runs, with intervals: SciPy's figures with the edge cases told in words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats

from masksub.app.errors import InputError

from .model import Interval, Paired

__all__ = ["METHODS", "mean_interval", "paired", "spread"]

METHODS = ("t", "bootstrap")
"""Ways to make the interval of a paired difference."""
RESAMPLES = 9999
EQUAL = 1e-9
"""Values that lie no further apart are equal: the difference of two percentages is off by some 1e-14."""


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Mean with its t-interval.

    Returns:
        None without values; no interval for fewer than three, or where all are equal: that would be no certainty.
    """
    if not len(values):
        return None
    mean = float(np.mean(values))
    if len(values) < 3 or np.ptp(values) <= EQUAL:
        return Interval(mean, None, None, level)
    low, high = scipy.stats.t.interval(level, len(values) - 1, loc=mean, scale=scipy.stats.sem(values))
    return Interval(mean, float(low), float(high), level)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired(
    one: Mapping[int, float],
    two: Mapping[int, float],
    reference: str,
    *,
    level: float = 0.95,
    method: Literal["t", "bootstrap"] | str = "t",
) -> Paired:
    """Difference of ``one`` to ``two``, over the seeds that both have.

    Args:
        one: seed -> value of the arm.
        two: seed -> value of the reference arm.
        reference: its key.
        level: of the interval, between 0 and 1.
        method: "t": paired t-test. "bootstrap": bias-corrected and accelerated bootstrap (percentiles where that is not
            defined) with a fixed seed; its p-value is of the sign-flip permutation test. Few pairs have few signs to
            flip: n of them can't give less than 2 / 2^n.

    Returns:
        Without a seed in common the mean is NaN. For fewer than two seeds there is neither interval nor p. Where all
        differences are equal and not 0 there is no interval, p is that of the sign-flip test, and ``method`` says so.

    Raises:
        InputError: no such method.
    """
    if method not in METHODS:
        raise InputError(f"statistics {method!r}: must be {' or '.join(METHODS)}")
    seeds = tuple(sorted(one.keys() & two.keys()))
    ours, theirs = np.array([one[s] for s in seeds], float), np.array([two[s] for s in seeds], float)
    differences = ours - theirs
    mean = float(differences.mean()) if seeds else math.nan
    low: float | None
    high: float | None
    p: float | None
    if len(seeds) < 2:
        low = high = p = None
        name = "one pair, no interval" if seeds else "no pair"
    elif np.ptp(differences) <= EQUAL:
        # A handful of validation images makes equal differences likely: no variance is no certainty. The p-value is
        # that of the sign-flip test, which needs none.
        mean = 0.0 if abs(mean) <= EQUAL else mean
        low = high = 0.0 if mean == 0 else None
        p = 1.0 if mean == 0 else 2 / 2 ** len(seeds)
        name = "all differences are equal: no interval, exact sign-flip test"
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that hardly vary: what then comes out is as good as it gets
            make = _by_t if method == "t" else _by_bootstrap
            low, high, p, name = make(ours, theirs, level)
    interval = Interval(mean, low, high, level)
    return Paired(reference, seeds, tuple(differences.tolist()), interval, p, name)


def _by_t(ours: Any, theirs: Any, level: float) -> tuple[float, float, float, str]:
    test = scipy.stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(level)
    return float(low), float(high), float(test.pvalue), "paired t"


def _by_bootstrap(ours: Any, theirs: Any, level: float) -> tuple[float, float, float, str]:
    differences = ours - theirs
    for method in ("BCa", "percentile"):
        found = scipy.stats.bootstrap(
            (differences,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method=method, rng=0
        )
        low, high = map(float, found.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    # Exchanging both values of a pair flips the sign of its difference.
    test = scipy.stats.permutation_test(
        (ours, theirs),
        lambda x, y, axis=-1: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=0,
    )
    exact = "exact" if 2 ** len(differences) <= RESAMPLES else "random"
    return low, high, float(test.pvalue), f"{method} bootstrap, {exact} sign-flip test"
