"""What the comparison's trainings came to, seed by seed: kept in files beside the code, from which the page is written.

A comparison takes many hours. What is recorded is not trained again, on whatever machine it was trained.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, RootModel

from rpg_algorithms.addons import Array
from rpg_platform.results.report import FINAL, is_finished, mean_key, number
from rpg_platform.review.choice import parse_rule
from rpg_platform.review.curves import trainings
from rpg_platform.review.finding import NothingFoundError, find_weight
from rpg_platform.review.found import Found
from rpg_platform.review.range_policies import RangePolicies, range_policies
from rpg_platform.spec.methods import PRIOR
from rpg_platform.spec.sweep import TrialSpec

FOLDER = Path(__file__).resolve().parent / "records"
RETURNS = ("basic_return", "addon_return", "total_return", "task_metric")
OBJECTIVE = "objective"
KEEP = 0.9
RULE = f"max addon_return where basic_return >= {KEEP} * prior"
_CURVE_POINTS = 60

Setting = tuple[tuple[str, float], ...]
"""Weights, by name in their order."""


class Scored(BaseModel):
    """A setting: its final figures by measure, means over the final episodes."""

    weights: dict[str, float]
    figures: dict[str, float]


class Curve(BaseModel):
    """How J went in the training of a setting: ``[T]`` env steps and the validations' J."""

    weights: dict[str, float]
    steps: list[float]
    objective: list[float]


class Record(BaseModel):
    """A finished sweep of one seed.

    Attributes:
        machine: processor and versions.
        commit: of the code that trained it; empty where it is not known.
        prior: the prior's figures on the same episodes.
        settings: those of its trainings, or of its policy for a range.
        kept: of a policy for a range, the weight that keeps ``KEEP`` of the prior's basic return, as ``rpg weights NAME
            --rule RULE`` finds it, and the share kept on other episodes; None where it found none.
        curves: of its trainings.
    """

    machine: str
    commit: str = ""
    prior: dict[str, float]
    settings: list[Scored]
    kept: tuple[float, float] | None = None
    curves: list[Curve] = []


class Records(RootModel[dict[str, dict[int, Record]]]):
    """Kind of sweep → seed → its record."""

    @classmethod
    def read(cls, environment: str, folder: Path = FOLDER) -> Records:
        """Those of an environment; empty ones where there are none yet."""
        file = folder / f"{environment}.json"
        return cls.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else cls({})

    def write(self, environment: str, folder: Path = FOLDER) -> None:
        """Keeps them, figures with six digits."""
        folder.mkdir(parents=True, exist_ok=True)
        rounded = _rounded(self.model_dump(mode="json"))
        (folder / f"{environment}.json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")

    def add(self, kind: str, seed: int, record: Record) -> None:
        """Takes a record in."""
        of = self.root.setdefault(kind, {})
        of[seed] = record
        self.root[kind] = dict(sorted(of.items()))

    def has(self, kind: str, seed: int) -> bool:
        """Whether there is one."""
        return seed in self.root.get(kind, {})


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def record_of(found: Found, seed: int, machine: str, commit: str) -> Record:
    """What the trials of one seed came to.

    Raises:
        ValueError: one of them is not finished.
    """
    prior: dict[str, float] = {}
    settings = []
    for trial, report, error in found.results:
        if trial.method != PRIOR and trial.seed != seed:
            continue
        if report is None or not is_finished(report, error):
            raise ValueError(f"{found.spec.name}: {trial.trial_id} is not finished")
        figures = {name: number(report, mean_key(FINAL, "deterministic", name)) for name in RETURNS}
        figures[OBJECTIVE] = number(report, mean_key(FINAL, "sampled", OBJECTIVE))
        if trial.method == PRIOR:
            prior = {name: value for name, value in figures.items() if not math.isnan(value)}
        else:
            settings.append(Scored(weights=dict(weights_of(trial)), figures=figures))
    mine = [trial for trial, _, _ in found.trained if trial.seed == seed and trial.method != PRIOR]
    kept, curves = _kept(found, seed), _curves(found, mine)
    return Record(machine=machine, commit=commit, prior=prior, settings=settings, kept=kept, curves=curves)


def weights_of(trial: TrialSpec) -> Setting:
    """A trial's weights that are numbers, but the add-on's own."""
    numbers = {name: value for name, value in trial.weights.items() if isinstance(value, int | float)}
    return tuple((name, float(value)) for name, value in numbers.items())


def _curves(found: Found, trials: Sequence[TrialSpec]) -> list[Curve]:
    """Of trainings at one setting each."""
    trained = trainings(found.folder, [trial.trial_id for trial in trials if not trial.told])
    curves = []
    for trial in trials:
        if (training := trained.get(trial.trial_id)) is not None:
            known = np.flatnonzero(np.isfinite(training.values[OBJECTIVE]))
            kept = known[np.unique(np.linspace(0, len(known) - 1, _CURVE_POINTS).astype(int))] if len(known) else known
            steps, values = training.steps[kept], training.values[OBJECTIVE][kept]
            curves.append(Curve(weights=dict(weights_of(trial)), steps=list(steps), objective=list(values)))
    return curves


def _kept(found: Found, seed: int) -> tuple[float, float] | None:
    seeds = {trial.point_of: trial.seed for trial, _, _ in found.results if trial.point_of is not None}
    if seed not in seeds.values():
        return None
    policies, objective, settings = range_policies(found), parse_rule(RULE), found.spec.evaluation
    network = policies.networks[list(seeds.values()).index(seed)]
    one = RangePolicies(
        policies.method, policies.told, [network], policies.prior, policies.task, max_steps=policies.max_steps
    )
    of, *others = one.told
    rest = {each.name: float(f"{each.weight(0.0):.3g}") for each in others}

    def play(seed: int, at: float) -> Mapping[str, Array]:
        return one.play({of.name: at, **rest}, objective, settings.episodes, seed)

    before = one.play_prior(objective, settings.episodes, settings.selection_seed)
    try:
        answer = find_weight(of, objective, partial(play, settings.selection_seed), before)
    except NothingFoundError as error:
        print(error, file=sys.stderr)
        return None
    prior = one.play_prior(objective, settings.episodes, settings.seed)
    assert prior is not None
    reached = play(settings.seed, answer.value)["basic_return"].mean() / prior["basic_return"].mean()
    return answer.value, float(reached)


class Scores:
    """The records of one kind of sweep, over seeds.

    Args:
        records: seed → its record; at least one.

    Attributes:
        seeds: the seeds.
        prior: the prior's figures.
    """

    def __init__(self, records: Mapping[int, Record]) -> None:
        self._records = dict(records)
        self.seeds = list(records)
        first = next(iter(records.values()))
        self.prior = first.prior
        self.settings: list[Setting] = [tuple(each.weights.items()) for each in first.settings]

    def over_seeds(self, setting: Setting, measure: str) -> list[float]:
        """A measure at a setting, by seed."""
        every = (scored for record in self._records.values() for scored in record.settings)
        return [scored.figures[measure] for scored in every if scored.weights == dict(setting)]

    def by_seed(self, measure: str) -> list[list[float]]:
        """A measure at every setting, in the settings' order, for each seed."""
        return [[scored.figures[measure] for scored in record.settings] for record in self._records.values()]

    def hypervolumes(self) -> list[float]:
        """Per seed the area between the settings' front of (basic, add-on) and (0, the prior's add-on)."""
        basic, addon = self.by_seed("basic_return"), self.by_seed("addon_return")
        floor = self.prior["addon_return"]
        each = zip(basic, addon, strict=True)
        return [hypervolume([(b, a - floor) for b, a in zip(bs, as_, strict=True)]) for bs, as_ in each]

    def kept(self) -> list[tuple[float, float]]:
        """Weight and share kept, of the seeds that found one."""
        return [record.kept for record in self._records.values() if record.kept is not None]

    def curves(self, setting: Setting) -> list[Curve]:
        """Of a setting's trainings, by seed."""
        every = (curve for record in self._records.values() for curve in record.curves)
        return [curve for curve in every if curve.weights == dict(setting)]

    def machines(self) -> list[str]:
        """On which they were trained."""
        return list(dict.fromkeys(record.machine for record in self._records.values()))

    def commits(self) -> list[str]:
        """Of the code that trained them, shortened."""
        return list(dict.fromkeys(record.commit[:10] for record in self._records.values() if record.commit))


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that the points dominate above the origin; of two figures that are to be high."""
    area, highest = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > highest:
            area, highest = area + x * (y - highest), y
    return area
