"""What may stand where a number is expected: a value, a schedule over env steps, or a space to search.

In YAML, and in everything that is dumped back to it:

    0.1                               the value
    [[0, 0.2], [100000, 0.05]]        a schedule: at env step 0 the first value, at step 100000 the second
    {grid: [0.05, 0.1]}               one trial for each
    {choice: [0.05, 0.1]}             each draw picks one
    {uniform: [0.05, 0.2]}            each draw is uniform between the two
    {loguniform: [0.01, 1.0]}         each draw is uniform in the logarithm

And where a weight is expected, alone:

    {conditioned: [0.02, 1.6]}        one trial for the whole range: its policy is told the weight
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from rpg_platform.spec.errors import Problem
from rpg_platform.wording import Path, show, suggestion

CONDITIONED = "conditioned"


@dataclass(frozen=True)
class ConditionedRange:
    """The range of a weight that a policy is told: one training serves all of it."""

    low: float
    high: float


Schedule: TypeAlias = tuple[tuple[int, float], ...]
WeightValue: TypeAlias = float | Schedule | ConditionedRange
Setting: TypeAlias = float | bool | str | Schedule | ConditionedRange | None
SpaceKind: TypeAlias = Literal["grid", "choice", "uniform", "loguniform"]

_KINDS: tuple[SpaceKind, ...] = get_args(SpaceKind)
_CONTINUOUS: tuple[SpaceKind, ...] = ("uniform", "loguniform")


@dataclass(frozen=True)
class SearchSpace:
    """A set of settings to search over.

    Attributes:
        kind: `grid` is enumerated, the others are drawn from.
        values: The settings themselves, or for `uniform` and `loguniform` the two bounds.
    """

    kind: SpaceKind
    values: tuple[Setting, ...]

    @property
    def is_random(self) -> bool:
        """Whether its settings are drawn rather than enumerated."""
        return self.kind != "grid"

    @property
    def size(self) -> int | None:
        """How many distinct settings it holds; None when they are uncountable."""
        return None if self.kind in _CONTINUOUS else len(self.values)

    def draw(self, generator: random.Random) -> Setting:
        """One setting, from `generator` alone."""
        return self.at(generator.random()) if self.kind in _CONTINUOUS else generator.choice(self.values)

    def at(self, u: float) -> Setting:
        """The setting at ``u`` in [0, 1): that share of all of its values, in their order, lies below it."""
        if self.kind not in _CONTINUOUS:
            return self.values[int(u * len(self.values))]
        low, high = (float(cast(float, bound)) for bound in self.values)
        if self.kind == "uniform":
            return low + u * (high - low)
        found = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return min(max(found, low), high)


def dump(setting: Setting | SearchSpace) -> object:
    """The YAML and JSON form of a setting: what the parsers below read."""
    if isinstance(setting, SearchSpace):
        return {setting.kind: [dump(value) for value in setting.values]}
    if isinstance(setting, ConditionedRange):
        return {CONDITIONED: [setting.low, setting.high]}
    if isinstance(setting, tuple):
        return [[step, value] for step, value in setting]
    return setting


def is_space(raw: object) -> bool:
    """Whether `raw` is meant as a search space: the one kind of mapping that may stand for any scalar."""
    return isinstance(raw, SearchSpace) or (isinstance(raw, Mapping) and CONDITIONED not in raw)


def parse_space(
    raw: object, parse_value: Callable[[object, Path, list[Problem]], Setting], path: Path, problems: list[Problem]
) -> SearchSpace | None:
    """Read a search space, its settings through `parse_value`.

    Args:
        raw: A mapping as YAML gives it, or a `SearchSpace`, which is read again.
        parse_value: Reads one setting; adds to the problems what it refuses.
        path: Where `raw` stands.
        problems: Receives whatever is wrong.

    Returns:
        The space, or None when something is wrong with it.
    """
    mapping = cast(Mapping[str, object], dump(raw) if isinstance(raw, SearchSpace) else raw)
    found = len(problems)
    unknown = [key for key in mapping if key not in _KINDS]
    if unknown:
        hint = suggestion(str(unknown[0]), (*_KINDS, CONDITIONED))
        problems.append(Problem((*path, unknown[0]), f"unknown kind of search space{hint}", at_key=True))
        return None
    if len(mapping) != 1:
        got = " and ".join(mapping) or "an empty mapping"
        problems.append(Problem(path, f"takes exactly one of grid, choice, uniform and loguniform, got {got}"))
        return None
    kind = cast(SpaceKind, next(iter(mapping)))
    values = mapping[kind]
    here = (*path, kind)
    if not isinstance(values, list | tuple):
        problems.append(Problem(here, f"expected a list, got {show(values)}"))
        return None
    if kind in _CONTINUOUS:
        return _parse_bounds(kind, values, parse_value, here, problems)
    if not values:
        problems.append(Problem(here, "needs at least one value, got an empty list"))
    parsed: list[Setting] = []
    for index, value in enumerate(values):
        before = len(problems)
        setting = parse_value(value, (*here, index), problems)
        if len(problems) > before:
            continue
        if setting in parsed:
            problems.append(Problem((*here, index), f"{show(setting)} is in the list twice"))
        parsed.append(setting)
    return SearchSpace(kind, tuple(parsed)) if len(problems) == found else None


def _parse_bounds(
    kind: SpaceKind,
    values: list[object] | tuple[object, ...],
    parse_value: Callable[[object, Path, list[Problem]], Setting],
    path: Path,
    problems: list[Problem],
) -> SearchSpace | None:
    found = len(problems)
    if len(values) != 2:
        problems.append(Problem(path, f"takes two numbers [low, high], got {len(values)}"))
        return None
    bounds: list[float] = []
    for index, value in enumerate(values):
        number = parse_number(value, (*path, index), problems)
        if number is not None:
            bounds.append(number)
            parse_value(value, (*path, index), problems)
    if len(problems) == found and bounds[0] >= bounds[1]:
        problems.append(Problem(path, f"low must be below high, got {show(bounds)}"))
    if len(problems) == found and kind == "loguniform" and bounds[0] <= 0:
        problems.append(Problem((*path, 0), f"low must be above 0 for loguniform, got {show(bounds[0])}"))
    return SearchSpace(kind, tuple(bounds)) if len(problems) == found else None


def parse_number(raw: object, path: Path, problems: list[Problem], expected: str = "a number") -> float | None:
    """A finite number as a float; booleans and text are none."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        problems.append(Problem(path, f"expected {expected}, got {show(raw)}"))
        return None
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        problems.append(Problem(path, f"expected a finite number, got {show(number)}"))
        return None
    return number


def parse_weight_value(raw: object, path: Path, problems: list[Problem]) -> WeightValue | None:
    """A weight's value: a number that is not negative, a schedule of such numbers, or a range that is told."""
    if isinstance(raw, list | tuple):
        return _parse_schedule(raw, path, problems)
    if isinstance(raw, ConditionedRange):
        return raw
    if isinstance(raw, Mapping) and CONDITIONED in raw:
        return _parse_conditioned(raw, path, problems)
    return _parse_amount(raw, path, problems, "a number or a schedule")


def _parse_conditioned(raw: Mapping[str, object], path: Path, problems: list[Problem]) -> ConditionedRange | None:
    here: Path = (*path, CONDITIONED)
    values = raw[CONDITIONED]
    if len(raw) != 1:
        other = next(key for key in raw if key != CONDITIONED)
        problems.append(Problem((*path, other), f"{CONDITIONED} stands alone, got {other} beside it", at_key=True))
        return None
    if not isinstance(values, list | tuple) or len(values) != 2:
        problems.append(Problem(here, f"takes two numbers [low, high], got {show(values)}"))
        return None
    low, high = (_parse_amount(value, (*here, index), problems) for index, value in enumerate(values))
    if low is None or high is None:
        return None
    if low >= high:
        problems.append(Problem(here, f"low must be below high, got {show([low, high])}"))
        return None
    return ConditionedRange(low, high)


def _parse_amount(raw: object, path: Path, problems: list[Problem], expected: str = "a number") -> float | None:
    number = parse_number(raw, path, problems, expected)
    if number is not None and number < 0:
        problems.append(Problem(path, f"must not be negative, got {show(number)}"))
        return None
    return number


def _parse_schedule(raw: list[object] | tuple[object, ...], path: Path, problems: list[Problem]) -> Schedule | None:
    found = len(problems)
    points: list[tuple[int, float]] = []
    for index, point in enumerate(raw):
        here = (*path, index)
        if not isinstance(point, list | tuple) or len(point) != 2:
            hint = "; a list is a schedule [[env_step, value], ...]; to search over values write {grid: [...]}"
            message = f"expected [env_step, value], got {show(point)}"
            problems.append(Problem(here, message if isinstance(point, list | tuple) else message + hint))
            return None
        step = parse_number(point[0], (*here, 0), problems)
        value = _parse_amount(point[1], (*here, 1), problems)
        if step is None or value is None:
            continue
        if not step.is_integer() or step < 0:
            problems.append(Problem((*here, 0), f"expected an env step, a whole number, got {show(step)}"))
            continue
        if index == 0 and step != 0:
            problems.append(Problem((*here, 0), f"a schedule starts at env step 0, got {show(step)}"))
        elif points and step <= points[-1][0]:
            message = f"a schedule's env steps increase, got {show(step)} after {points[-1][0]}"
            problems.append(Problem((*here, 0), message))
        points.append((int(step), value))
    if not raw:
        problems.append(Problem(path, "an empty list is no schedule: expected [[0, value], ...]"))
    return tuple(points) if len(problems) == found else None
