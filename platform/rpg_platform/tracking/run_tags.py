"""Makes a run's parameters and tags: what was asked for, and who ran which code."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rpg_platform
from rpg_platform.results.names import run_name, steps_words
from rpg_platform.results.report import POINTS, TrialResult, evaluations, with_points
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.task import task_label

PACKAGE = "residual-policy-gradient"
TAG_POINT_OF = "point_of"
"""Of a run that is a policy at one setting of the weights it is told: the trial that trained it."""
# What a policy's returns depend on.
_VERSIONS = ("ray", "torch", "numpy", "gymnasium", "mujoco", "mlflow")


# Beside the weights, these make a trial what it is; the rest is in the config artifact.
_TRAINING_PARAMS = ("lr", "gamma", "lambda_", "clip_param", "minibatch_size", "num_epochs")


def common_tags(spec: Mapping[str, Any], prior_hash: str | None) -> dict[str, Any]:
    """Tags of the sweep's run and of each trial's: the UI nests runs in one sort order only."""
    tags = {name: spec.get(name) for name in ("task", "prior", "algorithm")}
    tags |= {"task": task_label(tags["task"]), "sweep": spec["name"], "prior_hash": prior_hash}
    return {key: text(value) for key, value in tags.items() if value is not None} | provenance()


def sweep_params(spec: Mapping[str, Any], trials: int) -> dict[str, Any]:
    """Parameters of a sweep's own run; of those that are not set None."""
    return {
        "algorithm": spec.get("algorithm"),
        "task": task_label(spec.get("task")),
        "prior": spec.get("prior"),
        **{f"weights.{name}": value for name, value in (spec.get("weights") or {}).items()},
        "baselines": spec.get("baselines"),
        "seeds": spec.get("seeds"),
        "env_steps": (spec.get("budget") or {}).get("env_steps"),
        "samples": spec.get("samples"),
        "search_seed": spec.get("search_seed"),
        "trials": trials,
    }


def trial_params(spec: Mapping[str, Any], searched: Iterable[str] = ()) -> dict[str, Any]:
    """Parameters of a trial's run, the training settings in which trials differ too; of those that are not set None."""
    training = spec.get("training") or {}
    return {
        **{name: spec.get(name) for name in ("method", "prior", "seed", "env_steps")},
        "task": task_label(spec.get("task")),
        **(spec.get("weights") or {}),
        **{name: training[name] for name in (*_TRAINING_PARAMS, *searched) if name in training},
    }


def trial_tags(spec: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Tags of a trial's run.

    Args:
        spec: the trial's specification, as data.
        common: from ``common_tags``.
    """
    own = {**spec, "task": task_label(spec.get("task"))}
    tags = {"kind": "trial", **common}
    for name in ("prior", "prior_hash") if spec.get("prior") is None else ():
        tags.pop(name, None)  # its method makes no use of it
    method = METHODS.get(spec.get("method", ""))
    return tags | {
        **{name: text(own[name]) for name in ("task", "prior", "method", "seed") if own.get(name) is not None},
        **({TAG_POINT_OF: own["point_of"]} if own.get("point_of") else {}),
        **{f"weights.{name}": text(value) for name, value in (spec.get("weights") or {}).items()},
        "algorithm": (method and method.algorithm) or "none",
    }


def marks_of(results: Iterable[TrialResult], searched: Sequence[str]) -> dict[str, dict[str, str]]:
    """Trial id → tags that say of which env steps its headline figures are, of trials whose budget was extended.

    A run's name ends with it (``@53k``) until there is an evaluation at the new budget.

    Args:
        results: trials with their last reports and errors.
        searched: the training settings in which trials differ.
    """
    marks = {}
    for trial, report, error in results:
        made = evaluations(trial, report, error)
        if not made.keys() - {trial.env_steps}:
            continue
        last = max(made)
        mark = f" @{steps_words(last)}" if last < trial.env_steps else ""
        name = run_name(trial.model_dump(mode="json"), searched) + mark
        marks[trial.trial_id] = {"mlflow.runName": name, "evaluated_at": f"{last} env steps"}
    return marks


def points_of(
    spec: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The settings at which a policy that is told its weights was evaluated, each as data and with its figures.

    Args:
        spec: a trial's specification, as data.
        report: its last one, whose time the figures have, so that they are one point of MLflow's however often sent.
    """
    if POINTS not in report:
        return
    timed = {name: report[name] for name in ("timestamp",) if name in report}
    for point, figures, _ in with_points([(TrialSpec.model_validate(spec), report, None)]):
        if point.point_of is not None:
            yield point.model_dump(mode="json"), {**(figures or {}), **timed}


def text(value: object) -> str:
    """A parameter as text: numbers and words as they are, schedules and search spaces as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as texts, those that are set."""
    return {key: text(value) for key, value in params.items() if value is not None and value != []}


@functools.cache
def provenance() -> dict[str, str]:
    """Gives user, versions and commit as MLflow tags, and no host names, because tracking servers are shared.

    The commit is that of the repository in which the user started the sweep (the working directory); without one, that
    of the checkout which this package runs from. ``git_changed`` says whether tracked files differ from the commit.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": "rpg sweep", "mlflow.source.type": "LOCAL"}
    tags |= {f"version.{PACKAGE}": rpg_platform.__version__, "version.python": platform.python_version()}
    for name in _VERSIONS:
        try:
            tags[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tags | (git_tags(Path.cwd()) or git_tags(Path(__file__).resolve()))


def git_tags(place: Path) -> dict[str, str]:
    """Gives commit and state of the repository that ``place`` belongs to; empty if it belongs to none.

    Args:
        place: a folder inside a repository, or a file that the repository tracks: a wheel in an environment inside
            somebody's repository is not of that repository.
    """
    folder = place if place.is_dir() else place.parent

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not place.is_dir() and git("ls-files", "--error-unmatch", place.name) is None:
        return {}
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"mlflow.source.git.commit": commit, "git_changed": str(changed).lower()}
