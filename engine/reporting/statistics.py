"""Statistics over seeds: spread, paired differences with an interval, and what a number of seeds could show.

Seeds are the sample: each gives one difference between two arms that share it. Student, The probable error of a mean,
Biometrika 1908; the power of the test by the noncentral t distribution, Johnson and Welch, Biometrika 1940.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of every interval."""
MIN_SEEDS = 3
"""Below them nothing is claimed."""
POWER = 0.8
"""Chance with which a difference that is there is to be shown."""
MOST_SEEDS = 1000

GAIN, LOSS, UNSHOWN, TOO_FEW = "gain", "loss", "no gain shown", "too few seeds"


@dataclass(frozen=True)
class Paired:
    """Differences between two arms, seed by seed.

    Attributes:
        seeds: those that both arms have.
        differences: of each seed, first arm minus second.
        mean: of the differences.
        spread: their sample standard deviation; 0 for a single one.
        interval: of the mean at LEVEL by the t distribution; None for a single seed.
        verdict: GAIN or LOSS where the interval leaves 0 out, UNSHOWN where not, TOO_FEW below MIN_SEEDS seeds.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    spread: float
    interval: tuple[float, float] | None
    verdict: str

    @property
    def better(self) -> int:
        """Seeds with which the first arm is better."""
        return sum(difference > 0 for difference in self.differences)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """The paired difference of two arms; None where no seed has a figure in both.

    Args:
        first, second: seed -> figure. A seed that one lacks, or whose figure is NaN there, leaves both.
    """
    seeds = tuple(s for s in first if s in second and not math.isnan(first[s]) and not math.isnan(second[s]))
    if not seeds:
        return None
    differences = tuple(first[seed] - second[seed] for seed in seeds)
    mean, spread = mean_and_spread(differences)
    interval = mean_interval(mean, spread, len(seeds))
    return Paired(seeds, differences, mean, spread, interval, _verdict(interval, len(seeds)))


def mean_interval(mean: float, spread: float, number: int) -> tuple[float, float] | None:
    """Interval at LEVEL of a mean of `number` values by the t distribution; None for a single value."""
    from scipy import stats

    if number < 2:
        return None
    reach = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * spread / math.sqrt(number)
    return mean - reach, mean + reach


def _verdict(interval: tuple[float, float] | None, number: int) -> str:
    if interval is None or number < MIN_SEEDS:
        return TOO_FEW
    return GAIN if interval[0] > 0 else LOSS if interval[1] < 0 else UNSHOWN


def power(difference: float, spread: float, number: int) -> float:
    """Chance that `number` seeds show a difference: that the interval of their mean leaves 0 out.

    Args:
        difference: the true one.
        spread: standard deviation of the differences.
        number: of seeds, 2 or more.
    """
    from scipy import stats

    if not spread:
        return float(difference != 0)
    critical = float(stats.t.ppf((1 + LEVEL) / 2, number - 1))
    # The square of a noncentral t is a noncentral F; scipy's nct gives NaN far out.
    return float(stats.ncf.sf(critical**2, 1, number - 1, (difference / spread) ** 2 * number))


def seeds_needed(difference: float, spread: float) -> int | None:
    """Fewest seeds that show a difference with the chance POWER; None where MOST_SEEDS are not enough.

    Args:
        difference: the true one, more than 0.
        spread: standard deviation of the differences.
    """
    if power(difference, spread, MOST_SEEDS) < POWER:
        return None
    low, high = MIN_SEEDS - 1, MOST_SEEDS  # the power grows with the seeds: one of (low, high] is the first
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, spread, middle) >= POWER else (middle, high)
    return high


def share_of_gap(figure: float, baseline: float, teacher: float) -> float | None:
    """Part of the gap between baseline and teacher that a figure closes; None where the teacher is no better."""
    gap = teacher - baseline
    return (figure - baseline) / gap if gap > 0 else None
