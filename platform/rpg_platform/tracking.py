"""Tune's events → MLflow: one parent run a sweep, one child run a trial, each report once.

The tracker only decides *what* is recorded; ``mlflow_runs`` delivers it. Every record is plain data with its
own time, so that delivery may wait or be repeated. Nothing that goes wrong here reaches the training.
"""

from __future__ import annotations

import base64
import functools
import getpass
import importlib.metadata
import json
import logging
import math
import numbers
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec
from uuid import uuid4

import yaml
from ray.tune import Callback

from rpg_platform import report
from rpg_platform.mlflow_runs import (
    DATABASE_FILE,
    PARENT,
    Kind,
    MlflowRuns,
    Record,
    default_tracking_uri,
    without_login,
)
from rpg_platform.plots import tradeoff_png

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from rpg_platform.spec import SweepSpec, TrialSpec

__all__ = ["DATABASE_FILE", "MlflowTracker", "default_tracking_uri"]

logger = logging.getLogger(__name__)

ParentStatus = Literal["FINISHED", "FAILED", "KILLED"]

STEP_KEY = "env_steps"
DROPPED_KEY = "dropped_nonfinite"
BUNDLE_FOLDER = "bundle"
CONFIG_FOLDER = "config"
FINAL_PATIENCE_S = 30.0

# Tune's bookkeeping, not the trial's figures; `time_total_s` is kept.
_NOT_METRICS = frozenset(
    {
        *(
            "timestamp",
            "date",
            "pid",
            "hostname",
            "node_ip",
            "trial_id",
            "config",
            "done",
            "should_checkpoint",
        ),
        *("iterations_since_restore", "time_since_restore", "timesteps_since_restore", "time_this_iter_s"),
        *(
            "training_iteration",
            "timesteps_total",
            "episodes_total",
            "checkpoint_dir_name",
            STEP_KEY,
            DROPPED_KEY,
        ),
    }
)
# Beside the weights, these make a trial what it is; the rest is in the config artifact.
_TRAINING_PARAMS = ("lr", "gamma", "lambda_", "clip_param", "minibatch_size", "num_epochs")

P = ParamSpec("P")


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """For Tune's hooks: Tune fails a trial, or the sweep, for an exception in a callback."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            tracker = args[0]
            assert isinstance(tracker, MlflowTracker)
            tracker.runs.failed(f"{method.__name__} failed, a defect of the tracker; please report it", error)
            logger.debug("tracking: %s", method.__name__, exc_info=True)

    return guarded


class MlflowTracker(Callback):
    """Records a sweep in MLflow while Tune runs it.

    Made by ``sweep`` before the Tuner, given to it as a callback, and told the end by ``finish``::

        tracker = MlflowTracker(uri, experiment, spec, trials)
        tracker.start()
        try:
            ...  # Tuner(run_config=RunConfig(callbacks=[tracker])).fit()
        finally:
            tracker.finish(results, interrupted=...)

    Runs are reopened, never doubled: after a trial's restart by its id, after Tune restored the driver by the
    state Tune keeps (``get_state``; leave ``start`` to Tune then), and for a rebuilt driver by ``run_key``.

    Args:
        tracking_uri: MLflow server, or ``sqlite:///…`` (``default_tracking_uri``).
        experiment: MLflow experiment; made if it is missing.
        spec: the sweep.
        trials: all of its trials.
        source: text of the YAML file as the user wrote it; None: the spec is written out.
        run_key: what tells this sweep from an earlier one of the same name; the same key reopens its runs.
            None: a new sweep.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        spec: SweepSpec,
        trials: Sequence[TrialSpec],
        *,
        source: str | None = None,
        run_key: str | None = None,
    ) -> None:
        self.runs = MlflowRuns(tracking_uri, experiment, run_key or uuid4().hex)
        self._spec: dict[str, Any] = json.loads(without_login(json.dumps(spec.model_dump(mode="json"))))
        self._source = None if source is None else without_login(source)
        self._trial_ids = [trial.trial_id for trial in trials]
        self._started = False
        self._open: set[str] = set()  # trials whose run has been opened here and not been closed
        if run_key is not None:
            self.runs.expect_earlier_runs(PARENT, *self._trial_ids)

    @property
    def errors(self) -> int:
        """Failed deliveries and failures inside the tracker."""
        return self.runs.errors

    @property
    def pending(self) -> int:
        """Records that wait for the server."""
        return self.runs.pending

    @property
    def dropped(self) -> int:
        """Records given up."""
        return self.runs.dropped

    @property
    def parent_run_id(self) -> str | None:
        """MLflow's id of the sweep's run; None while it has not been opened."""
        return self.runs.run_ids.get(PARENT)

    @property
    def parent_url(self) -> str | None:
        """The sweep's page; None for an embedded store, or while the run has not been opened."""
        if self.parent_run_id is None or not self.runs.tracking_uri.startswith("http"):
            return None
        base = without_login(self.runs.tracking_uri).rstrip("/")
        return f"{base}/#/experiments/{self.runs.experiment_id}/runs/{self.parent_run_id}"

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; one that comes back has to open its runs again."""
        return {**self.__dict__, "_started": False, "_open": set()}

    # ---- the sweep ------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the sweep's run; makes store and experiment if they are new. A second call does nothing."""
        if self._started:
            return
        self._started = True
        try:
            self._open_parent()
        except Exception as error:
            self.runs.failed("the sweep's run was not opened, a defect of the tracker; please report it", error)

    def finish(self, results: Sequence[report.TrialResult], *, interrupted: bool = False) -> ParentStatus:
        """Closes the sweep: summary as artifacts, the true status, and a last wait for a server that is away.

        Args:
            results: every trial with its last result and error; one that is not among them counts as missing.
            interrupted: the sweep was stopped from outside.

        Returns:
            ``FINISHED`` if every trial finished, ``KILLED`` if interrupted before that, else ``FAILED``.
        """
        ended = {trial.trial_id for trial, result, error in results if report.is_finished(result, error)}
        failed = sorted({trial.trial_id for trial, _, error in results if error is not None})
        missing = [each for each in self._trial_ids if each not in ended and each not in failed]
        status: ParentStatus = "FINISHED"
        if failed or missing:
            status = "KILLED" if interrupted else "FAILED"
        try:
            self._close(results, status, ended, failed, missing)
        except Exception as error:
            self.runs.failed("the sweep's run was not closed, a defect of the tracker; please report it", error)
        return status

    def _open_parent(self) -> None:
        spec = self._spec
        params = {
            "algorithm": spec.get("algorithm"),
            "task": spec.get("task"),
            "prior": spec.get("prior"),
            **{f"weights.{name}": value for name, value in (spec.get("weights") or {}).items()},
            "baselines": spec.get("baselines"),
            "seeds": spec.get("seeds"),
            "env_steps": (spec.get("budget") or {}).get("env_steps"),
            "samples": spec.get("samples"),
            "search_seed": spec.get("search_seed"),
            "trials": len(self._trial_ids),
        }
        tags = {"kind": "sweep", **self._common_tags(), "trials_total": len(self._trial_ids)}
        if spec.get("description"):
            tags["mlflow.note.content"] = spec["description"]
        self._open_run(PARENT, str(spec["name"]), params, tags)
        source = self._source or yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
        self._put(PARENT, "text", text=source, path="sweep.yaml")
        self._put(PARENT, "text", text=json.dumps(spec, indent=2), path="spec.json")

    def _close(
        self,
        results: Sequence[report.TrialResult],
        status: ParentStatus,
        ended: set[str],
        failed: Sequence[str],
        missing: Sequence[str],
    ) -> None:
        for trial_id in sorted(self._open):
            left = "FINISHED" if trial_id in ended else "FAILED" if trial_id in failed else "KILLED"
            self._close_run(trial_id, left)
        rows = report.summarise(results)
        self._put(PARENT, "text", text=report.rows_to_json(rows), path="summary/summary.json")
        self._put(PARENT, "text", text=report.rows_to_markdown(rows), path="summary/summary.md")
        picture = tradeoff_png(rows, title=self._spec.get("description", ""))
        if picture is not None:
            encoded = base64.b64encode(picture).decode("ascii")
            self._put(PARENT, "file", base64=encoded, path="summary/tradeoff.png")
        tags: dict[str, object] = {
            "trials_finished": len(ended - set(failed)),
            "trials_failed": len(failed),
            "trials_missing": len(missing),
            "tracker_errors": self.errors,
            "tracker_dropped": self.dropped,
        }
        if failed:
            tags["failed_trials"] = ", ".join(failed)
        if missing:
            tags["missing_trials"] = ", ".join(missing)
        if rows and rows[0].seeds:
            tags["best_setting"] = rows[0].setting
        self._put(PARENT, "tags", values=tags)
        self._close_run(PARENT, status)
        if not self.runs.flush(patience_s=FINAL_PATIENCE_S):
            logger.warning(
                "tracking: %d records never reached MLflow at %s. Nothing is lost for good: result.json in "
                "each trial's folder has every report.",
                self.pending,
                without_login(self.runs.tracking_uri),
            )

    # ---- Tune's hooks ---------------------------------------------------------------------------

    def setup(self, *args: Any, **info: Any) -> None:
        """Opens the sweep's run before Tune starts a trial."""
        self.start()

    @_never_raises
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Opens the trial's run, or reopens it if the trial has been restarted."""
        spec = _trial_spec(trial)
        weights = spec.get("weights") or {}
        training = spec.get("training") or {}
        params = {
            **{name: spec.get(name) for name in ("method", "task", "prior", "seed", "env_steps")},
            **weights,
            **{name: training[name] for name in _TRAINING_PARAMS if name in training},
        }
        tags = {
            "kind": "trial",
            **self._common_tags(),
            **{name: spec[name] for name in ("task", "prior", "method", "seed") if spec.get(name) is not None},
        }
        trial_id = str(spec["trial_id"])
        self._open_run(trial_id, trial_id, params, tags)

    @_never_raises
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records one report, in one batch."""
        values, dropped = finite_metrics(result)
        self._put(
            _trial_spec(trial)["trial_id"],
            "metrics",
            values=values | {DROPPED_KEY: float(dropped)},
            step=_step(result),
            # The report's own time, so that delivering it twice adds nothing.
            timestamp=int(result["timestamp"] * 1000) if "timestamp" in result else _now_ms(),
        )

    @_never_raises
    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Notes a failure that Tune answers with a restart; the trial's run stays open."""
        tags = {"restarts": trial.num_failures, "last_failure": _error_text(trial)[0]}
        self._put(_trial_spec(trial)["trial_id"], "tags", values=tags)

    @_never_raises
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records the customised policy and closes the trial's run."""
        trial_id = _trial_spec(trial)["trial_id"]
        self._put_bundle(trial_id, trial)
        self._close_run(trial_id, "FINISHED")

    @_never_raises
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records why a trial failed for good, and its last good policy if there is one."""
        spec = _trial_spec(trial)
        trial_id = spec["trial_id"]
        if trial_id not in self.runs.run_ids and trial_id not in self._open:
            self.on_trial_start(iteration, trials, trial)  # it failed before it started
        last_line, full = _error_text(trial)
        self._put(trial_id, "tags", values={"error": last_line})
        self._put(trial_id, "text", text=full, path="error.txt")
        self._put_bundle(trial_id, trial)
        self._close_run(trial_id, "FAILED")

    @_never_raises
    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Delivers what is waiting, without patience: ``finish`` follows."""
        self.runs.flush()

    def get_state(self) -> dict[str, Any] | None:
        """What Tune keeps for a restored driver: which run belongs to which trial."""
        return {"run_key": self.runs.run_key, "run_ids": dict(self.runs.run_ids)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes ``get_state`` back, before ``setup``: the runs of the interrupted sweep go on."""
        self.runs.run_key = state["run_key"]
        self.runs.run_ids.update(state["run_ids"])
        self.runs.expect_earlier_runs(PARENT, *self._trial_ids)

    # ---- records --------------------------------------------------------------------------------

    def _put(self, run: str, kind: Kind, **data: Any) -> None:
        self.runs.put(Record(run, kind, data))

    def _open_run(self, run: str, name: str, params: Mapping[str, Any], tags: Mapping[str, object]) -> None:
        if run != PARENT:
            self._open.add(run)
        texts = {key: _text(value) for key, value in params.items() if value is not None and value != []}
        self._put(run, "open", name=name, params=texts, tags=dict(tags), start_time=_now_ms())

    def _close_run(self, run: str, status: str) -> None:
        self._open.discard(run)
        self._put(run, "close", status=status, end_time=_now_ms())

    def _put_bundle(self, trial_id: str, trial: Trial) -> None:
        checkpoint = trial.checkpoint
        if checkpoint is None:
            return
        for folder in _folders_of(checkpoint):
            self._put(trial_id, "folder", checkpoint=checkpoint, folder=folder, path=folder)

    def _common_tags(self) -> dict[str, Any]:
        """Tags of the sweep's run and of each trial's: the UI nests runs in one sort order only."""
        tags = {"sweep": self._spec["name"], "task": self._spec.get("task"), "prior": self._spec.get("prior")}
        return {key: value for key, value in tags.items() if value is not None} | _provenance()


def finite_metrics(result: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, float], int]:
    """The figures of a report that MLflow can hold.

    Args:
        result: a report; nested mappings give ``outer/inner``. Tune's own entries and what is no number
            are left out.
        prefix: of the keys.

    Returns:
        The finite figures, and how many were NaN or infinite.
    """
    values: dict[str, float] = {}
    dropped = 0
    for key, value in result.items():
        if not prefix and key in _NOT_METRICS:
            continue
        if isinstance(value, Mapping):
            inner, inner_dropped = finite_metrics(value, f"{prefix}{key}/")
            values |= inner
            dropped += inner_dropped
        elif not isinstance(value, bool) and isinstance(value, numbers.Real):
            if math.isfinite(value):
                values[prefix + key] = float(value)
            else:
                dropped += 1
    return values, dropped


def _trial_spec(trial: Trial) -> dict[str, Any]:
    spec: dict[str, Any] = trial.config["trial"]
    return spec


def _step(result: Mapping[str, Any]) -> int:
    step = result.get(STEP_KEY)
    if step is None or not math.isfinite(step):
        step = result.get("training_iteration", 0)
    return int(step)


def _text(value: object) -> str:
    """A parameter as text: numbers and words as they are, schedules and search spaces as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _error_text(trial: Trial) -> tuple[str, str]:
    """The last line of a trial's error, and all of it."""
    local = trial.error_file  # on this machine at once; Tune copies it to the storage, where get_error() looks, later
    written = Path(local).read_text(encoding="utf-8", errors="replace") if local and Path(local).is_file() else None
    full = str(written or trial.get_error() or "no error text").strip()
    full = re.sub(r"\bip=[0-9A-Fa-f.:]+", "ip=-", full)  # hosts are nobody's business on a shared server
    return full.splitlines()[-1][:500], full


def _folders_of(checkpoint: Any) -> Iterator[str]:
    """Which of the folders that belong into MLflow a checkpoint has."""
    for folder in (BUNDLE_FOLDER, CONFIG_FOLDER):
        info = checkpoint.filesystem.get_file_info(f"{checkpoint.path}/{folder}")
        if info.type.name == "Directory":
            yield folder


@functools.cache
def _provenance() -> dict[str, str]:
    """Who ran which code: user, versions, commit. No host names: tracking servers are shared."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": "rpg sweep", "mlflow.source.type": "LOCAL"}
    for name in ("residual-policy-gradient", "ray", "torch", "mlflow"):
        try:
            tags[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # e.g. our package from a source folder on PYTHONPATH
            continue
    return tags | _git_tags(Path(__file__).resolve())


def _git_tags(file: Path) -> dict[str, str]:
    """Commit of the checkout that tracks ``file`` and whether it was changed since; empty without one."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(file.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel inside somebody's repository is not of that repository.
    if git("ls-files", "--error-unmatch", file.name) is None:
        return {}
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"mlflow.source.git.commit": commit, "git_changed": str(changed).lower()}
