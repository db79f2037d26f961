"""``rpg clean``: which sweeps are old, and that those asked for go, with their runs, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tests.platform.commands import here, refused

from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking import spool
from rpg_platform.tracking.runs import TAG_PARENT, TAG_RUN_KEY

RAW: dict[str, Any] = {"task": "hopper-height", "algorithm": "ppo", "budget": {"env_steps": 100_000}}
DAY_S = 86_400
CONTENT = {"trials": {"total": 1, "finished": 1}, "env_steps": 1, "env_steps_total": 1, "started": 0.0, "every_s": 5.0}


def make(storage: str, uri: str, name: str, *, days: float = 0.0, state: str = "finished") -> SweepFolder:
    """A sweep with 12 kB of results and runs of its parent and two trials, all in one experiment."""
    raw = RAW | {"name": name, "storage": storage, "tracking": {"uri": uri, "experiment": "lab"}}
    folder = SweepFolder(storage, name)
    folder.create(SweepSpec.model_validate(raw), "as written")
    folder.write_bytes("ppo-seed=0/checkpoint_000000/weights", bytes(12_000))
    who = {"format": 1, "sweep": name, "state": state, "host": "elsewhere", "pid": 7, "heartbeat": time.time()}
    folder.write_text(STATUS_FILE, json.dumps(CONTENT | who))
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("lab")
    experiment = client.create_experiment("lab") if found is None else found.experiment_id
    tags = {TAG_RUN_KEY: folder.run_key()}
    parent = client.create_run(experiment, tags=tags | {"kind": "sweep"}).info.run_id
    for seed in range(2):
        client.create_run(experiment, tags=tags | {TAG_PARENT: parent, "trial_id": f"ppo-seed={seed}"})
    if folder.is_local:
        then = time.time() - days * DAY_S
        for file in Path(folder.uri).rglob("*"):
            os.utime(file, (then, then))
    return folder


def runs(uri: str) -> dict[str, int]:
    """How many runs are left of each run key."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lab")
    assert experiment is not None
    count: dict[str, int] = {}
    for run in client.search_runs([experiment.experiment_id]):
        count[run.data.tags[TAG_RUN_KEY]] = count.get(run.data.tags[TAG_RUN_KEY], 0) + 1
    return count


def test_old_sweeps_are_listed_and_those_asked_for_go(tmp_path: Path, embedded_store: str) -> None:
    storage, where = str(tmp_path), ("--storage", str(tmp_path))
    old, older, new, live = (
        make(storage, embedded_store, "old", days=31),
        make(storage, embedded_store, "older", days=90),
        make(storage, embedded_store, "new"),
        make(storage, embedded_store, "live", days=40, state="running"),
    )
    (tmp_path / "notes").mkdir()
    keys = [each.run_key() for each in (old, older, new, live)]
    everything = runs(embedded_store)
    assert everything == dict.fromkeys(keys, 3)

    listed = json.loads(here("clean", *where, "--json").stdout)
    assert not listed["deleted"]
    assert [each["sweep"] for each in listed["sweeps"]] == ["older", "live", "old", "new"]
    assert all(12_000 < each["size"] < 20_000 for each in listed["sweeps"])
    assert round(listed["sweeps"][0]["age_s"] / DAY_S) == 90
    for said, arguments in (
        ("live is running: end it first", ("live",)),
        ("no sweep 'odl' there; did you mean 'old'?", ("odl",)),
        ("--older-than 30: expected a number of hours, days or weeks, such as 12h, 30d or 4w", ("--older-than", "30")),
        ("nothing was deleted: --yes deletes old unasked", ("old",)),
    ):
        assert said in refused("clean", *arguments, *where)
    tried = here("clean", *where, "--older-than", "30d", "--dry-run").stdout
    assert "older: would be deleted, with 3 runs in MLflow" in tried
    assert "live" not in tried
    assert "new" not in tried
    assert (runs(embedded_store), older.is_sweep()) == (everything, True)

    done = json.loads(here("clean", *where, "--older-than", "30d", "--yes", "--json").stdout)
    assert [(each["sweep"], each["runs"], each["error"]) for each in done["sweeps"]] == [
        ("older", 3, None),
        ("old", 3, None),
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["live", "new", "notes"]
    assert runs(embedded_store) == dict.fromkeys(keys[2:], 3)
    assert "new: deleted, with 0 runs in MLflow" in here("clean", "new", *where, "--yes", "--keep-runs").stdout
    assert (new.exists(), runs(embedded_store)[keys[2]]) == (False, 3)


def test_what_cannot_go_stays_whole(tmp_path: Path, embedded_store: str, unused_port: int) -> None:
    where = ("--storage", str(tmp_path))
    away = make(str(tmp_path), embedded_store, "away")
    spec = json.loads(away.read_text("sweep.json") or "")
    spec["spec"]["tracking"]["uri"] = f"http://127.0.0.1:{unused_port}"
    away.write_text("sweep.json", json.dumps(spec))
    said = here("clean", "away", *where, "--yes", code=1).stdout
    assert "away: not deleted: the runs in MLflow" in said
    assert away.read_bytes("ppo-seed=0/checkpoint_000000/weights")

    served = make(str(tmp_path), embedded_store, "served")
    client = MlflowClient(embedded_store)
    experiment = client.get_experiment_by_name("lab")
    assert experiment is not None
    [first, *_] = client.search_runs([experiment.experiment_id], f"tags.{TAG_RUN_KEY} = '{served.run_key()}'")
    model = client.create_logged_model(experiment.experiment_id, name="model", source_run_id=first.info.run_id)
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": '[{"name": "walker", "version": "1"}]'})
    key, kept = served.run_key(), 2 if TAG_PARENT in first.data.tags else 1
    said = here("clean", "served", *where, "--yes").stdout
    assert f"deleted, with {3 - kept} runs in MLflow, {kept} runs stay, as a policy of them is registered" in said
    assert (served.exists(), runs(embedded_store)[key]) == (False, kept)


def test_an_object_store_is_cleaned_too(
    bucket: str, tmp_path: Path, embedded_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder, other = make(bucket, embedded_store, "far"), make(bucket, embedded_store, "stays")
    waiting = spool.spool_folder(bucket, "far")
    waiting.mkdir(parents=True)
    (waiting / "spool.db").write_text("records")
    said = here("clean", "far", "--storage", bucket, "--yes").stdout
    assert "far: deleted, with 3 runs in MLflow" in said
    assert (folder.exists(), other.is_sweep(), waiting.exists()) == (False, True, False)
    with other.lock():  # by a driver, which has a lease
        driver = {"state": "running", "host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()}
        other.write_text(STATUS_FILE, json.dumps(CONTENT | {"format": 1, "sweep": "stays"} | driver))
        assert "stays is running: end it first" in refused("clean", "stays", "--storage", bucket, "--yes")
