"""What MLflow holds of the reproduction: all that choices are made of and the page is written from.

A sweep that ``kept`` has is taken from there: another machine's MLflow held it.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from benchmarks.reproduction.kept import Kept, KeptSweep, KeptTrial, thinned
from benchmarks.reproduction.plan import Scope, Step, Weights
from mlflow import MlflowClient

from rpg_algorithms.addons import Array
from rpg_platform.evaluation.episode_file import EVALUATION_FILE, EVALUATION_FOLDER, read_episodes
from rpg_platform.results.report import FINAL, FINISHED, Mode, Report, is_finished, mean_key, number
from rpg_platform.review.curves import Training, stored_trainings
from rpg_platform.review.sources import StoreSource
from rpg_platform.spec.logins import with_login
from rpg_platform.spec.methods import PRIOR
from rpg_platform.tracking.store import check_store, embedded_database
from rpg_platform.tracking.stored import StoredSweep, stored_sweep

MACHINE = "machine"
"""Tag of a sweep's run: the machine that ran it."""
VERSION, COMMIT = "version.", "mlflow.source.git.commit"
"""Tags of it: what the versions' begin with, and the code's commit."""
_HOURS = "time_total_s"
_KEYS = (FINISHED, _HOURS)
_MOST_SWEEPS = 1_000


@dataclass(frozen=True)
class Trained:
    """One trial that has begun, as MLflow has it.

    Attributes:
        step: its sweep.
        trial_id: its id.
        method: as tables have it, see ``Step.method_of``.
        weights: its weights.
        seed: its training seed; of the prior the one that the prior was trained with.
        env_steps: its budget.
        report: its last report.
        error: why it failed.
    """

    step: Step
    trial_id: str
    method: str
    weights: Weights
    seed: int
    env_steps: int
    report: Report
    error: str | None

    def figure(self, measure: str, mode: Mode = "deterministic") -> float:
        """A measure of the final evaluation; NaN where there is none."""
        return number(self.report, mean_key(FINAL, mode, measure))

    @property
    def hours(self) -> float:
        """How long it took, evaluations too; 0 where that is not known."""
        return float(self.report.get(_HOURS, 0.0)) / 3600

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and evaluated."""
        return is_finished(self.report, self.error)


class Store:
    """What an MLflow store holds, each thing read once: a later look takes a new one. A missing store holds nothing.

    Args:
        uri: its address.
        kept: the sweeps that another machine finished; they come first.
    """

    def __init__(self, uri: str, kept: Kept | None = None) -> None:
        self.uri = uri
        self.kept = kept or Kept(None)
        self._sweeps: dict[str, StoredSweep | None] = {}
        self._trials: dict[str, list[Trained]] = {}
        self._trainings: dict[str, Mapping[str, Training]] = {}

    @cached_property
    def _names(self) -> Counter[str]:
        """How many sweeps there are of each name."""
        database = embedded_database(self.uri)
        if database is not None and not database.is_file():
            return Counter()
        check_store(self.uri)
        client = MlflowClient(with_login(self.uri))
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.kind = 'sweep'", max_results=_MOST_SWEEPS)
        return Counter(run.data.tags["sweep"] for run in runs)

    def sweep(self, step: Step) -> StoredSweep | None:
        """The runs of a sweep; None where it was never started.

        Raises:
            ValueError: there are several of that name.
        """
        count = self._names[step.name]
        if count > 1:
            raise ValueError(f"{self.uri}: {count} sweeps are named {step.name}, expected one; delete the others' runs")
        if step.name not in self._sweeps:
            self._sweeps[step.name] = stored_sweep(with_login(self.uri), step.name) if count else None
        return self._sweeps[step.name]

    def has_ended(self, step: Step) -> bool:
        """Whether every trial of a sweep has come to its end, one way or the other."""
        if self.kept.sweep(step) is not None:
            return True
        found = self.sweep(step)
        return found is not None and found.parent.info.status in ("FINISHED", "FAILED")

    def trials(self, step: Step) -> list[Trained]:
        """The trials of a sweep that have begun."""
        if step.name not in self._trials:
            if (kept := self.kept.sweep(step)) is not None:
                self._trials[step.name] = [_of_kept(step, name, each) for name, each in kept.trials.items()]
            else:
                found = self.sweep(step)
                self._trials[step.name] = [] if found is None else _trained(step, found)
        return self._trials[step.name]

    def is_complete(self, scope: Scope, step: Step) -> bool:
        """Whether every trial of a sweep is finished, and all that MLflow should have of it is there."""
        if self.kept.sweep(step) is not None:
            return True
        found = self.sweep(step)
        finished = sum(trial.is_finished for trial in self.trials(step))
        return found is not None and found.parent.info.status == "FINISHED" and finished == len(scope.trials(step))

    def note_machine(self, step: Step, machine: str) -> None:
        """Leaves on a sweep's run which machine ran it."""
        if (found := self.sweep(step)) is not None:
            found.client.set_tag(found.parent.info.run_id, MACHINE, machine)

    def training(self, trial: Trained) -> Training | None:
        """How a trial's training went; None where it reported nothing."""
        if (kept := self.kept.sweep(trial.step)) is not None:
            return kept.trials[trial.trial_id].training
        name = trial.step.name
        if name not in self._trainings:
            found = self.sweep(trial.step)
            self._trainings[name] = {} if found is None else stored_trainings(found)
        return self._trainings[name].get(trial.trial_id)

    def totals(self, trial: Trained) -> Array:
        """``[N]`` total return of each final episode of the deterministic policy; empty where MLflow lacks them."""
        if (kept := self.kept.sweep(trial.step)) is not None:
            return np.array(kept.trials[trial.trial_id].totals)
        found = self.sweep(trial.step)
        content = None if found is None else found.artifact(f"{EVALUATION_FOLDER}/{EVALUATION_FILE}", trial.trial_id)
        if content is None:
            return np.zeros(0)
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)
            return read_episodes(file.name)["final"].results["deterministic"].total_return

    def tags(self, step: Step) -> Mapping[str, str]:
        """The tags of a sweep's run; none where it was never started."""
        if (kept := self.kept.sweep(step)) is not None:
            return kept.tags
        found = self.sweep(step)
        return {} if found is None else found.parent.data.tags

    def to_keep(self, step: Step) -> KeptSweep:
        """A finished sweep as ``kept`` takes it."""
        trials = {trial.trial_id: self._to_keep(trial) for trial in self.trials(step)}
        tags = {k: v for k, v in self.tags(step).items() if k in (MACHINE, COMMIT) or k.startswith(VERSION)}
        return KeptSweep(tags=tags, trials=trials)

    def _to_keep(self, trial: Trained) -> KeptTrial:
        training = self.training(trial)
        steps, values = thinned(training)
        figures = {
            key: value
            for key, value in trial.report.items()
            if key in _KEYS or (key.startswith(f"{FINAL}/") and isinstance(value, float))
        }
        return KeptTrial(
            method=trial.method,
            weights=dict(trial.weights),
            seed=trial.seed,
            env_steps=trial.env_steps,
            error=trial.error,
            report=figures,
            steps=steps,
            values=values,
            health={} if training is None else dict(training.health),
            totals=self.totals(trial).tolist(),
        )


def _of_kept(step: Step, trial_id: str, kept: KeptTrial) -> Trained:
    report = {key: value for key, value in kept.report.items() if value is not None}
    return Trained(step, trial_id, kept.method, kept.weights, kept.seed, kept.env_steps, report, kept.error)


def _trained(step: Step, stored: StoredSweep) -> list[Trained]:
    source = StoreSource(stored)
    found = []
    for trial, report, error in source.results(source.spec()):
        if trial.trial_id in stored.trials:
            weights = {name: value for name, value in trial.weights.items() if isinstance(value, int | float)}
            seed = step.prior_seed if trial.method == PRIOR and step.prior_seed is not None else trial.seed
            method = step.method_of(trial.method, weights)
            found.append(Trained(step, trial.trial_id, method, weights, seed, trial.env_steps, report or {}, error))
    return found


@dataclass(frozen=True)
class Choice:
    """The best setting of a method, by its mean total return over the tuning seeds.

    Attributes:
        weights: the chosen ones.
        total: that mean, of the deterministic policy.
        settings: how many there were to choose from.
        unfinished: of them without a figure of every tuning seed, which are not chosen.
    """

    weights: Weights
    total: float
    settings: int
    unfinished: int


def choose(trials: Sequence[Trained], seeds: Sequence[int]) -> dict[str, Choice]:
    """Method → its best setting, of each method of the tuning sweeps that has one; a tie goes to the smaller weights.

    Args:
        trials: of the tuning sweeps.
        seeds: the tuning seeds; a setting without a finished trial of each is not chosen.
    """
    totals: dict[str, dict[tuple[tuple[str, float], ...], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for trial in trials:
        if trial.method != PRIOR:
            of_setting = totals[trial.method][tuple(trial.weights.items())]
            if trial.is_finished:
                of_setting[trial.seed] = trial.figure("total_return")
    chosen = {}
    for method, settings in totals.items():
        means = {s: float(np.mean(list(of.values()))) for s, of in settings.items() if set(of) == set(seeds)}
        if means:
            best = min(means, key=lambda setting: (-means[setting], setting))
            chosen[method] = Choice(dict(best), means[best], len(settings), len(settings) - len(means))
    return chosen


def chosen_in(store: Store, scope: Scope, environment: str) -> dict[str, Choice] | None:
    """What the tuning sweeps of an environment chose; None while one of them has not ended."""
    steps = scope.of("tuning", environment)
    if not steps or not all(store.has_ended(step) for step in steps):
        return None
    seeds = sorted({seed for step in steps for seed in step.seeds})
    return choose([trial for step in steps for trial in store.trials(step)], seeds)
