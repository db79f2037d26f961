"""Promotion, on real sweeps and real MLflow: a customised policy is the prior of the next, and what becomes of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from ray import tune
from rich.console import Console
from tests.algorithms.policies.networks import make_network
from tests.platform.export.bundles import bundle_of
from tests.platform.records import closing, metrics, opening
from tests.platform.servers import MlflowServer, read_sweep

from rpg_algorithms.policies.bundle import load_bundle, load_card, save_bundle
from rpg_platform.bundles import SHIPPED, resolve_prior
from rpg_platform.export import registry
from rpg_platform.export.policy import exact
from rpg_platform.priors.ancestry import lineage_lines
from rpg_platform.run.run import run_sweep
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record
from rpg_platform.trial.trainable import CustomizationTrial

PRIOR = "halfcheetah-spg"
TRIAL = "rpg-omega_prime=0.1-alpha_hat=0.02-seed=0"


def specification(prior: str, name: str, storage: Path) -> SweepSpec:
    """One iteration of one setting."""
    raw: dict[str, Any] = {
        "name": name,
        "task": "halfcheetah-foot-angle",
        "prior": prior,
        "algorithm": "rpg",
        "weights": {"omega_prime": 0.1, "alpha_hat": 0.02},
        "budget": {"env_steps": 512},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1, "critic_warmup_iterations": 0},
        "evaluation": {"episodes": 1},
        "storage": str(storage),
    }
    return SweepSpec.model_validate(raw)


@pytest.fixture(scope="module")
def chain(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two trials, the second of which customised what the first left: a sweep's, and one run alone."""
    storage = tmp_path_factory.mktemp("results")
    first = storage / "first" / TRIAL
    run_sweep(Sweep.resolve(specification(PRIOR, "first", storage)), console=Console(file=io.StringIO()))
    spec = specification(str(first), "second", storage)
    (trial,) = (each for each in expand(spec) if each.method == "rpg")
    prior = load_bundle(resolve_prior(str(spec.prior)))
    running = tune.with_parameters(CustomizationTrial, prior=prior)(config={"trial": trial.model_dump(mode="json")})
    try:
        while not running.train()["done"]:
            pass
        second = storage / "second" / TRIAL
        running.save_checkpoint(str(second / "checkpoint_000000"))
    finally:
        running.stop()
    return [first, second]


@pytest.fixture(scope="module")
def store(chain: list[Path]) -> str:
    return registry.default_store(resolve_prior(str(chain[0])))


def test_a_chain_is_recorded_whole(chain: list[Path], store: str) -> None:
    shipped, first, second = (load_bundle(resolve_prior(str(each))).card for each in (SHIPPED[PRIOR], *chain))
    assert second.parents == [first.content_hash, shipped.content_hash]
    assert [each.content_hash for each in second.lineage] == second.parents
    assert [(each.name, each.method, each.weights, each.alpha) for each in second.lineage] == [
        ("first", "rpg", {"omega_prime": 0.1, "alpha_hat": 0.02}, 0.02),
        (PRIOR, "spg", {"alpha": 0.1}, 0.1),
    ]
    assert second.lineage[0].returns == {name: each.mean for name, each in first.returns.items()}
    lines = lineage_lines(second)
    assert [line.split(" ")[:2] for line in lines] == [
        ["second", second.content_hash[:12]],
        ["←", "first"],
        ["←", PRIOR],
    ]
    assert "halfcheetah-foot-angle · rpg omega_prime=0.1 alpha_hat=0.02" in lines[1]
    runs = read_sweep(store, "first").children
    assert {name: run.data.tags["prior_hash"] for name, run in runs.items()} == dict.fromkeys(
        ("prior", TRIAL), shipped.content_hash
    )


def test_promotion_registers_once_and_moves_the_alias(chain: list[Path], store: str) -> None:
    client = MlflowClient(store)
    bundles = [resolve_prior(str(each)) for each in chain]
    first = registry.promote(bundles[0], "cheetah", "champion", store)
    again = registry.promote(bundles[0], "cheetah", "candidate", store)
    second = registry.promote(bundles[1], "cheetah", "champion", store)
    assert [(each.version, each.created) for each in (first, again, second)] == [("1", True), ("1", False), ("2", True)]
    aliases = {
        alias: client.get_model_version_by_alias("cheetah", alias).version for alias in ("champion", "candidate")
    }
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "2", "candidate": "1"}
    back = registry.promote(bundles[0], "cheetah", "champion", store)
    assert (back.version, back.created) == ("1", False)
    assert len(client.search_model_versions("name = 'cheetah'")) == 2
    # The first is linked with the run of the trial that made it, and the run with the model; the second has no run.
    run = read_sweep(store, "first").children[TRIAL]
    assert first.run_id == again.run_id == client.get_model_version("cheetah", "1").run_id == run.info.run_id
    (logged,) = client.get_run(run.info.run_id).outputs.model_outputs
    model = client.get_logged_model(logged.model_id)
    assert (model.status, model.tags["policy_of"]) == ("READY", TRIAL), "the model that the sweep recorded"
    assert {"name": "cheetah", "version": 1} in json.loads(model.tags["mlflow.modelVersions"])
    assert (second.run_id, client.get_experiment_by_name(registry.EXPERIMENT).lifecycle_stage) == (None, "active")


def test_a_version_tells_prior_weights_and_result(chain: list[Path], store: str) -> None:
    source = resolve_prior(str(chain[1]))
    card = load_card(source)
    version = MlflowClient(store).get_model_version("told", registry.promote(source, "told", "champion", store).version)
    tags = version.tags
    assert tags["prior"] == "first"
    assert (tags["content_hash"], tags["prior_hash"]) == (card.content_hash, card.parents[0])
    assert tags["parents"].split(",") == card.parents
    assert (tags["method"], tags["weights"]) == ("rpg", "omega_prime=0.1 alpha_hat=0.02")
    assert float(tags["return/total/deterministic"]) == pytest.approx(
        card.returns["total/deterministic"].mean, rel=1e-5
    )
    assert version.description.splitlines() == lineage_lines(card)


def test_a_promoted_model_acts_and_holds_its_bundle(chain: list[Path], store: str, tmp_path: Path) -> None:
    source = resolve_prior(str(chain[0]))
    done = registry.promote(source, "acting", "champion", store)
    mlflow.set_tracking_uri(store)
    try:
        model = mlflow.pyfunc.load_model(done.uri)
        folder = mlflow.artifacts.download_artifacts(done.uri, dst_path=str(tmp_path))
    finally:
        mlflow.set_tracking_uri(None)  # and out of the environment, where MLflow puts it
    obs = np.zeros((1, 17), np.float32)
    assert model.predict(obs)["action"] == pytest.approx(exact(load_bundle(source), obs)["action"], abs=1e-6)
    assert load_bundle(Path(folder) / "bundle").card == load_card(source)
    assert model.metadata.run_id == done.run_id


def test_a_policy_without_a_run_on_a_server(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    bundle = bundle_of(make_network("gaussian"), tmp_path)
    done = registry.promote(tmp_path, "from-outside", "champion", mlflow_server.uri)
    assert (done.version, done.created, done.run_id) == ("1", True, None)
    version = MlflowClient(mlflow_server.uri).get_model_version_by_alias("from-outside", "champion")
    assert version.tags["content_hash"] == bundle.card.content_hash
    assert not registry.promote(tmp_path, "from-outside", "champion", mlflow_server.uri).created


def test_a_version_on_a_server_is_of_the_model_that_the_sweep_recorded(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Under another name it is the same model; in another mode it is one of its own."""
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "checkpoint" / "bundle"
    plain = bundle_of(make_network("gaussian"), bundle)
    made_by = {"trial": "t", "sweep": "served"}
    card = save_bundle(bundle, plain.build(), plain.card.model_copy(update={"made_by": made_by, "parents": ["b" * 64]}))
    runs = MlflowRuns(mlflow_server.uri, "served", "k", "served")
    place = {"checkpoint": str(checkpoint), "folder": "bundle"}
    policy = {**place, "path": "model", "name": "one", "params": {"omega_prime": "0.2"}, "tags": {"policy_of": "t"}}
    trial = opening("t", tags={"kind": "trial", "sweep": "served"})
    runs.put(opening(PARENT), trial, metrics("t", 1, total=5.0), Record("t", "folder", {**place, "path": "bundle"}))
    runs.put(Record("t", "policy", policy), closing("t"))
    client = MlflowClient(mlflow_server.uri)
    [recorded] = client.search_logged_models([str(runs.experiment_id)])
    for name in ("served", "served-again"):
        done = registry.promote(bundle, name, "champion", mlflow_server.uri)
        version = client.get_model_version(name, done.version)
        assert (version.source, version.run_id) == (f"models:/{recorded.model_id}", runs.run_ids["t"])
        assert (version.tags["content_hash"], version.tags["parents"]) == (card.content_hash, "b" * 64)
    registry.promote(bundle, "served-small", "champion", mlflow_server.uri, "deterministic")
    assert len(client.search_logged_models([str(runs.experiment_id)])) == 2
    model = client.get_logged_model(recorded.model_id)
    assert [each["name"] for each in json.loads(model.tags["mlflow.modelVersions"])] == ["served", "served-again"]
    assert [(each.key, each.value) for each in model.metrics] == [("total", 5.0)]


def test_another_bundle_of_the_same_trial_is_not_linked(chain: list[Path], store: str) -> None:
    card = load_card(resolve_prior(str(chain[0])))
    client = MlflowClient(store)
    found = registry.find_run(client, card)
    assert found is not None
    assert found.data.tags["trial_id"] == TRIAL
    assert registry.find_run(client, card.model_copy(update={"content_hash": "0" * 64})) is None
    quoted = card.made_by | {"trial": "x' or tags.sweep != '"}
    assert registry.find_run(client, card.model_copy(update={"made_by": quoted})) is None


@pytest.mark.parametrize(
    ("name", "alias", "uri", "message"),
    [
        ("a/b", "champion", None, "name='a/b'"),
        ("a", "latest", None, "alias='latest'"),
        ("a", "v3", None, "alias='v3'"),
        ("a", "champion", "sqlite:///{tmp}/no.db", "no MLflow store there"),
        ("a", "champion", "{tmp}", "expected sqlite:///FILE or the address of a server, got a folder"),
        ("a", "champion", "http://user:secret@127.0.0.1:{port}", "no MLflow server answers there"),
    ],
)
def test_what_cannot_be_promoted_is_refused(
    name: str, alias: str, uri: str | None, message: str, tmp_path: Path, unused_port: int
) -> None:
    bundle_of(make_network("gaussian"), tmp_path / "bundle")
    uri = (uri or "sqlite:///{tmp}/no.db").format(tmp=tmp_path, port=unused_port)
    with pytest.raises(ValueError, match=message) as error:
        registry.promote(tmp_path / "bundle", name, alias, uri)
    assert "secret" not in str(error.value)
    assert {each.name for each in tmp_path.iterdir()} == {"bundle"}


def test_a_failed_promotion_registers_nothing(
    embedded_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_of(make_network("gaussian"), tmp_path)

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", full)
        with pytest.raises(OSError, match="disk full"):
            registry.promote(tmp_path, "retried", "champion", embedded_store)
    assert MlflowClient(embedded_store).search_model_versions("name = 'retried'") == []
    assert registry.promote(tmp_path, "retried", "champion", embedded_store).version == "1"
