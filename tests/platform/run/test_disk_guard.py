"""Disks that fill up while a sweep runs: real file systems of a few megabytes, which only root can mount."""

from __future__ import annotations

import io
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from rich.console import Console

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.run import disk_guard as disk
from rpg_platform.run.disk_guard import (
    DiskFullError,
    DiskGuard,
    by_disk,
    checkpoint_room,
    free_bytes,
    guarded,
    size_text,
)
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import read_state
from rpg_platform.trial.trainable import CustomizationTrial

MB = 2**20
TRIAL = "greedy-seed=0"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, free: int) -> Path:
    """Leaves so many bytes free."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        while (more := free_bytes(folder) - free) > 0:
            file.write(b"x" * min(more, MB))
            file.flush()
    return ballast


# ---- one checkpoint ------------------------------------------------------------------------------
def test_a_checkpoint_that_does_not_fit_is_not_begun(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "checkpoint"
    folder.mkdir()
    fill(small_disk, 5 * MB)
    with checkpoint_room(folder, None, 3 * MB):
        (folder / "weights").write_bytes(b"x" * MB)
    (folder / "weights").unlink()
    too_large = pytest.raises(DiskFullError, match=r"/disk/checkpoint: 5\.2 MB are free, .* needs 6\.3 MB$")
    with too_large, checkpoint_room(folder, None, 6 * MB):
        pytest.fail("was begun")
    # Where the copy goes counts as well, on a disk of its own and on the same.
    with pytest.raises(DiskFullError), checkpoint_room(tmp_path, str(folder), 6 * MB):
        pytest.fail("was begun")
    with pytest.raises(DiskFullError, match=r"needs 6\.3 MB$"), checkpoint_room(folder, str(small_disk), 3 * MB):
        pytest.fail("was begun")


def test_what_fails_half_way_leaves_nothing_behind(small_disk: Path) -> None:
    folder = small_disk / "checkpoint"
    (folder / "bundle").mkdir(parents=True)
    fill(small_disk, 4 * MB)

    def write() -> None:
        (folder / "bundle" / "card").write_text("x")
        (folder / "weights").write_bytes(b"x" * 8 * MB)  # something else has taken the room meanwhile

    with pytest.raises(OSError, match="No space left"), checkpoint_room(folder, None, 2 * MB):
        write()
    assert list(folder.iterdir()) == []
    assert free_bytes(small_disk) == 4 * MB


# ---- the driver's look ---------------------------------------------------------------------------
def test_the_driver_stops_once_and_says_why(small_disk: Path) -> None:
    told: list[str] = []
    stopped: list[bool] = []
    guard = DiskGuard({small_disk: 40 * MB}, lambda: stopped.append(True), told.append, "Make room.")
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


def test_needs_of_one_disk_add_up(small_disk: Path, tmp_path: Path) -> None:
    assert by_disk([(small_disk / "a" / "b", 1), (tmp_path, 10), (small_disk, 2)]) == [(small_disk, 3), (tmp_path, 10)]
    assert guarded("/results/x", [Path("/tmp"), Path("/tmp/ray")], 5 * MB, 4, 1) == {
        "/results/x": 40 * MB + disk.RESERVE,
        "/tmp": 10 * MB + disk.RESERVE,
        "/tmp/ray": 0,
    }
    assert guarded(None, [Path("/tmp")], MB, 1, 1) == {"/tmp": 2 * MB + disk.RESERVE}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (999_600, "1.0 MB"), (3.2e12, "3.2 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


# ---- whole sweeps --------------------------------------------------------------------------------
def raw_spec(storage: Path, mlflow: Path) -> dict[str, Any]:
    """One training of 200 short reports, a checkpoint at each twentieth of it."""
    return {
        "name": "filling",
        "task": "halfcheetah-foot-angle",
        "prior": "halfcheetah-spg",
        "algorithm": "greedy",
        "budget": {"env_steps": 100_000},
        "training": {"rollout_length": 64, "minibatch_size": 512, "num_epochs": 1, "critic_warmup_iterations": 1},
        "evaluation": {"episodes": 1, "validations": 0},
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


def test_a_trial_without_room_fails_before_it_writes_and_goes_on_when_there_is(
    local_ray: None, small_disk: Path, tmp_path: Path
) -> None:
    """As on a machine whose disk the driver cannot see."""
    wanted = SweepSpec.model_validate(raw_spec(small_disk, tmp_path))
    trainable = tune.with_parameters(CustomizationTrial, prior=load_bundle(resolve_prior("halfcheetah-spg")))
    trial = trainable(config={"trial": expand(wanted)[1].model_dump(mode="json")})
    try:
        trial.step()
        folders = [small_disk / f"checkpoint_{index}" for index in range(3)]
        for folder in folders:
            folder.mkdir()
        trial.save_checkpoint(str(folders[0]))
        before = {file: file.read_bytes() for file in folders[0].rglob("*") if file.is_file()}
        ballast = fill(small_disk, 3 * MB // 2)
        trial.step()
        with pytest.raises(DiskFullError, match=r"checkpoint_1: 1\.6 MB are free, and .* needs 1\.\d MB$"):
            trial.save_checkpoint(str(folders[1]))
        assert list(folders[1].iterdir()) == []
        assert {file: file.read_bytes() for file in before} == before
        ballast.unlink()
        trial.save_checkpoint(str(folders[2]))
        assert read_state(folders[2])["env_steps"] > read_state(folders[0])["env_steps"] > 0
    finally:
        trial.stop()
