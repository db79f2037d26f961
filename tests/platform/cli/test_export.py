"""``rpg export`` and ``rpg promote`` as their users meet them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient
from tests.platform.commands import here, rpg
from tests.platform.review.made_sweep import made_sweep
from typer.testing import CliRunner

from rpg_platform.cli.main import app
from rpg_platform.export.registry import default_store
from rpg_platform.storage.location import DEFAULT_STORAGE, default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder

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
    """The one beside it, or the server that its specification names; no other that lies in a folder above."""
    (tmp_path / "mlflow.db").touch()
    for name, tracking, store in (
        ("here", {}, default_tracking_uri(tmp_path / "results")),
        ("served", {"uri": "http://mlflow:5000"}, "http://mlflow:5000"),
    ):
        folder = made_sweep(tmp_path / "results", name=name, seeds=1, tracking=tracking)
        bundle = Path(folder.trials()["prior"].checkpoint) / "bundle"
        assert default_store(bundle) == default_store(tmp_path, folder) == store
    assert default_store(tmp_path / "bundle") == default_tracking_uri(DEFAULT_STORAGE)


def test_a_sweep_in_an_object_store_stands_for_its_policy(
    bucket: str, embedded_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = made_sweep(
        tmp_path / "results", name="far", seeds=1, baselines=[], reports=1, tracking={"uri": embedded_store}
    )
    remote, scratch = SweepFolder(bucket, "far"), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for file in (each for each in Path(local.uri).rglob("*") if each.is_file()):
        remote.write_bytes(file.relative_to(local.uri).as_posix(), file.read_bytes())
    where = ("--storage", bucket)
    script = here("export", "far#2", *where, "--format", "torchscript", "--out", str(tmp_path / "far.pt"))
    assert "far#2: rpg omega_prime=" in script.stderr
    assert torch.isfinite(torch.jit.load(tmp_path / "far.pt")(torch.zeros(1, 17))["action"]).all()
    said = here("promote", "far", *where, "--name", "far-cheetah", "--alias", "champion")
    assert "far: registered as version 1 of far-cheetah" in said.stdout  # in the store that the sweep names
    assert MlflowClient(embedded_store).get_model_version_by_alias("far-cheetah", "champion")
    task = ("--task", "halfcheetah-foot-angle")
    metrics = json.loads(here("evaluate", "far", *where, *task, "--episodes", "1", "--json").stdout)
    assert metrics["eval/deterministic/basic_return_mean"] > 5000  # all of its policies are the shipped prior
    here("render", "far#1", "--beside", "far#2", *where, "--steps", "2", "--out", str(tmp_path / "far.mp4"))
    assert (tmp_path / "far.mp4").stat().st_size > 0
    assert not list(scratch.iterdir())
