"""Two settings against each other: differences with intervals, which is better, and what differs between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rpg_platform.results.difference import difference
from rpg_platform.results.names import at_words
from rpg_platform.results.report import FINAL, Mode, evaluations, mean_key, number
from rpg_platform.results.statistics import Interval, improvement_interval, probability_of_improvement
from rpg_platform.review.choice import Choice, ChoiceError, choose
from rpg_platform.spec.measures import MEASURES


@dataclass(frozen=True)
class Difference:
    """One measure of both.

    Attributes:
        measure: its name.
        first, second: means.
        interval: 95 % interval of first - second; None where a spread is unknown.
    """

    measure: str
    first: float
    second: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Two settings.

    Attributes:
        first, second: what is compared.
        differences: of each measure.
        probability: that a seed of the first has a higher objective than one of the second; a tie is half.
        interval: 95 % interval of it; None where either has one seed.
        changes: place in the specification (or ``version``, ``prior's content``) → what each has there.
    """

    first: Choice
    second: Choice
    differences: tuple[Difference, ...]
    probability: float
    interval: Interval | None
    changes: Mapping[str, tuple[Any, Any]]

    def as_json(self) -> dict[str, Any]:
        """Everything, as strict JSON."""
        return {
            "first": _label(self.first),
            "second": _label(self.second),
            "differences": [
                {
                    "measure": each.measure,
                    "first": _finite(each.first),
                    "second": _finite(each.second),
                    "interval": each.interval,
                }
                for each in self.differences
            ],
            "probability_first_is_better": self.probability,
            "interval": self.interval,
            "changes": {place: list(values) for place, values in self.changes.items()},
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compared(first: str, second: str, storage: str) -> Comparison:
    """Compares two settings, each ``SWEEP`` (its best) or ``SWEEP#RANK``, by the first one's objective.

    Raises:
        ChoiceError: one of them names no setting, or they are of different tasks.
        SweepFolderError: there is no such sweep.
    """
    a, b = choose(first, storage), choose(second, storage)
    if a.found.spec.task != b.found.spec.task:
        raise ChoiceError(f"{first} is of another task than {second}: their returns are of different rewards")
    mode: Mode = a.found.spec.objective.mode
    episodes = min(each.found.spec.evaluation.episodes for each in (a, b))
    differences = []
    for measure in (each for each in MEASURES if each.bounds):  # J is of another reward in each setting
        x, y = (each.row.figure(measure.name, mode) for each in (a, b))
        if math.isfinite(x.mean) or math.isfinite(y.mean):
            differences.append(Difference(measure.name, x.mean, y.mean, difference(x, y, episodes)))
    scores = tuple(_scores(each, mode, a.found.spec.objective.maximize) for each in (a, b))
    several = all(len(each) > 1 for each in scores)
    return Comparison(
        a,
        b,
        tuple(differences),
        probability_of_improvement(*scores),
        improvement_interval(*scores) if several else None,
        dict(_changes(a, b)),
    )


def _scores(choice: Choice, mode: Mode, measure: str) -> Any:
    key = mean_key(FINAL, mode, measure)
    at = choice.row.evaluated_at
    own = [evaluations(*each) for each in choice.found.results if each[0].group == choice.row.group]
    return np.array([number(made[at], key) for made in own if at in made])[:, None]


def _changes(a: Choice, b: Choice) -> Iterator[tuple[str, tuple[Any, Any]]]:
    one, other = (dict(_flat(_facts(each))) for each in (a, b))
    for place in dict.fromkeys([*one, *other]):
        if one.get(place) != other.get(place):
            yield place, (one.get(place), other.get(place))


def _facts(choice: Choice) -> dict[str, Any]:
    trial = next(t for t, _, _ in choice.found.results if t.trial_id == choice.trial_id)
    said = trial.model_dump(mode="json", exclude={"trial_id", "sweep", "seed"})
    report = next(r for t, r, _ in choice.found.results if t.trial_id == choice.trial_id) or {}
    said["env_steps"] = choice.row.evaluated_at
    return {**said, "seeds": list(choice.row.seeds), "version": str(report.get("code", "")).split(" from ")[0]}


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _label(choice: Choice) -> str:
    return f"{choice.found.spec.name}#{choice.rank} {choice.row.setting}{at_words(choice.row)}"


def comparison_table(found: Comparison) -> RenderableType:
    """The comparison for a terminal."""
    table = Table("", "A", "B", "A − B", "95 %", box=box.SIMPLE_HEAD, pad_edge=False)
    for each in found.differences:
        gap, ends = each.first - each.second, each.interval
        cells = [f"{value:,.4g}" if math.isfinite(value) else "–" for value in (each.first, each.second)]
        cells.append(f"{gap:+,.4g}" if math.isfinite(gap) else "–")
        cells.append("–" if ends is None else f"{ends[0]:+,.4g} … {ends[1]:+,.4g}")
        sure = ends is not None and (ends[0] > 0 or ends[1] < 0)
        name = each.measure.replace("_", " ").replace("addon", "add-on").replace("kl", "KL")
        table.add_row(name, *cells, style="bold" if sure else None)
    seeds = [len(each.row.seeds) for each in (found.first, found.second)]
    heads = [
        f"{letter}  {_label(each)} ({count} seed{'s' * (count > 1)})"
        for letter, each, count in zip("AB", (found.first, found.second), seeds, strict=True)
    ]
    if min(seeds) == 1:
        chance = "One training seed: intervals are over episodes and say nothing of other trainings."
    else:
        low, high = found.interval or (math.nan, math.nan)
        within = f"{100 * found.probability:.0f} %, 95 % {100 * low:.0f} to {100 * high:.0f} %"
        chance = f"A seed of A is better than one of B with probability {within}."
    said = "What differs, A → B:" if found.changes else "Nothing differs but the seeds."
    lines = [f"  {place}: {one} → {other}" for place, (one, other) in found.changes.items()]
    return Group(*heads, table, *map(Text, [chance, said, *lines]))
