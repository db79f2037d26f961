"""How trials went while they trained: learning curves and health, from the reports that Tune keeps in ``result.json``.

A trial that was continued after a crash has several such files, one an attempt; of a step that was reported twice the
first report counts, as in MLflow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.results.report import ENV_STEPS, ENV_STEPS_PER_S, VALIDATION, Mode, mean_key, metric_names
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.stored import StoredSweep

RETURNS = ("total_return", "addon_return", "basic_return")
TERMS = ("reward_addon_term", "reward_prior_term", "reward_entropy_term", "reward_basic_term")
CURVES = (*RETURNS, "kl_to_prior", *TERMS)
"""What is drawn over env steps, by its key in a report; besides, ``objective`` of the validations."""
_OBJECTIVE = mean_key(VALIDATION, "sampled", "objective")
_PEAKS = ("approx_kl_peak", "kl_to_prior_peak")
_HEALTH = ("clip_fraction", "approx_kl", "explained_variance", "nonfinite_values", "env_failures", *_PEAKS)
SPIKE_KL = 50.0
"""Nats per state: a training that touched this KL to the prior had left it altogether."""
LOW_EXPLAINED_VARIANCE = 0.3
LARGE_STEP_KL = 1.0
"""Nats: an update that moves the policy by this much is no small step."""


@dataclass(frozen=True)
class Training:
    """One trial's training.

    Attributes:
        steps: ``[T]`` env steps of its reports, ascending.
        values: name in ``CURVES``, and ``objective`` → ``[T]``, NaN where a report lacks it.
        validation_steps: ``[V]`` env steps of its validations.
        validation: name in ``RETURNS`` → ``[V]``, of the mode that was asked for.
        health: see ``health_of``.
        speed: median env steps per second of its iterations; NaN where the reports say nothing.
    """

    steps: Array
    values: Mapping[str, Array]
    validation_steps: Array
    validation: Mapping[str, Array]
    health: Mapping[str, float]
    speed: float = math.nan


def trainings(folder: SweepFolder, trial_ids: Iterable[str], mode: Mode = "deterministic") -> dict[str, Training]:
    """Trial id → its training, of every trial that has reported.

    Args:
        folder: the sweep's.
        trial_ids: which trials.
        mode: of the validations.
    """
    wanted = set(trial_ids)
    files = {name: paths for name, paths in folder.report_files().items() if name in wanted}
    return {name: made for name, paths in files.items() if (made := _training(folder, paths, mode)) is not None}


def stored_trainings(stored: StoredSweep, mode: Mode = "deterministic") -> dict[str, Training]:
    """As ``trainings``, from MLflow: a request for a figure of a hundred trials."""
    validated = [mean_key(VALIDATION, mode, name) for name in RETURNS]
    seen: dict[str, dict[float, dict[str, Any]]] = {
        name: {float(each.step): {ENV_STEPS: each.step} for each in run.data._metric_objs}  # with the steps
        for name, run in stored.trials.items()
    }
    for key in (*CURVES, *_HEALTH, ENV_STEPS_PER_S, *validated, _OBJECTIVE):
        left = set(seen)
        for named in dict.fromkeys(metric_names(key)):
            found = stored.histories(named, left)
            left -= found.keys()
            for name, series in found.items():
                for step, value in series.items():
                    seen[name].setdefault(float(step), {ENV_STEPS: step})[key] = value
    return {name: made for name, reports in seen.items() if (made := _of_reports(reports, mode)) is not None}


def _training(folder: SweepFolder, paths: Sequence[str], mode: Mode) -> Training | None:
    seen: dict[float, dict[str, Any]] = {}
    for path in paths:
        for report in _reports(folder.read_text(path) or ""):
            step = report.get(ENV_STEPS)
            if isinstance(step, (int, float)) and math.isfinite(step):
                seen.setdefault(float(step), report)
    return _of_reports(seen, mode)


def _of_reports(seen: Mapping[float, Mapping[str, Any]], mode: Mode) -> Training | None:
    """A training from its reports by env steps; None if there are none."""
    if not seen:
        return None
    ordered = [seen[step] for step in sorted(seen)]
    steps = np.array(sorted(seen))
    columns = {name: _column(ordered, name) for name in (*CURVES, *_HEALTH, ENV_STEPS_PER_S)}
    keys = {name: mean_key(VALIDATION, mode, name) for name in RETURNS}
    checked = [each for each in ordered if keys["total_return"] in each]
    return Training(
        steps,
        {name: columns[name] for name in CURVES} | {"objective": _column(ordered, _OBJECTIVE)},
        np.array([float(each[ENV_STEPS]) for each in checked]),
        {name: _column(checked, key) for name, key in keys.items()},
        health_of(columns),
        _reduce(np.median, columns[ENV_STEPS_PER_S]),
    )


def _reports(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut
        if isinstance(report, dict):
            yield report


def _column(reports: Sequence[Mapping[str, Any]], key: str) -> Array:
    values = [report.get(key) for report in reports]
    return np.array([math.nan if each is None else float(each) for each in values], dtype=np.float64)


def health_of(columns: Mapping[str, Array]) -> dict[str, float]:
    """What tells a sound training from one whose end figures hide how it got there.

    Args:
        columns: name → ``[T]``, of a trial's reports in order.

    Returns:
        ``kl_max`` (nats to the prior, at its worst), ``step_kl_max`` (nats, the largest approximate KL of an update),
        ``clip_fraction`` (median), ``explained_variance`` (median of the last tenth), ``return_dip`` (the largest fall
        of the total return below what had been reached, as a share of its whole range), ``faults`` (non-finite values
        and failures of environments). NaN where the reports say nothing.
    """
    moved = np.nan_to_num(columns["approx_kl"]) != 0  # the critic's warm-up leaves the policy where it is
    late = columns["explained_variance"][-max(1, len(moved) // 10) :]
    total = columns["total_return"][np.isfinite(columns["total_return"])]
    return {
        "kl_max": _reduce(np.max, np.fmax(columns["kl_to_prior"], columns["kl_to_prior_peak"])),
        "step_kl_max": _reduce(np.max, np.fmax(columns["approx_kl"], columns["approx_kl_peak"])),
        "clip_fraction": _reduce(np.median, columns["clip_fraction"][moved]),
        "explained_variance": _reduce(np.median, late),
        "return_dip": _dip(total),
        "faults": float(np.nansum(columns["nonfinite_values"]) + np.nansum(columns["env_failures"])),
    }


def _reduce(function: Any, values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(function(finite)) if len(finite) else math.nan


def _dip(total: Array) -> float:
    if len(total) < 3 or np.ptp(total) == 0:
        return math.nan
    return float(np.max(np.maximum.accumulate(total) - total) / np.ptp(total))


def warnings_of(health: Mapping[str, float]) -> list[str]:
    """What a reader should know of a training before its figures are trusted; nothing of a sound one."""
    said = []
    if health["kl_max"] > SPIKE_KL:
        said.append(f"KL to the prior reached {health['kl_max']:,.0f} nats while training")
    if health["step_kl_max"] > LARGE_STEP_KL:
        said.append(f"an update moved the policy by {health['step_kl_max']:.3g} nats")
    if health["explained_variance"] < LOW_EXPLAINED_VARIANCE:
        said.append(f"the critic explains {100 * health['explained_variance']:.0f} % of the returns' variance")
    if health["faults"] > 0:
        said.append(f"{health['faults']:.0f} non-finite values or failures of environments")
    return said


def thinned(training: Training, points: int) -> dict[str, list[float]]:
    """A curve at no more than ``points`` steps: the mean over equal spans of env steps; ``steps`` are their ends."""
    spans = np.minimum(np.arange(len(training.steps)) * points // max(1, len(training.steps)), points - 1)
    ends = np.flatnonzero(np.diff(spans, append=points))
    starts = np.concatenate(([0], ends[:-1] + 1))
    thin = {"steps": [float(training.steps[end]) for end in ends]}
    for name, values in training.values.items():
        if np.isfinite(values).any():
            thin[name] = [_reduce(np.mean, values[a : b + 1]) for a, b in zip(starts, ends, strict=True)]
    return thin
