"""Runs a population in Tune, by a scheduler that lets trials wait at a rung and go on as the population decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from rpg_platform.results.report import env_steps
from rpg_platform.search.population import Population
from rpg_platform.spec.sweep import trial_id_of


class PopulationTraining(FIFOScheduler):
    """Pauses every trial of the population at a rung; when all have been saved, they go on.

    A trial that takes over another's policy is given a new specification, with the weights as a schedule and with a
    copy of the other's checkpoint to start from (``TrialSpec.starts_from``).

    Args:
        population: decides which trial takes over which policy.
        copy: makes a lasting copy of a checkpoint; takes the rung, the trial id and Tune's checkpoint of that trial.
    """

    def __init__(self, population: Population, copy: Callable[[int, str, Any], None]) -> None:
        super().__init__()
        self._population: Population | None = population
        self._copy: Callable[[int, str, Any], None] | None = copy

    def __getstate__(self) -> dict[str, Any]:
        """Leaves everything out: Tune pickles the scheduler, but a sweep is rebuilt from its folder."""
        return {"_population": None, "_copy": None}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Says whether a trial goes on after its report or waits for the others.

        One that has used up its budget leaves the population: all that is left of it is its evaluation.
        """
        assert self._population is not None
        name = trial_id_of(trial.config)
        if env_steps(result) >= trial.config["trial"]["env_steps"]:
            self._population.leave(name)
        else:
            self._population.report(name, result)
        waits: str = self.PAUSE if self._population.waits(name) else self.CONTINUE
        return waits

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """Takes a trial that ended out of the population."""
        assert self._population is not None
        self._population.leave(trial_id_of(trial.config))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Takes a trial that failed for good out of the population."""
        assert self._population is not None
        self._population.leave(trial_id_of(trial.config))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Returns the next trial to start or to continue."""
        assert self._population is not None
        trials = list(tune_controller.get_trials())
        self._exchange({trial_id_of(trial.config): trial for trial in trials})
        for status in (Trial.PENDING, Trial.PAUSED):
            for trial in trials:
                if trial.status == status and not self._population.waits(trial_id_of(trial.config)):
                    return trial
        return None

    def _exchange(self, trials: Mapping[str, Trial]) -> None:
        """Decides the next rung once all trials that it needs have reached it and are saved."""
        population = self._population
        assert population is not None
        assert self._copy is not None
        if not population.is_due() or any(trials[name].status != Trial.PAUSED for name in population.waited_for):
            return
        generation = population.decide()
        for name in population.donors(generation):
            self._copy(generation.rung, name, trials[name].checkpoint)
        population.adopt(generation)
        for name, trial in trials.items():
            if name in generation.until:
                spec = population.current(population.planned(name))
                trial.set_config({**trial.config, **spec.as_config()})
