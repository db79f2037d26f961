"""A sweep as the report shows it: one JSON object, read by the page's script and by nothing else.

Figures are means over seeds as in the table; a list ``[mean, std, n, low, high]`` is one with its spread and its 95 %
interval (null where unknown).
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpg_platform.results.difference import choosing_words
from rpg_platform.results.names import at_words, main_method, short_name, varied_weights
from rpg_platform.results.ranking import violations
from rpg_platform.results.report import MODES, as_json, is_finished
from rpg_platform.results.rows import Estimate, Row
from rpg_platform.review.curves import Training, thinned, warnings_of
from rpg_platform.review.found import Found
from rpg_platform.review.planned import plan_against_what_happened
from rpg_platform.review.videos import Video, read_videos
from rpg_platform.spec.measures import MEASURES, PER_MODE, RETURNS
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.task import task_label
from rpg_platform.spec.yaml_file import dump_spec
from rpg_platform.storage.sweep_folder import SOURCE_FILE

MOST_CURVES = 60
"""Settings whose learning curves are drawn; of more, the best and some others spread over the ranking."""
_CURVE_NUMBERS = 30_000  # of all learning curves together: about 0.25 MB
_CURVE_POINTS = (8, 75)
_CHOOSING = (*RETURNS, "kl_to_prior")


def content_of(found: Found, run_ids: Mapping[str, str], metric_name: str) -> dict[str, Any]:
    """Everything that the page shows, as strict JSON.

    Args:
        found: the sweep.
        run_ids: trial id (the sweep's own run: the empty string) → MLflow's run id, as far as known.
        metric_name: heading of the task's readable metric.
    """
    spec, rows = found.spec, found.rows
    trials = _trials_by_group(found)
    points = {trial.trial_id: trial.point_of for trial, _, _ in found.results if trial.point_of is not None}
    trained = {**found.trainings, **{name: found.trainings[of] for name, of in points.items() if of in found.trainings}}
    about = _about(found, metric_name, run_ids)
    made: dict[str, Any] = as_json(
        {
            "about": about,
            "plan": plan_against_what_happened(found, about["seconds"]),
            "measures": [
                {
                    "name": m.name,
                    "heading": metric_name if m.name == "task_metric" else m.heading,
                    "text": m.description,
                }
                for m in MEASURES
                if m.heading
            ],
            "weights": varied_weights(rows),
            "rows": [_row(row, trials[row.group], trained, found, run_ids) for row in rows],
            "importance": importance(rows),
            "curves": _curves(found),
            "commands": found.source.commands(spec),
            "videos": _videos(found),
            "yaml": _yaml(found),
        }
    )
    return made


def _yaml(found: Found) -> str:
    """The specification as the user wrote it, where there was a file."""
    written = found.source.read_bytes(SOURCE_FILE)
    return dump_spec(found.spec) if written is None else written.decode("utf-8")


def _trials_by_group(found: Found) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for trial, _, _ in found.results:
        groups.setdefault(trial.group, []).append(trial.trial_id)
    return groups


def _about(found: Found, metric_name: str, run_ids: Mapping[str, str]) -> dict[str, Any]:
    spec, status = found.spec, found.status
    uri = found.source.tracking_uri(spec)
    counts = {"total": len(found.trained), "finished": 0, **status.get("trials", {})}
    counts["finished"] = sum(is_finished(report, error) for _, report, error in found.trained)
    started, heard = status.get("started"), status.get("heartbeat")
    reports = [report for _, report, _ in found.trained if report]
    rows_with_figures = [row for row in found.rows if row.seeds]
    return {
        "name": spec.name,
        "folder": found.source.place,
        "description": spec.description,
        "task": task_label(spec.task),
        "prior": spec.prior,
        "algorithm": spec.algorithm,
        "state": status.get("state", "unknown"),
        "trials": counts,
        "seeds": list(spec.seeds),
        "env_steps": spec.budget.env_steps,
        "trained_env_steps": sum(float(report.get("env_steps", 0)) for report in reports),
        "seconds": heard - started if started and heard else None,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "objective": spec.objective.model_dump(mode="json", exclude_none=True),
        "episodes": spec.evaluation.episodes,
        "evaluation_seed": spec.evaluation.seed,
        "chosen_apart": all(row.chosen_apart for row in rows_with_figures),
        "choosing": choosing_words(found.rows),
        "metric": metric_name,
        "code": next((str(report["code"]).split(" from ")[0] for report in reports if "code" in report), None),
        "mlflow": uri if uri.startswith("http") else "http://127.0.0.1:5000",
        "is_embedded": not uri.startswith("http"),
        "run": run_ids.get(""),
        "failures": [{"trial": t, "error": e} for t, e in _failed(found)],
        "prior_hash": found.source.prior_hash(),
        "unknown": list(found.source.unknown),
        "stopped": sum(len(row.stopped) for row in found.rows),
    }


def _failed(found: Found) -> list[tuple[str, str]]:
    return [(each.trial_id, each.error) for row in found.rows for each in row.failures]


def _row(
    row: Row,
    trials: Sequence[str],
    trained: Mapping[str, Training],
    found: Found,
    run_ids: Mapping[str, str],
) -> dict[str, Any]:
    health = [(name, trained[name].health) for name in trials if name in trained and not row.is_prior]
    worst = {key: _worst([each[key] for _, each in health], key) for key in (health[0][1] if health else {})}
    prior = next((each for each in found.rows if each.is_prior and each.seeds), None)
    return {
        "group": row.group,
        "name": short_name(row),
        "method": row.method,
        "weights": {k: v if isinstance(v, (int, float)) else None for k, v in row.weights.items()},
        "told": found.told.get(row.group),
        "line": found.lines[row.group],
        "line_name": found.line_names[found.lines[row.group]] if row.group in found.told else short_name(row),
        "seeds": row.seeds,
        "is_prior": row.is_prior,
        "is_best": row.is_best,
        "violations": [str(each) for each in row.violations],
        "other_violations": _beside_the_sliders(row, found.spec.objective, prior),
        "is_deployable": row.is_deployable,
        "chosen_by": {each: {n: _seven(row.chosen_by[each][n]) for n in _CHOOSING} for each in MODES},
        "medians": {each: {n: _seven(value) for n, value in row.medians[each].items()} for each in MODES},
        "collapsed": row.collapsed,
        "kl_estimated": row.kl_estimated,
        "kl": _estimate(row.kl_to_prior),
        "objective": _estimate(row.trained_on),
        **{each: {name: _estimate(row.evaluation(each)[name]) for name in PER_MODE} for each in MODES},
        "trials": [
            [name.removeprefix(row.group), run_ids.get(name), _path_of(found.checkpoints.get(name), found, name)]
            for name in trials
        ],
        "health": worst,
        "warnings": warnings_of(worst) if worst else [],
        "evaluated_at": row.evaluated_at if at_words(row) else None,
    }


def _path_of(checkpoint: str | None, found: Found, trial_id: str) -> str | None:
    """A checkpoint, inside the sweep's place with the trial's name as ``{id}``: there are thousands."""
    inside = found.source.place
    if checkpoint is None or not checkpoint.startswith(inside):
        return checkpoint
    return checkpoint.removeprefix(inside).replace(trial_id, "{id}", 1)


def _beside_the_sliders(row: Row, objective: Objective, prior: Row | None) -> list[str]:
    """The constraints that a setting breaks, but for those that the page's sliders set."""
    basic = getattr(objective.constraints, "basic_return", None)
    rest = None if basic is None else basic.model_copy(update={"min_fraction_of_prior": None})
    constraints = objective.constraints.model_copy(update={"kl_to_prior": None, "basic_return": rest})
    own, of_prior = (None if each is None else each.chosen_by[objective.mode] for each in (row, prior))
    return [str(each) for each in violations(constraints, own or {}, of_prior)]


def _worst(values: Sequence[float], key: str) -> float:
    finite = [each for each in values if math.isfinite(each)]
    if not finite:
        return math.nan
    return min(finite) if key == "explained_variance" else max(finite)


def _estimate(figure: Estimate) -> list[float | int | None]:
    low, high = figure.mean_interval or (math.nan, math.nan)
    return [_seven(figure.mean), _seven(figure.std), figure.n, _seven(low), _seven(high)]


def _seven(value: float) -> float:
    """Seven digits: more than is shown, and half the page of thousands of trials."""
    return float(f"{value:.7g}")


# ---- what each weight does -----------------------------------------------------------------------
def importance(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How much of a measure's variance over the settings each weight explains by itself (its main effect, η²).

    A weight of many values is cut into five spans of as many settings. Settings of the sweep's main method alone.

    Returns:
        Measure → weight → share of the variance, 0 to 1; empty where no weight varies.
    """
    method = main_method(rows)
    main = [row for row in rows if row.method == method and row.seeds]
    names = [each["name"] for each in varied_weights(rows)]
    shares: dict[str, dict[str, float]] = {}
    for measure in ("total_return", "addon_return", "basic_return", "kl_to_prior"):
        figures = np.array([row.figure(measure).mean for row in main])
        for name in names:
            levels = np.array(
                [float(v) if isinstance(v := row.weights.get(name), (int, float)) else math.nan for row in main]
            )
            both = np.isfinite(figures) & np.isfinite(levels)
            if both.sum() >= 3 and np.ptp(figures[both]) > 0:
                shares.setdefault(measure, {})[name] = _explained(figures[both], levels[both])
    return shares


def _explained(figures: np.ndarray[Any, Any], levels: np.ndarray[Any, Any]) -> float:
    values, groups = np.unique(levels, return_inverse=True)
    if len(values) > 8:
        groups = np.argsort(np.argsort(levels, kind="stable")) * 5 // len(levels)
    away = figures - figures.mean()
    of_groups = [away[groups == group] for group in np.unique(groups)]
    return float(sum(len(each) * each.mean() ** 2 for each in of_groups) / (away**2).sum())


# ---- learning curves -----------------------------------------------------------------------------
def _curves(found: Found) -> dict[str, Any]:
    of_rows = dict.fromkeys(found.lines[row.group] for row in found.rows if not row.is_prior)
    groups = [group for group in of_rows if group in found.lines_of]
    chosen = _to_draw(groups)
    lines = sum(len(found.lines_of[group]) for group in chosen) * 9
    points = max(_CURVE_POINTS[0], min(_CURVE_POINTS[1], _CURVE_NUMBERS // max(1, lines)))
    drawn: dict[str, list[dict[str, Any]]] = {
        group: [
            {
                **thinned(training, points),
                "checked": [
                    list(training.validation_steps),
                    *(list(training.validation[each]) for each in ("total_return", "addon_return", "basic_return")),
                ],
            }
            for training in found.lines_of[group].values()
        ]
        for group in chosen
    }
    steps: dict[tuple[float, ...], int] = {}  # nearly all trials report at the same ones
    for curve in (each for curves in drawn.values() for each in curves):
        curve["steps"] = steps.setdefault(tuple(curve["steps"]), len(steps))
    return {"of": len(groups), "steps": list(steps), "settings": _rounded(drawn)}


def _to_draw(groups: Sequence[str]) -> list[str]:
    if len(groups) <= MOST_CURVES:
        return list(groups)
    best = MOST_CURVES * 2 // 3
    others = np.linspace(best, len(groups) - 1, MOST_CURVES - best).astype(int)
    return [*groups[:best], *(groups[i] for i in sorted(set(others.tolist())))]


def _rounded(value: Any) -> Any:
    """Figures to the five digits that a picture can show."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


# ---- videos --------------------------------------------------------------------------------------
def _videos(found: Found) -> list[dict[str, Any]]:
    """The sweep's videos, in the page itself; none where what says what they are is damaged."""
    try:
        videos = read_videos(found.source)
    except ValueError:
        return []
    clips = []
    for video in videos:
        content = found.source.read_bytes(video.path)
        if content is None:
            continue
        encoded = base64.b64encode(content).decode("ascii")
        clips.append(
            {
                "label": _role_words(video),
                "source": f"data:video/mp4;base64,{encoded}",
                "steps_per_s": video.fps * video.every,
                "trace": list(video.trace),
                "metric": video.metric,
            }
        )
    return clips


def _role_words(video: Video) -> str:
    if video.role == "prior":
        return "prior, untouched"
    return f"★ {video.label}" if video.role == "best" else f"most add-on: {video.label}"
