"""The table of an adaptive search holds the proposed settings and their outcomes, and proposes the next setting.

It does not need Tune. An optimiser sees a setting as the mean over its seeds: a proposal is one trial per seed, and is
finished when all of them have ended. Every proposal is kept before its trials start, and the next proposal depends
only on the specification and this table. So a table that is rebuilt from the sweep's folder goes on as before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from rpg_platform.results.ranking import Figures, needs_prior, violations
from rpg_platform.results.report import at_rung, choosing_place, figures, is_finished, is_stopped, rungs_passed
from rpg_platform.search.population import population_of
from rpg_platform.spec import quasi_random
from rpg_platform.spec.space import SearchSpace, Setting, dump
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.trials import PRIOR_TRIAL, arms, make_trials, searched, trials_of

if TYPE_CHECKING:
    from rpg_platform.storage.sweep_folder import SweepFolder

Point: TypeAlias = Mapping[str, Setting]
State: TypeAlias = Literal["running", "finished", "stopped", "failed"]

WORST = 1e6  # the excess over a constraint that an unknown figure counts for
_TRIES = 20
_SPARE_POINTS = 1_000  # enough points to find the last choice of a small space: some twenty times its size


@dataclass(frozen=True)
class Outcome:
    """The outcome of a proposal.

    Attributes:
        point: the setting.
        state: `running` until all of its seeds have ended, then `failed` if one failed or a figure is not finite,
            `stopped` if one was ended early.
        values: the objectives, means over seeds: of the final evaluation, or at the last rung if it was stopped.
        violation: how far the setting is beyond the constraint that it breaks worst, as a share of the bound; 0 if it
            breaks none.
        rung: env steps of ``values`` if it was stopped.
    """

    point: Point
    state: State
    values: tuple[float, ...] = ()
    violation: float = 0.0
    rung: int = 0


class Optimiser(Protocol):
    """Chooses the next setting from the outcomes of earlier ones."""

    def __call__(self, spaces: Mapping[str, SearchSpace], past: Sequence[Outcome], seed: int) -> dict[str, Setting]:
        """Returns the next setting, which depends only on the arguments."""


def objectives(spec: SweepSpec) -> tuple[str, ...]:
    """Returns the measures that an adaptive search looks at: those it trades off, or the single maximised one."""
    return spec.search.objectives or (spec.objective.maximize,)


class Proposals:
    """The table of proposals.

    Args:
        spec: the sweep; its search is adaptive.
        optimiser: chooses the settings after the first, quasi-random ones.
        keep: stores the n-th proposal; called before the proposal is handed out.
        kept: the proposals of an earlier attempt, in order.
        taken: groups of trials, such as baselines, whose settings must not be proposed again.
    """

    def __init__(
        self,
        spec: SweepSpec,
        optimiser: Optimiser,
        keep: Callable[[int, Mapping[str, Any]], None],
        kept: Sequence[Mapping[str, Any]] = (),
        taken: Sequence[str] = (),
    ) -> None:
        self._spec, self._optimiser, self._keep = spec, optimiser, keep
        self._spaces = searched(spec, arms(spec)[0])
        self._taken = set(taken)
        self._points: list[Point] = []
        self.trials: list[list[TrialSpec]] = []
        self._ended: dict[str, Mapping[str, Any] | None] = {}
        for each in kept:
            self._add(_read(each["setting"]))

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def to_come(self) -> int:
        """The number of settings that are still to be proposed."""
        return max(0, (self._spec.samples or 0) - len(self))

    def end(self, trial_id: str, report: Mapping[str, Any] | None) -> None:
        """Notes that a trial ended: the prior's row, or a proposed one.

        Args:
            trial_id: the trial.
            report: its last report; None if it failed.
        """
        self._ended[trial_id] = report

    def propose(self) -> list[TrialSpec] | None:
        """Returns the next setting's trials, one for each seed; None after the last one, or if the space is used up."""
        if not self.to_come:
            return None
        past = self.outcomes()
        for attempt in range(_TRIES):
            point = self._first(attempt) or self._optimiser(self._spaces, past, self._seed(attempt))
            if trials := self._new(point):
                return trials
        spare = quasi_random.settings(self._spaces, _TRIES * len(self) + _SPARE_POINTS, self._spec.search_seed)
        return next((trials for point in spare if (trials := self._new(point))), None)

    def _first(self, attempt: int) -> dict[str, Setting] | None:
        """Returns the next quasi-random setting of the start-up, or None when the start-up is over."""
        number = len(self) + attempt
        if len(self) >= self._spec.search.startup:
            return None
        return quasi_random.settings(self._spaces, number + 1, self._spec.search_seed)[number]

    def _seed(self, attempt: int) -> int:
        return (self._spec.search_seed * 1_000_003 + len(self) * _TRIES + attempt) % 2**32

    def _new(self, point: Point) -> list[TrialSpec] | None:
        """Adds a setting, unless the table has it already: two trials of the same name would be one trial."""
        if trials_of(self._spec, point)[0].group in self._taken:
            return None
        written = {"number": len(self), "setting": {name: dump(value) for name, value in point.items()}}
        self._keep(len(self), written)
        return self._add(point)

    def _add(self, point: Point) -> list[TrialSpec]:
        trials = trials_of(self._spec, point)
        self._taken.add(trials[0].group)
        self._points.append(point)
        self.trials.append(trials)
        return trials

    # --- what came of them

    def outcomes(self) -> list[Outcome]:
        """What has come of every proposal, in order."""
        return [self._outcome(point, trials) for point, trials in zip(self._points, self.trials, strict=True)]

    def _outcome(self, point: Point, trials: Sequence[TrialSpec]) -> Outcome:
        if any(trial.trial_id not in self._ended for trial in trials):
            return Outcome(point, "running")
        prior = self._ended.get(PRIOR_TRIAL)
        if PRIOR_TRIAL not in self._ended and needs_prior(self._spec.objective):
            return Outcome(point, "running")
        reports = [report for trial in trials if (report := self._ended[trial.trial_id]) is not None]
        if len(reports) < len(trials):
            return Outcome(point, "failed")
        names = objectives(self._spec)
        if any(map(is_stopped, reports)):
            return _stopped(point, names, reports)
        figures = self._figures(reports)
        values = tuple(figures[name] for name in names)
        if not all(map(math.isfinite, values)):
            return Outcome(point, "failed")
        of_prior = None if prior is None else self._figures([prior])
        broken = violations(self._spec.objective.constraints, figures, of_prior)
        return Outcome(point, "finished", values, min(max((v.excess for v in broken), default=0.0), WORST))

    def _figures(self, reports: Sequence[Mapping[str, Any]]) -> Figures:
        """Returns the figures by which settings are chosen, of the final policies, as means over seeds."""
        mode = self._spec.objective.mode
        return _means([figures(report, choosing_place([report]), mode) for report in reports])


def _stopped(point: Point, names: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> Outcome:
    """Returns the outcome of a setting that was ended early, at the last rung that all of its seeds have passed."""
    rung = max(set.intersection(*map(rungs_passed, reports)), default=0)
    there = [at_rung(report, rung) for report in reports]
    values = tuple(statistics.fmean(each.get(name, math.nan) for each in there) for name in names)
    if not all(map(math.isfinite, values)):
        return Outcome(point, "failed")
    return Outcome(point, "stopped", values, rung=rung)


def _means(each: Sequence[Figures]) -> Figures:
    return {name: statistics.fmean(one[name] for one in each) for name in each[0]}


def _read(setting: Mapping[str, Any]) -> dict[str, Setting]:
    """Reads a setting from JSON, in which a list is a schedule."""
    return {
        name: tuple((int(step), float(level)) for step, level in value) if isinstance(value, list) else value
        for name, value in setting.items()
    }


def known_trials(spec: SweepSpec, folder: SweepFolder) -> list[TrialSpec]:
    """Returns the trials that are known: all of the sweep's, or for an adaptive search those proposed so far."""
    if spec.scheduler is not None and spec.scheduler.pbt is not None:
        planned = [trial for trial, _ in make_trials(spec)]
        return list(map(population_of(spec, planned, folder).current, planned))
    kept = folder.proposals() if spec.search.is_adaptive else ()
    proposed = (trial for each in kept for trial in trials_of(spec, _read(each["setting"])))
    return [*(trial for trial, _ in make_trials(spec)), *proposed]


def usable(report: Mapping[str, Any] | None, error: str | None) -> Mapping[str, Any] | None:
    """A trial's last report if it can be told to the table; None if the trial failed."""
    return report if is_finished(report, error) or is_stopped(report) else None
