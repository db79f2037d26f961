"""The tracker against real MLflow (a server process, and SQLite directly) under real small Tune runs."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run
from ray import tune
from tests.platform.records import CARD, records_in
from tests.platform.resolved import tracker_of
from tests.platform.tracking.toy_sweep import (
    HAPPENED_ONCE,
    PRIOR,
    PRIOR_HASH,
    STEP_SIZE,
    STEPS,
    make_tuner,
    result_files,
    results_of,
    toy_sweep,
    toy_trainable,
    trial_of,
)

from rpg_platform.results.report import TrialResult, finite_metrics
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.run_tags import git_tags
from rpg_platform.tracking.spool import SpoolError, spool_folder
from rpg_platform.tracking.tracker import MlflowTracker

if TYPE_CHECKING:
    from tests.platform.servers import MlflowServer, TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

SOURCE = "name: toy  # as the user wrote it\ntracking: {uri: http://me:secret@host:5000}\n"


# ---- a sweep in small --------------------------------------------------------------------------


# ---- one sweep on a server: a trial that fails for good, one that crashes once -----------------
@dataclass
class Sweep:
    found: TrackedSweep
    tracker: MlflowTracker
    trials: list[TrialSpec]
    reports: dict[str, list[dict[str, Any]]]
    status: str
    requests: Counter[str]
    broken: str
    restarted: str


@pytest.fixture(scope="module")
def sweep(
    mlflow_server: MlflowServer,
    read_sweep: ReadSweep,
    local_ray: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    spec, trials = toy_sweep()
    restarted, broken = (trial.trial_id for trial in trials if trial.method == "rpg")
    spool = spool_folder(str(folder), "tune")
    tracker = tracker_of(mlflow_server.uri, "on-server", spec, trials, spool, source=SOURCE, prior_hash=PRIOR_HASH)
    before = len(mlflow_server.requests())
    faults = {restarted: str(folder / "once"), broken: str(folder / "always")}
    grid = make_tuner(tracker, trials, folder, faults=faults, retries=1).fit()
    status = tracker.finish(results_of(grid))
    requests = Counter(mlflow_server.requests()[before:])
    found = read_sweep(mlflow_server.uri, "on-server")
    return Sweep(found, tracker, trials, result_files(folder), status, requests, broken, restarted)


def test_one_parent_and_one_child_a_trial(sweep: Sweep) -> None:
    assert sweep.found.parent.info.run_name == "toy"
    assert set(sweep.found.children) == {trial.trial_id for trial in sweep.trials}
    assert len(sweep.trials) == 4  # two of rpg, greedy, and the prior itself
    assert sweep.tracker.errors == 0
    state = sweep.tracker.state()
    assert (state.spooled, state.rejected, state.damaged, state.unreachable_s) == (0, 0, 0, None)
    assert state.sent > 14
    assert records_in(sweep.tracker.folder) == 0, "nothing is left on the disk"
    assert sweep.tracker.parent_run_id == sweep.found.parent.info.run_id
    assert sweep.tracker.parent_url == (
        f"{sweep.tracker.tracking_uri}/#/experiments/{sweep.found.parent.info.experiment_id}"
        f"/runs/{sweep.found.parent.info.run_id}"
    )


def test_params_are_about_a_dozen_and_readable(sweep: Sweep) -> None:
    trial = next(trial for trial in sweep.trials if trial.trial_id == sweep.restarted)
    params = sweep.found.children[sweep.restarted].data.params
    assert 10 <= len(params) <= 15
    assert params["method"] == "rpg"
    assert params["seed"] == "0"
    assert params["prior"] == PRIOR
    assert params["env_steps"] == str(STEPS * STEP_SIZE)
    assert float(params["omega_prime"]) == trial.weights["omega_prime"]
    assert json.loads(params["alpha_hat"]) == [[0, 0.2], [2000, 0.05]]  # a schedule, as JSON
    assert float(params["lr"]) == trial.training.lr
    parent = sweep.found.parent.data.params
    assert 8 <= len(parent) <= 15
    assert json.loads(parent["weights.omega_prime"]) == {"grid": [0.05, 0.1]}
    assert parent["trials"] == "4"


def test_tags_say_who_ran_which_code_and_no_host(sweep: Sweep) -> None:
    for run in (sweep.found.parent, *sweep.found.children.values()):
        tags = run.data.tags
        assert tags["sweep"] == "toy"
        assert tags["task"] == "halfcheetah-foot-angle"
        assert (tags["prior"], tags["prior_hash"]) == (PRIOR, PRIOR_HASH)
        assert tags["version.ray"]
        assert tags["version.torch"]
        assert tags["version.mlflow"] == mlflow.__version__
        assert tags["mlflow.user"]
        assert tags["mlflow.source.name"] == "rpg sweep"
        assert not [value for value in tags.values() if socket.gethostname() in value.split()]
    for trial in sweep.trials:
        tags = sweep.found.children[trial.trial_id].data.tags
        assert (tags["method"], tags["seed"]) == (trial.method, str(trial.seed))
        assert tags["algorithm"] == ("none" if trial.method == "prior" else "rpg")
        weights = {key.removeprefix("weights."): tags[key] for key in tags if key.startswith("weights.")}
        assert {key: json.loads(value) for key, value in weights.items()} == trial.model_dump(mode="json")["weights"]
    note = sweep.found.parent.data.tags["mlflow.note.content"]
    assert note.startswith(("★ ", "No ")), "the verdict comes first"
    assert "a sweep in small" in note
    assert sweep.found.parent.info.run_id in note
    names = {run.info.run_name for run in sweep.found.children.values()}
    assert names == {
        "prior, untouched",
        "greedy · seed 0",
        "ω′ 0.05 · α̂ 0.2 … 0.05 · seed 0",
        "ω′ 0.1 · α̂ 0.2 … 0.05 · seed 0",
    }


def test_every_report_is_there_exactly_once(sweep: Sweep) -> None:
    assert set(sweep.reports) == set(sweep.found.children)
    for trial_id, lines in sweep.reports.items():
        expected: Counter[tuple[str, int, int, float]] = Counter()
        for line in lines:
            for key, value in finite_metrics(line).items():
                expected[key, int(line["env_steps"]), line["timestamp"] * 1000, value] += 1
        assert set(expected.values()) == {1}
        assert sweep.found.points(sweep.found.children[trial_id]) == expected
    # Restored from the checkpoint of step 2, so no step was reported a second time.
    assert [line["iteration"] for line in sweep.reports[sweep.restarted]] == [1.0, 2.0, 3.0, 4.0]


def test_nonfinite_values_are_left_out_and_counted(sweep: Sweep) -> None:
    run = sweep.found.children[sweep.restarted]
    # -inf at first, and nothing later; that no episode had ended at first is no fault.
    assert sweep.found.history(run, "health/dropped_nonfinite") == [(5000, 1.0)]
    assert sweep.found.history(run, "train/basic_return") == [(10000, 20.0), (15000, 30.0), (20000, 40.0)]
    assert sweep.found.history(run, "total") == [(20000, 42.0)]  # once, and under no other name
    assert HAPPENED_ONCE not in run.data.metrics


def test_reports_share_requests(sweep: Sweep) -> None:
    reports = sum(len(lines) for lines in sweep.reports.values())
    assert reports == 14  # 4 trials of 4, of which the broken one ends after 2
    opened = len(sweep.trials) + 1
    assert sweep.requests["POST /api/2.0/mlflow/runs/create"] == opened
    assert sweep.requests["POST /api/2.0/mlflow/runs/search"] == 0
    assert sweep.requests["POST /api/2.0/mlflow/runs/update"] == opened
    batches = sweep.requests["POST /api/2.0/mlflow/runs/log-batch"]
    tags = 1 + 2 + 1  # the parent's end, two restarts noted, one error
    assert opened <= batches <= reports + opened + tags


def test_statuses_are_the_truth(sweep: Sweep) -> None:
    assert sweep.status == "FAILED"
    assert sweep.found.parent.info.status == "FAILED"
    statuses = {trial_id: run.info.status for trial_id, run in sweep.found.children.items()}
    assert statuses.pop(sweep.broken) == "FAILED"
    assert set(statuses.values()) == {"FINISHED"}
    tags = sweep.found.parent.data.tags
    assert (tags["trials_finished"], tags["trials_failed"], tags["trials_missing"]) == ("3", "1", "0")
    assert tags["failed_trials"] == sweep.broken
    assert sweep.found.children[sweep.restarted].data.tags["restarts"] == "1"
    assert sweep.found.children[sweep.broken].data.tags["error"] == "RuntimeError: the toy broke at step 3"


def test_artifacts(sweep: Sweep, tmp_path: Path) -> None:
    def text(run: Run, path: str) -> str:
        return Path(sweep.found.client.download_artifacts(run.info.run_id, path, str(tmp_path))).read_text()

    assert text(sweep.found.parent, "sweep.yaml") == SOURCE.replace("me:secret", "***")
    assert SweepSpec.model_validate_json(text(sweep.found.parent, "spec.json")) == toy_sweep()[0]
    plan = json.loads(text(sweep.found.parent, "plan.json"))
    assert (plan["trials"], plan["env_steps"]) == (4, 3 * STEPS * STEP_SIZE)  # the prior itself trains nothing
    assert [each["trial_id"] for each in plan["each"]] == [trial.trial_id for trial in sweep.trials]
    rows = json.loads(text(sweep.found.parent, "summary/summary.json"))
    assert len(rows) == 4
    assert sweep.broken in text(sweep.found.parent, "summary/summary.md")
    for trial_id, run in sweep.found.children.items():
        made_at = 2 if trial_id == sweep.broken else STEPS  # the last good one
        assert json.loads(text(run, "bundle/card.json")) == {"made_at": made_at, **json.loads(CARD)}
        assert text(run, "config/algorithm_config.json") == "{}"
    error = text(sweep.found.children[sweep.broken], "error.txt")
    assert "the toy broke at step 3" in error
    assert "Traceback" in error or "ray::" in error
    assert not re.search(r"ip=\d", error)


def test_nothing_global_is_left_behind(sweep: Sweep) -> None:
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() != sweep.tracker.tracking_uri
    assert not [name for name in os.environ if name.startswith(("MLFLOW_HTTP", "MLFLOW_SUPPRESS"))]


# ---- restored drivers --------------------------------------------------------------------------
def test_a_restored_sweep_goes_on_in_its_own_runs(read_sweep: ReadSweep, local_ray: None, tmp_path: Path) -> None:
    spec, trials = toy_sweep(weights={"omega_prime": 0.1, "alpha_hat": 0.02}, baselines=[])
    uri = default_tracking_uri(tmp_path)
    tracker = tracker_of(uri, "restored", spec, trials, spool_folder(str(tmp_path), "tune"))
    tracker.start()  # as the command line does, before the Tuner pickles its callbacks
    broken = next(trial.trial_id for trial in trials if trial.method == "rpg")
    faults = {broken: str(tmp_path / "once")}
    grid = make_tuner(tracker, trials, tmp_path, faults=faults).fit()
    assert tracker.finish(results_of(grid)) == "FAILED"
    before = read_sweep(uri, "restored")
    assert before.parent.info.status == before.children[broken].info.status == "FAILED"

    tuner = tune.Tuner.restore(str(tmp_path / "tune"), toy_trainable(), resume_errored=True)
    assert tuner._local_tuner is not None
    callbacks = tuner._local_tuner.get_run_config().callbacks or []
    restored = next(callback for callback in callbacks if isinstance(callback, MlflowTracker))
    assert restored is not tracker
    assert restored.finish(results_of(tuner.fit())) == "FINISHED"
    assert restored.errors == 0

    after = read_sweep(uri, "restored")
    assert after.parent.info.run_id == before.parent.info.run_id
    ids = [{key: run.info.run_id for key, run in each.children.items()} for each in (before, after)]
    assert ids[0] == ids[1]
    assert {run.info.status for run in (after.parent, *after.children.values())} == {"FINISHED"}
    steps = [step for step, _ in after.history(after.children[broken], "train/total_return")]
    assert steps == [5000, 10000, 15000, 20000]


def test_a_new_driver_finds_its_runs_and_another_sweep_makes_new_ones(
    embedded_store: str, read_sweep: ReadSweep, tmp_path: Path
) -> None:
    """By the spool of the same name and storage; on a machine that has no such spool by the key."""
    spec, trials = toy_sweep()

    def tracker(folder: str, **arguments: Any) -> MlflowTracker:
        made = tracker_of(embedded_store, "rebuilt", spec, trials, tmp_path / folder, **arguments)
        made.start()
        made.on_trial_start(0, [], trial_of(trials[0]))
        return made

    first = tracker("a")
    with pytest.raises(SpoolError, match="in use by process"):
        tracker("a", resume=True)
    first.finish([], interrupted=True)
    with pytest.raises(SpoolError, match="belongs to an earlier sweep named 'toy'"):
        tracker("a")
    for folder, arguments in (("a", {}), ("b", {"run_key": first.run_key})):
        again = tracker(folder, resume=True, **arguments)
        assert again._sender is not None
        assert again._sender.flush(30)
        assert again.run_ids == first.run_ids
        found = read_sweep(embedded_store, "rebuilt")
        assert {run.info.status for run in (found.parent, *found.children.values())} == {"RUNNING"}  # again
        again.finish([(trials[0], {HAPPENED_ONCE: 1.0}, None)], interrupted=True)
        found = read_sweep(embedded_store, "rebuilt")
        assert found.parent.info.status == "KILLED"
        assert found.children[trials[0].trial_id].info.status == "FINISHED"
    other = tracker("c", resume=True)
    other.finish([])
    assert other.parent_run_id not in (None, first.parent_run_id)
    assert [each.errors for each in (first, other)] == [0, 0]


def test_interrupted_sweeps_are_killed_and_the_open_trial_too(
    embedded_store: str, read_sweep: ReadSweep, tmp_path: Path
) -> None:
    spec, trials = toy_sweep()
    tracker = tracker_of(embedded_store, "interrupted", spec, trials, tmp_path)
    tracker.start()
    done, running, *_ = trials
    for trial in (done, running):
        tracker.on_trial_start(0, [], trial_of(trial))
    results: list[TrialResult] = [(done, {HAPPENED_ONCE: 1.0}, None), (running, {"env_steps": 1.0}, None)]
    assert tracker.finish(results, interrupted=True) == "KILLED"
    found = read_sweep(embedded_store, "interrupted")
    assert found.parent.info.status == "KILLED"
    assert found.children[done.trial_id].info.status == "FINISHED"
    assert found.children[running.trial_id].info.status == "KILLED"
    assert found.parent.data.tags["trials_missing"] == "3"
    assert running.trial_id in found.parent.data.tags["missing_trials"]


# ---- when MLflow is away, or says no -----------------------------------------------------------
def test_a_dead_tracker_does_not_stop_training(
    local_ray: None,
    tmp_path: Path,
    unused_port: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rpg_platform.tracking.last_wait.SILENT_PATIENCE_S", 0.1)
    monkeypatch.setattr("rpg_platform.tracking.last_wait.FINAL_PATIENCE_S", 0.2)
    spec, trials = toy_sweep(weights={"omega_prime": 0.1, "alpha_hat": 0.02}, baselines=[])
    uri = f"http://me:secret@127.0.0.1:{unused_port}"
    tracker = tracker_of(uri, "away", spec, trials, spool_folder(str(tmp_path), "tune"))
    said: list[str] = []
    with caplog.at_level(logging.WARNING, "rpg_platform"):
        grid = make_tuner(tracker, trials, tmp_path, faults={}).fit()
        assert str(tracker.state()).startswith("0 sent, ")
        assert re.search(r"\d+ spooled, unreachable for \d+ s$", str(tracker.state()))
        assert tracker.finish(results_of(grid), tell=said.append) == "FINISHED"
    assert all(result and result["env_steps"] == STEPS * STEP_SIZE for _, result, _ in results_of(grid))
    assert tracker.errors > 0
    state = tracker.state()
    assert (state.sent, state.rejected) == (0, 0)
    assert state.spooled > 2 * STEPS  # every report still waits
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("rpg_platform")]
    assert len(warnings) == 1, warnings
    assert "Check that the server runs" in warnings[0]
    assert "Training continues" in warnings[0]
    assert f"{state.spooled} records still to send" in said[0]
    assert f"send them with: rpg track {tmp_path / 'tune'}" in said[1]
    assert "secret" not in "".join([*warnings, *said])
    kept = b"".join(file.read_bytes() for file in tracker.folder.iterdir())
    assert b"secret" not in kept


# ---- small parts -------------------------------------------------------------------------------
def test_finite_metrics_takes_figures_only() -> None:
    report = {
        "basic_return": np.float32(1.5),
        "iteration": 3,
        "done": True,
        "should_checkpoint": True,
        "timestamp": 5,
        "time_total_s": 2.0,
        "env_steps": 10.0,
        "name": "x",
        "flag": True,
        "none": None,
        "nan": math.nan,
        "eval": {"deterministic": {"inf": math.inf, "mean": 2.0}},
    }
    assert finite_metrics(report) == {
        "train/basic_return": 1.5,
        "train/iteration": 3.0,
        "system/time_total_s": 2.0,
        "eval/deterministic/mean": 2.0,
        "health/dropped_nonfinite": 2.0,
    }


def test_mlflow_has_each_figure_once_and_no_constants() -> None:
    none_ended = {"total_return": math.nan, "episode_length": math.nan, "addon/foot_return": math.nan}
    quiet = {"env_failures": 0.0, "nonfinite_values": 0.0, "env_runner_restarts": 0.0, "kl_to_prior_estimated": 0.0}
    assert finite_metrics({"env_steps": 1.0, **none_ended, **quiet, "entropy": 2.0}) == {"train/entropy": 2.0}
    assert finite_metrics({"env_failures": 2.0, "entropy": math.nan}) == {
        "health/env_failures": 2.0,
        "health/dropped_nonfinite": 1.0,
    }
    figures = {"total_return_mean": 5.0, "basic_return_mean": 4.0, "addon_return_mean": 1.0, "total_return_std": 0.5}
    report = {"env_steps": 9.0, "eval_best/env_steps": 9.0, "eval/kl_to_prior": 0.2, "eval_best/kl_to_prior": 0.2}
    for where in ("eval", "eval_best"):
        for mode, less in (("deterministic", 0.0), ("sampled", 1.0)):
            report |= {f"{where}/{mode}/{name}": value - less for name, value in figures.items()}
    found = finite_metrics(report)
    assert {name: found[name] for name in ("total", "basic", "addon", "kl")} == {
        "total": 5.0,
        "basic": 4.0,
        "addon": 1.0,
        "kl": 0.2,
    }
    assert not [name for name in found if name.startswith("eval_best/") and name != "eval_best/env_steps"]
    assert "eval/deterministic/total_return_mean" not in found
    assert found["eval/sampled/total_return_mean"] == 4.0
    assert finite_metrics(report, "sampled")["total"] == 4.0, "the headline is of the mode that the objective names"
    assert "eval_best/kl_to_prior" in finite_metrics(report | {"eval_best/env_steps": 3.0})


def test_the_commit_is_that_of_the_checkout_and_no_other(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source, other = tmp_path / "source.py", tmp_path / "installed.py"
    source.write_text("1")
    other.write_text("1")
    assert git_tags(source) == {}
    git("init")
    git("add", "source.py")
    git("commit", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert git_tags(source) == {"mlflow.source.git.commit": commit, "git_changed": "false"}
    source.write_text("2")
    assert git_tags(source) == {"mlflow.source.git.commit": commit, "git_changed": "true"}
    assert git_tags(other) == {}  # e.g. a wheel in an environment inside somebody's repository
    assert git_tags(tmp_path) == git_tags(source)  # a working directory inside it


@pytest.mark.parametrize("hook", ["on_trial_start", "on_trial_result", "on_trial_complete", "on_trial_error"])
def test_a_defect_of_the_tracker_stays_in_the_tracker(embedded_store: str, hook: str, tmp_path: Path) -> None:
    spec, trials = toy_sweep()
    tracker = tracker_of(embedded_store, "defect", spec, trials, tmp_path)
    call: Callable[..., None] = getattr(tracker, hook)
    arguments: dict[str, object] = {"result": {}} if hook == "on_trial_result" else {}
    call(iteration=0, trials=[], trial=object(), **arguments)  # not what Tune hands over
    assert tracker.errors == 1


def test_a_folder_that_cannot_be_written_stops_nothing(embedded_store: str, tmp_path: Path) -> None:
    spec, trials = toy_sweep()
    (tmp_path / "file").touch()
    tracker = tracker_of(embedded_store, "nowhere", spec, trials, tmp_path / "file" / "tracking")
    tracker.start()
    tracker.on_trial_start(0, [], trial_of(trials[0]))
    assert tracker.finish([]) == "FAILED"
    assert tracker.errors > 1
