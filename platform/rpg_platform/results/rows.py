"""What a sweep found, as data: one row a setting, over its seeds, with intervals, comparisons and what is best.

Free of Ray, torch and MLflow: trials and their last reports in, rows out. Returns are undiscounted, per episode; KL in
nats. ``report`` prints rows, ``plots`` draws them; docs/evaluation.md says what each figure is of.
"""

from __future__ import annotations

import math
import statistics as stdlib_statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.results.choosing import Choosing, Improvement, Scored, best_of, choosing, improvements, ranked
from rpg_platform.results.collapse import collapsed
from rpg_platform.results.ranking import Figures, Violation, pareto_set
from rpg_platform.results.report import (
    BEST,
    ENV_STEPS,
    FINAL,
    KL_ESTIMATED,
    MODES,
    STOPPED_BY,
    Mode,
    Report,
    TrialResult,
    Where,
    addon_names,
    choosing_place,
    cut_episodes,
    env_steps,
    episode_totals,
    evaluations,
    figures,
    has_best,
    is_finished,
    is_stopped,
    kept_share,
    mean_key,
    median_key,
    number,
    std_key,
    with_points,
)
from rpg_platform.results.statistics import (
    Interval,
    bootstrap_interval,
    column,
    finite_mean,
    iqm,
    mean,
)
from rpg_platform.spec.measures import MEASURES, PER_MODE, RETURNS
from rpg_platform.spec.methods import PRIOR, deployable
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.space import ConditionedRange
from rpg_platform.spec.sweep import TrialSpec

Spread = Literal["seeds", "episodes"]
KL, J = "kl_to_prior", "objective"


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: mean over the seeds' finite figures; NaN if there are none.
        std: standard deviation over seeds (n - 1), or for one seed over its evaluation episodes; NaN if
            unknown.
        n: how many seeds the figures are of.
        mean_interval: 95 % stratified-bootstrap interval of the mean, over seeds; None for one seed.
        iqm: interquartile mean; the mean for fewer than four seeds.
        iqm_interval: 95 % interval of it.
    """

    mean: float
    std: float
    n: int
    mean_interval: Interval | None = None
    iqm: float = math.nan
    iqm_interval: Interval | None = None


class Evaluation(dict[str, Estimate]):
    """An evaluation of a setting on the fixed evaluation seeds: each measure of ``PER_MODE`` by its name.

    ``evaluation.total_return`` is ``evaluation["total_return"]``.
    """

    def __getattr__(self, name: str) -> Estimate:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class BestCheckpoint:
    """The best checkpoints of a setting's trials, chosen on validation seeds, on the evaluation seeds.

    Attributes:
        deterministic, sampled: as of the final policies.
        kl_to_prior: nats per state.
        env_steps: how far they were trained.
    """

    deterministic: Evaluation
    sampled: Evaluation
    kl_to_prior: Estimate
    env_steps: Estimate

    def evaluation(self, mode: Mode) -> Evaluation:
        """The deterministic or the sampled evaluation."""
        return self.deterministic if mode == "deterministic" else self.sampled


@dataclass(frozen=True)
class Failure:
    """A trial without a final evaluation, and why."""

    trial_id: str
    seed: int | None
    error: str


@dataclass(frozen=True)
class Stop:
    """A trial that the sweep's scheduler ended early: no failure, and nothing to compare with full trainings.

    Attributes:
        trial_id, seed: which.
        by: name of the scheduler.
        env_steps: how far it was trained.
    """

    trial_id: str
    seed: int
    by: str
    env_steps: float


@dataclass(frozen=True)
class Row:
    """One setting: a method with its weights, over seeds.

    Attributes:
        group: the trials' id without the seed.
        setting: method and weights, to read.
        method: name of the method.
        weights: its weights: numbers, or schedules ``[[env_step, value], …]``.
        seeds: seeds with a final evaluation; every figure is of these.
        is_prior: the prior, untouched.
        spread: what the standard deviations are over.
        deterministic: the policy's mean action (or likeliest).
        sampled: actions sampled from the policy.
        kl_to_prior: nats per state; NaN without a prior.
        trained_on: the sampled policy's objective J, undiscounted per episode: of the setting's own reward, so that
            it compares with nothing but the same setting; NaN if unknown, and of the prior.
        basic_kept: deterministic basic return as a share of the prior's; None without a prior, or if the
            prior's is not positive, where a share means nothing.
        env_steps: training steps of one trial, its budget.
        evaluated_at: after how many env steps the figures were made: the budget or, where that was extended and its
            end not reached yet, less: the last at which most of the setting's seeds were evaluated.
        failures: trials of this setting that have no final evaluation.
        objective: by what rows are ordered and which constraints hold, as in the specification.
        chosen_by: by mode the means by which it is ranked and constraints hold, by the names in ``Constraints``.
        chosen_apart: these are of other episodes than everything else here; else of the same.
        medians: by mode, of each return the median over seeds of the median over episodes; NaN if unknown.
        best_checkpoint: the same figures of the best checkpoints; None where none was looked for.
        addon_parts: by mode and name the return of each add-on reward, where the task has several.
        improvement: over the prior, and over each other method of the sweep.
        violations: constraints that it breaks.
        is_pareto: on the front that pictures draw: no other row has as much of both returns, and more of one.
        is_best: of all rows that are deployable and satisfy the constraints (the prior's too) it has the highest
            objective.
        kl_estimated: ``kl_to_prior`` is an estimate: policy and prior are of different families.
        stopped: trials that were ended early. A setting with one has no figures, even if another seed was trained to
            the end before: it is not compared.
        episodes: of its final evaluation, in each mode.
        cut_episodes: how many evaluated episodes had not ended after the most steps that they may have.
        collapsed: by mode how many episodes of all seeds collapsed (``collapse.collapse_bound``); None if unknown.
        is_deployable: a user could have it; the upper bound, which is trained on the hidden reward, is not.
        choosing: of the best row: what the choice among so many settings costs.
    """

    group: str
    setting: str
    method: str
    weights: Mapping[str, Any]
    seeds: tuple[int, ...]
    is_prior: bool
    spread: Spread
    deterministic: Evaluation
    sampled: Evaluation
    kl_to_prior: Estimate
    trained_on: Estimate
    basic_kept: float | None
    env_steps: int
    evaluated_at: int
    failures: tuple[Failure, ...]
    objective: Mapping[str, Any]
    chosen_by: Mapping[Mode, Figures]
    chosen_apart: bool
    medians: Mapping[Mode, Mapping[str, float]]
    best_checkpoint: BestCheckpoint | None = None
    addon_parts: Mapping[Mode, Mapping[str, Estimate]] = field(default_factory=dict)
    improvement: tuple[Improvement, ...] = ()
    violations: tuple[Violation, ...] = ()
    is_pareto: bool = False
    is_best: bool = False
    kl_estimated: bool = False
    stopped: tuple[Stop, ...] = ()
    episodes: int = 0
    cut_episodes: int = 0
    collapsed: Mapping[Mode, int | None] = field(default_factory=dict)
    is_deployable: bool = True
    choosing: Choosing | None = None

    def evaluation(self, mode: Mode) -> Evaluation:
        """The deterministic or the sampled evaluation."""
        return self.deterministic if mode == "deterministic" else self.sampled

    def figure(self, measure: str, mode: Mode | None = None) -> Estimate:
        """A measure by its name; ``mode`` None: the objective's. Those of the sampled policy alone have no other."""
        alone = {KL: self.kl_to_prior, J: self.trained_on}
        return alone[measure] if measure in alone else self.evaluation(mode or self.objective["mode"])[measure]


def summarise(results: Iterable[TrialResult], objective: Objective | None = None) -> list[Row]:
    """Groups trials over their seeds, compares the settings and orders them.

    Args:
        results: trials in any order.
        objective: what is best; None: what the trials' specifications say.

    Returns:
        One row a setting: those that satisfy the constraints first, highest objective first; then the others, nearest
        first; settings without a finite figure last.
    """
    groups: defaultdict[str, list[TrialResult]] = defaultdict(list)
    for each in with_points(results):
        groups[each[0].group].append(each)
    if not groups:
        return []
    if objective is None:
        objective = next(iter(groups.values()))[0][0].objective
    names = setting_names([trials[0][0] for trials in groups.values()])
    prior = _prior_reports(groups.values())
    prior_basic = _estimate(prior, FINAL, "deterministic", "basic_return").mean
    where = choosing_place(r for trials in groups.values() if not _stops(trials) for _, r in _done(trials)[1])
    rows = {
        group: replace(
            _row(group, trials, names[group], prior_basic, objective, where), collapsed=_collapsed(trials, prior)
        )
        for group, trials in groups.items()
    }
    able = deployable(trials[0][0].method for trials in groups.values())
    scored = [_scored(name, trials, names[name], where, able, objective) for name, trials in groups.items()]
    return _ordered(rows, scored, objective)


# ---- one setting -------------------------------------------------------------------------------


def _row(
    group: str,
    trials: Sequence[TrialResult],
    setting: str,
    prior_basic: float,
    objective: Objective,
    where: Where,
) -> Row:
    spec = trials[0][0]
    stopped = _stops(trials)
    at, done = (spec.env_steps, []) if stopped else _done(trials)
    reports = [result for _, result in done]
    final = _evaluations(reports, FINAL)
    basic = final["deterministic"].basic_return.mean
    return Row(
        group=group,
        setting=setting,
        method=spec.method,
        weights=dict(spec.weights),
        seeds=tuple(sorted(trial.seed for trial, _ in done)),
        is_prior=spec.method == PRIOR,
        spread="seeds" if len(done) > 1 else "episodes",
        deterministic=final["deterministic"],
        sampled=final["sampled"],
        kl_to_prior=_estimate(reports, FINAL, "sampled", KL),
        trained_on=_estimate(reports, FINAL, "sampled", J),
        basic_kept=kept_share(basic, prior_basic),
        env_steps=spec.env_steps,
        evaluated_at=at,
        failures=tuple(
            Failure(trial.trial_id, trial.seed, _why(trial, result, error))
            for trial, result, error in trials
            if not is_finished(result, error)
            and (error is not None or not (is_stopped(result) or at in evaluations(trial, result)))
        ),
        objective=objective.model_dump(mode="json", exclude_none=True),
        chosen_by={mode: _means([figures(report, where, mode) for report in reports]) for mode in MODES},
        chosen_apart=where != FINAL,
        medians={mode: {name: _median(reports, mode, name) for name in RETURNS} for mode in MODES},
        best_checkpoint=_best_checkpoint(reports),
        addon_parts={mode: _addon_parts(reports, mode) for mode in MODES},
        kl_estimated=any(report.get(KL_ESTIMATED) for report in reports),
        stopped=stopped,
        episodes=spec.evaluation.episodes,
        cut_episodes=sum(map(cut_episodes, reports)),
    )


def _done(trials: Sequence[TrialResult]) -> tuple[int, list[tuple[TrialSpec, Report]]]:
    """The evaluations to compare, all made after as many env steps: the most seeds' that there are, of equals the last.

    Of a sweep whose budget was extended some seeds may be evaluated at the new one and others not yet.
    """
    made = [(trial, evaluations(trial, result, error)) for trial, result, error in trials]
    counts = Counter(steps for _, each in made for steps in each)
    at = max(counts, key=lambda steps: (counts[steps], steps), default=trials[0][0].env_steps)
    return at, [(trial, each[at]) for trial, each in made if at in each]


def _stops(trials: Sequence[TrialResult]) -> tuple[Stop, ...]:
    return tuple(
        Stop(trial.trial_id, trial.seed, str(result[STOPPED_BY]), env_steps(result))
        for trial, result, error in trials
        if result is not None and error is None and is_stopped(result)
    )


def _evaluations(reports: Sequence[Report], where: Where) -> dict[Mode, Evaluation]:
    return {mode: Evaluation({n: _estimate(reports, where, mode, n) for n in PER_MODE}) for mode in MODES}


def _addon_parts(reports: Sequence[Report], mode: Mode) -> dict[str, Estimate]:
    names = addon_names(reports[0], FINAL, mode) if reports else []
    return {name: _estimate(reports, FINAL, mode, f"addon/{name}_return") for name in names}


def _best_checkpoint(reports: Sequence[Report]) -> BestCheckpoint | None:
    looked = [report for report in reports if has_best(report)]
    if not looked:
        return None
    evaluations = _evaluations(looked, BEST)
    kl = _estimate(looked, BEST, "sampled", "kl_to_prior")
    steps = _over_trials([number(report, f"{BEST}/{ENV_STEPS}") for report in looked])
    return BestCheckpoint(evaluations["deterministic"], evaluations["sampled"], kl, steps)


def _estimate(reports: Sequence[Report], where: Where, mode: Mode, measure: str) -> Estimate:
    """A measure over trials; its spread is over seeds, or of a single trial over its episodes."""
    figures = [number(report, mean_key(where, mode, measure)) for report in reports]
    alone = number(reports[0], std_key(where, mode, measure)) if len(reports) == 1 else math.nan
    return _over_trials(figures, alone)


def _over_trials(figures: Sequence[float], std_of_one: float = math.nan) -> Estimate:
    finite = [each for each in figures if math.isfinite(each)]
    if not finite:
        return Estimate(math.nan, math.nan, 0)
    std = stdlib_statistics.stdev(finite) if len(finite) > 1 else std_of_one
    scores = column(finite)
    ends = _interval(bootstrap_interval(scores, mean))
    middle = ends if len(finite) < 4 else _interval(bootstrap_interval(scores, iqm))  # below four the same figure
    return Estimate(stdlib_statistics.fmean(finite), std, len(finite), ends, float(iqm(scores)), middle)


def _interval(ends: Array | None) -> Interval | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _prior_reports(groups: Iterable[Sequence[TrialResult]]) -> list[Report]:
    return [
        result
        for trials in groups
        for trial, result, error in trials
        if trial.method == PRIOR and result is not None and is_finished(result, error)
    ]


def _means(evaluated: Sequence[Figures]) -> Figures:
    return {each.name: finite_mean([figures[each.name] for figures in evaluated]) for each in MEASURES}


def _median(reports: Sequence[Report], mode: Mode, measure: str) -> float:
    """The median over seeds of the medians over their episodes; NaN where a report lacks it."""
    values = [number(report, median_key(FINAL, mode, measure)) for report in reports]
    return stdlib_statistics.median(values) if values and all(map(math.isfinite, values)) else math.nan


def _collapsed(trials: Sequence[TrialResult], prior: Sequence[Report]) -> dict[Mode, int | None]:
    reports = [] if _stops(trials) else [report for _, report in _done(trials)[1]]
    return {
        mode: collapsed([episode_totals(r, mode) for r in reports], episode_totals(prior[0], mode) if prior else None)
        for mode in MODES
    }


def _why(trial: TrialSpec, result: Mapping[str, Any] | None, error: str | None) -> str:
    if error is not None:
        lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "failed without a message"
    if result is None:
        return "made no report"
    return f"stopped at {env_steps(result):,.0f} of {trial.env_steps:,} env steps, not evaluated"


# ---- settings against each other ----------------------------------------------------------------


def _scored(
    group: str, trials: Sequence[TrialResult], setting: str, where: Where, able: Collection[str], objective: Objective
) -> Scored:
    method = trials[0][0].method
    done = [] if _stops(trials) else _done(trials)[1]
    shown = {trial.seed: figures(report, FINAL, objective.mode)[objective.maximize] for trial, report in done}
    return Scored(
        group=group,
        setting=setting,
        method=method,
        is_prior=method == PRIOR,
        is_deployable=method in able,
        by={trial.seed: figures(report, where, objective.mode) for trial, report in done},
        score={seed: value for seed, value in shown.items() if math.isfinite(value)},
    )


def _ordered(rows: Mapping[str, Row], scored: Sequence[Scored], objective: Objective) -> list[Row]:
    """The rows in order, with what they break, which are on the Pareto set and which is best, and comparisons."""
    places = ranked(scored, objective)
    best, cost = best_of(places, objective), choosing(scored, objective)
    better = improvements(scored, objective)
    shown = [group for group, row in rows.items() if math.isfinite(row.evaluation(objective.mode).total_return.mean)]
    axes = [
        (each.basic_return.mean, each.addon_return.mean)
        for each in (rows[group].evaluation(objective.mode) for group in shown)
    ]
    pareto = {group for group, is_on in zip(shown, pareto_set(np.reshape(axes, (-1, 2))), strict=True) if is_on}
    return [
        replace(
            rows[place.of.group],
            violations=place.broken,
            is_pareto=place.of.group in pareto,
            is_best=place.of is best,
            is_deployable=place.of.is_deployable,
            choosing=cost if place.of is best else None,
            improvement=better.get(place.of.group, ()),
        )
        for place in places
    ]


# ---- names -------------------------------------------------------------------------------------


def setting_names(trials: Sequence[TrialSpec]) -> dict[str, str]:
    """Group → its name: method and weights, and if that is not enough, the training settings that differ."""
    alike: defaultdict[str, list[TrialSpec]] = defaultdict(list)
    for trial in trials:
        weights = [f"{name}={_value(value)}" for name, value in trial.weights.items()]
        name = "prior" if trial.method == PRIOR else " ".join([trial.method, *weights])
        alike[name].append(trial)
    settings: dict[str, str] = {}
    for name, same in alike.items():
        training = [dict(trial.training) for trial in same]
        varied = [key for key in training[0] if len({repr(each.get(key)) for each in training}) > 1]
        for trial, each in zip(same, training, strict=True):
            settings[trial.group] = " ".join([name, *(f"{key}={_value(each.get(key))}" for key in varied)])
    return settings


def _value(value: object) -> str:
    """A weight to read: four digits; a schedule as ``0.2→0.05@100000``, one that jumps as ``0.2⇒0.05@100001``."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        text, points = _value(value[0][1]), [(0, None), *value, (math.inf, None)]
        for (_, before), (step, level), (following, _) in zip(points[1:], points[2:], points[3:], strict=False):
            if level == before and following == step + 1:
                continue  # it holds, and jumps next
            jumps = any(other == step - 1 for other, _ in value)
            text += f"{'⇒' if jumps else '→'}{_value(level)}@{step:g}"
        return text
    if isinstance(value, ConditionedRange):
        return f"{value.low:.4g}..{value.high:.4g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
