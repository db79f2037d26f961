"""Population-based training over the weights. It decides for settings, not for single seeds, and does not need Tune.

Jaderberg et al. 2017, "Population Based Training of Neural Networks" (arXiv 1711.09846), in its synchronous form: at
each rung all settings wait for each other. A setting in the lowest quantile *exploits*: it takes policy, critic,
optimizer and weights of a setting in the highest quantile, seed by seed. Then it *explores*: it perturbs the weights.
The sweep's folder keeps the decision of a rung before it takes effect, so a resumed sweep holds to it. A setting's
weights over time are a schedule over env steps: the schedule under which its present policy was trained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from rpg_platform.results.ranking import Figures
from rpg_platform.results.report import as_json, at_rung, env_steps
from rpg_platform.search.judge import means_of, rung_key
from rpg_platform.spec.search import Pbt
from rpg_platform.spec.space import SearchSpace, WeightValue
from rpg_platform.spec.sweep import StartFrom, SweepSpec, TrialSpec
from rpg_platform.spec.trials import searched_weights

if TYPE_CHECKING:
    from rpg_platform.storage.sweep_folder import SweepFolder

Weights: TypeAlias = Mapping[str, float]
History: TypeAlias = tuple[tuple[int, Mapping[str, float]], ...]
"""Pairs of an env step and the weights that hold from that step on; the first step is 0."""


@dataclass(frozen=True)
class Generation:
    """The decision about a population at one rung.

    Attributes:
        rung: env steps.
        figures: setting (its trials' id without the seed) → its validation figures, means over seeds; NaN is None.
        sources: setting → the setting with whose policy it goes on: mostly itself.
        weights: setting → the searched weights that it goes on with.
        until: trial id → env steps at which it waited.
        prior: the prior's figures, where constraints are relative to them.
    """

    rung: int
    figures: Mapping[str, Mapping[str, float | None]]
    sources: Mapping[str, str]
    weights: Mapping[str, Weights]
    until: Mapping[str, int]
    prior: Mapping[str, float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(**data)


def explore(pbt: Pbt, spaces: Mapping[str, SearchSpace], weights: Weights, rng: random.Random) -> dict[str, float]:
    """Returns weights near those of a better setting: draws each anew, or moves it one step either way in its space.

    Args:
        pbt: says how far a weight moves and how often it is drawn anew.
        spaces: the spaces of the searched weights; spaces of numbers.
        weights: the better setting's weights.
        rng: makes all choices.
    """
    found: dict[str, float] = {}
    for name, space in spaces.items():
        up, again = rng.random() < 0.5, rng.random() < pbt.resample_probability
        if again:
            found[name] = cast(float, space.draw(rng) if space.is_random else rng.choice(space.values))
        else:
            moved = [_moved(space, weights[name], upwards, pbt.perturbation) for upwards in (up, not up)]
            found[name] = moved[0] if moved[0] != weights[name] else moved[1]  # at a bound there is one way to go
    return found


def _moved(space: SearchSpace, value: float, up: bool, factor: float) -> float:
    """Moves a weight up or down within its space: by a factor, or to the next value of a list."""
    if space.size is None:
        low, high = (float(cast(float, bound)) for bound in space.values)
        return min(max(value * factor if up else value / factor, low), high)
    values = sorted(float(cast(float, each)) for each in space.values)
    place = min(range(len(values)), key=lambda i: abs(values[i] - value))
    return values[min(max(place + (1 if up else -1), 0), len(values) - 1)]


class Population:
    """The settings of a sweep that are trained as a population.

    Args:
        spec: the sweep; its scheduler is ``pbt``.
        trials: all trials as planned; the trials with rungs are the population.
        spaces: the spaces of the searched weights.
        keep: stores a new generation; the population calls it before the generation counts.
        start: rung and trial id → address of the copy of that trial's checkpoint at the rung.
        generations: the generations that an earlier attempt has decided.
    """

    def __init__(
        self,
        spec: SweepSpec,
        trials: Iterable[TrialSpec],
        spaces: Mapping[str, SearchSpace],
        keep: Callable[[Generation], None],
        start: Callable[[int, str], str],
        generations: Iterable[Generation] = (),
    ) -> None:
        assert spec.scheduler is not None
        assert spec.scheduler.pbt is not None
        self._pbt, self._objective, self._seed = spec.scheduler.pbt, spec.objective, spec.search_seed
        self._spaces, self._keep, self._start = spaces, keep, start
        self._trials = {trial.trial_id: trial for trial in trials if trial.rungs}
        self._rungs = next((trial.rungs for trial in self._trials.values()), ())
        self._members: dict[str, list[TrialSpec]] = {}
        for trial in self._trials.values():
            self._members.setdefault(trial.group, []).append(trial)
        self._history: dict[str, History] = {
            group: ((0, {name: cast(float, members[0].weights[name]) for name in spaces}),)
            for group, members in self._members.items()
        }
        self._begins: dict[str, StartFrom] = {}
        self._reported: dict[int, dict[str, Figures]] = {rung: {} for rung in self._rungs}
        self._env_steps: dict[str, int] = {}
        self._lost: set[str] = set()
        self._prior: dict[str, float | None] | None = None
        self._decided = 0
        for generation in sorted(generations, key=lambda each: each.rung):
            self._take(generation)

    # --- what is told

    def report(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """Takes a trial's figures at the rungs that it has passed; ignores a trial that is not in the population."""
        if trial_id not in self._trials:
            return
        self._env_steps[trial_id] = int(env_steps(report))
        if prior := at_rung(report, "prior"):
            self._prior = as_json(prior)
        for rung in self._rungs[self._decided :]:
            if figures := at_rung(report, rung):
                self._reported[rung].setdefault(trial_id, figures)

    def leave(self, trial_id: str) -> None:
        """Notes that a trial ended: its setting takes no further part, and its other seeds go on as they are."""
        if trial_id in self._trials:
            self._lost.add(self._trials[trial_id].group)

    # --- what is asked

    @property
    def rung(self) -> int | None:
        """The next rung; None after the last one."""
        return self._rungs[self._decided] if self._decided < len(self._rungs) else None

    def planned(self, trial_id: str) -> TrialSpec:
        """Returns a trial of the population as it was planned."""
        return self._trials[trial_id]

    @property
    def waited_for(self) -> list[str]:
        """The trials that the next rung needs."""
        return [name for name, trial in self._trials.items() if trial.group not in self._lost]

    def waits(self, trial_id: str) -> bool:
        """Says whether a trial has reached the next rung, where it waits for the others."""
        rung = self.rung
        return rung is not None and trial_id in self._reported[rung] and trial_id in self.waited_for

    def is_due(self) -> bool:
        """Says whether all trials have reached the next rung."""
        waiting = self.waited_for
        return self.rung is not None and bool(waiting) and all(map(self.waits, waiting))

    def current(self, trial: TrialSpec) -> TrialSpec:
        """Returns a trial as it is now: with its weights as a schedule, and with the checkpoint that it takes over."""
        if trial.trial_id not in self._trials:
            return trial
        schedules = {name: _schedule(self._history[trial.group], name) for name in self._spaces}
        weights = {name: schedules.get(name, value) for name, value in trial.weights.items()}
        return trial.model_copy(update={"weights": weights, "starts_from": self._begins.get(trial.trial_id)})

    # --- a generation

    def decide(self) -> Generation:
        """Decides the next rung without changing anything yet. Call it only if ``is_due``."""
        assert self.rung is not None
        groups = [group for group in self._members if group not in self._lost]
        figures = {group: self._means(group) for group in groups}
        key = {group: rung_key(figures[group], self._prior, self._objective) for group in groups}
        ranked = sorted(groups, key=lambda group: key[group])
        count = min(max(1, math.floor(len(ranked) * self._pbt.quantile)), len(ranked) // 2)
        sources, weights = {group: group for group in groups}, {group: self._weights(group) for group in groups}
        for group in ranked[len(ranked) - count :] if count else ():
            rng = random.Random(f"{self._seed}/{self.rung}/{group}")
            donor = rng.choice(ranked[:count])
            if key[donor] < key[group]:
                sources[group] = donor
                weights[group] = explore(self._pbt, self._spaces, self._weights(donor), rng)
        until = {name: self._env_steps[name] for name in self.waited_for}
        return Generation(self.rung, figures, sources, weights, until, self._prior)

    def adopt(self, generation: Generation) -> None:
        """Keeps a generation and lets it take effect. The checkpoints that it needs must have been copied before."""
        self._keep(generation)
        self._take(generation)

    def donors(self, generation: Generation) -> list[str]:
        """Returns the trials whose checkpoints other trials take over."""
        taken = {source for group, source in generation.sources.items() if source != group}
        return [trial.trial_id for group in sorted(taken) for trial in self._members[group]]

    def _take(self, generation: Generation) -> None:
        histories = dict(self._history)
        for group, source in generation.sources.items():
            if source == group:
                continue
            step = max(generation.until[trial.trial_id] for trial in self._members[source])
            histories[group] = (*self._history[source], (step, generation.weights[group]))
            by_seed = {trial.seed: trial.trial_id for trial in self._members[source]}
            for trial in self._members[group]:
                checkpoint = self._start(generation.rung, by_seed[trial.seed])
                self._begins[trial.trial_id] = StartFrom(
                    checkpoint=checkpoint, until_env_steps=generation.until[trial.trial_id]
                )
        self._history = histories
        self._decided = self._rungs.index(generation.rung) + 1

    def _weights(self, group: str) -> dict[str, float]:
        return dict(self._history[group][-1][1])

    def _means(self, group: str) -> dict[str, float | None]:
        assert self.rung is not None
        return means_of([self._reported[self.rung][trial.trial_id] for trial in self._members[group]])


def _schedule(history: History, name: str) -> WeightValue:
    """Returns one weight over env steps: constant from one change to the next."""
    points: list[tuple[int, float]] = [(0, history[0][1][name])]
    for step, weights in history[1:]:
        if weights[name] != points[-1][1]:
            points += [(step, points[-1][1]), (step + 1, weights[name])]
    return points[0][1] if len(points) == 1 else tuple(points)


def population_of(spec: SweepSpec, trials: Iterable[TrialSpec], folder: SweepFolder) -> Population:
    """Rebuilds the population of a sweep whose scheduler is ``pbt`` from the generations in the sweep's folder."""

    def keep(generation: Generation) -> None:
        folder.keep_generation(generation.rung, generation.to_json())

    generations = map(Generation.from_json, folder.generations())
    return Population(spec, trials, searched_weights(spec), keep, folder.start_of, generations)
