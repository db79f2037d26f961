"""``rpg export`` and ``rpg promote`` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.platform.commands import rpg
from typer.testing import CliRunner

from rpg_platform.cli.main import app
from rpg_platform.export.registry import default_store
from rpg_platform.storage.location import default_tracking_uri

PRIOR = "halfcheetah-spg"


def run(*arguments: str) -> str:
    """Standard output of a command that goes well, and says nothing else."""
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (ended.exit_code, ended.stderr) == (0, "")
    return ended.stdout


def test_export_of_one_format_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "cheetah.onnx"
    done = rpg("export", PRIOR, "--format", "onnx", "--out", str(file), "--mode", "deterministic")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(file) in done.stdout
    (action,) = onnxruntime.InferenceSession(file).run(None, {"obs": np.zeros((1, 17), np.float32)})
    assert action.shape == (1, 6)


def test_export_of_all_formats(tmp_path: Path) -> None:
    rows = json.loads(run("export", PRIOR, "--out", str(tmp_path / "all"), "--json"))
    assert [Path(rows[name]["path"]).exists() for name in ("torchscript", "onnx", "mlflow")] == [True] * 3
    assert all(row["deviation"] < 1e-6 for row in rows.values())


def test_promote_to_the_store_that_the_environment_names(
    tmp_path: Path, embedded_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("promote", PRIOR, "--name", "cli-cheetah", "--alias", "champion")
    again = json.loads(run(*arguments, "--tracking-uri", embedded_store, "--json"))
    assert (again["version"], again["created"], again["run_id"]) == ("1", True, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_store)
    said = run(*arguments)
    assert "had been registered as version 1 of cli-cheetah" in said
    assert "models:/cli-cheetah@champion" in said
    assert list(tmp_path.iterdir()) == []  # no store of MLflow's own in the working directory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "halfcheetah-sgp", "--out", "x"), "did you mean 'halfcheetah-spg'?"),
        (("export", PRIOR, "--out", "x", "--format", "torch"), "Invalid value for '--format'"),
        (("export", PRIOR, "--out", ".", "--format", "onnx"), "nothing is overwritten without --overwrite"),
        (("promote", PRIOR, "--name", "n", "--alias", "a", "--tracking-uri", "sqlite:///no/no.db"), "no MLflow store"),
    ],
)
def test_refused(arguments: tuple[str, ...], message: str) -> None:
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.split())


def test_the_default_store_is_that_of_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    bundle = tmp_path / "sweep" / "trial" / "checkpoint_000000" / "bundle"
    assert default_store(bundle) == default_tracking_uri(tmp_path)
