"""Means, intervals and paired tests over arrays of scores with shape (seeds, episodes)."""

from __future__ import annotations

import functools
import math
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
    "hierarchical_bootstrap",
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
class PairedDifference(Interval):
    """A mean difference on the same episodes, its interval's half width, and the two-sided p-value."""

    p_value: float


@dataclass(frozen=True)
class SeedSpread:
    """How far training seeds lie apart: standard deviation of their means, and the half width of the mean's interval.

    Both are ``None`` for a single seed.
    """

    seeds: int
    std: float | None
    half_width: float | None


def episode_interval(scores: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean and Student t interval over episodes, with ``scores`` of shape ``(seeds, episodes)`` or ``(episodes,)``.

    Episodes are the same for every seed, so an episode is averaged over seeds first: the interval says how
    sure the mean of these trained models is, not how far another training run would land.

    >>> interval = episode_interval([[0.0, 1.0, 1.0, 1.0]])
    >>> f"{interval.mean} ± {interval.half_width:.3f}"
    '0.75 ± 0.796'
    """
    return _interval(_table(scores).mean(axis=0), confidence)


def seed_spread(scores: ArrayLike, *, confidence: float = 0.95) -> SeedSpread:
    """Spread of the seeds' mean scores, with ``scores`` of shape ``(seeds, episodes)``.

    >>> round(seed_spread([[0.5, 0.7], [0.7, 0.9]]).std, 4)
    0.1414
    """
    means = _table(scores).mean(axis=1)
    if len(means) < 2:
        return SeedSpread(len(means), None, None)
    return SeedSpread(len(means), float(means.std(ddof=1)), _interval(means, confidence).half_width)


def paired_difference(method: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """``method`` minus ``baseline`` on the same episodes by a paired t test, each of shape ``(seeds, episodes)``.

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
    return _t_test(first - second, confidence)


def paired_difference_over_seeds(
    method: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95
) -> Interval | None:
    """Mean of the per-seed differences with its t interval, for row i of both trained with the same seed.

    ``None`` below two seeds.

    Raises:
        ValueError: when the shapes differ.

    >>> interval = paired_difference_over_seeds([[0.8, 1.0], [0.6, 1.0]], [[0.7, 0.9], [0.5, 0.7]])
    >>> f"{interval.mean:.2f} ± {interval.half_width:.3f}"
    '0.15 ± 0.635'
    """
    table = _differences(method, baseline)
    return None if len(table) < 2 else _interval(table.mean(axis=1), confidence)


def hierarchical_bootstrap(
    method: ArrayLike,
    baseline: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedDifference:
    r"""``method`` minus ``baseline`` with an interval and p-value over training seeds *and* test episodes.

    Every seed is tested on the same episodes, so seeds and episodes are resampled independently of each other, rows and
    columns of the table of differences :math:`d_{se}` (Owen 2007, "The pigeonhole bootstrap",
    https://arxiv.org/abs/0712.1111).  Resampling S seeds underestimates their variance by :math:`(S - 1)/S`, so their
    deviations are multiplied by :math:`\sqrt{S/(S - 1)}` first.

    The bootstrap gives the standard error.  Its percentiles would be far too narrow for a few seeds: of three, one
    resample in nine holds a single seed.  Interval and p-value are therefore Student's, with Satterthwaite's degrees of
    freedom: S - 1 where seeds make the whole variance, E - 1 where episodes do.

    Args:
        method: scores of shape ``(S, E)``, with at least two seeds and two episodes.
        baseline: scores of the same shape, where row i is trained with the same seed as row i of ``method``; left out,
            the interval is that of the mean of ``method``.
        resamples: how often seeds and episodes are drawn.
        seed: of the random numbers; the same seed gives the same result.
        confidence: of the interval.

    Raises:
        ValueError: when the shapes differ, or there are fewer than two seeds or episodes.

    >>> method, baseline = [[0.8, 0.9], [0.7, 0.9], [0.8, 0.8]], [[0.7, 0.7], [0.6, 0.8], [0.7, 0.6]]
    >>> difference = hierarchical_bootstrap(method, baseline)
    >>> f"{difference.mean:.3f}"
    '0.133'
    """
    table = _table(method) if baseline is None else _differences(method, baseline)
    seeds, episodes = table.shape
    if min(seeds, episodes) < 2:
        raise ValueError(f"a hierarchical bootstrap needs two seeds and two episodes or more, got shape {table.shape}")
    mean, of_seeds = float(table.mean()), table.mean(axis=1)
    widened = table + (math.sqrt(seeds / (seeds - 1)) - 1) * (of_seeds - mean)[:, None]
    of_seeds_drawn, of_episodes_drawn = _resamples(seeds, episodes, resamples, seed)
    sums = np.concatenate([part @ widened.T for part in np.array_split(of_episodes_drawn, 1 + table.size // 1000)])
    means = (of_seeds_drawn * sums).sum(axis=1) / table.size
    between = float(of_seeds.var(ddof=1)) / seeds
    variance = max(float(means.var(ddof=1)), between)
    if variance == 0:
        return _student(mean, 0.0, 1, confidence)
    of_seeds_alone = between / variance  # no power of the variance itself, which may be too large or small for one
    freedom = 1 / (of_seeds_alone**2 / (seeds - 1) + (1 - of_seeds_alone) ** 2 / (episodes - 1))
    return _student(mean, math.sqrt(variance), freedom, confidence)


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


@functools.lru_cache(maxsize=2)  # the same for all methods of a comparison
def _resamples(seeds: int, episodes: int, resamples: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """How often each resample draws every seed and every episode."""
    random, rows, columns = np.random.default_rng(seed), [], []
    for _ in range(resamples):
        rows.append(np.bincount(random.integers(seeds, size=seeds), minlength=seeds).astype(np.uint16))
        columns.append(np.bincount(random.integers(episodes, size=episodes), minlength=episodes).astype(np.uint16))
    return np.stack(rows), np.stack(columns)


def _table(values: ArrayLike) -> Array:
    """Values as a float array of shape (seeds, episodes)."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"expected scores of shape (seeds, episodes), got shape {np.shape(values)}")
    return table


def _differences(method: ArrayLike, baseline: ArrayLike) -> Array:
    first, second = _table(method), _table(baseline)
    if first.shape != second.shape:
        raise ValueError(f"a paired difference over seeds needs equal shapes, got {first.shape} and {second.shape}")
    return first - second


def _interval(values: Array, confidence: float) -> Interval:
    test = _t_test(values, confidence)
    return Interval(test.mean, test.half_width)


def _t_test(values: Array, confidence: float) -> PairedDifference:
    """The mean of independent values against zero."""
    mean = float(values.mean())
    if len(values) < 2:
        return PairedDifference(mean, math.nan, math.nan)
    error = 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1)) / math.sqrt(len(values))
    return _student(mean, error, len(values) - 1, confidence)


def _student(mean: float, error: float, freedom: float, confidence: float) -> PairedDifference:
    """Student's interval and two-sided test of a mean with a standard error."""
    if error == 0:  # the t statistic would be 0/0 or infinite
        return PairedDifference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    half_width = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    return PairedDifference(mean, half_width, float(2 * stats.t.sf(abs(mean) / error, freedom)))
