"""Twelve trials through everything that dies: a worker, the MLflow server, the driver; then the sweep is resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.platform import own_tasks
from tests.platform.commands import rpg, started, wait_for
from tests.platform.reports import Reports, check_points
from tests.platform.servers import MlflowServer, free_port

from rpg_platform.spec.checks import expand
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

NAME, LIMIT_S, OUTAGE_S = "twelve", 400, 30
PER_REPORT = 512
STEPS = 24 * PER_REPORT
BUDGET = range(PER_REPORT, STEPS + 1, PER_REPORT)
STATUS = ("status", NAME, "--storage", "results")
RAW: dict[str, Any] = {
    "name": NAME,
    "task": {
        "env": "my_world:Faulty",
        "kwargs": {"folder": "."},
        "addons": {"middle": "-abs(next_obs[0])"},
    },
    "algorithm": "full",
    "weights": {"alpha": {"grid": [0.005, 0.01, 0.02, 0.05]}},
    "seeds": 3,
    "budget": {"env_steps": STEPS},
    "checkpoint": {"every_env_steps": STEPS // 3},
    "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1},
    "resources": {"envs_per_runner": 8, "max_concurrent": 2},
    "evaluation": {"episodes": 1, "validations": 2, "validation_episodes": 1},
}


def ask(*arguments: str, cwd: Path) -> dict[str, Any]:
    """What a command answers with ``--json``, from a process of its own."""
    answer: dict[str, Any] = json.loads(rpg(*arguments, "--json", cwd=cwd).stdout)
    return answer


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path_factory.mktemp("twelve"), free_port())
    found.start()
    yield found
    found.kill()


def closed(found: TrackedSweep) -> dict[str, int]:
    """Trial → when its run ended, of those that MLflow has as finished."""
    return {trial: run.info.end_time for trial, run in found.children.items() if run.info.status == "FINISHED"}


def break_everything(place: Path, files: Reports, server: MlflowServer, read_sweep: ReadSweep) -> None:
    """Runs the sweep in ``place``: a trial's worker dies, then MLflow for a while, then the driver with all of Ray."""
    pause = place / "hang"

    def midway() -> list[dict[str, Any]]:
        """Last reports of trials that have passed their first checkpoint, and not come to the next."""
        return [each for each in files.running() if each["env_steps"] > STEPS // 3 + PER_REPORT]

    with started("sweep", "twelve.yaml", "--storage", "results", cwd=place) as driver:
        try:
            os.kill(wait_for(midway, driver)[0]["pid"], signal.SIGKILL)
            wait_for(lambda: len(files.finished()) >= 2, driver)
            server.kill()
            began = time.monotonic()
            # Trials go on to finish without it; then the rest waits, so that some are left for what follows.
            wait_for(lambda: len(files.finished()) >= 4, driver)
            pause.touch()
            assert ask(*STATUS, cwd=place)["state"] == "running"
            wait_for(lambda: time.monotonic() - began > OUTAGE_S, driver)
            server.start()
            wait_for(lambda: closed(read_sweep(server.uri, NAME)), driver)  # what waited begins to arrive
            pause.unlink()
            wait_for(midway, driver)
            assert driver.poll() is None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)  # as if the machine went down


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT_S)
def test_twelve_trials_survive_everything(tmp_path: Path, server: MlflowServer, read_sweep: ReadSweep) -> None:
    raw = RAW | {
        "task": RAW["task"] | {"kwargs": {"folder": str(tmp_path)}},
        "tracking": {"uri": server.uri},
    }
    (tmp_path / "my_world.py").write_text(Path(own_tasks.__file__).read_text())
    (tmp_path / "twelve.yaml").write_text(yaml.safe_dump(raw))
    storage, folder = tmp_path / "results", SweepFolder(str(tmp_path / "results"), NAME)
    files = Reports(storage / NAME)
    break_everything(tmp_path, files, server, read_sweep)
    dead = ask(*STATUS, cwd=tmp_path)
    assert (dead["state"], dead["command"]) == ("dead", f"rpg resume {NAME} --storage results")
    trials = {trial.trial_id for trial in expand(folder.spec())}
    assert len(trials) == 12
    done = {trial for trial, state in folder.trials().items() if state.finished}
    assert 4 <= len(done) < 12
    touched = {file: file.stat().st_mtime_ns for trial in done for file in (storage / NAME / trial).rglob("*")}
    ends = closed(read_sweep(server.uri, NAME))
    cut_off = trials - done

    with started("resume", NAME, "--storage", "results", cwd=tmp_path) as driver:
        output, _ = driver.communicate(timeout=LIMIT_S)
    assert driver.returncode == 0, output
    assert f"{len(done)} of 12 trials are finished" in output
    assert {trial for trial, state in folder.trials().items() if state.finished} == trials
    after = ask(*STATUS, cwd=tmp_path)
    assert (after["state"], after["trials"]["finished"], after["command"]) == ("finished", 12, None)

    # Nothing that was finished has been run or evaluated again.
    assert {file: file.stat().st_mtime_ns for file in touched} == touched
    assert not [trial for trial in done if (storage / NAME / "attempt-2" / trial).exists()]
    tracked = read_sweep(server.uri, NAME)  # fails on a second run of a trial
    assert set(tracked.children) == trials
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
    assert {trial: closed(tracked)[trial] for trial in ends} == ends
    assert sum(int(run.data.tags.get("restarts", 0)) for run in tracked.children.values()) == 1

    # Every point of every report is there, and once.
    reported = files.read()
    assert set(reported) == trials
    for trial, lines in reported.items():
        between = STEPS // 3 // PER_REPORT if trial in cut_off else 0
        check_points(lines, tracked.points(tracked.children[trial]), BUDGET, between)
    again = [len(lines) - len({line["env_steps"] for line in lines}) for lines in reported.values()]
    assert sum(again) > 0, "the kills have to make trials report steps a second time, or this shows nothing"
