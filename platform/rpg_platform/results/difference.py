"""Whether two settings differ, or only happen to: intervals of differences, and what is within noise of the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rpg_platform.results.choosing import ENOUGH_SEEDS
from rpg_platform.results.rows import Estimate, Row
from rpg_platform.results.statistics import LEVEL, Interval, reach_of_t

MOST_NAMED = 3
"""Settings that are within noise of the best and are named."""


def difference_interval(
    mean_a: float, std_a: float, n_a: int, mean_b: float, std_b: float, n_b: int, *, level: float = LEVEL
) -> Interval | None:
    """Interval of the difference of two means by Welch's t, which holds for few runs and unequal spreads.

    Args:
        mean_a: mean of one's scores.
        std_a: their standard deviation, over n - 1.
        n_a: how many they are.
        mean_b: the other's likewise.
        std_b: the other's.
        n_b: the other's.
        level: its coverage.

    Returns:
        Both ends of ``mean_a - mean_b``; None where a spread is unknown or a side has fewer than two scores.
    """
    if min(n_a, n_b) < 2 or not all(map(math.isfinite, (mean_a, std_a, mean_b, std_b))):
        return None
    of_a, of_b = std_a**2 / n_a, std_b**2 / n_b
    difference, variance = mean_a - mean_b, of_a + of_b
    if variance == 0:
        return (difference, difference)
    freedom = variance**2 / (of_a**2 / (n_a - 1) + of_b**2 / (n_b - 1))
    reach = reach_of_t(freedom, level) * math.sqrt(variance)
    return (difference - reach, difference + reach)


def mean_interval(scores: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Interval of a mean by Student's t; of differences that are paired by seed that of the difference of two means.

    Args:
        scores: one a seed, finite.
        level: its coverage.

    Returns:
        Both ends; None for fewer than two scores.
    """
    n = len(scores)
    if n < 2:
        return None
    middle, reach = float(np.mean(scores)), reach_of_t(n - 1, level) * float(np.std(scores, ddof=1)) / math.sqrt(n)
    return (middle - reach, middle + reach)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = LEVEL
) -> Interval | None:
    """Fieller's interval of a ratio of two means whose scores are paired by seed.

    Args:
        numerators: one a seed, finite.
        denominators: of the same seeds, in their order.
        level: its coverage.

    Returns:
        Both ends; None for fewer than two seeds, or where the denominator's mean is not clear of zero, so that any
        ratio may be.

    Raises:
        ValueError: the numbers of scores differ.
    """
    n = len(numerators)
    if n != len(denominators):
        raise ValueError(f"{n} numerators and {len(denominators)} denominators: expected pairs")
    if n < 2:
        return None
    x, y = float(np.mean(numerators)), float(np.mean(denominators))
    (xx, xy), (_, yy) = np.cov(numerators, denominators) * (reach_of_t(n - 1, level) ** 2 / n)
    # The ratios r at which the mean of x - r y is not clear of zero: (y² - yy) r² - 2 (x y - xy) r + (x² - xx) <= 0.
    a, b, c = y**2 - yy, x * y - xy, x**2 - xx
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b**2 - a * c))
    return (float((b - root) / a), float((b + root) / a))


def difference(this: Estimate, other: Estimate, episodes: int) -> Interval | None:
    """95 % interval of the difference of two figures' means; None where nothing is known of their spread.

    Args:
        this: over seeds; of one seed the spread is over its episodes, so that the interval says nothing of other
            seeds.
        other: likewise.
        episodes: how many of them there are.
    """
    count, other_count = (each.n if each.n > 1 else episodes for each in (this, other))
    return difference_interval(this.mean, this.std, count, other.mean, other.std, other_count)


def within_noise(rows: Sequence[Row]) -> list[Row]:
    """The settings that the best one does not exceed beyond noise, of those that may be chosen.

    Args:
        rows: from ``summarise``.

    Returns:
        In the rows' order, without the best one; empty where none is best.
    """
    best = next((row for row in rows if row.is_best), None)
    if best is None:
        return []
    maximised = objective_of(best)
    near = []
    for row in rows:
        if (
            row is best
            or not (row.seeds and row.is_deployable)
            or row.violations
            or not math.isfinite(objective_of(row).mean)
        ):
            continue
        interval = difference(maximised, objective_of(row), best.episodes)
        if interval is None or interval[0] <= 0:
            near.append(row)
    return near


def certainty_words(rows: Sequence[Row], name: Callable[[Row], str], between: str) -> list[str]:
    """What keeps a reader from taking the best setting for more than it is: its seeds, and what is within noise of it.

    Args:
        rows: from ``summarise``.
        name: what a setting is called.
        between: stands between two names.

    Returns:
        In words that a sentence about the best setting ends with; none where none is best.
    """
    best = next((row for row in rows if row.is_best), None)
    if best is None:
        return []
    words = []
    if not best.is_prior:
        words.append("one seed, which shows little" if len(best.seeds) == 1 else f"{len(best.seeds)} seeds")
    if near := list(map(name, within_noise(rows))):
        more = f" and {len(near) - MOST_NAMED} more" if len(near) > MOST_NAMED else ""
        words.append(f"within noise of {between.join(near[:MOST_NAMED])}{more}")
    return words


def choosing_words(rows: Sequence[Row]) -> str | None:
    """What the best setting's figure owes to its having been chosen, a sentence; None where nothing was chosen among.

    Args:
        rows: from ``summarise``.
    """
    best = next((row for row in rows if row.is_best), None)
    cost = None if best is None else best.choosing
    if cost is None:
        return None
    said = f"★ is the best of {cost.settings}"
    if cost.judged is None or cost.optimism is None:
        return (
            f"{said}, chosen by the training seeds that it is shown for, so its figure flatters it: to say by how much "
            f"takes {ENOUGH_SEEDS} training seeds that all settings have."
        )
    low, high = cost.interval or (math.nan, math.nan)
    words = (
        f"{said}. Chosen by half of the training seeds and judged by the other half, the best has "
        f"{cost.judged:,.4g} [95 %: {low:,.4g} to {high:,.4g}]; shown are {cost.shown:,.4g}: choosing flatters it by "
        f"{cost.optimism:,.4g}."
    )
    if cost.probability is None:
        return words
    ends = cost.probability_interval
    within = "" if ends is None else f" [95 %: {100 * ends[0]:.0f} to {100 * ends[1]:.0f}]"
    return f"{words} A seed of it is above the prior with probability {100 * cost.probability:.0f} %{within}."


def objective_of(row: Row) -> Estimate:
    """The figure that the sweep maximises."""
    return row.figure(row.objective["maximize"])
