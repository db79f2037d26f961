"""The addresses of MLflow's stores, known without its import, and the embedded store, made whole by one of several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.store import check_store, create_embedded_store


def test_an_address_is_known_without_importing_mlflow() -> None:
    code = (
        "import sys; from rpg_platform.storage.location import default_tracking_uri\n"
        "from rpg_platform.tracking.store import embedded_database; embedded_database(default_tracking_uri('/a'))\n"
        "assert not {'mlflow', 'ray'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_two_sweeps_may_make_the_embedded_store_at_once(tmp_path: Path) -> None:
    database = tmp_path / "new" / "mlflow.db"
    code = (
        "import sys; from pathlib import Path; from rpg_platform.tracking.store import create_embedded_store; "
        "sys.stdout.write(str(create_embedded_store(Path(sys.argv[1]))))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(database)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    outputs = [each.communicate(timeout=240) for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert sorted(output for output, _ in outputs) == ["False", "True"]
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"], "something half-made was left"
    experiment = MlflowClient(f"sqlite:///{database}").get_experiment("0")
    assert experiment.artifact_location == f"file://{tmp_path}/new/mlartifacts/0"


def test_an_empty_file_is_no_store_and_a_store_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()  # what a kill at the wrong moment leaves of SQLite
    assert create_embedded_store(database)
    content = database.read_bytes()
    assert not create_embedded_store(database)
    assert database.read_bytes() == content


def test_default_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri(f"file://{tmp_path}/a%20b") == f"sqlite:///{tmp_path}/a b/mlflow.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_tracking_uri("~/results") == f"sqlite:///{tmp_path}/results/mlflow.db"
    with pytest.raises(ValueError, match=r"storage: 's3://bucket/x'.*tracking\.uri"):
        default_tracking_uri("s3://bucket/x")


def test_an_address_without_a_store_is_refused(tmp_path: Path, unused_port: int) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    server = f"http://me:secret@127.0.0.1:{unused_port}"
    for address, message in (
        (f"sqlite:///{database}", "no MLflow store there"),
        (str(tmp_path), "got a folder"),
        (server, r"http://\*\*\*@127.*no MLflow server answers"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            check_store(address)
        assert "secret" not in str(refused.value)
    database.write_bytes(b"anything")
    check_store(f"sqlite:///{database}")
