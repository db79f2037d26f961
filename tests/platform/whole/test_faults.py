"""What breaks inside a trial is replaced, retried, or ended and named: env workers, environments, trials that hang."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from rpg_platform.results.endings import without_result
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.run.status import status_of
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.trial.trainable import CustomizationTrial

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

PER_ITERATION = 512
TRIAL = "full-alpha=0.01-seed=0"
LIMIT_S = 240
STALL_S = 10  # more than a busy machine takes from the start of a trial's process to its first report


def spec(folder: Path, **changes: Any) -> SweepSpec:
    raw: dict[str, Any] = {
        "name": "faulty",
        "task": {
            "env": "tests.platform.own_tasks:Faulty",
            "kwargs": {"folder": str(folder)},
            "addons": {"middle": "-abs(next_obs[0])"},
        },
        "algorithm": "full",
        "weights": {"alpha": 0.01},
        "budget": {"env_steps": 20 * PER_ITERATION},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1},
        "resources": {"envs_per_runner": 8},
        "evaluation": {"episodes": 1, "validations": 0},
    }
    return SweepSpec.model_validate(raw | changes)


@pytest.fixture
def make(local_ray: None) -> Iterator[Callable[[SweepSpec], CustomizationTrial]]:
    made: list[CustomizationTrial] = []

    def _make(wanted: SweepSpec) -> CustomizationTrial:
        [trial] = expand(wanted)
        made.append(CustomizationTrial({"trial": trial.model_dump(mode="json")}))
        return made[-1]

    yield _make
    for trial in made:
        trial.stop()


Make = Callable[[SweepSpec], CustomizationTrial]


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_env_runner_is_replaced_and_training_goes_on(make: Make, tmp_path: Path, count: int) -> None:
    per_iteration = count * PER_ITERATION
    trial = make(spec(tmp_path, resources={"env_runners": count}, budget={"env_steps": 12 * per_iteration}))
    assert [trial.train()["env_steps"] for _ in range(2)] == [per_iteration, 2 * per_iteration]
    assert trial.algo is not None
    group = trial.algo.env_runner_group
    pids = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    assert os.getpid() not in pids
    os.kill(pids[0], signal.SIGKILL)
    reports = [trial.train()]
    while not reports[-1]["done"] and len(reports) < 100:
        reports.append(trial.train())
    assert reports[-1]["finished"]
    steps = [report["env_steps"] for report in reports[:-1]]  # the last is that of the evaluation
    assert steps == sorted(set(steps)), "every report is of new env steps"
    assert all("policy_loss" in report for report in reports)
    assert reports[-1]["env_runner_restarts"] == 1
    now = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    assert len(now) == count
    assert pids[0] not in now


def test_an_environment_that_raises_is_made_anew(make: Make, tmp_path: Path) -> None:
    trial = make(spec(tmp_path))
    assert trial.train()["env_failures"] == 0
    (tmp_path / "step").write_text("1")
    report = trial.train()
    assert (report["env_steps"], report["env_failures"]) == (2 * PER_ITERATION, 1)
    (tmp_path / "reset").write_text("3")  # at an episode's end, and in two attempts to begin anew
    report = trial.train()
    assert (report["env_steps"], report["env_failures"]) == (3 * PER_ITERATION, 4)
    (tmp_path / "reset").write_text("1000")  # now it is the trial that fails, and does not try for ever
    with pytest.raises(RuntimeError, match="the simulator fell over in reset"):
        trial.train()
    assert int((tmp_path / "reset").read_text()) > 900


def last_report(storage: Path) -> dict[str, Any]:
    files = sorted(storage.glob(f"faulty/**/{TRIAL}/result.json"))
    lines = files[-1].read_text().splitlines() if files else []
    return dict(json.loads(lines[-1])) if lines else {"env_steps": 0}


def run(asked: SweepSpec, resume: bool = False) -> tuple[SweepOutcome, str]:
    text = io.StringIO()
    return run_sweep(Sweep.resolve(asked, resume=resume), console=Console(file=text, width=200)), text.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_trial_that_hangs_is_ended_retried_and_at_last_named(
    local_ray: None, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    """It hangs in a step first; started again, while its environments are made, before any report."""
    storage, every = tmp_path / "out", 4 * PER_ITERATION
    asked = spec(
        tmp_path,
        storage=str(storage),
        budget={"env_steps": 100 * PER_ITERATION},
        checkpoint={"every_env_steps": every},
        faults={"stall_after_s": STALL_S, "retries": 1},
    )

    def hang() -> None:
        end = time.monotonic() + LIMIT_S
        while last_report(storage)["env_steps"] < every + PER_ITERATION and time.monotonic() < end:
            time.sleep(0.01)
        (tmp_path / "hang").touch()

    hanging = threading.Thread(target=hang)
    hanging.start()
    outcome, text = run(asked)
    hanging.join()
    [(_, _, error)] = outcome.results
    assert error is not None
    assert re.fullmatch(rf"no report for \d+ s \(faults\.stall_after_s: {STALL_S}\), its process was ended", error)
    assert text.count("its process was ended") == 4, "said at each end, and why it is retried, and why it failed"
    assert text.count(f"{TRIAL}: restarting — no report for ") == 1
    assert text.count(f"{TRIAL}: failed — {error}") == 1
    assert without_result(outcome.results) == [f"{TRIAL}: {error}"]
    folder = SweepFolder(str(storage), "faulty")
    found = status_of(folder)
    assert (found.state, found.command) == ("failed", "rpg resume faulty")
    assert found.content["failures"] == [{"trial": TRIAL, "error": error}]
    runs = read_sweep(outcome.sweep.tracking_uri, "faulty")
    assert (runs.parent.info.status, runs.children[TRIAL].info.status) == ("FAILED", "FAILED")
    assert runs.children[TRIAL].data.tags["error"] == error
    assert runs.children[TRIAL].data.tags["restarts"] == "1"

    (tmp_path / "hang").unlink()
    reached = folder.trials()[TRIAL].env_steps
    assert reached >= every
    outcome, _ = run(asked, resume=True)
    assert outcome.failed == 0
    first = json.loads(next(storage.glob(f"faulty/attempt-2/{TRIAL}/result.json")).read_text().splitlines()[0])
    assert first["env_steps"] == reached + PER_ITERATION, "from its checkpoint"
    assert status_of(folder).state == "finished"
    runs = read_sweep(outcome.sweep.tracking_uri, "faulty")
    assert (runs.parent.info.status, runs.children[TRIAL].info.status) == ("FINISHED", "FINISHED")
