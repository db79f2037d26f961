"""``rpg sweep FILE --resume-or-start``: one command for whoever reruns jobs (RayJob, Slurm, a loop)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.commands import here, refused

from rpg_algorithms.policies.bundle import load_bundle, save_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.run.status import is_done
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.sweep_folder import LOCK_FILE, PRIOR_FOLDER, SOURCE_FILE, SweepFolder

TRIAL = "greedy-seed=0"
RAW: dict[str, Any] = {
    "task": {"env": "HalfCheetah-v5", "addons": {"calm": "-sum(action ** 2)"}, "folder": "."},
    "prior": "./prior",
    "algorithm": "greedy",
    "budget": {"env_steps": 1024},
    "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1, "critic_warmup_iterations": 1},
    "evaluation": {"episodes": 1, "validations": 0},
}


def unpacked(folder: Path, **changes: Any) -> str:
    """What a job unpacks on a cluster, under another path each time: the file, its prior, the place of own modules."""
    folder.mkdir()
    shutil.copytree(SHIPPED["halfcheetah-spg"], folder / "prior")
    (folder / "again.yaml").write_text(yaml.safe_dump(RAW | changes))
    return str(folder / "again.yaml")


def test_it_starts_then_continues_then_has_nothing_to_do(local_ray: None, tmp_path: Path) -> None:
    storage, folder = ("--storage", str(tmp_path / "results")), SweepFolder(str(tmp_path / "results"), "again")
    # A driver that was killed while it began has left this.
    (tmp_path / "results" / "again" / PRIOR_FOLDER).mkdir(parents=True)
    for name in (LOCK_FILE, SOURCE_FILE, "sweep.json.part"):
        (tmp_path / "results" / "again" / name).write_text("half")
    started = here("sweep", unpacked(tmp_path / "a"), *storage, "--resume-or-start")
    assert f"{TRIAL}: finished" in started.stdout
    key, report = folder.run_key(), tmp_path / "results" / "again" / TRIAL / "result.json"
    before = report.stat().st_mtime_ns

    # Finished: from another folder with the same content, without Ray, and with the table again.
    elsewhere = unpacked(tmp_path / "b")
    done = here("sweep", elsewhere, *storage, "--resume-or-start")
    assert f"again is finished: nothing is left to run. Results: {folder.uri}\n" in done.stderr
    assert re.search(r"^ *1 +★? *greedy|greedy", done.stdout)
    rows = json.loads(here("sweep", elsewhere, *storage, "--resume-or-start", "--json").stdout)
    assert {row["method"] for row in rows} == {"greedy", "prior"}
    assert (report.stat().st_mtime_ns, folder.next_attempt()[1]) == (before, "attempt-2")

    # Another sweep under its name, by the field that differs: a setting, and a prior of other content.
    said = refused("sweep", unpacked(tmp_path / "c", budget={"env_steps": 2048}), *storage, "--resume-or-start")
    assert "the sweep 'again' was started otherwise: budget.env_steps was 1024, now 2048" in said
    other = unpacked(tmp_path / "d")
    bundle = load_bundle(tmp_path / "d" / "prior")
    save_bundle(tmp_path / "d" / "prior", bundle.build(), bundle.card.model_copy(update={"name": "another"}))
    assert "was started otherwise: prior was '" in refused("sweep", other, *storage, "--resume-or-start")

    # Not finished: what has no result is run.
    status = json.loads(folder.read_text(STATUS_FILE) or "")
    folder.write_text(STATUS_FILE, json.dumps(status | {"state": "stopped"}))
    shutil.rmtree(tmp_path / "results" / "again" / TRIAL)
    continued = here("sweep", elsewhere, *storage, "--resume-or-start")
    assert "1 of 2 trials are finished" in continued.stdout
    assert f"{TRIAL}: finished" in continued.stdout
    assert folder.run_key() == key, "the same runs in MLflow"

    # Finished, but MLflow has not got all of it: it is continued, which sends the rest.
    status = json.loads(folder.read_text(STATUS_FILE) or "")
    status["tracker"] |= {"spooled": 3}
    folder.write_text(STATUS_FILE, json.dumps(status))
    assert not is_done(folder)
    status["tracker"] |= {"spooled": 0}
    folder.write_text(STATUS_FILE, json.dumps(status))
    assert is_done(folder)


def test_two_drivers_at_once_are_one_driver(local_ray: None, tmp_path: Path) -> None:
    storage, file = ("--storage", str(tmp_path)), unpacked(tmp_path / "a")
    folder = SweepFolder(str(tmp_path), "again")
    with folder.lock():  # the other one has just begun: it has not written what it is to run
        said = here("sweep", file, *storage, "--resume-or-start", code=2).stderr
    assert said.startswith(f"{folder.uri} is being run by process ")
    assert "expected one of them" in refused("sweep", file, *storage, "--resume-or-start", "--resume")


@pytest.mark.parametrize("name", ["notes.txt", SOURCE_FILE])
def test_a_folder_of_somebody_elses_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / name).write_text("mine")
    storage = ("--storage", str(tmp_path))
    assert "nothing is overwritten" in refused("sweep", unpacked(tmp_path / "a"), *storage, "--resume-or-start")
