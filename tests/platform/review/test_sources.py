"""A report of MLflow alone is that of the folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.browser import chromium
from tests.platform.resolved import resolved
from tests.platform.review.made_sweep import RAW, STEPS, made_sweep, record
from tests.platform.servers import MlflowServer
from tests.platform.tracking.toy_sweep import trial_of
from typer.testing import CliRunner

from rpg_algorithms.policies.bundle import load_bundle, load_card, save_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.cli.main import app
from rpg_platform.review.content import content_of
from rpg_platform.review.found import Found, found_at, found_in
from rpg_platform.review.report import metric_name_of
from rpg_platform.search.proposals import known_trials
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.plans import keep_plan
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import read_state, write_state
from rpg_platform.tracking.tracker import MlflowTracker

PLAN = {
    "trials": 15,
    "trials_left": 10,
    "env_steps": 1_400_000,
    "env_steps_left": 900_000,
    "rate": {"env_steps_per_s": 1_000.0, "evaluation_steps_per_s": 5_000.0},
    "wall_s": 90.0,
}
FAILED = "kl-kl_coefficient=0.1-seed=1"
OF_THE_PLACE = {"commands"}
UNKNOWN_TO_MLFLOW = {"folder", "mlflow", "is_embedded", "made", "seconds", "unknown", "run"}


def end(folder: SweepFolder, trial_id: str, more: dict[str, Any]) -> None:
    """The trial ended halfway."""
    own = Path(folder.uri, trial_id)
    lines = own.joinpath("result.json").read_text().splitlines()[:12]
    own.joinpath("result.json").write_text("\n".join(lines) + "\n")
    report = json.loads(lines[-1]) | more
    write_state(own / "checkpoint_000000", int(report["env_steps"]), report)


def give_policy(checkpoint: Path) -> None:
    """A policy of its own for each trial, as the registry tells them apart."""
    bundle = load_bundle(checkpoint / "bundle")
    made_by = {"trial": checkpoint.parent.name, "sweep": "apart"}
    save_bundle(checkpoint / "bundle", bundle.build(), bundle.card.model_copy(update={"made_by": made_by}))
    state = read_state(checkpoint)
    write_state(checkpoint, state["env_steps"], state["report"])


def content(found: Found) -> dict[str, Any]:
    made = content_of(found, {}, metric_name_of(found))
    made = {key: value for key, value in made.items() if key not in OF_THE_PLACE}
    for row in made["plan"]["rows"] if made["plan"] else ():
        if row["what"] == "time":
            row["measured"] = None  # to the last second
    made["about"] = {key: value for key, value in made["about"].items() if key not in UNKNOWN_TO_MLFLOW}
    for row in made["rows"]:
        row["trials"] = [tail for tail, _, _ in row["trials"]]
    return made


@pytest.mark.parametrize("on_server", [True, False])
def test_mlflow_alone_gives_the_report_of_the_folder(
    tmp_path: Path, mlflow_server: MlflowServer, on_server: bool
) -> None:
    """Figures, intervals, curves, health, importance, warnings, specification: everything but where things lie."""
    folder = made_sweep(tmp_path, name=f"alike-{on_server}", reports=25, seeds=2, objective={"mode": "sampled"})
    folder.write_text("sweep.yaml", "name: alike  # as the user wrote it\n")
    spiked = Path(folder.uri, "rpg-omega_prime=0.2-alpha_hat=0.1-seed=0", "result.json")
    lines = [json.loads(line) for line in spiked.read_text().splitlines()]
    lines[7] |= {"kl_to_prior": 181.0, "nonfinite_values": 3.0, "total_return": None}
    spiked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    end(folder, "rpg-omega_prime=0.8-alpha_hat=0.02-seed=1", {"stopped_by": "asha"})
    end(folder, FAILED, {})
    status = json.loads(folder.read_text("status.json") or "")
    status |= {"state": "failed", "failures": [{"trial": FAILED, "error": "NonFiniteError: the critic's loss"}]}
    folder.write_text("status.json", json.dumps(status))
    shutil.copytree(SHIPPED["halfcheetah-spg"], Path(folder.uri, "prior-bundle"))
    keep_plan(folder, {**PLAN, "trials_left": 15, "env_steps_left": 1_400_000})
    keep_plan(folder, PLAN)
    uri = mlflow_server.uri if on_server else default_tracking_uri(tmp_path)
    record(folder, uri)
    here, there = content(found_in(folder)), content(found_at(uri, folder.name))
    for part in here:
        assert there[part] == here[part], part
    assert any(row["warnings"] for row in here["rows"])
    assert here["curves"]["settings"]
    assert here["about"]["failures"] == [{"trial": FAILED, "error": "NonFiniteError: the critic's loss"}]
    assert here["about"]["prior_hash"] == load_card(SHIPPED["halfcheetah-spg"]).content_hash
    assert here["plan"]["drivers"] == 2
    planned = {row["what"]: (row["planned"], row["measured"]) for row in here["plan"]["rows"]}
    # 15 trials; 5 were over before, and 500,000 env steps trained; two have ended halfway since, at 48,000.
    assert planned["trials that ended"] == (10, 10)
    assert planned["env steps"] == (900_000, 12 * STEPS + 2 * 48_000 - 500_000)
    assert planned["env steps/s of a trial"] == (1_000.0, 1_025.0)
    assert (here["about"]["state"], here["about"]["stopped"]) == ("failed", 1)
    assert here["yaml"].startswith("name: alike  #")
    assert there.keys() == here.keys()


def test_a_report_of_a_server_alone_and_its_commands(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is gone; the page says what is not known, and the commands on it work as they stand."""
    folder = made_sweep(tmp_path / "storage", name="apart", reports=4, seeds=1)
    for trial in Path(folder.uri).glob("*/checkpoint_000000"):
        give_policy(trial)
    record(folder, mlflow_server.uri)
    shutil.rmtree(folder.uri)
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    lost = run.invoke(app, ["report", "apart", "--storage", str(tmp_path / "storage")])
    assert (lost.exit_code, "--tracking-uri" in lost.stderr) == (2, True)
    wrong = run.invoke(app, ["report", "appart", "--tracking-uri", mlflow_server.uri])
    assert (wrong.exit_code, "did you mean 'apart'" in wrong.stderr) == (2, True), wrong.stderr
    done = run.invoke(app, ["report", "apart", "--tracking-uri", mlflow_server.uri])
    assert done.exit_code == 0, done.output
    with chromium() as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "apart.html").as_uri())
        page.wait_for_selector("#tradeoff .main-svg")
        assert "MLflow alone, which does not know" in page.locator("#unknown").inner_text()
        commands = page.locator("#use .command pre").all_inner_texts()
        if os.environ.get("RPG_SCREENSHOTS"):
            page.screenshot(path=f"{os.environ['RPG_SCREENSHOTS']}/report-of-mlflow.png", full_page=True)
        assert complaints == []
    lines = [line for command in commands[:2] for line in command.splitlines()]
    assert [line.split()[1] for line in lines] == ["priors", "promote", "show", "ui"]
    for line in lines[:3]:
        done = run.invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output)
    assert "★" in done.output


def test_settings_that_a_search_chose_are_found_by_their_runs(tmp_path: Path) -> None:
    """Weights and training settings; MLflow has them as texts."""
    raw = RAW | {"name": "searched", "storage": str(tmp_path), "seeds": 2, "samples": 3, "search": {"method": "optuna"}}
    weights = {"omega_prime": {"loguniform": [0.05, 0.8]}, "alpha_hat": 0.02}
    spec = SweepSpec.model_validate(raw | {"weights": weights, "training": {"lr": {"loguniform": [1e-5, 1e-3]}}})
    folder = SweepFolder(str(tmp_path), "searched")
    folder.create(spec, None)
    folder.keep_proposal(0, {"number": 0, "setting": {"omega_prime": 0.123456789, "lr": 3.14159e-4}})
    trials = known_trials(spec, folder)
    tracker = MlflowTracker(resolved(spec, folder.storage, resume=True), trials)
    tracker.start()
    for trial in trials:
        tracker.on_trial_start(0, [], trial_of(trial))
    tracker.finish([])
    found = found_at(default_tracking_uri(tmp_path), "searched")
    assert {trial.trial_id: trial for trial, _, _ in found.results} == {trial.trial_id: trial for trial in trials}
    assert sum(trial.method == "rpg" for trial in trials) == 2
