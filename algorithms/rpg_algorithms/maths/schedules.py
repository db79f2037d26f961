"""Checks of the customization weights: a number, or a schedule over env steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

Weight = float | Sequence[Sequence[float]]


def check_weight(name: str, value: Any, minimum: float | None = 0.0) -> None:
    """Checks one weight.

    Args:
        name: the setting's name, for the message.
        value: a finite number, or ``[[0, v0], [env_step, v1], ...]``, interpolated linearly and constant afterwards.
        minimum: least value allowed; None for any.

    Raises:
        ValueError: names the setting, its value and what was expected.
    """
    if isinstance(value, (list, tuple)):
        _check_schedule(name, value)
        values = [point[1] for point in value]
    else:
        values = [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v):
            raise ValueError(
                f"{name}={value!r}: expected a finite number or a schedule [[0, value], [env_step, value], ...]"
            )
        if minimum is not None and v < minimum:
            raise ValueError(f"{name}={value!r}: expected at least {minimum}")


def _check_schedule(name: str, schedule: Sequence[Any]) -> None:
    expected = f"{name}={schedule!r}: expected a schedule [[0, value], [env_step, value], ...]"
    if len(schedule) < 2 or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in schedule):
        raise ValueError(f"{expected} of at least two points")
    steps = [p[0] for p in schedule]
    if any(isinstance(s, bool) or not isinstance(s, int) for s in steps):
        raise ValueError(f"{expected} with whole env steps")
    if steps[0] != 0:
        raise ValueError(f"{expected} that starts at env step 0, not {steps[0]}")
    if any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{expected} with increasing env steps")


def weight_at(value: Weight, env_step: float) -> float:
    """The value of a weight at an env step: a schedule is linear between its points and constant afterwards."""
    if isinstance(value, (int, float)):
        return float(value)
    after = next((i for i, point in enumerate(value) if point[0] > env_step), None)
    if after is None:
        return float(value[-1][1])
    (start, low), (end, high) = value[after - 1], value[after]
    return float(low + (high - low) * (env_step - start) / (end - start))


def scale_weight(value: Weight, factor: float) -> Weight:
    """``factor * value``, point by point for a schedule."""
    if isinstance(value, (int, float)):
        return value * factor
    return [[step, v * factor] for step, v in value]
