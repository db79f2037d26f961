"""What a sweep found: one row a setting, over its seeds, as a terminal table, JSON or Markdown.

Free of Ray and MLflow: trials and their last reports in, rows out. Returns are undiscounted, per episode; KL
in nats.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rpg_platform.spec import TrialSpec

TrialResult: TypeAlias = "tuple[TrialSpec, Mapping[str, Any] | None, str | None]"
"""A trial, its last report (None: it made none) and its error (None: it did not fail)."""

Mode = Literal["deterministic", "sampled"]
Spread = Literal["seeds", "episodes"]
MODES: tuple[Mode, ...] = ("deterministic", "sampled")
PRIOR_METHOD = "prior"
NOTHING = "–"


@dataclass(frozen=True)
class Estimate:
    """A mean and its spread.

    Attributes:
        mean: mean over the seeds' finite figures; NaN if there are none.
        std: standard deviation over seeds (n - 1), or for one seed over its evaluation episodes; NaN if
            unknown.
        n: how many seeds the mean is of.
    """

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Evaluation:
    """The final evaluation of a setting, on the fixed evaluation seeds."""

    basic_return: Estimate
    addon_return: Estimate
    total_return: Estimate
    episode_length: Estimate
    task_metric: Estimate


@dataclass(frozen=True)
class Failure:
    """A trial without a final evaluation, and why."""

    trial_id: str
    seed: int | None
    error: str


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
        basic_kept: deterministic basic return as a share of the prior's; None without a prior, or if the
            prior's is not positive, where a share means nothing.
        env_steps: training steps of one trial.
        failures: trials of this setting that have no final evaluation.
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
    basic_kept: float | None
    env_steps: int
    failures: tuple[Failure, ...]

    def evaluation(self, mode: Mode) -> Evaluation:
        """The deterministic or the sampled evaluation."""
        return self.deterministic if mode == "deterministic" else self.sampled


def is_finished(result: Mapping[str, Any] | None, error: str | None) -> bool:
    """Whether a trial ran to its end: no error, and its last report has the final evaluation."""
    return error is None and result is not None and "eval/deterministic/total_return_mean" in result


def summarise(results: Iterable[TrialResult]) -> list[Row]:
    """Groups trials over their seeds.

    Args:
        results: trials in any order.

    Returns:
        One row a setting: best deterministic total return first, settings without a finite one last.
    """
    groups: defaultdict[str, list[TrialResult]] = defaultdict(list)
    for each in results:
        groups[each[0].group].append(each)
    names = _settings([trials[0][0] for trials in groups.values()])
    prior_basic = _prior_basic(groups.values())
    rows = [_row(group, trials, names[group], prior_basic) for group, trials in groups.items()]

    def order(row: Row) -> tuple[bool, bool, float, str]:
        total = row.deterministic.total_return.mean
        return (not row.seeds, math.isnan(total), 0.0 if math.isnan(total) else -total, row.group)

    return sorted(rows, key=order)


def render_table(
    rows: Sequence[Row], *, mode: Mode = "deterministic", metric_name: str = "task metric"
) -> RenderableType:
    """The rows for a terminal or a pipe of 80 columns and up; what has no figures stands below, with why.

    Args:
        rows: from ``summarise``; they keep their order.
        mode: which evaluation to show.
        metric_name: heading of the task's readable metric.
    """
    shown = [row for row in rows if row.seeds]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    table.add_column("setting", overflow="fold", min_width=16)
    for heading in _headings(metric_name):
        table.add_column(heading, justify="right", no_wrap=heading != metric_name, overflow="fold")
    for row, cells in zip(shown, _cells(shown, mode), strict=True):
        table.add_row(*cells, style="bold cyan" if row.is_prior else None)
    parts: list[RenderableType] = [table] if shown else [Text("No trial has a final evaluation.")]
    if shown:
        parts.append(Text(_caption(shown, mode), style="dim"))
    failures = _failures(rows)
    if failures:
        parts.append(Text(f"\n{len(failures)} without a result:", style="bold red"))
        parts += [Text(f"  {each.trial_id}: {each.error}", style="red") for each in failures]
    return Group(*parts)


def rows_to_json(rows: Sequence[Row]) -> str:
    """Everything in the rows as strict JSON: a list in the rows' order, NaN and infinite as null."""
    return json.dumps(_finite([asdict(row) for row in rows]), indent=2, allow_nan=False)


def rows_to_markdown(rows: Sequence[Row], *, mode: Mode = "deterministic", metric_name: str = "task metric") -> str:
    """The same table as ``render_table`` in GitHub's Markdown."""
    shown = [row for row in rows if row.seeds]
    lines: list[str] = []
    if shown:
        lines += [
            "| setting | " + " | ".join(_headings(metric_name)) + " |",
            "| --- |" + " ---: |" * len(_headings(metric_name)),
        ]
        for row, cells in zip(shown, _cells(shown, mode), strict=True):
            safe = [cell.replace("|", "\\|") for cell in cells]
            lines.append("| " + " | ".join(f"**{cell}**" if row.is_prior else cell for cell in safe) + " |")
        lines += ["", _caption(shown, mode)]
    else:
        lines.append("No trial has a final evaluation.")
    failures = _failures(rows)
    if failures:
        lines += ["", f"{len(failures)} without a result:", ""]
        lines += [f"- `{each.trial_id}`: {each.error}" for each in failures]
    return "\n".join(lines) + "\n"


# ---- rows --------------------------------------------------------------------------------------


def _row(group: str, trials: Sequence[TrialResult], setting: str, prior_basic: float) -> Row:
    spec = trials[0][0]
    done = [(trial, result) for trial, result, error in trials if result is not None and is_finished(result, error)]
    evaluations = {
        mode: Evaluation(
            **{
                name: _estimate([result for _, result in done], f"eval/{mode}/{name}")
                for name in Evaluation.__dataclass_fields__
            }
        )
        for mode in MODES
    }
    basic = evaluations["deterministic"].basic_return.mean
    kept = basic / prior_basic if prior_basic > 0 and math.isfinite(basic) else None
    return Row(
        group=group,
        setting=setting,
        method=spec.method,
        weights=dict(spec.weights),
        seeds=tuple(sorted(trial.seed for trial, _ in done)),
        is_prior=spec.method == PRIOR_METHOD,
        spread="seeds" if len(done) > 1 else "episodes",
        deterministic=evaluations["deterministic"],
        sampled=evaluations["sampled"],
        kl_to_prior=_estimate([result for _, result in done], "eval/kl_to_prior"),
        basic_kept=kept,
        env_steps=spec.env_steps,
        failures=tuple(
            Failure(trial.trial_id, trial.seed, _why(trial, result, error))
            for trial, result, error in trials
            if not is_finished(result, error)
        ),
    )


def _estimate(results: Sequence[Mapping[str, Any]], key: str) -> Estimate:
    """Mean and spread of ``key`` over trials, of ``<key>_mean`` and ``<key>_std`` or of ``<key>`` alone."""
    figures = [_number(result, f"{key}_mean", key) for result in results]
    finite = [each for each in figures if math.isfinite(each)]
    if not finite:
        return Estimate(math.nan, math.nan, 0)
    if len(results) > 1:
        std = statistics.stdev(finite) if len(finite) > 1 else math.nan
    else:
        std = _number(results[0], f"{key}_std")
    return Estimate(statistics.fmean(finite), std, len(finite))


def _number(result: Mapping[str, Any], *keys: str) -> float:
    for key in keys:
        if result.get(key) is not None:
            return float(result[key])
    return math.nan


def _prior_basic(groups: Iterable[Sequence[TrialResult]]) -> float:
    prior = [
        result
        for trials in groups
        for trial, result, error in trials
        if trial.method == PRIOR_METHOD and result is not None and is_finished(result, error)
    ]
    return _estimate(prior, "eval/deterministic/basic_return").mean


def _why(trial: TrialSpec, result: Mapping[str, Any] | None, error: str | None) -> str:
    if error is not None:
        lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "failed without a message"
    if result is None:
        return "made no report"
    return f"stopped at {_number(result, 'env_steps'):,.0f} of {trial.env_steps:,} env steps, not evaluated"


def _settings(trials: Sequence[TrialSpec]) -> dict[str, str]:
    """Group → its name: method and weights, and if that is not enough, the training settings that differ."""
    alike: defaultdict[str, list[TrialSpec]] = defaultdict(list)
    for trial in trials:
        weights = [f"{name}={_value(value)}" for name, value in trial.weights.items()]
        name = "prior" if trial.method == PRIOR_METHOD else " ".join([trial.method, *weights])
        alike[name].append(trial)
    settings: dict[str, str] = {}
    for name, same in alike.items():
        training = [dict(trial.training) for trial in same]
        varied = [key for key in training[0] if len({repr(each.get(key)) for each in training}) > 1]
        for trial, each in zip(same, training, strict=True):
            settings[trial.group] = " ".join([name, *(f"{key}={_value(each.get(key))}" for key in varied)])
    return settings


def _value(value: object) -> str:
    """A weight to read: four digits; a schedule as ``0.2→0.05@100000``."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        first, *rest = value
        return _value(first[1]) + "".join(f"→{_value(level)}@{step:g}" for step, level in rest)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- text --------------------------------------------------------------------------------------


def _headings(metric_name: str) -> list[str]:
    return ["n", "basic", "add-on", "total", "KL", metric_name, "kept"]


def _cells(rows: Sequence[Row], mode: Mode) -> list[list[str]]:
    columns = [
        [row.evaluation(mode).basic_return for row in rows],
        [row.evaluation(mode).addon_return for row in rows],
        [row.evaluation(mode).total_return for row in rows],
        [row.kl_to_prior for row in rows],
        [row.evaluation(mode).task_metric for row in rows],
    ]
    basic, addon, total, kl, metric = (_column(column, rows) for column in columns)
    return [
        [
            f"» {row.setting}" if row.is_prior else row.setting,
            str(len(row.seeds)),
            basic[i],
            addon[i],
            total[i],
            kl[i].partition(" ")[0],
            metric[i].partition(" ")[0],
            NOTHING if row.basic_kept is None else f"{100 * row.basic_kept:.0f} %",
        ]
        for i, row in enumerate(rows)
    ]


def _column(estimates: Sequence[Estimate], rows: Sequence[Row]) -> list[str]:
    """One column with the same number of decimals throughout."""
    largest = max((abs(each.mean) for each in estimates if math.isfinite(each.mean)), default=0.0)
    decimals = 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 10 else 3
    cells = []
    for each, row in zip(estimates, rows, strict=True):
        if not math.isfinite(each.mean):
            cells.append(NOTHING)
            continue
        cell = f"{each.mean:.{decimals}f}"
        if math.isfinite(each.std):
            cell += f" ±{each.std:.{decimals}f}"
        if each.n < len(row.seeds):
            cell += f" ({each.n}/{len(row.seeds)})"
        cells.append(cell)
    return cells


def _caption(rows: Sequence[Row], mode: Mode) -> str:
    spreads = {row.spread for row in rows}
    over = {
        frozenset({"seeds"}): "seeds",
        frozenset({"episodes"}): "evaluation episodes",
    }.get(frozenset(spreads), "seeds, or where n = 1 over evaluation episodes")
    words = [
        f"Undiscounted returns per episode of the {mode} policy; ± is the standard deviation over {over}; "
        "n = seeds; KL to the prior in nats.",
    ]
    if any(row.is_prior for row in rows):
        words.append("» marks the prior itself, untouched; kept = share of its basic return.")
    if any(estimate.n < len(row.seeds) for row in rows for estimate in vars(row.evaluation(mode)).values()):
        words.append("(k/n): only k of n seeds have a finite figure.")
    return " ".join(words)


def _failures(rows: Sequence[Row]) -> list[Failure]:
    return sorted((each for row in rows for each in row.failures), key=lambda each: each.trial_id)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
