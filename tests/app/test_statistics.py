"""Figures about noise. If these fail, a difference is called real, or not, that is not, or is."""

from __future__ import annotations

import math

import pytest
import scipy.stats

from masksub.app.errors import InputError
from masksub.app.evidence.statistics import mean_interval, paired, spread

PLAIN = {0: 94.0, 1: 95.0, 2: 94.5, 3: 93.5}


def plus(*differences: float) -> dict[int, float]:
    return {seed: PLAIN[seed] + difference for seed, difference in enumerate(differences)}


def test_paired_t_is_that_of_the_textbook() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3); the tables have t(0.975, 2) = 4.302653."""
    found = paired(plus(1, 2, 3), PLAIN, "plain")
    assert found.seeds == (0, 1, 2)
    assert found.differences == (1.0, 2.0, 3.0)
    assert found.interval.mean == 2.0
    assert found.interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    t = 2 * math.sqrt(3)  # with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-9)
    assert (found.method, found.reference, found.claims, found.verdict) == ("paired t", "plain", True, "none")


def test_level_is_kept() -> None:
    wide, narrow = (paired(plus(1, 2, 3), PLAIN, "plain", level=level).interval for level in (0.99, 0.8))
    assert wide.low is not None and narrow.low is not None and wide.low < narrow.low
    assert (wide.level, narrow.level) == (0.99, 0.8)


def test_only_seeds_of_both_arms_are_paired() -> None:
    """A seed that one arm lacks would compare other initial weights and other data."""
    found = paired({1: 96.0, 3: 94.5, 9: 50.0}, PLAIN, "plain")
    assert found.seeds == (1, 3)
    assert found.differences == (1.0, 1.0)


def test_no_seed_in_common() -> None:
    found = paired({7: 90.0}, PLAIN, "plain")
    assert (found.seeds, found.p, found.interval.low, found.verdict) == ((), None, None, "unknown")
    assert math.isnan(found.interval.mean)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_one_and_two_seeds_make_no_claim(method: str) -> None:
    one, two = paired(plus(1), PLAIN, "plain", method=method), paired(plus(1, 1.5), PLAIN, "plain", method=method)
    assert (one.interval.mean, one.interval.low, one.p, one.verdict) == (1.0, None, None, "unknown")
    assert two.interval.low is not None and two.p is not None
    assert (two.claims, two.verdict) == (False, "unknown")


@pytest.mark.parametrize("method", ["t", "bootstrap"])
@pytest.mark.parametrize(
    ("difference", "p", "verdict"), [(0.2, 0.25, "unknown"), (0.0, 1.0, "none"), (-0.2, 0.25, "unknown")]
)
def test_equal_differences_are_no_certainty(difference: float, p: float, verdict: str, method: str) -> None:
    """One image of sixty in each of three seeds: no variance, but three equal signs are no proof either.

    No NaN and no warning, though 94.2 - 94.0 and 7.2 - 7.0 are not the same binary number.
    """
    theirs = {0: 94.0, 1: 61.4, 2: 7.0}
    found = paired({seed: value + difference for seed, value in theirs.items()}, theirs, "plain", method=method)
    assert found.interval.mean == pytest.approx(difference)
    assert found.interval.low == found.interval.high == (0.0 if difference == 0 else None)
    assert (found.p, found.verdict) == (p, verdict)
    assert "all differences are equal" in found.method


def test_bootstrap_says_what_it_is_and_repeats() -> None:
    """Of 4 pairs there are 16 ways to flip signs; 2 of them are as far off as 4 differences of one sign."""
    differences = (1.0, 2.0, 0.5, 1.5)
    found = paired(plus(*differences), PLAIN, "plain", method="bootstrap")
    assert found == paired(plus(*differences), PLAIN, "plain", method="bootstrap")
    assert found.method == "BCa bootstrap, exact sign-flip test"
    assert found.p == pytest.approx(2 / 16)
    direct = scipy.stats.bootstrap((differences,), lambda x, axis: x.mean(axis), n_resamples=9999, rng=0)
    assert found.interval.low == pytest.approx(direct.confidence_interval.low)
    assert found.interval.high == pytest.approx(direct.confidence_interval.high)


def test_bootstrap_of_many_pairs_flips_at_random() -> None:
    ours = {seed: 1.0 + 0.1 * (seed % 3) for seed in range(20)}
    found = paired(ours, dict.fromkeys(ours, 0.0), "plain", method="bootstrap")
    assert found.method.endswith("random sign-flip test")
    assert found.p is not None and found.p < 0.001


def test_bootstrap_of_hardly_varying_values_is_finite() -> None:
    """Where BCa is not defined percentiles stand in, without a warning."""
    found = paired({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.2}, dict.fromkeys(range(4), 0.0), "plain", method="bootstrap")
    assert found.interval.low is not None and found.interval.high is not None
    assert 1.0 <= found.interval.low <= found.interval.mean <= found.interval.high <= 1.2


def test_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match=r"'z'.*t or bootstrap"):
        paired(PLAIN, PLAIN, "plain", method="z")


def test_mean_interval() -> None:
    """Values 1, 2, 3 as above; none, one, and equal ones."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None and found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert mean_interval([]) is None
    one = mean_interval([4.0])
    assert one is not None and (one.mean, one.low, one.high) == (4.0, None, None)
    same = mean_interval([0.3, 0.1 + 0.2])
    assert same is not None and same.low is None and same.high is None
    assert (spread([1.0]), spread([1.0, 3.0])) == (None, pytest.approx(math.sqrt(2)))
