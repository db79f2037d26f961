"""Figures over seeds: of one method at one setting, and of two methods beside each other, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.reproduction.plan import ENTROPY_BONUS, SCRATCH, Scope, Step, Weights
from benchmarks.reproduction.records import Store, Trained

from rpg_algorithms.addons import Array
from rpg_platform.results.difference import mean_interval, ratio_interval
from rpg_platform.results.names import SYMBOLS, weight_words
from rpg_platform.results.report import Mode
from rpg_platform.results.statistics import Interval

NAMES = {
    "spg": "Soft PPO",
    "ppo": "PPO",
    ENTROPY_BONUS: "PPO with entropy bonus",
    "repeat-entropy": "repeat-entropy PPO",
    "prior": "prior",
    "greedy": "Greedy",
    "kl": "KL PPO",
    "rpg": "RPG",
    "full": "Full, from the prior's weights",
    SCRATCH: "Full, from scratch",
}
"""Method → what tables call it, in their order."""
TOTAL, BASIC = "total_return", "basic_return"
NOT_YET = "not run yet"


@dataclass(frozen=True)
class Group:
    """One method at one setting.

    Attributes:
        method: a key of ``NAMES``.
        weights: its weights.
        trials: those that have begun.
        seeds: how many there will be.
    """

    method: str
    weights: Weights
    trials: Sequence[Trained]
    seeds: int

    def scores(self, measure: str, mode: Mode = "deterministic") -> dict[int, float]:
        """Seed → a measure of the final evaluation, of the trials that are finished."""
        return {trial.seed: trial.figure(measure, mode) for trial in self.trials if trial.is_finished}

    def mean(self, measure: str, mode: Mode = "deterministic") -> Measured:
        """A measure's mean over seeds."""
        scores = list(self.scores(measure, mode).values())
        return Measured(_mean(scores), mean_interval(scores), len(scores), self.seeds)

    @property
    def counted(self) -> str:
        """How many seeds its figures are of, and what became of the others."""
        done = sum(trial.is_finished for trial in self.trials)
        failed = sum(trial.error is not None for trial in self.trials)
        if not self.trials:
            return NOT_YET
        return f"{done}" if done == self.seeds else f"{done} of {self.seeds}" + (f", {failed} failed" if failed else "")

    @property
    def setting(self) -> str:
        """Its weights to read."""
        return setting(self.weights)


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval over seeds.

    Attributes:
        value: NaN where nothing is known.
        interval: None where there are too few seeds, or, of a ratio, where its denominator is not clear of zero.
        n, seeds: of how many seeds it is, of how many there will be.
    """

    value: float
    interval: Interval | None
    n: int
    seeds: int

    @property
    def is_final(self) -> bool:
        """Whether all seeds are in it."""
        return self.n == self.seeds

    def is_above(self, bound: float) -> bool | None:
        """Whether the whole interval lies above a bound; None where it is not known."""
        return None if self.interval is None else self.interval[0] > bound

    def text(self, digits: int | None = None) -> str:
        """The figure to read: ``5,488 [5,400, 5,576]``; a sign that it is of some of the seeds."""
        if not math.isfinite(self.value):
            return "–"
        ends = " [unbounded]" if self.n > 1 else ""
        if self.interval is not None:
            ends = " [" + ", ".join(number(end, digits) for end in self.interval) + "]"
        return number(self.value, digits) + ends + ("" if self.is_final else f" ({self.n} of {self.seeds} seeds)")


def number(value: float, digits: int | None = None) -> str:
    """A figure to read; ``digits`` None: whole from 1,000 on, one digit from 10 on, two below."""
    if digits is None:
        digits = 0 if abs(value) >= 1_000 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def setting(weights: Weights) -> str:
    """Weights to read: ``ω′ 0.2 · α̂ 0.02``."""
    return " · ".join(f"{SYMBOLS.get(name, name)} {weight_words(value)}" for name, value in weights.items()) or "–"


def reported(store: Store, trial: Trained, measure: str) -> tuple[Array, Array] | None:
    """A training's returns: ``[T]`` env steps of the reports that have them, and the returns; None where none has."""
    training = store.training(trial)
    if training is None or not (known := np.isfinite(training.values[measure])).any():
        return None
    return training.steps[known], training.values[measure][known]


def while_training(store: Store, group: Group, share: float, measure: str = TOTAL) -> Measured:
    """A method's returns while it trains, after a share of its env steps: between two reports on a line."""
    returns = (
        float(np.interp(share * trial.env_steps, *known, left=math.nan))
        for trial in group.trials
        if trial.is_finished and (known := reported(store, trial, measure)) is not None
    )
    found = [value for value in returns if math.isfinite(value)]
    return Measured(_mean(found), mean_interval(found), len(found), group.seeds)


def difference(a: Group, b: Group, measure: str = TOTAL, mode: Mode = "deterministic") -> Measured:
    """The difference of two methods' means, paired by seed."""
    x, y = _pairs(a, b, measure, mode)
    differences = [one - other for one, other in zip(x, y, strict=True)]
    return Measured(_mean(differences), mean_interval(differences), len(x), a.seeds)


def ratio(a: Group, b: Group, measure: str = TOTAL, mode: Mode = "deterministic") -> Measured:
    """The ratio of two methods' means, paired by seed; Fieller's interval."""
    x, y = _pairs(a, b, measure, mode)
    value = _mean(x) / _mean(y) if x and _mean(y) else math.nan
    return Measured(value, ratio_interval(x, y) if x else None, len(x), a.seeds)


def _pairs(a: Group, b: Group, measure: str, mode: Mode) -> tuple[list[float], list[float]]:
    x, y = a.scores(measure, mode), b.scores(measure, mode)
    both = sorted(x.keys() & y.keys())
    return [x[seed] for seed in both], [y[seed] for seed in both]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


# ---- the two experiments -------------------------------------------------------------------------
def entropy_groups(store: Store, scope: Scope, environment: str) -> list[Group]:
    """The first experiment on one environment: every planned setting, as far as MLflow has it."""
    steps = scope.of("entropy", environment)
    trials = [trial for step in steps for trial in store.trials(step)]
    planned = {}
    for step in steps:  # one a seed, of the same settings
        for trial in scope.trials(step):
            weights = {name: value for name, value in trial.weights.items() if isinstance(value, int | float)}
            planned[trial.group] = (step.method_of(trial.method, weights), weights)
    found = []
    for method, weights in sorted(planned.values(), key=lambda e: (list(NAMES).index(e[0]), list(e[1].values()))):
        own = [trial for trial in trials if trial.method == method and trial.weights == weights]
        found.append(Group(method, weights, own, len(scope.seeds)))
    return found


def final_groups(store: Store, scope: Scope, environment: str) -> dict[str, Group]:
    """The second experiment on one environment: method → its final trials, as far as MLflow has them.

    Raises:
        ValueError: the seeds of a method were trained at different settings.
    """
    trials = [trial for step in scope.of("final", environment) for trial in store.trials(step)]
    planned = {name for step in scope.of("final", environment) for name in _methods(scope, step)}
    found = {}
    for name in NAMES:
        own = [trial for trial in trials if trial.method == name]
        settings = {tuple(sorted(trial.weights.items())) for trial in own}
        if len(settings) > 1:
            raise ValueError(
                f"{store.uri}: {environment}: {name} was trained at {len(settings)} settings, expected one"
            )
        if name in planned:
            found[name] = Group(name, own[0].weights if own else {}, own, len(scope.seeds))
    return found


def _methods(scope: Scope, step: Step) -> set[str]:
    return {step.method_of(trial.method) for trial in scope.trials(step)}


def at(groups: Sequence[Group], method: str, value: float) -> Group | None:
    """The group of a method at a temperature."""
    return next((each for each in groups if each.method == method and value in each.weights.values()), None)
