from __future__ import annotations

import math

import pytest
from scipy import stats

from engine.reporting.statistics import (
    GAIN,
    LOSS,
    TOO_FEW,
    UNSHOWN,
    mean_and_spread,
    paired,
    power,
    seeds_needed,
    share_of_gap,
)


def test_mean_and_spread() -> None:
    assert mean_and_spread([2.0]) == (2.0, 0.0)
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, math.sqrt(2)))


def test_the_interval_over_seeds_is_the_paired_t_test_s() -> None:
    first, second = {0: 0.35, 1: 0.36, 2: 0.40}, {0: 0.30, 1: 0.33, 2: 0.34}
    found = paired(first, second)
    assert found and found.seeds == (0, 1, 2) and found.better == 3
    # differences 0.05, 0.03, 0.06: mean 0.046667, deviation 0.0152753; t(0.975, 2) = 4.30265
    assert found.mean == pytest.approx(0.0466667, abs=1e-6)
    assert found.interval == pytest.approx((0.0466667 - 0.0379460, 0.0466667 + 0.0379460), abs=1e-6)
    theirs = stats.ttest_rel(list(first.values()), list(second.values())).confidence_interval(0.95)
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    assert found.verdict == GAIN


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.05, 0.03, 0.06], GAIN),
        ([-0.05, -0.03, -0.06], LOSS),
        ([0.05, -0.03, 0.06], UNSHOWN),
        ([0.05, 0.05], TOO_FEW),
        ([0.05], TOO_FEW),
        ([0.02, 0.02, 0.02], GAIN),
        ([0.0, 0.0, 0.0], UNSHOWN),
    ],
)
def test_nothing_is_claimed_below_three_seeds_or_across_zero(differences: list[float], verdict: str) -> None:
    found = paired(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found and found.verdict == verdict
    assert (found.interval is None) == (len(differences) == 1)


def test_a_seed_that_is_missing_in_one_arm_leaves_both() -> None:
    found = paired({0: 0.5, 1: 0.6, 3: 0.9}, {0: 0.4, 1: 0.4, 2: 0.0})
    assert found and found.seeds == (0, 1) and found.mean == pytest.approx(0.15)
    found = paired({0: 0.5, 1: math.nan, 2: 0.6}, {0: 0.4, 1: 0.1, 2: math.nan})
    assert found and found.seeds == (0,)
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_the_power_is_that_of_repeated_experiments() -> None:
    import numpy as np

    draws = np.random.default_rng(0).normal(0.01, 0.008, (20_000, 7))
    shown = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert power(0.01, 0.008, 7) == pytest.approx(shown.mean(), abs=0.01)


def test_the_seeds_that_would_show_a_difference() -> None:
    needed = seeds_needed(0.01, 0.008)
    assert needed is not None
    assert power(0.01, 0.008, needed) >= 0.8 > power(0.01, 0.008, needed - 1)
    assert seeds_needed(0.01, 0.0) == 3, "fewer prove nothing"
    assert seeds_needed(0.01, 10.0) is None


def test_the_share_of_the_gap() -> None:
    assert share_of_gap(0.4, baseline=0.3, teacher=0.5) == pytest.approx(0.5)
    assert share_of_gap(0.4, baseline=0.5, teacher=0.5) is None
    assert share_of_gap(0.4, baseline=0.5, teacher=0.4) is None
