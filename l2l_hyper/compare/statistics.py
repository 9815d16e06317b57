"""Means, intervals and paired tests over arrays of accuracies with shape (seeds, episodes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "Interval",
    "PairedDifference",
    "SeedSpread",
    "episode_interval",
    "holm",
    "paired_difference",
    "paired_difference_over_seeds",
    "seed_spread",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval (``nan`` for a single value)."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class SeedSpread:
    """How far training seeds lie apart: standard deviation of their means, and the half width of the mean's interval.

    Both are ``None`` for a single seed.
    """

    seeds: int
    std: float | None
    half_width: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference on the same episodes, its interval's half width, and the paired t test's two-sided p-value."""

    mean: float
    half_width: float
    p_value: float


def episode_interval(accuracies: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean and Student t interval over episodes, with ``accuracies`` of shape ``(seeds, episodes)`` or ``(episodes,)``.

    Episodes are the same for every seed, so an episode is averaged over seeds first: the interval says how
    sure the mean of these trained models is, not how far another training run would land.

    >>> interval = episode_interval([[0.0, 1.0, 1.0, 1.0]])
    >>> f"{interval.mean} ± {interval.half_width:.3f}"
    '0.75 ± 0.796'
    """
    return _t_interval(_table(accuracies).mean(axis=0), confidence)


def seed_spread(accuracies: ArrayLike, *, confidence: float = 0.95) -> SeedSpread:
    """Spread of the seeds' mean accuracies, with ``accuracies`` of shape ``(seeds, episodes)``.

    >>> round(seed_spread([[0.5, 0.7], [0.7, 0.9]]).std, 4)
    0.1414
    """
    means = _table(accuracies).mean(axis=1)
    if len(means) < 2:
        return SeedSpread(len(means), None, None)
    return SeedSpread(len(means), float(means.std(ddof=1)), _t_interval(means, confidence).half_width)


def paired_difference(method: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """``method`` minus ``baseline`` on the same episodes, each of shape ``(seeds, episodes)``.

    Each is averaged over its own seeds first, so their numbers of seeds may differ.

    Raises:
        ValueError: when the numbers of episodes differ.

    >>> difference = paired_difference([0.8, 0.9, 1.0], [0.7, 0.9, 0.7])
    >>> f"{difference.mean:.3f} ± {difference.half_width:.3f}, p = {difference.p_value:.3f}"
    '0.133 ± 0.379, p = 0.270'
    """
    first, second = _table(method).mean(axis=0), _table(baseline).mean(axis=0)
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same episodes, got {len(first)} and {len(second)}")
    difference = first - second
    if np.ptp(difference) == 0:
        # No variance: the t statistic is 0/0 or infinite, and scipy warns; say what it means instead.
        return PairedDifference(float(difference.mean()), 0.0, 1.0 if difference[0] == 0 else 0.0)
    interval = _t_interval(difference, confidence)
    return PairedDifference(interval.mean, interval.half_width, float(stats.ttest_rel(first, second).pvalue))


def paired_difference_over_seeds(
    method: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95
) -> Interval | None:
    """Mean of the per-seed differences with its t interval, for row i of both trained with the same seed.

    The honest uncertainty about training again; ``None`` below two seeds.

    Raises:
        ValueError: when the shapes differ.

    >>> interval = paired_difference_over_seeds([[0.8, 1.0], [0.6, 1.0]], [[0.7, 0.9], [0.5, 0.7]])
    >>> f"{interval.mean:.2f} ± {interval.half_width:.3f}"
    '0.15 ± 0.635'
    """
    first, second = _table(method), _table(baseline)
    if first.shape != second.shape:
        raise ValueError(f"a paired difference over seeds needs equal shapes, got {first.shape} and {second.shape}")
    if len(first) < 2:
        return None
    return _t_interval((first - second).mean(axis=1), confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = floor
    return corrected


def _table(values: ArrayLike) -> Array:
    """Values as a float array of shape (seeds, episodes)."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected accuracies of shape (seeds, episodes), got shape {np.shape(values)}")
    return table


def _t_interval(values: Array, confidence: float) -> Interval:
    if len(values) < 2:
        return Interval(float(values.mean()), float("nan"))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error))
