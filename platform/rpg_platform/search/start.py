"""Sets up the search of one attempt: the trials that Tune runs, and the scheduler that ends some of them early."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune import Callback

from rpg_platform.results.report import is_over
from rpg_platform.search.judge import Judge, Verdict
from rpg_platform.search.listed import ListedTrials
from rpg_platform.search.population import Population, population_of
from rpg_platform.search.population_scheduler import PopulationTraining
from rpg_platform.search.proposals import Optimiser, Proposals, objectives
from rpg_platform.search.scheduler import EarlyStopping, EarlyStoppingNotes
from rpg_platform.search.searcher import SettingSearcher
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.trial_state import TrialState

Report = Mapping[str, Any]


def table_of(
    sweep: Sweep, kept: Sequence[Mapping[str, Any]] = (), keep: Callable[[int, Report], None] | None = None
) -> Proposals | None:
    """Returns the table of an adaptive search; None if all trials are known before the start.

    Args:
        sweep: the sweep.
        kept: the proposals that were made before.
        keep: stores the n-th proposal.
    """
    spec = sweep.spec
    if not spec.search.is_adaptive:
        return None
    optimiser: Optimiser = pkgutil.resolve_name(str(spec.search.row.optimiser))(objectives(spec), spec.search.startup)
    taken = [trial.group for trial in sweep.trials]
    return Proposals(spec, optimiser, keep or (lambda number, proposal: None), kept, taken)


def first_trials(sweep: Sweep) -> list[TrialSpec]:
    """Returns the trials of the first proposed setting; all later ones differ from them only in numbers."""
    table = table_of(sweep)
    return [] if table is None else table.propose() or []


class SearchRun:
    """The search of one attempt, rebuilt from the sweep's folder.

    Args:
        sweep: the sweep; the specification alone determines its trials.
        states: the trials that an earlier attempt has begun.
    """

    def __init__(self, sweep: Sweep, states: Mapping[str, TrialState]) -> None:
        spec, folder = sweep.spec, sweep.folder
        self._spec, self._fixed = spec, list(sweep.trials)
        kept = folder.proposals() if spec.search.is_adaptive else ()
        self._table = table_of(sweep, kept, folder.keep_proposal)
        self._judge: Judge | None = None
        self._population: Population | None = None
        self._folder = folder
        if spec.scheduler is not None and spec.scheduler.pbt is not None:
            self._population = population_of(spec, self._fixed, folder)
        elif spec.scheduler is not None:
            verdicts = map(Verdict.from_json, folder.verdicts())
            self._judge = Judge(spec.scheduler, spec.objective, spec.seeds, self._keep, verdicts)
        for trial in self.trials:
            state = states.get(trial.trial_id)
            if state is None:
                continue
            if self._judge is not None:
                self._judge.report(trial, state.report)
            if self._population is not None:
                self._population.report(trial.trial_id, state.report)
                if state.finishes(trial):
                    self._population.leave(trial.trial_id)
            if self._table is not None and state.finishes(trial):
                self._table.end(trial.trial_id, state.report if is_over(state.report) else None)

    def _keep(self, verdict: Verdict) -> None:
        self._folder.keep_verdict(verdict.to_json())

    @property
    def trials(self) -> list[TrialSpec]:
        """The trials that are known so far."""
        proposed = [] if self._table is None else [trial for trials in self._table.trials for trial in trials]
        fixed = self._fixed if self._population is None else list(map(self._population.current, self._fixed))
        return [*fixed, *proposed]

    @property
    def to_come(self) -> int:
        """The number of trials that are not known yet."""
        return 0 if self._table is None else self._table.to_come * len(self._spec.seeds)

    @property
    def callbacks(self) -> list[Callback]:
        """The callbacks of the search, which must come before those that record reports."""
        return [] if self._judge is None else [EarlyStoppingNotes(self._judge)]

    def for_tuner(self, todo: Sequence[TrialSpec]) -> dict[str, Any]:
        """Returns the arguments of ``TuneConfig``.

        Args:
            todo: known trials that are not finished.
        """
        limit = self._spec.resources.max_concurrent
        config: dict[str, Any] = {} if self._judge is None else {"scheduler": EarlyStopping(self._judge)}
        if self._population is not None:
            config = {"scheduler": PopulationTraining(self._population, self._folder.keep_start)}
        if self._table is None:
            return {**config, "search_alg": ListedTrials([trial.as_config() for trial in todo], limit)}
        searcher = SettingSearcher(self._table, todo, limit)
        return {**config, "search_alg": searcher, "num_samples": len(todo) + self.to_come}
