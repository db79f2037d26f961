"""What is best: constraints, order and Pareto set, of settings in a table and of checkpoints in a trial alike.

Free of Ray and torch. Figures come as a mapping of the names in ``Constraints`` (``basic_return``, ``kl_to_prior``, …)
to means; a figure that is missing or NaN satisfies no constraint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rpg_platform.spec.sections import Constraints, Objective

Figures: TypeAlias = Mapping[str, float]
_AT_ONCE = 512  # points compared with all others together


@dataclass(frozen=True)
class Violation:
    """A constraint that is not satisfied.

    Attributes:
        constraint: in words, e.g. ``kl_to_prior at most 3``.
        value: the figure; NaN if it is unknown.
        bound: what it had to keep to.
        excess: how far beyond, as a share of the bound's size (of 1 where the bound is 0); infinite if unknown.
    """

    constraint: str
    value: float
    bound: float
    excess: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.constraint}, unknown"
        percent = 100 * self.excess
        return f"{self.constraint}, is {self.value:.4g} ({percent:{'.0f' if percent >= 10 else '.2g'}} % beyond)"


def violations(constraints: Constraints, figures: Figures, prior: Figures | None = None) -> tuple[Violation, ...]:
    """The constraints that ``figures`` break, in the order of ``Constraints``.

    Args:
        constraints: from the specification.
        figures: of a policy.
        prior: the prior's figures, evaluated on the same seeds, for ``min_fraction_of_prior``.
    """
    found = []
    for name in type(constraints).model_fields:
        bounds = getattr(constraints, name)
        if bounds is None:
            continue
        value = figures.get(name, math.nan)
        for kind in type(bounds).model_fields:
            limit = getattr(bounds, kind)
            if limit is None:
                continue
            bound, words = _bound(name, kind, limit, prior)
            beyond = value - bound if kind == "max" else bound - value
            if not beyond <= 0:  # NaN too
                excess = beyond / (abs(bound) or 1.0)
                found.append(Violation(words, value, bound, math.inf if math.isnan(excess) else excess))
    return tuple(found)


def _bound(name: str, kind: str, limit: float, prior: Figures | None) -> tuple[float, str]:
    if kind == "max":
        return limit, f"{name} at most {limit:g}"
    if kind == "min":
        return limit, f"{name} at least {limit:g}"
    of_prior = math.nan if prior is None else prior.get(name, math.nan)
    # Of a negative return a share below 1 would ask for more than the prior has: the distance counts instead.
    bound = of_prior - (1 - limit) * abs(of_prior)
    return bound, f"{name} at least {bound:.4g} ({100 * limit:g} % of the prior's {of_prior:.4g})"


def needed(objective: Objective) -> frozenset[str]:
    """Names of the figures that ``objective`` looks at."""
    constraints = objective.constraints
    bounded = {name for name in type(constraints).model_fields if getattr(constraints, name) is not None}
    return frozenset(bounded | {objective.maximize})


def needs_prior(objective: Objective) -> bool:
    """Whether a constraint is relative to the prior's returns."""
    constraints = objective.constraints
    bounds = [getattr(constraints, name) for name in type(constraints).model_fields]
    return any(getattr(each, "min_fraction_of_prior", None) is not None for each in bounds)


def order_key(value: float, broken: Sequence[Violation]) -> tuple[bool, bool, float, float]:
    """Sorts best first: what satisfies the constraints by its value, then the rest by how far beyond its worst is.

    Args:
        value: what is maximised; NaN comes last.
        broken: from ``violations``.
    """
    unknown = math.isnan(value)
    worst = max((each.excess for each in broken), default=0.0)
    return (bool(broken), unknown and not broken, worst, math.inf if unknown else -value)


def pareto_set(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates: as good in every respect and better in one.

    Args:
        points: ``[N, D]``, each column to be maximised; equal points do not dominate each other. NaN counts as
            worse than any number.

    Returns:
        ``[N]``; exact, by comparing all pairs.

    Raises:
        ValueError: ``points`` is not two-dimensional.
    """
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2:
        raise ValueError(f"points: expected [points, dimensions], got shape {given.shape}")
    values = np.where(np.isnan(given), -np.inf, given)
    best = np.ones(len(values), dtype=bool)
    for start in range(0, len(values), _AT_ONCE):
        these = values[start : start + _AT_ONCE, None, :]
        dominated = (values >= these).all(axis=-1) & (values > these).any(axis=-1)
        best[start : start + _AT_ONCE] = ~dominated.any(axis=-1)
    return best
