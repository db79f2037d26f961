"""Statistics over few training runs: interquartile mean, stratified bootstrap, probability of improvement.

As recommended by Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(https://arxiv.org/abs/2108.13264), whose library is rliable; the figures agree with it (``tests``).

Legend: ``S`` runs (training seeds), ``T`` tasks (the strata), ``K`` any leading axes (measures), ``R`` draws of the
bootstrap. A score is one run's figure on one task: its mean return over the evaluation episodes. Within a task runs are
exchangeable and resampled; tasks are not: the interval is about other seeds on the same tasks. One sweep has T = 1.

Everything is a function of its arguments: the same scores and seed give the same figures, to the bit. scipy's
``bootstrap``, ``trim_mean`` and ``mannwhitneyu`` give these figures too, in 4 to 50 times the time; a table of 2,000
settings takes tens of thousands of them, and ``rpg status`` should not have to import ``scipy.stats``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from rpg_algorithms.addons import Array

Statistic: TypeAlias = Callable[[Array], Array]
"""``[..., S, T]`` → ``[...]``: one figure of all runs on all tasks."""
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
DRAWS = 2_000
"""Draws of the bootstrap: its two ends are then good to a few per cent of their distance."""
MANY_RUNS = 5
"""With fewer runs than this a percentile bootstrap interval is markedly too narrow, see docs/evaluation.md."""

_TRIM = 0.25
_AT_ONCE = 20_000_000  # resampled scores held in memory together


def column(scores: Sequence[float]) -> Array:
    """``[S, 1]``: a sweep has one task, so one stratum."""
    return np.array(scores, dtype=np.float64)[:, None]


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the values that are finite; NaN where none is."""
    finite = [each for each in values if math.isfinite(each)]
    return statistics.fmean(finite) if finite else math.nan


def reach_of_t(freedom: float, level: float = LEVEL) -> float:
    """How many standard errors a two-sided interval of Student's t with that coverage reaches."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def mean(scores: Array) -> Array:
    """Mean over tasks of the mean over runs: ``[..., S, T]`` → ``[...]`` (rliable's ``aggregate_mean``)."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def iqm(scores: Array) -> Array:
    """Interquartile mean: the mean of the middle half of all S·T scores, ``[..., S, T]`` → ``[...]``.

    A quarter of the scores, rounded down, is left out at each end, as by ``scipy.stats.trim_mean(scores, 0.25,
    axis=None)`` (rliable's ``aggregate_iqm``). Below four scores nothing is left out and it is the mean.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    cut = int(_TRIM * flat.shape[-1])
    kept = np.sort(flat, axis=-1)[..., cut : flat.shape[-1] - cut] if cut else flat
    return np.asarray(kept.mean(axis=-1))


def bootstrap_interval(
    scores: ArrayLike, statistic: Statistic, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Array | None:
    """Percentile interval of ``statistic`` by stratified bootstrap: runs are resampled within each task.

    Args:
        scores: ``[..., S, T]``, finite. Leading axes are further measures of the same runs, resampled alike.
        statistic: of ``[..., S, T]``, e.g. ``mean`` or ``iqm``.
        level: share of the draws between the two ends.
        draws: how often the runs are resampled.
        seed: of the resampling.

    Returns:
        ``[2, ...]``, lower and upper end; None for fewer than two runs, which say nothing of other seeds.

    Raises:
        ValueError: the scores have fewer than two axes, are empty or not finite, or ``level`` is not in (0, 1).
    """
    x = _checked("scores", scores)
    _check_level(level)
    runs, tasks = x.shape[-2:]
    if runs < 2:
        return None
    picked = _resampled(runs, tasks, draws, seed)
    at_once = max(1, _AT_ONCE // x.size)
    columns = np.arange(tasks)
    found = [statistic(x[..., picked[i : i + at_once], columns]) for i in range(0, draws, at_once)]
    return _ends(np.concatenate(found, axis=-1), level)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """P(X > Y): how likely a run of X beats a run of Y on the same task, mean over tasks; a tie is half a win.

    Args:
        x: ``[S_x, T]``, finite.
        y: ``[S_y, T]``; the numbers of runs may differ.

    Returns:
        In [0, 1]; the Mann-Whitney U statistic over S_x·S_y (rliable's ``probability_of_improvement``).

    Raises:
        ValueError: the tasks differ, or scores are missing or not finite.
    """
    return float(_wins(x, y).mean())


def improvement_interval(
    x: ArrayLike, y: ArrayLike, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Percentile interval of ``probability_of_improvement``: the runs of X and of Y are resampled apart, in each task.

    Args:
        x: ``[S_x, T]``, finite.
        y: ``[S_y, T]``. One run (the prior, which nothing trained) stands for itself.
        level: share of the draws between the two ends.
        draws: how often.
        seed: of the resampling.

    Returns:
        Lower and upper end; None where neither has two runs.

    Raises:
        ValueError: as ``probability_of_improvement``; or ``level`` is not in (0, 1).
    """
    wins = _wins(x, y)
    _check_level(level)
    tasks, runs_x, runs_y = wins.shape
    if max(runs_x, runs_y) < 2:
        return None
    rng = np.random.default_rng(seed)
    # How often each run was drawn is all that matters: counts [R, T, S] instead of the runs themselves.
    drawn_x = rng.multinomial(runs_x, np.full(runs_x, 1 / runs_x), (draws, tasks)) / runs_x
    drawn_y = rng.multinomial(runs_y, np.full(runs_y, 1 / runs_y), (draws, tasks)) / runs_y
    low, high = _ends(np.einsum("rtx,txy,rty->r", drawn_x, wins, drawn_y, optimize=True) / tasks, level)
    return float(low), float(high)


def _wins(x: ArrayLike, y: ArrayLike) -> Array:
    """[T, S_x, S_y]: 1 where the run of X is better, one half where they tie, else 0."""
    first, second = _checked("x", x), _checked("y", y)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"x and y: expected [runs, tasks] with the same tasks, got {first.shape} and {second.shape}")
    return np.asarray((np.sign(first.T[:, :, None] - second.T[:, None, :]) + 1) / 2)


def _checked(name: str, scores: ArrayLike) -> Array:
    values: Array = np.asarray(scores, dtype=np.float64)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"{name}: expected [runs, tasks] with at least one of each, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} scores are not finite")
    return values


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")


@lru_cache(maxsize=8)
def _resampled(runs: int, tasks: int, draws: int, seed: int) -> Array:
    """Which run is drawn in place of each, in each task by itself: ``[R, S, T]``; the same for every row of a table."""
    picked: Array = np.random.default_rng(seed).integers(0, runs, (draws, runs, tasks))
    picked.setflags(write=False)
    return picked


def _ends(drawn: Array, level: float) -> Array:
    tail = (1 - level) / 2
    return np.asarray(np.quantile(drawn, (tail, 1 - tail), axis=-1))
