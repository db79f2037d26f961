"""Small real sweeps: what they report and leave, what they survive, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
import yaml
from rich.console import Console
from tests.platform.proxy import Proxy
from typer.testing import CliRunner

from rpg_algorithms import NetworkSpec, PolicyNetwork, load_bundle
from rpg_algorithms.policies.bundle import save_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.cli.main import app
from rpg_platform.evaluation.episode_file import read_episodes
from rpg_platform.planning.cluster import CapacityError
from rpg_platform.results.rows import summarise
from rpg_platform.results.table import rows_to_json
from rpg_platform.review.found import found_at, found_in
from rpg_platform.review.planned import plan_against_what_happened
from rpg_platform.run import progress as progress_module
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolderError
from rpg_platform.tracking import last_wait
from rpg_platform.trial.trainable import running_code

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

PRIOR = "halfcheetah-spg"
LIMIT_S = 240  # for what takes seconds on a quiet machine
A, B = (f"rpg-omega_prime={w}-alpha_hat=0.02-seed=0" for w in (0.1, 0.2))


def raw_spec(**changes: Any) -> dict[str, Any]:
    """Two iterations of 512 env steps at two settings."""
    return {
        "name": "small",
        "task": "halfcheetah-foot-angle",
        "prior": PRIOR,
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
        "budget": {"env_steps": 1024},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 1},
        "evaluation": {"episodes": 2, "validation_episodes": 2},
        **changes,
    }


def run_small(storage: Path, **changes: Any) -> tuple[SweepOutcome, str]:
    text = io.StringIO()
    spec = SweepSpec.model_validate(raw_spec(storage=str(storage), **changes))
    return run_sweep(Sweep.resolve(spec), console=Console(file=text, width=200)), text.getvalue()


def reports(outcome: SweepOutcome, trial: str) -> list[dict[str, Any]]:
    lines = (Path(outcome.sweep.folder.uri) / trial / "result.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def process(code: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A Python process of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- one sweep, looked at from all sides ---------------------------------------------------------
@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def swept(local_ray: None, storage: Path) -> tuple[SweepOutcome, str]:
    return run_small(storage, resources={"max_concurrent": 1})


def test_every_trial_has_its_result(swept: tuple[SweepOutcome, str]) -> None:
    outcome, _ = swept
    assert (outcome.failed, outcome.interrupted) == (0, False)
    assert [trial.trial_id for trial, _, _ in outcome.results] == ["prior", A, B]
    for trial, result, error in outcome.results:
        assert error is None
        assert result is not None
        assert result["done"]
        assert result["env_steps"] == trial.env_steps
        assert result["config"]["trial"]["trial_id"] == trial.trial_id  # no mix-up of trials
    # The last is that of the evaluation, before which the training was saved.
    assert [r["env_steps"] for r in reports(outcome, A)] == [512, 1024, 1024]


def test_table_has_the_prior_and_the_best_total_first(swept: tuple[SweepOutcome, str]) -> None:
    rows = summarise(swept[0].results)
    assert {row.group for row in rows} == {"prior", A.removesuffix("-seed=0"), B.removesuffix("-seed=0")}
    assert all(row.chosen_apart for row in rows)
    totals = [row.chosen_by["deterministic"]["total_return"] for row in rows]
    assert totals == sorted(totals, reverse=True)
    [prior] = [row for row in rows if row.is_prior]
    assert prior.basic_kept == 1.0
    assert prior.kl_to_prior.mean == pytest.approx(0.0, abs=1e-5)
    assert all(row.kl_to_prior.mean > 1e-5 for row in rows if row is not prior)


def test_terminal_names_the_code_and_each_end(swept: tuple[SweepOutcome, str]) -> None:
    text = swept[1]
    assert text.count(f"{running_code()} (driver)\n") == 1
    assert text.count(f"{running_code()} (trial)\n") == 1
    for trial in ("prior", A, B):
        assert re.search(rf"{re.escape(trial)}: finished — basic [\d,-]+, add-on [\d,-]+, total [\d,-]+\n", text)


def test_checkpoints_hold_bundles_that_know_where_they_come_from(swept: tuple[SweepOutcome, str]) -> None:
    outcome, _ = swept
    parent = load_bundle(resolve_prior(PRIOR)).card
    for trial, result, _ in outcome.results[1:]:
        card = load_bundle(Path(outcome.checkpoints[trial.trial_id]) / "bundle").card
        assert result is not None
        assert card.parents == [parent.content_hash, *parent.parents]
        assert card.alpha == 0.02
        assert card.returns["total/sampled"].mean == result["eval/sampled/total_return_mean"]
        assert card.made_by["trial"] == trial.trial_id
        assert card.made_by["weights"] == trial.weights
    # A customised policy is a prior like any other.
    assert resolve_prior(str(Path(outcome.checkpoints[A]) / "bundle"))


def test_mlflow_has_one_parent_and_its_children(swept: tuple[SweepOutcome, str], read_sweep: ReadSweep) -> None:
    outcome, _ = swept
    assert outcome.sweep.tracking_uri == default_tracking_uri(str(Path(outcome.sweep.folder.uri).parent))
    runs = read_sweep(outcome.sweep.tracking_uri, outcome.sweep.experiment)
    assert runs.parent.info.status == "FINISHED"
    assert set(runs.children) == {"prior", A, B}
    for trial, result, _ in outcome.results:
        assert result is not None
        run = runs.children[trial.trial_id]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["total"] == result["eval/deterministic/total_return_mean"]
        prior = {trial.method: report for trial, report, _ in outcome.results}["prior"]
        assert prior is not None
        kept = result["eval/deterministic/basic_return_mean"] / prior["eval/deterministic/basic_return_mean"]
        assert run.data.metrics["kept_pct"] == pytest.approx(100 * kept)
        files = {file.path for file in runs.client.list_artifacts(run.info.run_id, "bundle")}
        assert files == {"bundle/card.json", "bundle/weights.safetensors"}
        folders = {file.path for file in runs.client.list_artifacts(run.info.run_id)}
        assert folders >= {"bundle", "evaluation"}
        assert ("bundle_best" in folders) == (trial.method != "prior")
        [output] = run.outputs.model_outputs
        model = runs.client.get_logged_model(output.model_id)
        card = load_bundle(Path(outcome.checkpoints[trial.trial_id]) / "bundle").card
        assert model.tags["content_hash"] == card.content_hash
        assert model.tags.get("parents", "") == ",".join(card.parents)
        figures = {each.key: each.value for each in model.metrics}
        assert figures == {name: run.data.metrics[name] for name in ("total", "basic", "addon", "kl", "kept_pct")}


def test_a_report_of_mlflow_alone_is_that_of_the_folder_and_has_the_plan(swept: tuple[SweepOutcome, str]) -> None:
    """Of a sweep that Tune ran: the same rows and trainings, and the plan that was made when it began."""
    sweep = swept[0].sweep
    here, there = found_in(sweep.folder), found_at(sweep.tracking_uri, sweep.spec.name)
    rows = [rows_to_json([replace(row, collapsed={}) for row in found.rows]) for found in (there, here)]
    assert rows[0] == rows[1]  # but for what collapsed: MLflow has no single episodes, which the page says
    assert repr(sorted(there.trainings.items())) == repr(sorted(here.trainings.items()))
    for found in (here, there):
        plan = plan_against_what_happened(found, 10.0)
        assert plan is not None
        lines = {row["what"]: (row["planned"], row["measured"]) for row in plan["rows"]}
        assert (plan["drivers"], lines["trials that ended"], lines["env steps"]) == (1, (3, 3), (2048, 2048.0))
        assert min(lines[f"{what} of a trial"][1] for what in ("env steps/s", "evaluation steps/s")) > 0


def test_single_episodes_of_every_trial_are_on_the_same_seeds(swept: tuple[SweepOutcome, str]) -> None:
    outcome, _ = swept
    evaluated = {trial.trial_id: read_episodes(outcome.checkpoints[trial.trial_id]) for trial, _, _ in outcome.results}
    assert {trial: set(found) for trial, found in evaluated.items()} == {
        "prior": {"final"},
        A: {"final", "best"},
        B: {"final", "best"},
    }
    assert {policy.seed for found in evaluated.values() for policy in found.values()} == {10_000}
    for trial, result, _ in outcome.results:
        assert result is not None
        for which, policy in evaluated[trial.trial_id].items():
            prefix = "eval" if which == "final" else "eval_best"
            mean = policy.results["sampled"].total_return.mean()
            assert result[f"{prefix}/sampled/total_return_mean"] == pytest.approx(mean)


def test_same_name_again_is_refused_and_nothing_is_touched(swept: tuple[SweepOutcome, str], storage: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in storage.rglob("*") if file.is_file()}
    with pytest.raises(SweepFolderError, match=r"a sweep named 'small' was run there.*--name.*--storage"):
        run_small(storage)
    assert {file: file.stat().st_mtime_ns for file in storage.rglob("*") if file.is_file()} == files


def test_a_reused_process_gives_what_a_fresh_one_gives(swept: tuple[SweepOutcome, str], tmp_path: Path) -> None:
    outcome, _ = swept
    pids = {trial: reports(outcome, trial)[-1]["pid"] for trial in ("prior", A, B)}
    assert len(set(pids.values())) == 1, "one slot, one process"
    alone, _ = run_small(tmp_path, weights={"omega_prime": 0.2, "alpha_hat": 0.02}, resources={"max_concurrent": 1})
    again = {trial.trial_id: result for trial, result, _ in alone.results}[B]
    [reused] = [result for trial, result, _ in outcome.results if trial.trial_id == B]
    assert again is not None
    assert reused is not None
    assert again["pid"] != reused["pid"]
    figures = [key for key in again if key.startswith(("eval/", "reward_", "kl_", "entropy", "policy_", "vf_"))]
    assert {key: again[key] for key in figures} == {key: reused[key] for key in figures}


# ---- failures ------------------------------------------------------------------------------------
def test_killed_worker_restarts_from_its_checkpoint(local_ray: None, tmp_path: Path, read_sweep: ReadSweep) -> None:
    steps, every = 160 * 512, 20 * 512
    trial = B
    killed: list[tuple[int, float]] = []

    def kill_once() -> None:
        file = tmp_path / "small" / trial / "result.json"
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            lines = file.read_text().splitlines() if file.exists() else []
            last = json.loads(lines[-1]) if lines else {"env_steps": 0}
            if last["env_steps"] > every + 512:  # the first checkpoint is safe
                os.kill(last["pid"], signal.SIGKILL)
                killed.append((last["pid"], last["env_steps"]))
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_once)
    killer.start()
    outcome, text = run_small(
        tmp_path,
        weights={"omega_prime": 0.2, "alpha_hat": 0.02},
        budget={"env_steps": steps},
        checkpoint={"every_env_steps": every},
    )
    killer.join()
    [(pid, at)] = killed
    assert 0 < at < steps
    assert outcome.failed == 0
    assert f"{trial}: restarting — its process died: killed" in text
    assert f"{trial}: finished" in text
    rows = reports(outcome, trial)
    assert rows[-1]["done"]
    assert rows[-1]["env_steps"] == steps
    assert len({row["pid"] for row in rows}) == 2
    after = next(row for row in rows if row["pid"] != pid)
    assert after["env_steps"] > every, "it went on from its checkpoint, not from the start"
    assert (after["env_steps"] - 512) % every == 0, "checkpoints come at the env steps that were asked for"
    runs = read_sweep(outcome.sweep.tracking_uri, outcome.sweep.experiment)  # fails on a second run of a trial
    assert runs.children[trial].data.tags["restarts"] == "1"
    assert runs.parent.info.status == "FINISHED"


def test_failing_trial_is_named_and_the_others_finish(local_ray: None, tmp_path: Path, read_sweep: ReadSweep) -> None:
    """A weight that float32 cannot hold in a squared error: the loss is not finite."""
    file = tmp_path / "failing.yaml"
    training = raw_spec()["training"] | {"scale_rewards": False}
    weights = {"omega_prime": {"grid": [0.1, 1e25]}, "alpha_hat": 0.02}
    file.write_text(yaml.safe_dump(raw_spec(name="failing", weights=weights, training=training)))
    ended = CliRunner().invoke(app, ["sweep", str(file), "--storage", str(tmp_path)], env={"COLUMNS": "200"})
    assert ended.exit_code == 1
    assert "1 of 3 trials failed" in ended.stderr
    bad = "rpg-omega_prime=1e+25-alpha_hat=0.02-seed=0"
    assert re.search(rf"{re.escape(bad)}: .*NonFiniteError: vf_loss.* is NaN or infinite in update 1", ended.stdout)
    assert "rpg omega_prime=0.1 alpha_hat=0.02" in ended.stdout
    assert f"{A}: finished" in ended.stdout
    runs = read_sweep(default_tracking_uri(str(tmp_path)), "failing")
    assert runs.parent.info.status == "FAILED"
    assert {name: run.info.status for name, run in runs.children.items()} == {
        "prior": "FINISHED",
        A: "FINISHED",
        bad: "FAILED",
    }
    assert runs.parent.data.tags["failed_trials"] == bad
    assert "restarts" not in runs.children[bad].data.tags, "NaN comes again: it is not worth a retry"
    assert "Run only these: rpg resume failing --storage" in ended.stderr


def test_records_that_mlflow_has_not_got_make_it_fail_and_no_dashboard_is_promised(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setattr(last_wait, "SILENT_PATIENCE_S", 0.1)
    monkeypatch.setattr(last_wait, "FINAL_PATIENCE_S", 0.1)
    # The login, which was taken at the start, is not any more.
    server = Proxy(unused_port, target=0, fate=lambda path, body: 200 if not server.seen[1:] else 401)
    server.open()
    tracking = {"uri": f"http://127.0.0.1:{unused_port}"}
    raw = raw_spec(weights={"omega_prime": 0.2, "alpha_hat": 0.02}, tracking=tracking)
    (tmp_path / "locked.yaml").write_text(yaml.safe_dump(raw))
    try:
        command = ["sweep", str(tmp_path / "locked.yaml"), "--storage", str(tmp_path)]
        ended = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
    finally:
        server.close()
    assert ended.exit_code == 3
    last = ended.stderr.splitlines()[-1]
    assert re.search(
        rf"^\d+ records are not in MLflow at http://\S+ \(MlflowException: .*401.*\); .* {tmp_path}/small$", last
    )
    assert re.search(r"Tracking: \d+ records are not in MLflow yet \(MlflowException: .*401", ended.stdout)
    assert f"rpg track {tmp_path}/small" in ended.stdout
    assert "no result" not in ended.stderr
    assert "Dashboard" not in ended.stdout
    assert not (tmp_path / "mlflow.db").exists()


def test_interrupted_sweep_ends_its_runs_and_says_so(tmp_path: Path, read_sweep: ReadSweep) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(
        yaml.safe_dump(raw_spec(name="long", budget={"env_steps": 4_000_000}, resources={"max_concurrent": 1}))
    )
    code = "from rpg_platform.cli.main import main; main()"
    running = process(code, "sweep", str(file), "--storage", str(tmp_path), cwd=tmp_path)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not ((report := tmp_path / "long" / A / "result.json").exists() and report.stat().st_size):
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=LIMIT_S)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "2 of 3 trials have no result: the sweep was stopped" in stderr
    assert re.search(rf"{re.escape(A)}: stopped at [\d,]+ of 4,000,000 env steps", stdout)
    runs = read_sweep(default_tracking_uri(str(tmp_path)), "long")
    assert runs.parent.info.status == "KILLED"
    assert {name: run.info.status for name, run in runs.children.items()} == {"prior": "FINISHED", A: "KILLED"}


# ---- resources -----------------------------------------------------------------------------------
def test_remote_env_runner_and_learner(tmp_path: Path) -> None:
    """On four logical CPUs, in a process of its own: the tests' Ray has two."""
    file = tmp_path / "remote.yaml"
    resources = {"envs_per_runner": 8, "env_runners": 1, "learners": 1}
    weights = {"omega_prime": 0.2, "alpha_hat": 0.02}
    file.write_text(yaml.safe_dump(raw_spec(name="remote", resources=resources, weights=weights)))
    code = (
        "import ray; ray.init(address='local', num_cpus=4, include_dashboard=False, log_to_driver=False)\n"
        "from rpg_platform.cli.main import main; main()"
    )
    running = process(code, "sweep", str(file), "--storage", str(tmp_path), "--json", cwd=tmp_path)
    try:
        stdout, stderr = running.communicate(timeout=LIMIT_S)
    finally:
        running.kill()
    assert running.returncode == 0, stderr
    rows = json.loads(stdout)
    assert {row["method"] for row in rows} == {"rpg", "prior"}
    assert not [row["failures"] for row in rows if row["failures"]]
    last = json.loads((tmp_path / "remote" / B / "result.json").read_text().splitlines()[-1])
    assert last["env_steps"] == 1024
    assert np.isfinite([last["policy_loss"], last["vf_loss"], last["kl_to_prior"]]).all()


def test_trial_that_never_fits_is_refused_and_leaves_nothing(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(
        CapacityError, match=r"a trial asks for 64 CPU .*, the cluster has 2: no trial could ever start"
    ):
        run_small(tmp_path, resources={"cpus_per_trial": 64})
    assert not list(tmp_path.iterdir())


class Holder:
    """An actor that takes room on the cluster."""

    def ready(self) -> bool:
        return True


def test_on_a_full_cluster_it_says_what_it_waits_for(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 1.0)
    holder = ray.remote(num_cpus=2)(Holder).remote()
    ray.get(holder.ready.remote())
    text, seen = io.StringIO(), []
    waiting = "2 pending; waiting for room on the cluster: a trial asks for 1 CPU, free are 0 of 2 CPU; MLflow"

    def make_room() -> None:
        deadline = time.monotonic() + LIMIT_S
        file = tmp_path / "small" / "status.json"
        while time.monotonic() < deadline:
            status = json.loads(file.read_text()) if file.exists() else {}
            if text.getvalue().count(waiting) > 1 and status.get("waiting"):
                seen.append(status["waiting"])
                break
            time.sleep(0.2)
        ray.kill(holder)

    spec = SweepSpec.model_validate(raw_spec(storage=str(tmp_path), weights={"omega_prime": 0.2, "alpha_hat": 0.02}))
    sweep = Sweep.resolve(spec)
    thread = threading.Thread(target=make_room, daemon=True)
    thread.start()
    outcome = run_sweep(sweep, console=Console(file=text, width=200))
    thread.join()
    assert outcome.failed == 0
    assert seen == ["waiting for room on the cluster: a trial asks for 1 CPU, free are 0 of 2 CPU"]
    assert json.loads((tmp_path / "small" / "status.json").read_text())["waiting"] is None
    # Once there is room, the processes of the trials start, which takes a while: that is no waiting.
    assert re.search(r"2 pending; starting|running; starting", text.getvalue().rpartition(waiting)[2])


# ---- refusals before anything starts -------------------------------------------------------------
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no entropy in closed form": (
        {
            "algorithm": "ppo",
            "weights": {"entropy_coeff": 0.01},
            "prior": None,
            "training": {"network": {"distribution": "squashed_gaussian"}},
            "budget": {"env_steps": 8192},
        },
        "weights.entropy_coeff: method 'ppo' adds entropy to the loss (entropy_coeff), and a squashed "
        "gaussian's has no closed form",
    ),
    "another kind of action space": (
        {
            "algorithm": "ppo",
            "weights": {},
            "prior": None,
            "training": {"network": {"distribution": "categorical"}},
            "budget": {"env_steps": 8192},
        },
        "ppo-seed=0: distribution='categorical' does not fit the action space Box",
    ),
    "a prior of other observations": ({"prior": "./other"}, "observation"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each of the settings above is refused with, whether Ray had started, and what was written: one process."""
    folder = tmp_path_factory.mktemp("refused")
    card = load_bundle(resolve_prior(PRIOR)).card  # as of HalfCheetah with its position in the observations
    network = PolicyNetwork(NetworkSpec.from_dict(card.network | {"observation_size": 18}))
    changed = {"observation_space": card.observation_space | {"shape": [18]}, "network": network.spec.to_dict()}
    save_bundle(folder / "other", network, card.model_copy(update=changed))
    specs = {
        case: {k: v for k, v in raw_spec(**changes, storage=str(folder / "out")).items() if v is not None}
        for case, (changes, _) in REFUSED.items()
    }
    code = (
        "import json, sys, ray\n"
        "from pathlib import Path\n"
        "from rpg_platform.spec.sweep import SweepSpec\n"
        "from rpg_platform.run.run import run_sweep\n"
        "from rpg_platform.storage.sweep import Sweep\n"
        "said = {}\n"
        "for case, spec in json.loads(sys.argv[1]).items():\n"
        "    try:\n"
        "        run_sweep(Sweep.resolve(SweepSpec.model_validate(spec)))\n"
        "    except ValueError as error:\n"
        "        said[case] = [str(error), ray.is_initialized(), Path('out').exists()]\n"
        "print(json.dumps(said))\n"
    )
    running = process(code, json.dumps(specs), cwd=folder)
    stdout, stderr = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, stderr
    said: dict[str, list[Any]] = json.loads(stdout)
    return said


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_rllib_refuses_are_refused_before_ray_starts(case: str, refusals: dict[str, list[Any]]) -> None:
    said, ray_started, written = refusals[case]
    assert REFUSED[case][1] in said
    assert not ray_started
    assert not written
