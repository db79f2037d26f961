"""What choosing costs: the setting that looks best of many is chosen and judged by different figures.

Two kinds of luck make a setting look better than it is. That of evaluation episodes is met by choosing on others than
those shown (``report.SELECTION``). That of training seeds is met by cross-fitting: the setting is chosen by one half of
the training seeds and judged by the other, both ways. Free of Ray, torch and MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.results.ranking import Figures, Violation, order_key, violations
from rpg_platform.results.statistics import (
    LEVEL,
    Interval,
    column,
    finite_mean,
    improvement_interval,
    probability_of_improvement,
    reach_of_t,
)
from rpg_platform.spec.sections import Objective

ENOUGH_SEEDS = 4
"""Training seeds from which on they are halved: two to choose by and two to judge by."""
Half: TypeAlias = frozenset[int]


@dataclass(frozen=True)
class Scored:
    """One setting's figures by training seed.

    Attributes:
        group, setting, method: which.
        is_prior: the prior, which nothing trained: its one figure stands for every seed.
        is_deployable: it may be chosen.
        by: seed → the figures by which it is chosen.
        score: seed → the objective in the episodes that are shown, where it is finite.
    """

    group: str
    setting: str
    method: str
    is_prior: bool
    is_deployable: bool
    by: Mapping[int, Figures]
    score: Mapping[int, float]

    def chosen_by(self, seeds: Half | None = None) -> Figures:
        """Means of the figures by which it is chosen, over ``seeds`` (None: all), of those that are finite."""
        own = [self.by[seed] for seed in self.by if seeds is None or self.is_prior or seed in seeds]
        return {name: finite_mean([each[name] for each in own]) for name in own[0]} if own else {}

    def scores(self, seeds: Half | None = None) -> list[float]:
        """The objective of these seeds (None: all); of the prior its one."""
        return [self.score[seed] for seed in sorted(self.score) if seeds is None or self.is_prior or seed in seeds]


@dataclass(frozen=True)
class Improvement:
    """How likely a seed of this setting ends with a higher objective than one of another.

    Attributes:
        over: the other's method, ``prior`` or a method of the sweep.
        setting: the other: of that method's settings the one that ranks best.
        probability: P(this > other), a tie is half.
        interval: 95 % stratified-bootstrap interval; None where either has one training seed (the prior needs none).
        n, n_other: seeds of this setting and of the other.
        is_cross_fitted: whichever of both is its method's best was chosen by other training seeds than it is judged by.
    """

    over: str
    setting: str
    probability: float
    interval: Interval | None
    n: int
    n_other: int
    is_cross_fitted: bool = False


@dataclass(frozen=True)
class Choosing:
    """What the best setting's figure owes to its having been chosen.

    Attributes:
        settings: among how many it was chosen.
        shown: its mean objective over all its seeds.
        judged: the mean objective of settings that were chosen likewise, by half of the training seeds, on the other
            half; None with fewer than ``ENOUGH_SEEDS``.
        interval: 95 % interval of ``judged``.
        optimism: ``shown - judged``.
        probability: that a seed of a setting chosen so is above one of the prior; None without a prior.
        probability_interval: 95 % interval of it.
    """

    settings: int
    shown: float
    judged: float | None = None
    interval: Interval | None = None
    optimism: float | None = None
    probability: float | None = None
    probability_interval: Interval | None = None


def halves(settings: Sequence[Scored]) -> tuple[Half, Half] | None:
    """Two halves of the training seeds, alternately; None where every trained setting has not enough of them."""
    trained = [set(each.score) for each in settings if not each.is_prior and each.score]
    seeds = sorted(set.intersection(*trained)) if trained else []
    return (frozenset(seeds[::2]), frozenset(seeds[1::2])) if len(seeds) >= ENOUGH_SEEDS else None


@dataclass(frozen=True)
class Place:
    """A setting in the order of a table.

    Attributes:
        of: the setting.
        figures: by which it is chosen.
        broken: constraints that it breaks; none of one without figures.
    """

    of: Scored
    figures: Figures
    broken: tuple[Violation, ...]


def ranked(settings: Sequence[Scored], objective: Objective, seeds: Half | None = None) -> list[Place]:
    """The settings, best first, by the figures that choose; see ``order_key``.

    Args:
        settings: to be ordered.
        objective: what is best; a constraint that is relative to the prior looks for it among the settings.
        seeds: the training seeds whose figures count; None: all.
    """
    figures = {each.group: each.chosen_by(seeds) for each in settings}
    prior = next((figures[each.group] for each in settings if each.is_prior and each.by), None)
    broken = {name: violations(objective.constraints, own, prior) for name, own in figures.items()}

    def order(each: Scored) -> tuple[object, ...]:
        own = figures[each.group].get(objective.maximize, math.nan)
        return (not each.by, *order_key(own, broken[each.group]), each.group)

    ordered = sorted(settings, key=order)
    return [Place(each, figures[each.group], broken[each.group] if each.by else ()) for each in ordered]


def best_of(places: Sequence[Place], objective: Objective) -> Scored | None:
    """The first that may be chosen, satisfies the constraints and has the objective's figure."""
    for each in places:
        known = each.of.by and math.isfinite(each.figures.get(objective.maximize, math.nan))
        if each.of.is_deployable and known and not each.broken:
            return each.of
    return None


def choosing(settings: Sequence[Scored], objective: Objective) -> Choosing | None:
    """What the choice of the best setting costs; None where none is best, or there was nothing to choose among."""
    best = best_of(ranked(settings, objective), objective)
    able = [each for each in settings if each.is_deployable and each.by]
    if best is None or not best.score or len(able) < 2:
        return None
    shown = float(np.mean(best.scores()))
    both = halves(settings)
    if both is None:
        return Choosing(len(able), shown)
    picked = [best_of(ranked(settings, objective, half), objective) for half in both]
    if any(each is None or not each.score for each in picked):  # one half knows of none within the constraints
        return Choosing(len(able), shown)
    judged = [_on(each, half) for each, half in zip(picked, reversed(both), strict=True) if each is not None]
    mean = float(np.mean([np.mean(each) for each in judged]))
    prior = next((each for each in settings if each.is_prior and each.score), None)
    chance: tuple[float, Interval | None] | tuple[None, None] = (None, None)
    if prior is not None:
        chance = _probability(judged, [_on(prior, half) for half in reversed(both)])
    return Choosing(len(able), shown, mean, judged_interval(judged), shown - mean, *chance)


def judged_interval(judged: Sequence[Sequence[float]], level: float = LEVEL) -> Interval:
    """Interval of the mean of two halves' means, each of a setting that the other half chose.

    A half chooses by the seeds that judge the other's choice, so the two means go together to an unknown degree: the
    interval is that of Student's t for means that go together entirely, and so never too narrow.

    Args:
        judged: the two halves' scores, at least two each.
        level: its coverage.
    """
    freedom = sum(len(each) - 1 for each in judged)
    variance = sum(float(np.var(each, ddof=1)) * (len(each) - 1) for each in judged) / freedom
    reach = reach_of_t(freedom, level) * float(np.mean([math.sqrt(variance / len(e)) for e in judged]))
    mean = float(np.mean([np.mean(each) for each in judged]))
    return (mean - reach, mean + reach)


def improvements(settings: Sequence[Scored], objective: Objective) -> dict[str, tuple[Improvement, ...]]:
    """Each setting's probability of improvement over the best of each other method, the prior first.

    With enough training seeds the best of a method is chosen by one half of them and judged by the other, both ways;
    so is this setting, if it is its own method's best.

    Returns:
        By group; a setting without a score has none.
    """
    with_scores = [each for each in settings if each.score]
    leaders: dict[str, Scored] = {}
    for place in ranked(with_scores, objective):
        leaders.setdefault(place.of.method, place.of)
    both = halves(with_scores)
    of_method = {name: [each for each in with_scores if each.method == name] for name in leaders}
    prior = [each for each in with_scores if each.is_prior]
    alternatives: dict[str, list[Scored]] = {}
    for name, own in of_method.items() if both is not None else ():
        beside = [each for each in prior if each.method != name]  # constraints may be relative to it
        orders = [ranked([*own, *beside], objective, half) for half in both or ()]
        alternatives[name] = [next(p.of for p in places if p.of.method == name) for places in orders]
    others = sorted(leaders.values(), key=lambda each: not each.is_prior)  # the prior first, then as they rank

    def sides(this: Scored) -> list[list[float]]:
        """Its scores or, of a method's best, those of what each half would have taken for that, on the other half."""
        if both is None:
            return [this.scores()]
        taken = alternatives[this.method] if leaders[this.method] is this else [this, this]
        return [_on(each, half) for each, half in zip(taken, reversed(both), strict=True)]

    found: dict[str, tuple[Improvement, ...]] = {}
    for row in with_scores:
        these = sides(row)
        made = []
        for other in (each for each in others if each.method != row.method):
            probability, interval = _probability(these, sides(other))
            # One trained seed says nothing of the next; the prior is what it is.
            known = all(each.is_prior or len(each.score) > 1 for each in (row, other))
            counts = (len(row.score), len(other.score))
            ends = interval if known else None
            made.append(Improvement(other.method, other.setting, probability, ends, *counts, both is not None))
        found[row.group] = tuple(made)
    return found


def _on(setting: Scored, half: Half) -> list[float]:
    """Its scores on a half of the seeds; the prior's one as often as there are seeds."""
    return setting.scores(half) * (len(half) if setting.is_prior else 1)


def _probability(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> tuple[float, Interval | None]:
    """P(X > Y) over halves, and its interval; both halves count alike."""
    sides = [(column(a), column(b)) for a, b in zip(x, y, strict=True)]
    mean = float(np.mean([probability_of_improvement(a, b) for a, b in sides]))
    return mean, _over_halves(sides, improvement_interval)


def _over_halves(
    sides: Sequence[tuple[Array, Array]], interval: Callable[[Array, Array], Interval | None]
) -> Interval | None:
    if len(sides) == 1:
        return interval(*sides[0])
    if all(len(set(map(len, side))) == 1 for side in zip(*sides, strict=True)):  # halves of one size: two strata
        x, y = (np.concatenate(side, axis=1) for side in zip(*sides, strict=True))
        return interval(x, y)
    ends = [interval(*side) for side in sides]
    known = [each for each in ends if each is not None]
    if len(known) < len(ends):
        return None
    return (float(np.mean([each[0] for each in known])), float(np.mean([each[1] for each in known])))
