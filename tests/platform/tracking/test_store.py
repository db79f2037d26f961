"""The addresses of MLflow's stores, known without its import, and the embedded store, made whole by one of several."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record
from rpg_platform.tracking.store import check_store, create_embedded_store, follow_move


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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
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


def test_the_next_stores_are_copies_of_the_first_and_a_broken_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = "SELECT artifact_location FROM experiments"

    def made(name: str) -> tuple[list[str], str]:
        assert create_embedded_store(tmp_path / name / "mlflow.db")
        with contextlib.closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as store:
            [found] = store.execute(place).fetchall()
            return [row[0] for row in store.execute("SELECT name FROM sqlite_master ORDER BY name")], found[0]

    whole, first = made("first")
    [kept] = (tmp_path / "cache" / "rpg" / "mlflow").iterdir()
    with contextlib.closing(sqlite3.connect(kept)) as store, store:
        store.execute("CREATE TABLE zz_mark (id INTEGER)")
    marked, second = made("second")
    assert marked == [*whole, "zz_mark"], "it was not copied"
    assert (first, second) == tuple((tmp_path / name / "mlartifacts" / "0").as_uri() for name in ("first", "second"))
    content = kept.read_bytes()
    for broken in (content[: len(content) // 2], b""):
        kept.write_bytes(broken)
        assert made("broken")[0] == whole
        (tmp_path / "broken" / "mlflow.db").unlink()
    assert made("third")[0] == whole, "the sound one is kept again"


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


def test_artifacts_follow_a_store_that_was_copied(tmp_path: Path) -> None:
    """The copy shows what it holds, writes into itself, and leaves the original alone."""
    old, new = tmp_path / "results", tmp_path / "a copy"
    before = MlflowRuns(default_tracking_uri(old), "sweep", "k")
    before.put(Record(PARENT, "open", {"name": "s", "params": {}, "tags": {}, "start_time": 1}))
    run_id = before.run_ids[PARENT]
    artifacts = old / "mlartifacts" / "sweep" / run_id / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "summary.md").touch()  # not by MLflow, which remembers in this process where a run's artifacts are
    source = f"{artifacts.as_uri()}/bundle"
    before._connect()[0].create_registered_model("policy")
    before._connect()[0].create_model_version("policy", source, run_id)
    shutil.copytree(old, new)
    shutil.rmtree(old / "mlartifacts")

    follow_move(new / "mlflow.db")
    client = MlflowClient(default_tracking_uri(new))
    assert client.get_run(run_id).info.artifact_uri == f"{(new / 'mlartifacts').as_uri()}/sweep/{run_id}/artifacts"
    assert client.get_model_version("policy", "1").source == source.replace(old.as_uri(), new.as_uri())
    content = (new / "mlflow.db").read_bytes()
    follow_move(new / "mlflow.db")
    assert (new / "mlflow.db").read_bytes() == content
    resumed = MlflowRuns(default_tracking_uri(new), "sweep", "k")
    resumed.expect_earlier_runs()
    resumed.put(Record(PARENT, "text", {"text": "more", "path": "more.md"}))
    assert {file.path for file in client.list_artifacts(run_id)} == {"summary.md", "more.md"}
    assert [path.name for path in old.iterdir()] == ["mlflow.db"], "something was written to the old place"


def test_a_store_of_others_keeps_its_addresses(tmp_path: Path) -> None:
    """An MLflow server whose artifacts lie elsewhere on purpose."""
    database = tmp_path / "mlflow.db"
    create_embedded_store(database)
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        store.execute("UPDATE experiments SET artifact_location = 'file:///data/mlartifacts/0'")
    follow_move(database)
    assert MlflowClient(f"sqlite:///{database}").get_experiment("0").artifact_location == "file:///data/mlartifacts/0"
