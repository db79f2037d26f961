"""A sweep whose policy is told its weights: trained once, then a row, a run in MLflow and a policy for each setting."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from tests.platform.commands import here, refused

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.evaluation.play import evaluate_both
from rpg_platform.results.report import FINAL, mean_key
from rpg_platform.review.content import content_of
from rpg_platform.review.found import found_at, found_in
from rpg_platform.spec.task import get_task
from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.storage.sweep_folder import START_FOLDER, SweepFolder

SPEC = """
task: halfcheetah-foot-angle
prior: halfcheetah-spg
algorithm: rpg
weights:
  omega_prime: {conditioned: [0.02, 1.6]}
  alpha_hat: {conditioned: [0.01, 0.1]}
baselines: [greedy]
budget: {env_steps: 16_384}
evaluation: {episodes: 2, conditioned_points: 4, validations: 1, validation_episodes: 1}
training: {critic_warmup_iterations: 1}
"""
OPEN, CORNER = {"omega_prime": 0.3, "alpha_hat": 0.02}, {"omega_prime": 1.6, "alpha_hat": 0.01}
TOTAL = mean_key(FINAL, "deterministic", "total_return")


@pytest.fixture(scope="module")
def storage(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditioned")
    file = folder / "range.yaml"
    file.write_text(SPEC, encoding="utf-8")
    here("sweep", str(file), "--storage", str(folder / "results"))
    return folder / "results"


def words(weights: dict[str, float]) -> str:
    return ",".join(f"{name}={value}" for name, value in weights.items())


def test_each_setting_is_a_row_with_the_figures_that_its_policy_has(storage: Path) -> None:
    found = found_in(SweepFolder(str(storage), "range"))
    told = [row for row in found.rows if row.method == "rpg"]
    settings = {tuple(row.weights.values()) for row in told}
    assert settings == {(0.02, 0.01), (0.02, 0.1), (1.6, 0.01), (1.6, 0.1)}
    [row] = [each for each in told if each.weights == CORNER]
    asked = ("range", "--weights", words(CORNER), "--storage", str(storage))
    done = here("evaluate", *asked, "--task", "halfcheetah-foot-angle", "--episodes", "2", "--json")
    assert json.loads(done.stdout)[TOTAL] == pytest.approx(row.deterministic.total_return.mean, rel=1e-12)
    [training] = [each for each in (storage / "range").glob("rpg-*") if each.is_dir()]
    whole, prior = load_bundle(max(training.glob("checkpoint_*")) / "bundle"), load_bundle(SHIPPED["halfcheetah-spg"])
    task, weights = get_task("halfcheetah-foot-angle"), {**CORNER, "addon_weight": 1.0}
    played = evaluate_both(whole.build().folded(CORNER), task, 2, 10_000, prior.build(), weights=weights)
    objective = played["sampled"].objective.mean()
    assert row.figure("objective").mean == pytest.approx(objective, rel=1e-5), "each setting's J is of its own reward"
    assert len({round(each.figure("objective").mean, 3) for each in told}) == 4


def test_the_report_draws_the_training_once_for_all_settings(storage: Path) -> None:
    made = content_of(found_in(SweepFolder(str(storage), "range")), {}, "rad")
    [line] = {row["line"] for row in made["rows"] if row["told"]}
    [greedy] = [row["group"] for row in made["rows"] if row["method"] == "greedy"]
    assert set(made["curves"]["settings"]) == {line, greedy}
    [curve] = made["curves"]["settings"][line]
    assert len(made["curves"]["steps"][curve["steps"]]) == len(curve["kl_to_prior"]) >= 2


def test_mlflow_has_the_settings_below_their_training_and_tells_the_same(storage: Path) -> None:
    uri = f"sqlite:///{storage}/mlflow.db"
    in_folder, in_store = found_in(SweepFolder(str(storage), "range")), found_at(uri, "range")
    assert [row.setting for row in in_store.rows] == [row.setting for row in in_folder.rows]
    for ours, there in zip(in_folder.rows, in_store.rows, strict=True):
        assert there.figure("total_return").mean == pytest.approx(ours.figure("total_return").mean)
    client = MlflowClient(uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    by_id = {run.info.run_id: run for run in runs}
    points = [run for run in runs if "point_of" in run.data.tags]
    assert len(points) == 4
    for run in points:
        training = by_id[run.data.tags["mlflow.parentRunId"]]
        assert training.data.tags["trial_id"] == run.data.tags["point_of"]
        assert run.info.status == "FINISHED"
        assert {float(run.data.params["omega_prime"])} <= {0.02, 1.6}


def test_any_setting_of_the_range_is_exported_as_a_plain_policy(storage: Path, tmp_path: Path) -> None:
    where = ("--storage", str(storage))
    here("export", "range", "--weights", words(OPEN), "--format", "bundle", "--out", str(tmp_path / "at"), *where)
    folded = load_bundle(tmp_path / "at")
    [training] = [each for each in (storage / "range").glob("rpg-*") if each.is_dir()]
    whole = load_bundle(max(training.glob("checkpoint_*")) / "bundle")
    u = [each.told(OPEN[each.name]) for each in whole.network_spec.context]
    obs = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 17)).astype(np.float32))
    told = torch.cat((obs, torch.tensor(u, dtype=torch.float32).expand(64, 2)), dim=1)
    with torch.no_grad():
        difference = (folded.build()(obs) - whole.build()(told)).abs().max()
    assert float(difference) < 1e-5
    assert folded.card.made_by["weights"] == OPEN
    assert folded.card.alpha == OPEN["alpha_hat"]
    assert folded.card.parents == whole.card.parents


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("range", "--weights", "omega_prime=3,alpha_hat=0.02"),
            "omega_prime=3: the policy was trained from 0.02 to 1.6",
        ),
        (("range", "--weights", "omega_prime=0.3"), "its policies are told alpha_hat, omega_prime"),
        (("range", "--weights", "omega_prime:0.3"), "expected NAME=NUMBER"),
        (("halfcheetah-spg", "--weights", "omega_prime=0.3"), "is a policy at one setting"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    storage: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    said = refused("export", *given, "--storage", str(storage), "--out", str(tmp_path / "out"))
    assert message in " ".join(said.split())


def test_a_policy_for_a_range_is_no_prior_until_it_is_folded(storage: Path, tmp_path: Path) -> None:
    [training] = [each for each in (storage / "range").glob("rpg-*") if each.is_dir()]
    file = tmp_path / "next.yaml"
    text = SPEC.replace("prior: halfcheetah-spg", f"prior: {os.path.relpath(training, tmp_path)}")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"next.yaml:3.*is a policy for a range of omega_prime, alpha_hat"):
        load_spec(file)


def test_a_sweep_goes_on_from_a_setting_and_keeps_the_prior(storage: Path, tmp_path: Path) -> None:
    at = ("range", "--weights", words(OPEN), "--storage", str(storage))
    here("export", *at, "--format", "bundle", "--out", str(tmp_path / "start"))
    (tmp_path / "refined.yaml").write_text(
        "{task: halfcheetah-foot-angle, prior: halfcheetah-spg, start: ./start, algorithm: rpg,"
        " budget: {env_steps: 8_192}, weights: {omega_prime: 0.3, alpha_hat: 0.02}, "
        "training: {lr: 1.0e-12, critic_warmup_iterations: 1},"
        " evaluation: {episodes: 1, validations: 0}}",
        encoding="utf-8",
    )
    here("sweep", str(tmp_path / "refined.yaml"), "--storage", str(storage))
    [trial] = (storage / "refined").glob("rpg-*")
    refined, start = load_bundle(max(trial.glob("checkpoint_*")) / "bundle"), load_bundle(tmp_path / "start")
    for name, weights in start.build().state_dict().items():
        assert torch.allclose(refined.build().state_dict()[name], weights, atol=1e-6), (
            "no step of such a size leaves it"
        )
    assert refined.card.made_by["start"] == {"name": start.card.name, "content_hash": start.card.content_hash}
    assert refined.card.parents == load_bundle(SHIPPED["halfcheetah-spg"]).card.descent()["parents"]
    [row] = [each for each in found_in(SweepFolder(str(storage), "refined")).rows if not each.is_prior]
    assert row.kl_to_prior.mean > 0.01, "the KL is to the prior, not to the start"
    start_folder = SweepFolder(str(storage), "refined").prior(START_FOLDER)
    assert start_folder is not None, "a resumed sweep has it, wherever the user's folder went"
    assert start_folder.card.content_hash == start.card.content_hash
