"""Which setting of a sweep that is still running is the best so far, by the sweep's objective and constraints.

From final evaluations as soon as there is one; before that from the trials' validations. As in a sweep's table, final
policies are chosen by other episodes than those shown, and none that is trained on the hidden reward is. Free of Ray
and torch, and cheap: it is asked for twice a second.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rpg_platform.results.ranking import Figures, order_key, violations
from rpg_platform.results.report import FINAL, SELECTION, VALIDATION, Report, finite_figures, is_stopped
from rpg_platform.results.rows import setting_names
from rpg_platform.spec.measures import MEASURES
from rpg_platform.spec.methods import PRIOR, deployable
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import TrialSpec

Source = Literal["final evaluation", "validation"]
_SHOWN = sorted((measure for measure in MEASURES if measure.is_objective), key=lambda m: m.name != "total_return")


@dataclass(frozen=True)
class Leader:
    """The best setting so far.

    Attributes:
        setting: method and weights, to read.
        group: its trials' id without the seed.
        source: what the figures are of.
        seeds, of_seeds: how many of its seeds the figures are of, and how many it has.
        figures: means over those seeds, by the names in ``Constraints``; only finite ones.
        broken: constraints that it breaks, in words; then every other setting is further from them.
        prior: the prior's figures, once it is evaluated.
    """

    setting: str
    group: str
    source: Source
    seeds: int
    of_seeds: int
    figures: Mapping[str, float]
    broken: tuple[str, ...] = ()
    prior: Mapping[str, float] | None = None

    def __str__(self) -> str:
        return self.text() + (f"; prior: {self.prior_text()}" if self.prior else "")

    def text(self) -> str:
        """The setting and its figures."""
        over = f", {self.seeds} of {self.of_seeds} seeds" if self.of_seeds > 1 else ""
        broken = f"; breaks {'; '.join(self.broken)}" if self.broken else ""
        return f"{self.setting}: {_text(self.figures)} ({self.source}{over}){broken}"

    def prior_text(self) -> str:
        """The prior's figures; empty while it has none."""
        return _text(self.prior or {})


class Standing:
    """Follows the trials' evaluations.

    Args:
        objective: what is best.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._trials: dict[str, TrialSpec] = {}
        self._final: dict[str, Figures] = {}
        self._validated: dict[str, Figures] = {}
        self._ended_early: set[str] = set()
        self._selection: dict[str, Figures] = {}
        self._prior: Figures | None = None
        self._prior_selection: Figures | None = None
        self._names: dict[str, str] = {}
        self._leader: Leader | None = None
        self._is_current = True

    def add(self, trials: Iterable[TrialSpec]) -> None:
        """Trials of the sweep, as they become known."""
        self._trials |= {trial.trial_id: trial for trial in trials}
        self._names = {}
        self._is_current = False

    def heard(self, trial_id: str, report: Report) -> None:
        """Takes a trial's report."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if is_stopped(report):
            self._ended_early.add(trial.group)
        final = finite_figures(report, FINAL, self._objective.mode)
        if trial.method == PRIOR:
            self._prior = final or self._prior
            self._prior_selection = finite_figures(report, SELECTION, self._objective.mode) or self._prior_selection
        elif final:
            self._final[trial_id] = final
            self._selection[trial_id] = finite_figures(report, SELECTION, self._objective.mode)
        elif validated := finite_figures(report, VALIDATION, self._objective.mode):
            known = self._validated.get(trial_id)
            if known is None or self._key(validated, self._prior) < self._key(known, self._prior):
                self._validated[trial_id] = validated
        elif not is_stopped(report):
            return
        self._is_current = False

    def leader(self) -> Leader | None:
        """The best setting so far; None before anything that was trained has been evaluated."""
        if not self._is_current:
            self._leader, self._is_current = self._find(), True
        return self._leader

    def _find(self) -> Leader | None:
        final, validated = (self._compared(each) for each in (self._final, self._validated))
        found = final or validated
        if not found:
            return None
        groups: defaultdict[str, list[Figures]] = defaultdict(list)
        for trial_id, figures in found.items():
            groups[self._trials[trial_id].group].append(figures)
        means = {group: _means(each) for group, each in groups.items()}
        apart = bool(final) and all(self._selection[trial_id] for trial_id in found)
        prior = self._prior_selection if apart and self._prior_selection else self._prior
        by: defaultdict[str, list[Figures]] = defaultdict(list)
        for trial_id, figures in found.items():
            by[self._trials[trial_id].group].append(self._selection[trial_id] if apart else figures)
        chosen = {group: _means(each) for group, each in by.items()}
        group = min(means, key=lambda name: (self._key(chosen[name], prior), name))
        if not self._names:
            one_each = {trial.group: trial for trial in self._trials.values()}
            self._names = setting_names(list(one_each.values()))
        broken = violations(self._objective.constraints, chosen[group], prior)
        return Leader(
            self._names[group],
            group,
            "final evaluation" if final else "validation",
            len(groups[group]),
            sum(trial.group == group for trial in self._trials.values()),
            means[group],
            tuple(map(str, broken)),
            self._prior,
        )

    def _compared(self, figures: Mapping[str, Figures]) -> dict[str, Figures]:
        """Without the settings that the sweep's scheduler has ended early, and those that nobody could deploy."""
        able = deployable(trial.method for trial in self._trials.values())
        return {
            name: each
            for name, each in figures.items()
            if self._trials[name].group not in self._ended_early and self._trials[name].method in able
        }

    def _key(self, figures: Figures, prior: Figures | None) -> tuple[object, ...]:
        broken = violations(self._objective.constraints, figures, prior)
        return order_key(figures.get(self._objective.maximize, math.nan), broken)


def _means(each: Sequence[Figures]) -> dict[str, float]:
    names = [name for name in each[0] if all(name in figures for figures in each)]
    return {name: statistics.fmean(figures[name] for figures in each) for name in names}


def _text(figures: Figures) -> str:
    return ", ".join(
        f"{each.heading} {figures[each.name]:,.{2 if abs(figures[each.name]) < 100 else 0}f}"
        for each in _SHOWN
        if each.name in figures
    )
