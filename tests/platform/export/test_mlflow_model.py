"""The MLflow model: what it says of itself, that MLflow alone can load it, and that nothing in it could be executed."""

from __future__ import annotations

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import yaml
from mlflow.exceptions import MlflowException
from tests.algorithms.policies.networks import FAMILIES, make_network
from tests.platform.export.bundles import OURS, bundle_of, run_elsewhere

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.export import mlflow_model, policy
from rpg_platform.priors.ancestry import lineage_lines


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family: a folder with ``bundle`` and ``mlflow``."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        bundle = bundle_of(make_network(family), folder / "bundle")
        assert mlflow_model.save(folder / "bundle", folder / "mlflow") < 1e-6
        np.save(folder / "obs.npy", policy.typical_states(bundle, 50, seed=3))
        made[family] = folder
    return made


def test_pyfunc_loads_it_where_neither_we_nor_torch_are_installed(folders: dict[str, Path]) -> None:
    found = run_elsewhere("mlflow", list(folders.values()), (*OURS, "torch", "onnx"))
    for folder, outputs in zip(folders.values(), found, strict=True):
        bundle = load_bundle(folder / "bundle")
        exact = policy.exact(bundle, np.load(folder / "obs.npy"))
        assert tuple(outputs) == policy.output_names(bundle.network_spec, "distribution")
        for name, value in outputs.items():
            np.testing.assert_allclose(value, exact[name], rtol=1e-6, atol=1e-6)


def test_signature_example_and_requirements(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        model = mlflow.pyfunc.load_model(str(folder / "mlflow"))
        signature = model.metadata.signature
        assert [(str(each.type), each.shape) for each in signature.inputs] == [("float32", (-1, 5))]
        stated = {each.name: (each.type, each.shape) for each in signature.outputs}
        given = model.predict(model.input_example)
        assert model.input_example.dtype == np.float32
        assert {name: (value.dtype, (-1, *value.shape[1:])) for name, value in given.items()} == stated
        with pytest.raises(MlflowException, match="shape"):
            model.predict(np.zeros((2, 4), np.float32))
        assert list(stated) == (["action", "logits"] if family == "categorical" else ["action", "mean", "log_std"])
        asked = (folder / "mlflow" / "requirements.txt").read_text().split()
        assert [each.partition("==")[0] for each in asked] == ["mlflow", "numpy", "onnxruntime"]
        assert all("==" in each for each in asked)


def test_it_tells_its_lineage_and_holds_the_bundle(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        text = (folder / "mlflow" / "MLmodel").read_text()
        card = load_bundle(folder / "mlflow" / "bundle").card
        metadata = yaml.safe_load(text)["metadata"]
        assert metadata["content_hash"] == card.content_hash == load_bundle(folder / "bundle").card.content_hash
        assert metadata["lineage"] == lineage_lines(card)
        assert metadata["card"] == card.model_dump()
        assert str(folder) not in text


def test_nothing_in_it_is_code_or_a_pickle(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        names = {str(file.relative_to(folder / "mlflow")) for file in (folder / "mlflow").rglob("*") if file.is_file()}
        assert names == {
            *("MLmodel", "model.onnx", "conda.yaml", "python_env.yaml", "requirements.txt"),
            *("input_example.json", "serving_input_example.json", "bundle/card.json", "bundle/weights.safetensors"),
        }
