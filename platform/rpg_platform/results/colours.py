"""Colours of settings by their main weight: MLflow's charts have those of pictures, safe for colour-blind eyes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpg_platform.spec.methods import PRIOR, WEIGHTS
from rpg_platform.spec.space import ConditionedRange, SearchSpace
from rpg_platform.spec.sweep import SweepSpec

CIVIDIS = (
    *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
    *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
)
"""Matplotlib's map of that name at equal steps: from dark blue to yellow, its lightness rises evenly."""
LIGHTEST = 0.92
"""Share of the map beyond which a point is lost on white."""
_LOG_FROM = 8.0
# Okabe and Ito's, without their blue and yellow.
_METHODS = {PRIOR: "#d55e00", "kl": "#009e73", "greedy": "#cc79a7", "full": "#56b4e9"}
_OTHER = "#9a9a9a"


@dataclass(frozen=True)
class Colours:
    """Gives each trial its colour.

    Attributes:
        weight: the main weight; None where no weight is searched.
        low: its smallest value.
        high: its largest.
    """

    weight: str | None = None
    low: float = math.nan
    high: float = math.nan

    def of(self, method: str, weights: Mapping[str, Any]) -> str:
        """The colour of a setting as ``#rrggbb``: by the main weight, or by the method where it does not take that."""
        value = weights.get(self.weight or "")
        if method in _METHODS or not isinstance(value, int | float):
            return _METHODS.get(method, _OTHER)
        is_log = by_logarithm(self.low, self.high) and value > 0
        low, high, at = (math.log(v) if is_log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return _shade(LIGHTEST * min(1.0, max(0.0, share)))


def by_logarithm(low: float, high: float) -> bool:
    """Whether a weight is spread by its logarithm: its largest value is many times its smallest."""
    return low > 0 and high / low >= _LOG_FROM


def searched_weights(spec: SweepSpec) -> dict[str, tuple[float, float]]:
    """The numeric weights over which a sweep's algorithm is searched, the main one first, each with its range."""
    found = {}
    for name in WEIGHTS:
        space = spec.weights.get(name)
        if isinstance(space, ConditionedRange):
            found[name] = (space.low, space.high)
        if isinstance(space, SearchSpace):
            values = [float(each) for each in space.values if isinstance(each, int | float)]
            if len(set(values)) > 1:
                found[name] = (min(values), max(values))
    return found


def colours_of(spec: SweepSpec) -> Colours:
    """The colours of a sweep's trials, which need no trial to be known."""
    for name, (low, high) in searched_weights(spec).items():
        return Colours(name, low, high)
    return Colours()


def _shade(share: float) -> str:
    """The colour at a share of the map's length, between its two nearest steps."""
    place = share * (len(CIVIDIS) - 1)
    i = min(int(place), len(CIVIDIS) - 2)
    ends = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in CIVIDIS[i : i + 2]]
    return "#" + "".join(f"{round(a + (place - i) * (b - a)):02x}" for a, b in zip(*ends, strict=True))
