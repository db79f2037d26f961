"""The weights that a rule asks for, found without training: a policy for a range is evaluated until they are known.

Every policy that was trained for the range plays the same episodes at each weight that is looked at, so the response is
smooth enough to follow: between two evaluated weights every figure is taken as linear in ``u``
(``maths.conditioned``). The best point of that curve is evaluated next, until it stays where it is. Its interval is of
resampled episodes and seeds. What the policies do there is then shown by episodes that chose nothing.

Dimension letters: S policies (training seeds), E episodes, U evaluated weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_platform.results.ranking import Figures, violations
from rpg_platform.spec.sections import Objective

Array = NDArray[np.float64]
Drawn = tuple[NDArray[np.int64], NDArray[np.int64]]
Played = Mapping[str, Array]
"""Measure → its figures ``[S, E]`` at one weight."""

FIRST = 9
_MOST = 12  # further evaluations
_CLOSE = 0.02  # of u: 4 % of a range of two decades
_DENSE = 400
_RESAMPLED = 300


class NothingFoundError(ValueError):
    """No weight of the range satisfies the constraints; the message says how near it comes."""


@dataclass(frozen=True)
class FoundWeight:
    """The weight that a rule asks for.

    Attributes:
        name: of the weight.
        value: what it is.
        interval: 95 % of what it is over resampled seeds and episodes.
        at: the weights at which policies were evaluated, in their order.
        figures: means at ``value``, interpolated, of the episodes that it was chosen by.
    """

    name: str
    value: float
    interval: tuple[float, float]
    at: Sequence[float]
    figures: Figures


def find_weight(
    told: Conditioned,
    objective: Objective,
    play: Callable[[float], Played],
    prior: Played | None,
    tell: Callable[[float, Figures], object] = lambda weight, figures: None,
) -> FoundWeight:
    """The weight of a range at which the objective is best among those that satisfy its constraints.

    Args:
        told: the weight and its range.
        objective: what to maximise, and its constraints.
        play: evaluates every policy at a weight.
        prior: the prior's figures on the same episodes, ``[1, E]``, for constraints that are relative to it.
        tell: called after each evaluation with the weight and the means.

    Raises:
        NothingFoundError: no weight of the range satisfies the constraints.
    """
    response: dict[float, Played] = {}

    def look(u: float) -> None:
        weight = told.weight(u)
        response[u] = play(weight)
        tell(weight, _means(response[u]))

    for u in np.linspace(-1.0, 1.0, FIRST):
        look(float(u))
    for _ in range(_MOST):
        best = _best(response, objective, prior, None)
        if best is None:
            break
        near = min(response, key=functools.partial(_distance, best))
        if _distance(best, near) > _CLOSE / 2:
            look(best)
            continue
        # It is at an evaluated weight: the curve may be higher beside it.
        sides = [side for side in _neighbours(sorted(response), near) if _distance(side, near) > _CLOSE]
        if not sides:
            break
        for side in sides:
            look((near + side) / 2)
    best = _best(response, objective, prior, None)
    if best is None:
        raise NothingFoundError(_nearest(told, response, objective, prior))
    rng = np.random.default_rng(0)
    again = [_best(response, objective, prior, rng) for _ in range(_RESAMPLED)]
    low, high = np.quantile([each for each in again if each is not None] or [best], [0.025, 0.975])
    return FoundWeight(
        told.name,
        told.weight(best),
        (told.weight(float(low)), told.weight(float(high))),
        [told.weight(u) for u in response],
        {name: float(value) for name, [value] in _curve(response, np.array([best]), None).items()},
    )


def _distance(u: float, other: float) -> float:
    return abs(u - other)


def _neighbours(ordered: Sequence[float], u: float) -> list[float]:
    i = ordered.index(u)
    return [*ordered[max(0, i - 1) : i], *ordered[i + 1 : i + 2]]


def _means(played: Played) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in played.items()}


def _curve(response: Mapping[float, Played], us: Array, drawn: Drawn | None) -> dict[str, Array]:
    """Measure → its mean at each of ``us``; ``drawn``: of these seeds and episodes, None: of all."""
    at = sorted(response)
    means = {name: [float(_taken(response[u][name], drawn).mean()) for u in at] for name in response[at[0]]}
    return {name: np.interp(us, at, values) for name, values in means.items()}


def _taken(values: Array, drawn: Drawn | None) -> Array:
    return values if drawn is None else values[np.ix_(drawn[0], drawn[1])]


def _best(
    response: Mapping[float, Played], objective: Objective, prior: Played | None, rng: np.random.Generator | None
) -> float | None:
    """``u`` of the best point of the curve that satisfies the constraints; None if there is none."""
    drawn: Drawn | None = None
    if rng is not None:
        seeds, episodes = next(iter(next(iter(response.values())).values())).shape
        drawn = np.asarray(rng.integers(seeds, size=seeds)), np.asarray(rng.integers(episodes, size=episodes))
    of_prior = None
    if prior is not None:
        of_prior = {
            name: float((values if drawn is None else values[:, drawn[1]]).mean()) for name, values in prior.items()
        }
    us = np.union1d(np.linspace(-1.0, 1.0, _DENSE), sorted(response))
    figures = _curve(response, us, drawn)
    for i in np.argsort(-figures[objective.maximize], kind="stable"):
        here = {name: float(values[i]) for name, values in figures.items()}
        if math.isfinite(here[objective.maximize]) and not violations(objective.constraints, here, of_prior):
            return float(us[i])
    return None


def _nearest(told: Conditioned, response: Mapping[float, Played], objective: Objective, prior: Played | None) -> str:
    of_prior = None if prior is None else _means(prior)
    broken = {u: violations(objective.constraints, _means(played), of_prior) for u, played in response.items()}
    u = min(broken, key=lambda each: max(fault.excess for fault in broken[each]))
    faults, span = "; ".join(map(str, broken[u])), f"{told.name} from {told.low:g} to {told.high:g}"
    return f"no {span} satisfies the rule; nearest is {told.weight(u):.3g}: {faults}"
