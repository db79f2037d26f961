"""A trial's report: its keys, its endings, and the one reader of it.

A trial reports a flat mapping of floats some 200 times, and once more when it ends (docs/architecture.md lists the
keys). Whoever needs a figure of it asks here, so that no other module spells a key. Free of Ray, torch and MLflow.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from rpg_platform.spec.measures import BY_NAME, MEASURES, PER_MODE
from rpg_platform.spec.sweep import TrialSpec

Report: TypeAlias = Mapping[str, Any]
TrialResult: TypeAlias = tuple[TrialSpec, Report | None, str | None]
"""A trial, its last report (None: it made none) and its error (None: it did not fail)."""

Mode: TypeAlias = Literal["deterministic", "sampled"]
MODES: tuple[Mode, ...] = ("deterministic", "sampled")

# ---- keys ----------------------------------------------------------------------------------------
ENV_STEPS = "env_steps"
ENV_STEPS_PER_S = "env_steps_per_s"
EVALUATION_STEPS_PER_S = "evaluation_steps_per_s"
KL_ESTIMATED = "kl_to_prior_estimated"
FINISHED = "finished"
"""True in the last report of a trial that ran to its end and was evaluated."""
FAILED = "failed"
"""In the last report of a trial that gave up: why."""
STOPPED_BY = "stopped_by"
"""In the last report of a trial that a scheduler ended early: which scheduler."""
EARLIER = "earlier"
"""In the last report of a trial whose budget was extended, as it is read again: its last reports at smaller budgets."""

POINTS = "points"
"""In the last report of a trial whose policy is told its weights: a list of ``weights`` and ``report``, which is the
evaluation at these weights."""

FINAL: Final = "eval"
SELECTION: Final = "eval_selection"
BEST: Final = "eval_best"
VALIDATION: Final = "validation"
"""Where a report has the final policy's evaluation, the same policy's on other episodes, by which settings are chosen,
the best checkpoint's evaluation, and the latest validation."""
RUNG = "rung"
"""Prefix of the figures at rungs: ``rung/<env steps>/<measure>``, and the prior's ``rung/prior/<measure>``."""

Where: TypeAlias = Literal["eval", "eval_selection", "eval_best", "validation"]
Ending: TypeAlias = Literal["finished", "stopped", "failed", "unfinished"]
"""How a trial ended: evaluated at its end; ended early by a scheduler; with an error; or not at all so far."""


def mean_key(where: str, mode: Mode, measure: str) -> str:
    """The key of a measure's mean over episodes, e.g. ``eval/sampled/total_return_mean``.

    Args:
        where: ``FINAL``, ``SELECTION``, ``BEST`` or ``VALIDATION``.
        mode: of the policy; a measure of the sampled policy alone has a key without it.
        measure: a name in ``MEASURES``, or ``addon/<name>_return`` of one of several add-on rewards.
    """
    known = BY_NAME.get(measure)
    return f"{where}/{mode}/{measure}_mean" if known is None or known.per_mode else f"{where}/{measure}"


def std_key(where: str, mode: Mode, measure: str) -> str:
    """The key of a measure's standard deviation over episodes."""
    return f"{where}/{mode}/{measure}_std"


def median_key(where: str, mode: Mode, measure: str) -> str:
    """The key of a return's median over episodes."""
    return f"{where}/{mode}/{measure}_median"


def episodes_key(where: str, mode: Mode) -> str:
    """The key of the total returns of single episodes, a list; MLflow has none of it."""
    return f"{where}/{mode}/total_return_episodes"


def cut_key(where: str, mode: Mode) -> str:
    """The key of how many episodes had not ended after the most steps that they may have; absent where all had."""
    return f"{where}/{mode}/cut_episodes"


# ---- reading -------------------------------------------------------------------------------------
def number(report: Report, key: str) -> float:
    """A figure of a report; NaN where the report lacks it."""
    value = report.get(key)
    return math.nan if value is None else float(value)


def env_steps(report: Report) -> float:
    """Env steps that the trial had trained; NaN where the report does not say."""
    return number(report, ENV_STEPS)


def figures(report: Report, where: Where, mode: Mode) -> dict[str, float]:
    """The measures of an evaluation by name, NaN where the report lacks one."""
    return {measure.name: number(report, mean_key(where, mode, measure.name)) for measure in MEASURES}


def finite_figures(report: Report, where: Where, mode: Mode) -> dict[str, float]:
    """The finite measures of an evaluation by name; empty where the report has no such evaluation."""
    return {name: value for name, value in figures(report, where, mode).items() if math.isfinite(value)}


def has_selection(report: Report) -> bool:
    """Whether the report has an evaluation on episodes of its own by which settings are chosen."""
    return mean_key(SELECTION, "deterministic", "total_return") in report


def choosing_place(reports: Iterable[Report]) -> Where:
    """The evaluation that settings are chosen by: on other episodes than those shown, where all reports have it."""
    return SELECTION if all(map(has_selection, reports)) else FINAL


def episode_totals(report: Report, mode: Mode) -> list[float] | None:
    """Total returns of the final evaluation's episodes; None where the report lacks them."""
    found = report.get(episodes_key(FINAL, mode))
    return None if found is None else [math.nan if each is None else float(each) for each in found]


def addon_names(report: Report, where: Where, mode: Mode) -> list[str]:
    """Names of a task's several add-on rewards; none where there is one."""
    start, end = f"{where}/{mode}/addon/", "_return_mean"
    found = (key for key in report if key.startswith(start) and key.endswith(end))
    return [key.removeprefix(start).removesuffix(end) for key in found]


def cut_episodes(report: Report) -> int:
    """How many episodes of the evaluation of a trial's policies, final and best, were cut off."""
    return sum(int(report.get(cut_key(where, mode)) or 0) for where in (FINAL, BEST) for mode in MODES)


def has_best(report: Report) -> bool:
    """Whether the report has the evaluation of a best checkpoint."""
    return f"{BEST}/{ENV_STEPS}" in report


def at_rung(report: Report, where: int | Literal["prior"]) -> dict[str, float]:
    """The validation figures that a report has of a rung (env steps), or of the prior."""
    prefix = f"{RUNG}/{where}/"
    return {key.removeprefix(prefix): float(value) for key, value in report.items() if key.startswith(prefix)}


def rungs_passed(report: Report) -> set[int]:
    """The rungs of which a report has figures, env steps."""
    places = (key.split("/")[1] for key in report if key.startswith(f"{RUNG}/"))
    return {int(place) for place in places if place != "prior"}


# ---- figures as JSON -----------------------------------------------------------------------------
def as_json(value: Any) -> Any:
    """Returns a value as strict JSON holds it, nested as it is: NaN and infinity become None, arrays become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


def figures_from_json(record: Mapping[str, float | None]) -> dict[str, float]:
    """Returns figures that ``as_json`` wrote: None becomes NaN."""
    return {name: math.nan if value is None else float(value) for name, value in record.items()}


# ---- endings -------------------------------------------------------------------------------------
def is_finished(report: Report | None, error: str | None = None) -> bool:
    """Whether a trial ran to its end: it has no error, and its last report has the final evaluation."""
    if error is not None or report is None:
        return False
    return bool(report.get(FINISHED)) or mean_key(FINAL, "deterministic", "total_return") in report


def evaluations(trial: TrialSpec, report: Report | None, error: str | None = None) -> dict[int, Report]:
    """A trial's final evaluations: env steps → the report that has it.

    That at the end of its budget has the budget's env steps; the others are of smaller budgets, which were extended.
    """
    earlier = (report or {}).get(EARLIER, ())
    found = {int(env_steps(each)): each for each in earlier}
    if report is not None and is_finished(report, error):
        found[trial.env_steps] = report
    return found


def with_earlier(report: Report, trial: TrialSpec, earlier: Sequence[Report]) -> dict[str, Any]:
    """The last report that a trial left, as one of a trial with a budget that may have been extended since.

    Args:
        report: as the trial left it; an evaluation at a smaller budget does not finish it any more.
        trial: with its budget of today.
        earlier: its last reports at still smaller budgets.
    """
    if is_finished(report) and env_steps(report) < trial.env_steps:
        ends = (f"{FINAL}/", f"{SELECTION}/", f"{BEST}/", POINTS)
        rest = {key: value for key, value in report.items() if not key.startswith(ends)}
        return {**rest, FINISHED: False, EARLIER: [report, *earlier]}
    return {**report, EARLIER: list(earlier)} if earlier else dict(report)


def with_points(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Trials as tables compare them: of one whose policy is told its weights each evaluated setting is a trial."""
    found: list[TrialResult] = []
    for trial, report, error in results:
        points = (report or {}).get(POINTS) if trial.told and is_finished(report, error) else None
        if not points:
            found.append((trial, report, error))
            continue
        shared = {name: value for name, value in (report or {}).items() if name in (ENV_STEPS, FINISHED, KL_ESTIMATED)}
        found += [(trial.at(each["weights"]), {**shared, **each["report"]}, None) for each in points]
    return found


def is_stopped(report: Report | None) -> bool:
    """Whether a scheduler ended a trial early: it neither finished nor failed."""
    return report is not None and STOPPED_BY in report and not is_finished(report)


def ending(report: Report | None, error: str | None = None) -> Ending:
    """How a trial ended, by its last report and its error."""
    if error is not None or FAILED in (report or {}):
        return "failed"
    if is_finished(report):
        return "finished"
    return "stopped" if is_stopped(report) else "unfinished"


def is_over(report: Report | None) -> bool:
    """Whether nothing is left to do of a trial that reported this last: it finished or was ended early."""
    return is_finished(report) or is_stopped(report)


def stopped_by(words: str) -> str | None:
    """The scheduler that ``stopped_words`` named; None if the words are others."""
    found = re.fullmatch(r"stopped by (.+) at [\d,]+ env steps", words)
    return found and found[1]


def stopped_words(report: Report) -> str:
    """Which scheduler ended a trial early, and when."""
    return f"stopped by {report[STOPPED_BY]} at {env_steps(report):,.0f} env steps"


# ---- what MLflow holds of it ---------------------------------------------------------------------
HEADLINE: Mapping[str, str] = {
    "total": "total_return",
    "basic": "basic_return",
    "addon": "addon_return",
    "kl": "kl_to_prior",
}
"""MLflow's name → the measure of the final evaluation: what a trial came to, logged once, at its end."""
KEPT = "kept_pct"
"""The final basic return in per cent of the prior's; logged when both are known."""
DROPPED = "health/dropped_nonfinite"
_AT_THE_END = (f"{FINAL}/", f"{SELECTION}/", f"{BEST}/", "system/evaluation_")
# Tune's own entries, what is no figure of the trial, and what is a tag; `time_total_s` is kept.
_TUNES_OWN = """timestamp date pid hostname node_ip trial_id config done should_checkpoint iterations_since_restore
    time_since_restore timesteps_since_restore time_this_iter_s training_iteration timesteps_total episodes_total
    checkpoint_dir_name"""
_NOT_METRICS = {*_TUNES_OWN.split(), ENV_STEPS, FINISHED, FAILED, KL_ESTIMATED}
_OF_EPISODES = {*PER_MODE, "addon"}
_COUNTERS = {"nonfinite_values", "env_failures", "env_runner_restarts"}
_HEALTH = {
    *_COUNTERS,
    *("clip_fraction", "explained_variance", "approx_kl", "approx_kl_peak", "kl_to_prior_peak"),
    *("policy_loss", "vf_loss", "learning_rate", "reward_scale"),
}
_MACHINES = {ENV_STEPS_PER_S, EVALUATION_STEPS_PER_S, "time_total_s"}
_OWN_PLACE = (f"{FINAL}/", f"{SELECTION}/", f"{BEST}/", f"{VALIDATION}/")


def finite_metrics(report: Report, mode: Mode = "deterministic") -> dict[str, float]:
    """The figures of a report that MLflow can hold, under MLflow's names.

    Evaluations are under ``eval/``, ``eval_selection/``, ``eval_best/`` and ``validation/``, the trial's health under
    ``health/``, the machine's work under ``system/`` and the rest under ``train/``. What the final evaluation came to
    is under the names in ``HEADLINE`` instead. Left out are Tune's own entries, figures at rungs (MLflow has them once,
    under ``validation/``), counters at zero, the best checkpoint's evaluation where that is the final policy, and what
    is no number or not finite.

    Args:
        report: a report; nested mappings give ``outer/inner``.
        mode: of the evaluation that the headline gives: the objective's.

    Returns:
        The finite figures; ``DROPPED`` among them where any were NaN or infinite, those of episodes aside while none
        has ended.
    """
    headline = {mean_key(FINAL, mode, measure): name for name, measure in HEADLINE.items()}
    none_ended = math.isnan(number(report, "episode_length"))
    best_is_last = has_best(report) and number(report, f"{BEST}/{ENV_STEPS}") == env_steps(report)
    values: dict[str, float] = {}
    dropped = 0
    for key, value in _flat(report):
        if best_is_last and key.startswith(f"{BEST}/") and key != f"{BEST}/{ENV_STEPS}":
            continue
        if math.isfinite(value):
            if value or key not in _COUNTERS:
                values[headline.get(key) or _placed(key)] = value
        elif not (none_ended and key.partition("/")[0] in _OF_EPISODES):
            dropped += 1
    first = {name: values[name] for name in HEADLINE if name in values}  # MLflow lists figures in this order
    return first | values | ({DROPPED: float(dropped)} if dropped else {})


def report_of_metrics(metrics: Mapping[str, float], env_steps: float, mode: Mode = "deterministic") -> dict[str, Any]:
    """A trial's last report as far as MLflow has it: what ``finite_metrics`` made of it, turned back.

    Args:
        metrics: the latest value of each metric, by MLflow's name or, in runs of version 0.1.0, by the report's.
        env_steps: of the report.
        mode: as for ``finite_metrics``.
    """
    headline = {name: mean_key(FINAL, mode, measure) for name, measure in HEADLINE.items()}
    report: dict[str, Any] = {ENV_STEPS: env_steps}
    for name, value in metrics.items():
        if name not in (KEPT, DROPPED):
            report[headline.get(name) or _reported(name)] = value
    if report.get(f"{BEST}/{ENV_STEPS}") == env_steps:  # the best checkpoint is the last one
        of_last = {key: value for key, value in report.items() if key.startswith(f"{FINAL}/")}
        report |= {f"{BEST}/{key.removeprefix(f'{FINAL}/')}": value for key, value in of_last.items()}
    return report


def metric_names(key: str) -> tuple[str, str]:
    """MLflow's names of a report's figure: as it is now, and as version 0.1.0 had it."""
    return (_placed(key), key)


def _flat(report: Report, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a report, those of nested mappings as ``outer/inner``."""
    for key, value in report.items():
        if not prefix and (key in _NOT_METRICS or key.startswith(f"{RUNG}/")):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif not isinstance(value, bool) and isinstance(value, numbers.Real):
            yield prefix + key, float(value)


def _placed(key: str) -> str:
    if key.startswith(_OWN_PLACE):
        return key
    return f"{'health' if key in _HEALTH else 'system' if key in _MACHINES else 'train'}/{key}"


def _reported(name: str) -> str:
    """The key of a figure that ``_placed`` named."""
    place, _, key = name.partition("/")
    return key if key and place in ("train", "health", "system") else name


def is_of_the_end(key: str) -> bool:
    """Whether a metric, by MLflow's name, is of the evaluation at a trial's end."""
    return key in HEADLINE or key == KEPT or key.startswith(_AT_THE_END)


def kept_share(basic: float, prior_basic: float) -> float | None:
    """A basic return as a share of the prior's; None where a share means nothing, as the prior's is not positive."""
    return basic / prior_basic if prior_basic > 0 and math.isfinite(basic) else None


def report_step(report: Report) -> int:
    """The step at which MLflow records a report: its env steps or, where it lacks them, its iteration."""
    step = report.get(ENV_STEPS)
    if step is None or not math.isfinite(step):
        step = report.get("training_iteration", 0)
    return int(step)
