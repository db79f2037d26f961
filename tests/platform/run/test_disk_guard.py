"""Disks that fill up while a sweep runs: real file systems of a few megabytes, which only root can mount."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.platform.disks import MB, fill
from tests.platform.run.brief import BRIEF

from rpg_platform.run.disk_guard import DiskGuard
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder

TRIAL = "greedy-seed=0"


# ---- the driver's look ---------------------------------------------------------------------------
def test_the_driver_stops_once_and_says_why(small_disk: Path) -> None:
    told: list[str] = []
    stopped: list[bool] = []
    guard = DiskGuard([(small_disk, 40 * MB)], lambda: stopped.append(True), told.append, "Make room.")
    guard.on_step_begin(0, [])
    assert (told, stopped) == ([], [])
    fill(small_disk, 39 * MB)
    guard._checked = 0.0
    guard.on_step_begin(0, [])
    guard._checked = 0.0
    guard.on_step_begin(0, [])
    assert stopped == [True]
    assert told == [
        f"{small_disk} is nearly full: 40.9 MB are free, and 41.9 MB are needed to save the running trials. "
        "The sweep stops and keeps what it has. Make room."
    ]


# ---- whole sweeps --------------------------------------------------------------------------------
def raw_spec(storage: Path, mlflow: Path) -> dict[str, Any]:
    """One training of 200 short reports, a checkpoint at each twentieth of it."""
    return {
        **BRIEF,
        "name": "filling",
        "budget": {"env_steps": 100_000},
        "training": BRIEF["training"] | {"minibatch_size": 512},
        "checkpoint": {"every_env_steps": 5_000},
        "faults": {"retries": 0},
        "storage": str(storage),
        "tracking": {"uri": f"sqlite:///{mlflow}/mlflow.db"},
    }


def sweep(storage: Path, mlflow: Path, resume: bool = False) -> tuple[SweepOutcome, str]:
    text, spec = io.StringIO(), SweepSpec.model_validate(raw_spec(storage, mlflow))
    outcome = run_sweep(Sweep.resolve(spec, resume=resume), console=Console(file=text, width=500))
    return outcome, text.getvalue()


def fill_after_a_checkpoint(folder: Path, free: int) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 120
        while not list(folder.glob("filling/greedy*/checkpoint_*/trial.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        fill(folder, free)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_sweep_stops_in_order_and_goes_on_when_there_is_room(
    local_ray: None, small_disk: Path, tmp_path: Path
) -> None:
    filling = fill_after_a_checkpoint(small_disk, 20 * MB)
    outcome, text = sweep(small_disk, tmp_path)
    filling.join()
    assert (outcome.interrupted, outcome.failed) == (True, 1)
    assert f"{small_disk} is nearly full: " in text.replace("/filling", "")
    assert f"Make room, then: rpg resume filling --storage {small_disk}\n" in text
    assert all(error is None for _, _, error in outcome.results)  # stopped, not failed
    state = SweepFolder(str(small_disk), "filling").trials()[TRIAL]
    assert 0 < state.env_steps < 100_000
    assert state.env_steps == (outcome.results[1][1] or {})["env_steps"]  # saved with its last report
    (small_disk / "ballast").unlink()
    resumed, text = sweep(small_disk, tmp_path, resume=True)
    assert resumed.failed == 0
    assert "2, 1 left: the prior, greedy 1 setting x 1 seed" in text
    assert f"Env steps   {100_000 - state.env_steps:,}, and" in text


def test_a_full_temporary_folder_of_one_process_costs_only_its_trial_an_attempt(
    local_ray: None, small_disk: Path, tmp_path: Path
) -> None:
    """As on a node whose disk the driver does not see: the error comes back whole, and the trial starts elsewhere."""
    fill(small_disk, MB)
    task = {"env": "tests.platform.own_tasks:OwnTemporary", "addons": {"middle": "-abs(next_obs[0])"}}
    raw = raw_spec(tmp_path, tmp_path) | {
        "task": task | {"kwargs": {"folder": str(small_disk), "driver": os.getpid()}},
        "algorithm": "full",
        "weights": {"alpha": {"grid": [0.01, 0.02]}},
        "budget": {"env_steps": 10_240},
        "faults": {"retries": 1},
    }
    text, spec = io.StringIO(), SweepSpec.model_validate({k: v for k, v in raw.items() if k != "prior"})
    outcome = run_sweep(Sweep.resolve(spec), console=Console(file=text, width=500))
    assert (outcome.failed, outcome.interrupted) == (0, False)
    restarts = re.findall(
        r"full-alpha=\S+: restarting — \S+DiskFullError: (\S+): 1\.0 MB are free, and", text.getvalue()
    )
    assert [Path(folder).parent for folder in restarts] == [small_disk]
