"""What a sweep's trials reported, by their own result files, and whether MLflow has each report once."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpg_platform.results.report import finite_metrics, is_of_the_end

Report = dict[str, Any]
Point = tuple[str, int]  # metric and step
Stored = tuple[str, int, int, float]  # metric, step, timestamp in ms, value


@dataclass
class Reports:
    """The trials' own result files, of all attempts; what was once read stays known.

    Tune takes a trial that starts again back to the file that it last copied to the storage, and drops later lines.

    Attributes:
        root: folder that holds them.
        pattern: where they lie in it.
    """

    root: Path
    pattern: str = "**/result.json"
    seen: dict[str, dict[str, Report]] = field(default_factory=lambda: defaultdict(dict))

    def read(self) -> dict[str, list[Report]]:
        """Trial → its reports in the order in which they were made."""
        for file in self.root.glob(self.pattern):
            lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
            known = self.seen[file.parent.name]
            known.update({line: json.loads(line) for line in lines if line not in known})
        return {trial: sorted(lines.values(), key=lambda line: line["timestamp"]) for trial, lines in self.seen.items()}

    def running(self) -> list[Report]:
        """The last reports of the trials that are not done."""
        return [lines[-1] for lines in self.read().values() if lines and not lines[-1]["done"]]

    def finished(self) -> set[str]:
        """The trials whose last report is that of their end."""
        return {trial for trial, lines in self.read().items() if lines and lines[-1]["done"]}


@dataclass(frozen=True)
class Kept:
    """What MLflow has of a trial's reports.

    Attributes:
        reported: points that the trial's files have.
        lost: those of them that MLflow has not.
        doubled: points of a metric and step that MLflow has besides the first.
        unknown: steps that MLflow has and the files have not.
        other: steps at which MLflow has another value than the first report of the files.
        gaps: steps of the budget at which MLflow has nothing.
    """

    reported: int
    lost: frozenset[Point]
    doubled: int
    unknown: frozenset[int]
    other: frozenset[int]
    gaps: frozenset[int]


def kept_of(lines: Sequence[Report], points: Counter[Stored], budget: range) -> Kept:
    """Compares what a trial reported with what MLflow has.

    Args:
        lines: its reports, in order.
        points: what MLflow has.
        budget: the steps at which it reports.
    """
    there = {(key, step): value for key, step, _, value in points}
    reported: defaultdict[Point, list[float]] = defaultdict(list)
    for line in lines:
        for key, value in finite_metrics(line).items():
            reported[key, int(line["env_steps"])].append(value)
    # The first report of a step counts; of the final evaluation the last, which is that of the policy that is kept.
    first = {point: values[-1 if is_of_the_end(point[0]) else 0] for point, values in reported.items()}
    return Kept(
        reported=len(reported),
        lost=frozenset(set(reported) - set(there)),
        doubled=sum(points.values()) - len(there),
        unknown=frozenset(step for key, step in set(there) - set(reported) if key != "kept_pct"),
        other=frozenset(point[1] for point, value in first.items() if there.get(point, value) != value),
        gaps=frozenset(set(budget) - {step for _, step in there}),
    )


def check_points(lines: Sequence[Report], points: Counter[Stored], budget: range, between_saves: int) -> Kept:
    """Each report of a trial is in MLflow, once, and nothing that was not reported.

    Args:
        lines: its reports, in order.
        points: what MLflow has.
        budget: the steps at which it reports.
        between_saves: the driver died while the trial ran, and so many reports are made between two checkpoints: what
            it had recorded of the last ones may not be in the files. 0: no driver died.
    """
    kept = kept_of(lines, points, budget)
    assert not kept.lost, "lost"
    assert not kept.doubled, "two points of one metric and step"
    assert not kept.gaps, "a step that was never recorded"
    assert kept.unknown <= (set(budget) if between_saves else set()), "invented"
    assert len(kept.other) <= between_saves, "more than what lay between checkpoints"
    return kept
