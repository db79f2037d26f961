"""Views of a sweep in MLflow's own dashboard: what is filtered, sorted, listed and drawn, saved with the experiment.

MLflow (3.15 and later) keeps a saved view as a tag of the experiment, whose value is the packed state of its page; an
earlier one ignores the tag. The identifiers here are made from names alone, so that a view written twice is one view,
and that its address can be told without looking.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rpg_platform.results.report import HEADLINE, KEPT

TRADE_OFF, LEARNING, HEALTH = "Trade-off", "Learning curves", "Health"
_TAG = "mlflow.sharedViewState."
_OTHER_SECTIONS = (
    "train",
    "health",
    "validation",
    "validation/deterministic",
    "validation/sampled",
    "eval/deterministic",
    "eval/sampled",
    "eval_best",
    "eval_best/deterministic",
    "eval_best/sampled",
    "Model metrics",
    "System metrics",
)
_LEARNING = (
    "train/total_return",
    "train/basic_return",
    "train/addon_return",
    "train/kl_to_prior",
    "validation/deterministic/total_return_mean",
    "train/task_metric",
    "train/reward_addon_term",
    "train/reward_prior_term",
    "train/reward_entropy_term",
)
_HEALTH = (
    "health/approx_kl",
    "health/approx_kl_peak",
    "health/kl_to_prior_peak",
    "health/reward_scale",
    "health/clip_fraction",
    "health/explained_variance",
    "train/entropy",
    "health/policy_loss",
    "health/vf_loss",
    "health/learning_rate",
    "health/nonfinite_values",
    "health/env_failures",
    "health/env_runner_restarts",
    "health/dropped_nonfinite",
    "system/env_steps_per_s",
)


def view_id(sweep: str, name: str) -> str:
    """The identifier of a sweep's view, which its tag and its address have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{sweep}-{name.lower()}")


def view_tag(sweep: str, name: str = TRADE_OFF) -> str:
    """The experiment's tag that has a sweep's view."""
    return f"{_TAG}{view_id(sweep, name)}"


def runs_address(experiment_id: str) -> str:
    """The part of the address of an experiment's runs behind the server's, in the mode of model training."""
    return f"#/experiments/{experiment_id}/runs?{urllib.parse.urlencode(_TRAINING)}"


def view_address(experiment_id: str, sweep: str, name: str = TRADE_OFF) -> str:
    """The part of a view's address behind the server's, in the mode of model training."""
    query = {"viewStateShareKey": view_id(sweep, name), "compareRunsMode": "CHART", **_TRAINING}
    return f"#/experiments/{experiment_id}/runs?{urllib.parse.urlencode(query)}"


def models_address(experiment_id: str) -> str:
    """The part of the address of an experiment's table of policies behind the server's."""
    return f"#/experiments/{experiment_id}/models?{urllib.parse.urlencode(_TRAINING)}"


_TRAINING = {"workflowType": "machine_learning"}
EXPERIMENTS = f"#/experiments?{urllib.parse.urlencode(_TRAINING)}"
"""The part of the address of the list of experiments behind the server's."""


def experiment_tags(sweep: str, weights: Sequence[str], maximize: str, created_ms: int) -> dict[str, str]:
    """The tags that save a sweep's views with its experiment.

    Args:
        sweep: its name, which its runs have as a tag.
        weights: names of the numeric weights that are searched, the main one first.
        maximize: the measure that its objective maximises.
        created_ms: when, in ms since the epoch.
    """
    best_first = next(name for name, measure in HEADLINE.items() if measure == maximize)
    charts = {TRADE_OFF: list(_trade_off(weights)), LEARNING: _lines(_LEARNING), HEALTH: _lines(_HEALTH)}
    views = {}
    for name, drawn in charts.items():
        state = _state(sweep, name, drawn, weights, best_first)
        packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
        view = {"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": f"deflate;{packed}"}
        views[view_tag(sweep, name)] = json.dumps(view)
    return views


def _state(
    sweep: str, section: str, charts: Sequence[Mapping[str, Any]], weights: Sequence[str], best_first: str
) -> dict[str, Any]:
    """The state of MLflow's page of runs: what is not given is as it is by default."""
    columns = [*(f"params.`{name}`" for name in weights), *(f"metrics.`{name}`" for name in (*HEADLINE, KEPT))]
    sections = [_section(section, shown=True), *(_section(name, shown=False) for name in _OTHER_SECTIONS)]
    return {
        "searchFilter": f"tags.kind = 'trial' and tags.sweep = '{sweep}'",
        "orderByKey": f"metrics.`{best_first}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*columns, "attributes.`Models`"],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            {"uuid": f"{section}-{i}", "metricSectionId": section, "deleted": False, "isGenerated": False, **chart}
            for i, chart in enumerate(charts)
        ],
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": None,
    }


def _section(name: str, *, shown: bool) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": shown, "isReordered": True, "deleted": False, "isGenerated": False}


def _trade_off(weights: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield _scatter(_metric("addon"), _metric("basic"))
    yield _scatter(_metric("kl"), _metric("total"))
    if len(weights) > 1:
        x, y = map(_param, weights[:2])
        yield {"type": "CONTOUR", "runsCountToCompare": 100, "xaxis": x, "yaxis": y, "zaxis": _metric("total")}
    if weights:
        yield _scatter(_param(weights[0]), _metric("total"))
        yield {
            "type": "PARALLEL",
            "runsCountToCompare": 100,
            "selectedParams": list(weights),
            "selectedMetrics": ["addon", "kl", "basic", "total"],
            "showAllRuns": True,
        }
    yield {"type": "BAR", "runsCountToCompare": 100, "metricKey": KEPT}


def _scatter(x: Mapping[str, str], y: Mapping[str, str]) -> dict[str, Any]:
    return {"type": "SCATTER", "runsCountToCompare": 100, "xaxis": x, "yaxis": y}


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _param(name: str) -> dict[str, str]:
    return {"key": name, "type": "PARAM"}


def _lines(metrics: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "type": "LINE",
            "runsCountToCompare": 100,
            "metricKey": metric,
            "selectedMetricKeys": [metric],
            "displayName": metric.removesuffix("_mean").rpartition("/")[2].replace("_", " "),
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "lineSmoothness": 0,
            "range": {},
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": True,
        }
        for metric in metrics
    ]
