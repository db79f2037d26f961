"""A sweep whose terminal or pipe ends is saved and stops in order; and what runs is not changed by what is refused."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import yaml
from tests.platform.commands import LIMIT_S, refused

from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

NAME, TRIAL, STEPS = "ended", "spg-alpha=0.1-seed=0", 4_000_000
RAW: dict[str, Any] = {
    "name": NAME,
    "task": "halfcheetah-foot-angle",
    "algorithm": "spg",
    "weights": {"alpha": 0.1},
    "budget": {"env_steps": STEPS},
    "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1},
    "evaluation": {"episodes": 1, "validations": 0},
}
SWEEP = (sys.executable, "-m", "rpg_platform.cli", "sweep", "ended.yaml", "--storage", "results")
# As a shell runs `rpg sweep … 2>&1 | tee log`, and what the two exited with.
PIPED = 'trap : INT; "$@" 2>&1 | tee log >/dev/null; echo "${PIPESTATUS[@]}" >codes'

Running: TypeAlias = tuple[subprocess.Popen[bytes], Callable[[float], object], Callable[[], object]]
"""The process, a pause, and what ends it."""


@contextmanager
def in_terminal(folder: Path, environment: dict[str, str]) -> Iterator[Running]:
    """In a terminal of its own, which is closed."""
    screen, terminal = pty.openpty()
    command = ["setsid", "--ctty", *SWEEP]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)

    def pause(seconds: float) -> None:
        if select.select([screen], [], [], seconds)[0]:
            os.read(screen, 65_536)

    yield process, pause, lambda: os.close(screen)


@contextmanager
def in_pipe(folder: Path, environment: dict[str, str]) -> Iterator[Running]:
    """Into ``tee``, with Ctrl-C: the terminal sends SIGINT to both, and ``tee`` ends at once."""
    command = ["bash", "-c", PIPED, "bash", *SWEEP]
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    yield process, time.sleep, lambda: os.killpg(process.pid, signal.SIGINT)


def refused_meanwhile(storage: Path) -> None:
    """Each refusal of ``rpg extend`` leaves what the sweep is to do as it was, to the byte."""
    kept = {file: file.read_bytes() for file in (storage / NAME).glob("sweep.*")}
    assert {file.name for file in kept} == {"sweep.json", "sweep.yaml"}
    other = storage.parent / "other.yaml"
    other.write_text(yaml.safe_dump(RAW | {"weights": {"alpha": {"grid": [0.2, 0.3]}}, "description": "other"}))
    for arguments, why in (
        (("--env-steps", str(STEPS // 2)), f"env_steps={STEPS // 2}: the sweep 'ended' has {STEPS} already"),
        (("--file", str(other)), "1 trials of the sweep 'ended' would not be part of it any more"),
        (("--env-steps", str(2 * STEPS)), "is being run by process "),
        (("--seeds", "2"), "is being run by process "),
    ):
        assert why in refused("extend", NAME, *arguments, "--storage", str(storage))
        assert {file: file.read_bytes() for file in kept} == kept


@pytest.mark.parametrize("start", [in_terminal, in_pipe])
def test_a_sweep_whose_terminal_ends_is_saved_and_stops_in_order(
    start: Callable[[Path, dict[str, str]], Any], local_ray: None, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    (tmp_path / "ended.yaml").write_text(yaml.safe_dump(RAW))
    storage = tmp_path / "results"
    reports = storage / NAME / TRIAL / "result.json"
    path = os.pathsep.join(each for each in sys.path if each)
    with start(tmp_path, os.environ | {"PYTHONPATH": path}) as (process, pause, end):
        try:
            deadline = time.monotonic() + LIMIT_S
            while not (reports.exists() and reports.stat().st_size):
                assert process.poll() is None
                assert time.monotonic() < deadline
                pause(0.05)
            if start is in_pipe:
                refused_meanwhile(storage)
            end()
            process.wait(LIMIT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    codes = (tmp_path / "codes").read_text() if start is in_pipe else f"{process.returncode}"
    assert codes.split() == ["1", *(["130"] if start is in_pipe else [])]
    last = json.loads(reports.read_text().splitlines()[-1])
    state = SweepFolder(str(storage), NAME).trials()[TRIAL]
    assert 0 < state.env_steps == last["env_steps"] < STEPS  # saved with its last report
    assert json.loads((storage / NAME / "status.json").read_text())["state"] == "stopped"
    runs = read_sweep(default_tracking_uri(storage), NAME)
    assert (runs.parent.info.status, runs.children[TRIAL].info.status) == ("KILLED", "KILLED")
    assert max(step for step, _ in runs.history(runs.children[TRIAL], "train/entropy")) == state.env_steps
