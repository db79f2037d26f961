"""Statistics over few runs: rliable's own figures, hand-worked cases, and whether the intervals cover what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from rpg_platform.results.statistics import (
    Array,
    bootstrap_interval,
    improvement_interval,
    iqm,
    mean,
    probability_of_improvement,
)

# The vectors of rliable's own unit tests (github.com/google-research/rliable, tests/rliable/metrics_test.py) and the
# figures that they publish for them.
PUBLISHED_X = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0], [2.0, 1.0]])
PUBLISHED_Y = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])

# Figures printed by rliable 1.2.0 (arch 6.3.0, numpy 1.26.4) for scores made up here: `get_interval_estimates` of
# `aggregate_mean` and `aggregate_iqm`, method "percentile", 50,000 repetitions; two seeds of it differed by up to 1.1.
FIVE_BY_THREE = np.array([[-16, 452, 788], [-35, 499, 1003], [-37, 367, 853], [107, 367, 1070], [98, 507, 796]], float)
# fmt: off
TEN_BY_FOUR = np.array([
    [59, 460, 641, 915], [13, 428, 903, 1062], [28, 519, 626, 1025], [58, 261, 569, 1565], [-19, 362, 557, 884],
    [33, 658, 756, 1298], [6, 244, 616, 1512], [1, 560, 564, 1032], [14, 360, 663, 1446], [27, 653, 618, 1091],
], float)
# fmt: on
ONE_TASK = np.array([[564], [607], [600], [583], [611], [561], [610], [571]], float)
THREE_RUNS = np.array([[528], [486], [535]], float)
RLIABLE = {
    "five runs, three tasks": (FIVE_BY_THREE, (454.6, 413.3, 498.0), (442.333333, 402.7, 480.2)),
    "ten runs, four tasks": (TEN_BY_FOUR, (576.7, 532.1, 623.5), (549.95, 498.75, 605.3)),
    "eight runs, one task": (ONE_TASK, (588.375, 574.7, 601.9), (590.25, 567.5, 608.5)),
    "three runs, one task": (THREE_RUNS, (516.333333, 486.0, 535.0), (516.333333, 486.0, 535.0)),
}
# Likewise `probability_of_improvement`, 5,000 repetitions. 367 and 788 tie with runs of FIVE_BY_THREE.
BETTER = np.array([[-35, 559, 951], [106, 602, 1017], [146, 367, 955], [50, 687, 1368], [143, 514, 1241]], float)
SIMILAR = np.array([[-11, 684, 894], [34, 423, 788], [75, 503, 1194], [30, 495, 955]], float)
IMPROVEMENTS = {
    "better": (BETTER, FIVE_BY_THREE, 0.7933333, (0.6, 0.9466667)),
    "similar, fewer runs": (SIMILAR, FIVE_BY_THREE, 0.625, (0.3833333, 0.8416667)),
    "all better": (ONE_TASK, THREE_RUNS, 1.0, (1.0, 1.0)),
}


def test_published_vectors() -> None:
    assert (mean(PUBLISHED_X), iqm(PUBLISHED_X)) == (1.5, 1.5)
    assert (mean(PUBLISHED_Y), iqm(PUBLISHED_Y)) == (2.0, 2.0)
    assert probability_of_improvement(PUBLISHED_X, PUBLISHED_Y) == pytest.approx(1 / 3)


@pytest.mark.parametrize("case", RLIABLE)
def test_figures_of_rliable(case: str) -> None:
    scores, *expected = RLIABLE[case]
    spread = float(np.ptp(expected[0]))
    for statistic, (point, low, high) in zip((mean, iqm), expected, strict=True):
        assert float(statistic(scores)) == pytest.approx(point, abs=1e-5)
        found = bootstrap_interval(scores, statistic, draws=50_000)
        assert found is not None
        assert found == pytest.approx([low, high], abs=0.015 * spread)
        coarse = bootstrap_interval(scores, statistic)  # what a table has time for
        assert coarse == pytest.approx([low, high], abs=0.06 * spread)


@pytest.mark.parametrize("case", IMPROVEMENTS)
def test_improvement_of_rliable(case: str) -> None:
    x, y, point, interval = IMPROVEMENTS[case]
    assert probability_of_improvement(x, y) == pytest.approx(point, abs=1e-6)
    assert probability_of_improvement(y, x) == pytest.approx(1 - point, abs=1e-6)
    assert improvement_interval(x, y, draws=20_000) == pytest.approx(interval, abs=0.012)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, r: x.ravel()[r.integers(0, x.size, (2_000, *x.shape))],  # strata ignored
        lambda x, r: x[r.integers(0, len(x), (2_000, len(x)))],  # whole runs, the same in every task
        lambda x, r: x[r.permuted(np.tile(np.arange(len(x)), (2_000, 1)), axis=1)],  # without replacement
    ],
    ids=["tasks pooled", "runs kept whole", "permuted"],
)
def test_other_ways_of_resampling_do_not_give_these_figures(wrong: Callable[[Array, Any], Array]) -> None:
    """What the comparison with rliable catches. Which run of a task stands beside which of another must not matter."""
    (_, low, high) = RLIABLE["five runs, three tasks"][1]
    ranked = np.sort(FIVE_BY_THREE, axis=0)
    assert bootstrap_interval(ranked, mean) == pytest.approx([low, high], abs=0.06 * (high - low))
    ends = np.quantile(mean(wrong(ranked, np.random.default_rng(0))), (0.025, 0.975))
    assert np.abs(ends - (low, high)).max() > 0.15 * (high - low)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 3), (8, 2), (2, 3, 9, 2)])
def test_iqm_is_scipys_trimmed_mean(shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(1).standard_cauchy(shape)
    rows = scores.reshape(-1, shape[-2] * shape[-1])
    expected = [scipy.stats.trim_mean(row, 0.25) for row in rows]
    np.testing.assert_allclose(iqm(scores).ravel(), expected, rtol=1e-12)


def test_iqm_stands_outliers_that_the_mean_does_not() -> None:
    scores = np.array([[1.0], [2.0], [3.0], [1e6]])
    assert iqm(scores) == 2.5
    assert mean(scores) > 1e5


def test_improvement_is_mann_whitney_and_counts_ties_half() -> None:
    x, y = np.array([[3.0], [1.0]]), np.array([[1.0], [2.0], [0.0], [1.0]])
    # 3 beats all four; 1 beats 0, ties twice with 1, loses to 2: (4 + 1 + 2/2) / 8
    assert probability_of_improvement(x, y) == 0.75
    statistic = scipy.stats.mannwhitneyu(x[:, 0], y[:, 0], alternative="greater").statistic
    assert probability_of_improvement(x, y) == statistic / 8
    assert probability_of_improvement(x, x) == 0.5


def test_interval_of_two_runs_by_hand() -> None:
    """Draws of (0, 1): mean 0 with probability 1/4, 1/2 with 1/2, 1 with 1/4."""
    assert bootstrap_interval([[0.0], [1.0]], mean) == pytest.approx([0.0, 1.0])
    assert bootstrap_interval([[0.0], [1.0]], mean, level=0.4) == pytest.approx([0.5, 0.5])


def test_exact_bootstrap_of_four_runs() -> None:
    """All 4^4 resamples, listed."""
    scores = np.array([[3.0], [10.0], [11.0], [30.0]])
    all_ = np.array(list(itertools.product(range(4), repeat=4)))
    for statistic in (mean, iqm):
        exact = np.quantile(statistic(scores[all_]), (0.025, 0.975))
        assert bootstrap_interval(scores, statistic, draws=100_000) == pytest.approx(exact, abs=0.3)


def test_improvement_interval_is_that_of_whole_resamples() -> None:
    """Counts of runs instead of the runs: the same distribution as resampling the scores themselves."""
    rng = np.random.default_rng(5)
    drawn = [
        probability_of_improvement(
            np.take_along_axis(SIMILAR, rng.integers(0, 4, SIMILAR.shape), 0),
            np.take_along_axis(FIVE_BY_THREE, rng.integers(0, 5, FIVE_BY_THREE.shape), 0),
        )
        for _ in range(4_000)
    ]
    expected = np.quantile(drawn, (0.025, 0.975))
    assert improvement_interval(SIMILAR, FIVE_BY_THREE, draws=20_000) == pytest.approx(expected, abs=0.02)


def test_few_runs_are_said_to_be_few() -> None:
    one = np.array([[5.0, 6.0]])
    assert bootstrap_interval(one, mean) is None
    assert improvement_interval(one, one + 1) is None
    assert probability_of_improvement(one, one + 1) == 0.0
    # Of a prior there is one run, and it stands for itself.
    assert improvement_interval([[1.0], [3.0], [4.0], [6.0]], [[2.0]]) == pytest.approx((0.25, 1.0))


def test_repeats_to_the_bit_and_follows_its_seed() -> None:
    first, again, other = (bootstrap_interval(TEN_BY_FOUR, iqm, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)  # type: ignore[arg-type]
    assert not np.array_equal(first, other)  # type: ignore[arg-type]
    assert improvement_interval(BETTER, SIMILAR, seed=3) == improvement_interval(BETTER, SIMILAR, seed=3)


def test_measures_side_by_side_are_each_their_own() -> None:
    stacked = np.stack([TEN_BY_FOUR, -2.0 * TEN_BY_FOUR, TEN_BY_FOUR**2])
    for statistic in (mean, iqm):
        together = bootstrap_interval(stacked, statistic)
        assert together is not None
        apart = [bootstrap_interval(each, statistic) for each in stacked]
        np.testing.assert_array_equal(together, np.array(apart).T)


def test_large_tables_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_interval(TEN_BY_FOUR, iqm)
    monkeypatch.setattr("rpg_platform.results.statistics._AT_ONCE", 41 * TEN_BY_FOUR.size)
    np.testing.assert_array_equal(bootstrap_interval(TEN_BY_FOUR, iqm), whole)


@pytest.mark.parametrize(
    ("runs", "tasks", "low", "high"),
    [(10, 1, 0.86, 0.945), (10, 4, 0.885, 0.97), (3, 1, 0.62, 0.82)],
    ids=["ten runs", "ten runs on four tasks", "three runs: too narrow"],
)
def test_coverage(runs: int, tasks: int, low: float, high: float) -> None:
    """How often a 95 % interval of normal scores holds the true mean: docs/evaluation.md gives these figures.

    The tasks' means lie 50 deviations apart: resampling that ignored the strata would cover always.
    """
    truth = 50.0 * np.arange(tasks)
    scores = np.random.default_rng(11).standard_normal((1_000, runs, tasks)) + truth
    found = bootstrap_interval(scores, mean, draws=500)
    assert found is not None
    covered = ((found[0] <= truth.mean()) & (truth.mean() <= found[1])).mean()
    assert low < covered < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([1.0, 2.0], mean), r"scores: expected \[runs, tasks\].*shape \(2,\)"),
        (lambda: bootstrap_interval([[1.0], [np.nan]], mean), "scores: 1 of 2 scores are not finite"),
        (lambda: bootstrap_interval(np.empty((0, 1)), mean), "scores: expected"),
        (
            lambda: bootstrap_interval([[1.0], [2.0]], mean, level=95),
            "level: expected a number between 0 and 1, got 95",
        ),
        (lambda: probability_of_improvement([[1.0]], [[1.0, 2.0]]), r"x and y: .*\(1, 1\) and \(1, 2\)"),
        (lambda: probability_of_improvement([[1.0]], [[np.inf]]), "y: 1 of 1 scores are not finite"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
