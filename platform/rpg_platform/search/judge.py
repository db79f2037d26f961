"""The judge ends settings early: it passes verdicts at rungs, on the mean over a setting's seeds.

It does not need Tune. A setting's seeds report the validation figures of every rung that they have passed, in each
report and so in each checkpoint. Once all seeds of a setting have reported a rung, the setting is judged there, once; a
seed that is ahead trains on until then. The sweep's folder keeps the verdict before it takes effect, so a resumed sweep
holds to it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rpg_platform.results.ranking import Figures, order_key, violations
from rpg_platform.results.report import Report, as_json, at_rung, env_steps, figures_from_json
from rpg_platform.search.rules import RULES, Key
from rpg_platform.spec.search import Scheduler
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import TrialSpec


@dataclass(frozen=True)
class Verdict:
    """The decision about one setting at one rung.

    Attributes:
        group: the setting: its trials' id without the seed.
        rung: env steps.
        by: name of the scheduler.
        goes_on: whether it is trained further.
        figures: its validation figures there, means over its seeds; NaN is None.
        prior: the prior's figures, where constraints are relative to them.
    """

    group: str
    rung: int
    by: str
    goes_on: bool
    figures: Mapping[str, float | None]
    prior: Mapping[str, float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        return cls(**data)

    def key(self, objective: Objective) -> Key:
        """Returns the key by which settings are compared, as in a table: smaller is better."""
        return rung_key(self.figures, self.prior, objective)


class Judge:
    """Passes the verdicts of a sweep.

    Args:
        scheduler: from the specification.
        objective: which figure is maximised, and the constraints.
        seeds: the seeds of every setting.
        keep: stores a new verdict, given as data; the judge calls it before the verdict counts.
        verdicts: the verdicts that an earlier attempt has passed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        objective: Objective,
        seeds: Iterable[int],
        keep: Callable[[Verdict], None],
        verdicts: Iterable[Verdict] = (),
    ) -> None:
        self._scheduler, self._objective, self._keep = scheduler, objective, keep
        self._seeds = frozenset(seeds)
        self._verdicts: dict[tuple[str, int], Verdict] = {(each.group, each.rung): each for each in verdicts}
        self._reported: dict[tuple[str, int], dict[int, Figures]] = {}
        self._prior: dict[str, float | None] | None = None
        self._lost: dict[str, set[int]] = {}
        self._trials: dict[str, TrialSpec] = {}

    @property
    def name(self) -> str:
        """`asha` or `median`."""
        return self._scheduler.name

    def trial(self, config: Mapping[str, Any]) -> TrialSpec:
        """Reads a trial's specification from the data that Tune hands over with every report; reads each trial once."""
        trial_id = str(config["trial_id"])
        if trial_id not in self._trials:
            self._trials[trial_id] = TrialSpec.model_validate(config)
        return self._trials[trial_id]

    def stopping(self, group: str) -> Verdict | None:
        """Returns the verdict that ends a setting, if there is one."""
        return next((each for each in self._verdicts.values() if each.group == group and not each.goes_on), None)

    def stops(self, trial: TrialSpec, report: Report) -> bool:
        """Says whether a trial ends with this report: its setting was ended, and it has reached that rung itself.

        One that has used up its budget does not: all that is left of it is its evaluation.
        """
        verdict = self.stopping(trial.group) if trial.rungs else None
        return verdict is not None and verdict.rung <= env_steps(report) < trial.env_steps

    def report(self, trial: TrialSpec, report: Report) -> None:
        """Takes a trial's figures at the rungs that it has passed, and passes the verdicts that are due.

        Args:
            trial: the trial that reported.
            report: flat, ``rung/<env steps>/<figure>`` among its keys.
        """
        if not trial.rungs:
            return
        prior = at_rung(report, "prior")
        if prior:
            self._prior = as_json(prior)
        for rung in trial.rungs:
            figures = at_rung(report, rung)
            if figures:
                self._reported.setdefault((trial.group, rung), {}).setdefault(trial.seed, figures)
        self._judge(trial.group, trial.rungs)

    def lose(self, trial: TrialSpec) -> None:
        """Notes that a trial failed for good; its setting is judged by the other seeds."""
        if trial.rungs:
            self._lost.setdefault(trial.group, set()).add(trial.seed)
            self._judge(trial.group, trial.rungs)

    def _judge(self, group: str, rungs: Sequence[int]) -> None:
        waited_for = self._seeds - self._lost.get(group, set())
        for rung in rungs:
            known = self._verdicts.get((group, rung))
            if known is None:
                reported = self._reported.get((group, rung), {})
                if not reported or not waited_for <= reported.keys():
                    return
                known = self._pass(group, rung, list(reported.values()))
            if not known.goes_on:
                return

    def _pass(self, group: str, rung: int, reported: Sequence[Figures]) -> Verdict:
        means = means_of(reported)
        arrives = Verdict(group, rung, self.name, True, means, self._prior)
        key = arrives.key(self._objective)
        others = [each.key(self._objective) for each in self._verdicts.values() if each.rung == rung]
        goes_on = RULES[self.name](self._scheduler.section, key, others)
        verdict = Verdict(group, rung, self.name, goes_on, means, self._prior)
        self._keep(verdict)
        self._verdicts[group, rung] = verdict
        return verdict


def rung_key(
    figures: Mapping[str, float | None], prior: Mapping[str, float | None] | None, objective: Objective
) -> Key:
    """Returns the key by which settings are compared at a rung: smaller is better.

    Args:
        figures: validation figures, means over seeds.
        prior: the prior's figures, where constraints are relative to them.
        objective: which figure is maximised, and the constraints.
    """
    numbers = figures_from_json(figures)
    broken = violations(objective.constraints, numbers, None if prior is None else figures_from_json(prior))
    return order_key(numbers.get(objective.maximize, math.nan), broken)


def means_of(reported: Sequence[Figures]) -> dict[str, float | None]:
    """Returns each figure's mean over seeds."""
    return {name: as_json(statistics.fmean(each[name] for each in reported)) for name in reported[0]}
