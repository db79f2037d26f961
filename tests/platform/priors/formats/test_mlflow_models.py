"""Policies out of a real MLflow store: by alias, version, run and folder; no flavour is ever loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.models import infer_signature
from stable_baselines3 import PPO
from tests.platform.priors.payloads import Payload
from torch import nn

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.export.registry import promote
from rpg_platform.priors.formats import mlflow_models
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.sources import import_prior, read_source
from rpg_platform.storage.location import DATABASE_FILE, default_tracking_uri
from rpg_platform.tracking.store import create_embedded_store

PRIOR = resolve_prior("halfcheetah-spg")
PICKLED: dict[str, Any] = {"pip_requirements": ["torch"], "serialization_format": "pickle"}
PENDULUM = gym.make("Pendulum-v1")
SMALL = ImportOptions(
    env_id="Pendulum-v1", observation_space=PENDULUM.observation_space, action_space=PENDULUM.action_space
)


class SmallPolicy(nn.Module):
    """mean and log std of one action, of three observations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.net(obs)
        return mean, self.log_std.expand_as(mean)


class Predictor(mlflow.pyfunc.PythonModel):
    """A model that only Python code can make use of."""

    def predict(self, context: Any, model_input: list[float], params: Any = None) -> list[float]:
        return model_input


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the shipped prior as version 1 of ``cheetah``, alias ``champion``."""
    folder = tmp_path_factory.mktemp("store")
    create_embedded_store(folder / DATABASE_FILE)
    uri = default_tracking_uri(folder)
    promote(PRIOR, "cheetah", "champion", uri)
    return uri


@pytest.mark.parametrize("address", ["models:/cheetah@champion", "models:/cheetah/1"])
def test_registered_models(address: str, store: str, tmp_path: Path) -> None:
    done = import_prior(address, tmp_path / "prior", tracking_uri=store)
    original = load_bundle(PRIOR)
    assert done.card.parents == [original.card.content_hash]
    made_by = done.card.made_by["import"]
    assert (made_by["format"], made_by["model"], made_by["version"]) == ("mlflow/bundle", "cheetah", "1")
    assert made_by["source"] == address
    assert len(made_by["sha256"]) == 64
    assert done.card.name == "halfcheetah-spg"
    weights, expected = load_bundle(done.folder).build().state_dict(), original.build().state_dict()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_files_of_runs(store: str, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, n_steps=64, device="cpu")
    model.save(tmp_path / "ppo.zip")
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("own", str(tmp_path / "artifacts")))
    client.log_artifact(run.info.run_id, str(tmp_path / "ppo.zip"), "models")
    for path in ("models/ppo.zip", "models", ""):
        imported = read_source(f"runs:/{run.info.run_id}/{path}".rstrip("/"), SMALL, tracking_uri=store)
        assert imported.format.removeprefix("mlflow/") == "sb3/ppo"
        assert imported.facts["run_id"] == run.info.run_id
    client.log_artifact(run.info.run_id, str(PRIOR / "card.json"), "other/bundle")
    client.log_artifact(run.info.run_id, str(PRIOR / "weights.safetensors"), "other/bundle")
    found = read_source(f"runs:/{run.info.run_id}", SMALL, tracking_uri=store)
    assert found.format == "mlflow/bundle", "a bundle goes before other files"
    client.log_artifact(run.info.run_id, str(tmp_path / "ppo.zip"), "again")
    client.log_artifact(run.info.run_id, str(tmp_path / "ppo.zip"), "models/second")
    with pytest.raises(
        PriorImportError, match=r"holds several policies: ppo.zip \(sb3\), second/ppo.zip \(sb3\); name one"
    ):
        read_source(f"runs:/{run.info.run_id}/models", SMALL, tracking_uri=store)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/cheetah@challenger", r"Registered model alias challenger not found.* \(MLflow store: sqlite"),
        ("models:/cheetah/7", "not found"),
        ("models:/nobody@champion", "not found"),
        ("models:/cheetah", "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "not found"),
        ("runs:/", "expected runs:/RUN_ID/path"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, message: str, store: str) -> None:
    with pytest.raises(PriorImportError, match=message) as refused:
        read_source(address, tracking_uri=store)
    assert address in str(refused.value)


def test_no_store_is_made_by_looking(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(
        PriorImportError, match=r"no MLflow store there.*--tracking-uri or the variable MLFLOW_TRACKING_URI"
    ):
        read_source("models:/cheetah@champion", tracking_uri=uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 10_000), ("MAX_FILES", 3), ("MAX_DEPTH", -1)])
def test_too_much_is_not_downloaded(limit: str, value: int, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_models, limit, value)
    with pytest.raises(PriorImportError, match=r"models:/cheetah/1: holds more than the \d+ files"):
        read_source("models:/cheetah/1", tracking_uri=store)


# ---- model folders ------------------------------------------------------------------------------
def test_a_torchscript_module_in_the_pytorch_flavour(tmp_path: Path) -> None:
    module = SmallPolicy()
    mlflow.pytorch.save_model(torch.jit.script(module), str(tmp_path / "model"), **PICKLED)
    done = import_prior(str(tmp_path / "model"), tmp_path / "prior", SMALL)
    obs = torch.randn(100, 3)
    with torch.no_grad():
        expected = torch.cat(module(obs), -1)
        assert torch.allclose(done.imported.network(obs), expected, atol=1e-6)
    assert done.imported.format.startswith("mlflow/torchscript")


def test_pickled_flavours_are_refused(tmp_path: Path) -> None:
    mlflow.pytorch.save_model(SmallPolicy(), str(tmp_path / "torch"), **PICKLED)
    with pytest.raises(
        PriorImportError, match="its pytorch flavour is a pickled module, which cannot be loaded without"
    ):
        read_source(str(tmp_path / "torch"), SMALL)
    example = np.zeros((2, 3), np.float32)
    signature = infer_signature(example, example[:, :1])
    mlflow.pytorch.save_model(
        nn.Linear(3, 1),
        str(tmp_path / "pt2"),
        pip_requirements=["torch"],
        signature=signature,
        input_example=example,
        serialization_format="pt2",
    )
    with pytest.raises(
        PriorImportError, match=r"its pytorch flavour is a program of torch.export \(.pt2\), which is not"
    ):
        read_source(str(tmp_path / "pt2"), SMALL)
    mlflow.pyfunc.save_model(str(tmp_path / "python"), python_model=Predictor(), pip_requirements=["mlflow"])
    with pytest.raises(
        PriorImportError, match=r"no policy in a readable format among its files \(flavours: python_function"
    ):
        read_source(str(tmp_path / "python"), SMALL)


def _folder(folder: Path, flavours: dict[str, Any]) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    return folder


def _pytorch_flavour(folder: Path, marker: Path) -> Callable[[], Any]:
    file = _folder(folder, {"pytorch": {"model_data": "data"}}) / "data" / "model.pth"
    torch.save(Payload(marker), file)
    return lambda: torch.load(file, weights_only=False)


def _python_model(folder: Path, marker: Path) -> Callable[[], Any]:
    file = _folder(folder, {"python_function": {"python_model": "python_model.pkl"}}) / "python_model.pkl"
    file.write_bytes(cloudpickle.dumps(Payload(marker)))
    return lambda: cloudpickle.loads(file.read_bytes())


def _state_dictionary(folder: Path, marker: Path) -> Callable[[], Any]:
    file = _folder(folder, {"python_function": {}}) / "data" / "agent.pt"
    torch.save({"actor.0.weight": Payload(marker)}, file)
    return lambda: torch.load(file, weights_only=False)


def _model_file(folder: Path, marker: Path) -> Callable[[], Any]:
    text = f"flavors: !!python/object/apply:builtins.exec [\"open('{marker}', 'w').close()\"]\n"
    (_folder(folder, {}) / "MLmodel").write_text(text)
    return lambda: yaml.unsafe_load(text)


@pytest.mark.parametrize("make", [_pytorch_flavour, _python_model, _state_dictionary, _model_file])
def test_nothing_is_executed(make: Callable[[Path, Path], Callable[[], Any]], tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    load = make(tmp_path / "model", marker)
    load()
    assert marker.exists(), "the payload works"
    marker.unlink()
    with pytest.raises(PriorImportError, match="model"):
        read_source(str(tmp_path / "model"), SMALL)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: [", "MLmodel: not YAML"),
        ("[1, 2]", "names no flavours"),
        ("flavors: {pytorch: {model_data: ../../../etc}}", "its pytorch flavour is a pickled module"),
        ("a" * 5_000_000, "more than the 4000000 bytes that are read"),
    ],
)
def test_malformed_model_files(text: str, message: str, tmp_path: Path) -> None:
    (_folder(tmp_path / "model", {}) / "MLmodel").write_text(text)
    with pytest.raises(PriorImportError, match=message):
        read_source(str(tmp_path / "model"))
