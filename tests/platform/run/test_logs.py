"""``RPG_LOG_FORMAT=json``: the lines of a driver and of its trials' processes, as a program reads them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.commands import rpg

TRIAL = "full-alpha=0.01-seed=3"
WORLD = """
import sys
from pathlib import Path
from tests.platform.own_tasks import Slide

class Once(Slide):
    '''Raises once, in a trial's process.'''

    def __init__(self, folder):
        super().__init__()
        self.mark = Path(folder) / "raised"

    def step(self, action):
        if "default_worker" in sys.argv[0] and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("the simulator fell over")
        return super().step(action)
"""
RAW: dict[str, Any] = {
    "name": "logged",
    "task": {"env": "my_world:Once", "addons": {"middle": "-abs(next_obs[0])"}},
    "algorithm": "full",
    "weights": {"alpha": 0.01},
    "seeds": [3],
    "budget": {"env_steps": 1024},
    "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1, "critic_warmup_iterations": 0},
    "evaluation": {"episodes": 1, "validations": 0},
    "storage": "results",
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its files and the trials' logs; a short path, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_line_is_an_object_that_names_sweep_and_trial(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "my_world.py").write_text(WORLD)
    task = RAW["task"] | {"kwargs": {"folder": str(tmp_path)}}
    (tmp_path / "logged.yaml").write_text(yaml.safe_dump(RAW | {"task": task}))
    variables = {"RPG_LOG_FORMAT": "json", "RAY_TMPDIR": str(ray_folder), "RPG_VIDEOS": "0"}
    done = rpg("sweep", "logged.yaml", cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    said = objects(done.stderr)
    assert all(line["sweep"] == "logged" for line in said if "/rpg_platform/" in line["filename"] or "sweep" in line)
    [finished] = [line for line in said if "finished" in line["message"] and "trial" in line]
    assert (finished["trial"], finished["seed"], finished["levelname"]) == (TRIAL, 3, "INFO")
    assert any("Runs on" in line["message"] for line in said)
    assert "finished" not in "".join(line for line in done.stdout.splitlines() if TRIAL in line)
    assert "full" in done.stdout, "the table stays one"

    files = ray_folder.glob("ray/session_2*/logs/worker-*.err")
    of_trials = [line for file in files for line in objects(file.read_text()) if line.get("trial") == TRIAL]
    [fault] = [line for line in of_trials if "its environments are made anew" in line["message"]]
    assert (fault["sweep"], fault["seed"], fault["levelname"]) == ("logged", 3, "ERROR")
    assert "the simulator fell over" in fault["exc_text"]
    assert fault["actor_id"], "and Ray's own ids"

    wrong = rpg("sweep", "logged.yaml", "--name", "other", cwd=tmp_path, RPG_LOG_FORMAT="xml")
    assert (wrong.returncode, "RPG_LOG_FORMAT='xml': expected text or json" in wrong.stderr) == (2, True), wrong.stderr
