"""The statistics of a comparison against scipy and against computations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from l2l_hyper.statistics import (
    episode_interval,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    paired_difference_over_seeds,
    seed_spread,
)


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Scores of two methods, three seeds and 50 shared episodes each."""
    random = np.random.default_rng(0)
    episodes = random.normal(0.8, 0.1, 50)
    return tuple(  # type: ignore[return-value]
        episodes + offset + random.normal(0, 0.02, (3, 50)) + random.normal(0, 0.01, (3, 1)) for offset in (0.02, 0.0)
    )


def test_episode_interval_is_that_of_scipy(tables):
    averaged = tables[0].mean(axis=0)
    low, high = stats.t.interval(0.95, len(averaged) - 1, loc=averaged.mean(), scale=stats.sem(averaged))
    interval = episode_interval(tables[0])
    assert interval.mean == pytest.approx((low + high) / 2)
    assert interval.half_width == pytest.approx((high - low) / 2)
    assert episode_interval(tables[0], confidence=0.99).half_width > interval.half_width


def test_episode_interval_by_hand():
    # mean 0.25, standard deviation sqrt(0.05 / 3), t quantile of 3 degrees of freedom 3.182446
    interval = episode_interval([0.1, 0.2, 0.3, 0.4])
    assert interval.mean == pytest.approx(0.25)
    assert interval.half_width == pytest.approx(3.182446 * math.sqrt(0.05 / 3) / 2, rel=1e-6)


def test_an_episode_is_averaged_over_seeds_first():
    # Seeds that disagree everywhere but on average leave no doubt over episodes.
    assert episode_interval([[0.0, 1.0], [1.0, 0.0]]).half_width == 0


def test_a_single_episode_has_no_interval():
    assert math.isnan(episode_interval([[0.5]]).half_width)


def test_seed_spread(tables):
    means = tables[0].mean(axis=1)
    spread = seed_spread(tables[0])
    low, high = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert spread.seeds == 3
    assert spread.std == pytest.approx(means.std(ddof=1))
    assert spread.half_width == pytest.approx((high - low) / 2)


def test_one_seed_has_no_spread():
    spread = seed_spread([[0.5, 0.6, 0.7]])
    assert (spread.seeds, spread.std, spread.half_width) == (1, None, None)


def test_paired_difference_is_that_of_scipy(tables):
    expected = stats.ttest_rel(tables[0].mean(axis=0), tables[1].mean(axis=0))
    interval = expected.confidence_interval(0.95)
    difference = paired_difference(*tables)
    assert difference.p_value == pytest.approx(expected.pvalue)
    assert difference.mean - difference.half_width == pytest.approx(interval.low)
    assert difference.mean + difference.half_width == pytest.approx(interval.high)


def test_pairing_sees_what_two_intervals_do_not(tables):
    alone = episode_interval(tables[0]).half_width
    assert paired_difference(*tables).half_width < alone / 3


def test_paired_difference_may_have_other_seeds(tables):
    difference = paired_difference(tables[0], tables[1][:1])
    assert difference.mean == pytest.approx(tables[0].mean() - tables[1][0].mean())


@pytest.mark.parametrize(("offset", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_a_constant_difference_warns_of_nothing(offset, p_value):
    difference = paired_difference([0.25 + offset, 0.5 + offset], [0.25, 0.5])
    assert (difference.mean, difference.half_width, difference.p_value) == (offset, 0.0, p_value)


def test_paired_difference_needs_the_same_episodes():
    with pytest.raises(ValueError, match="same episodes, got 2 and 3"):
        paired_difference([0.1, 0.2], [0.1, 0.2, 0.3])


def test_difference_over_seeds(tables):
    per_seed = tables[0].mean(axis=1) - tables[1].mean(axis=1)
    low, high = stats.t.interval(0.95, 2, loc=per_seed.mean(), scale=stats.sem(per_seed))
    interval = paired_difference_over_seeds(*tables)
    assert interval is not None
    assert interval.mean == pytest.approx((low + high) / 2)
    assert interval.half_width == pytest.approx((high - low) / 2)
    assert paired_difference_over_seeds(tables[0][:1], tables[1][:1]) is None
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference_over_seeds(tables[0], tables[1][:2])


# Three seeds and 400 episodes: where only one of the two makes differences differ, the bootstrap is the t test over it.


def test_bootstrap_is_the_t_test_over_seeds_where_episodes_agree():
    per_seed = np.array([0.01, 0.03, 0.04])
    method = np.random.default_rng(0).normal(0.7, 0.1, 400) + per_seed[:, None]
    expected = stats.ttest_1samp(per_seed, 0.0)
    low, high = expected.confidence_interval(0.95)
    difference = hierarchical_bootstrap(method, method - per_seed[:, None], resamples=20_000)
    assert difference.mean == pytest.approx((low + high) / 2)
    assert difference.half_width == pytest.approx((high - low) / 2, rel=0.02)
    assert difference.p_value == pytest.approx(expected.pvalue, rel=0.02)


def test_bootstrap_is_the_paired_t_test_where_seeds_agree():
    random = np.random.default_rng(0)
    baseline = random.normal(0.7, 0.1, (3, 400))
    method = baseline + random.normal(0.005, 0.1, 400)
    expected = paired_difference(method, baseline)
    difference = hierarchical_bootstrap(method, baseline, resamples=20_000)
    assert difference.mean == pytest.approx(expected.mean)
    assert difference.half_width == pytest.approx(expected.half_width, rel=0.02)
    assert difference.p_value == pytest.approx(expected.p_value, rel=0.05)


@pytest.mark.parametrize("seed_std", [0.0, 0.01, 0.05])
def test_bootstrap_intervals_cover_the_truth(seed_std):
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        table = random.normal(0, seed_std, (3, 1)) + random.normal(0, 0.1, (1, 100)) + random.normal(0, 0.1, (3, 100))
        interval = hierarchical_bootstrap(table, resamples=200)
        covered += abs(interval.mean) <= interval.half_width
    assert covered >= 0.88 * 200  # 95 % in the limit; percentiles of the bootstrap would cover 75 % at 0.05


def test_bootstrap_is_the_same_for_the_same_seed(tables):
    assert hierarchical_bootstrap(*tables, seed=3) == hierarchical_bootstrap(*tables, seed=3)
    assert hierarchical_bootstrap(*tables, seed=3) != hierarchical_bootstrap(*tables, seed=4)
    assert hierarchical_bootstrap(*tables, confidence=0.99).half_width > hierarchical_bootstrap(*tables).half_width


@pytest.mark.parametrize(("offset", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_bootstrap_of_a_constant_difference(offset, p_value):
    difference = hierarchical_bootstrap(np.full((3, 4), 0.5 + offset), np.full((3, 4), 0.5))
    assert (difference.mean, difference.half_width, difference.p_value) == (offset, 0.0, p_value)


def test_bootstrap_needs_seeds_and_episodes(tables):
    with pytest.raises(ValueError, match=r"two seeds and two episodes or more, got shape \(1, 50\)"):
        hierarchical_bootstrap(tables[0][:1], tables[1][:1])
    with pytest.raises(ValueError, match="equal shapes"):
        hierarchical_bootstrap(tables[0], tables[1][:2])


def test_holm():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.05, 0.01, 0.03, 0.04, 0.02]) == pytest.approx([0.09, 0.05, 0.09, 0.09, 0.08])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="shape"):
        episode_interval(np.zeros((2, 0)))


def test_bootstrap_is_what_resampling_one_by_one_gives():
    scores = np.random.default_rng(3).normal(0.6, 0.1, (3, 50)) + [[0.02], [0.0], [-0.03]]
    random, widened = (
        np.random.default_rng(0),
        scores + (np.sqrt(3 / 2) - 1) * (scores.mean(1) - scores.mean())[:, None],
    )
    means = [widened[random.integers(3, size=3)][:, random.integers(50, size=50)].mean() for _ in range(500)]
    variance, between = np.var(means, ddof=1), scores.mean(1).var(ddof=1) / 3
    freedom = 1 / ((between / variance) ** 2 / 2 + (1 - between / variance) ** 2 / 49)
    interval = hierarchical_bootstrap(scores, resamples=500)
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(variance), rel=1e-12)
