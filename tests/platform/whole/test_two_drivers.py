"""Two drivers of one sweep in an object store: one trains, the other is refused; a loser leaves all alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyarrow.fs import FileSelector
from tests.platform.commands import started, wait_for
from tests.platform.in_bucket import FIRST, PER_REPORT, SECOND, write_sweep
from tests.platform.servers import MlflowServer

from rpg_platform.run.status import status_of
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

LIMIT_S = 300
LEASE_S = 5.0
STEPS = 60 * PER_REPORT


def driver(name: str, cwd: Path) -> subprocess.Popen[str]:
    """A driver on a machine of its own: no driver sees another one's spool."""
    variables = {"XDG_STATE_HOME": str(cwd / f"state of {name}"), "RPG_LEASE_S": str(LEASE_S), "RPG_VIDEOS": "0"}
    return started("sweep", "shared.yaml", "--resume-or-start", cwd=cwd, **variables)


def checkpoints(folder: SweepFolder, attempt: str) -> set[str]:
    selector = FileSelector(f"sweeps/lab/shared/{attempt}", recursive=True, allow_not_found=True)
    return {info.path for info in folder._fs.get_file_info(selector) if "/checkpoint_" in info.path and info.is_file}


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT_S)
def test_of_two_drivers_one_trains_and_one_that_was_held_up_ends(
    bucket: str, tmp_path: Path, mlflow_server: MlflowServer, read_sweep: ReadSweep
) -> None:
    sections = {"budget": {"env_steps": STEPS}, "checkpoint": {"every_env_steps": 4 * PER_REPORT, "keep": 1}}
    folder = write_sweep(tmp_path, "shared", bucket, mlflow_server, "two drivers", **sections)
    drivers = {name: driver(name, tmp_path) for name in ("a", "b")}
    try:
        # Both start at once: one is refused, and the other one's sweep is none the worse for it.
        wait_for(lambda: any(each.poll() is not None for each in drivers.values()), drivers["a"])
        [loser] = [name for name, each in drivers.items() if each.poll() is not None]
        refused = drivers.pop(loser)
        said = refused.communicate(timeout=LIMIT_S)[0]
        [(name, first)] = drivers.items()
        assert (refused.returncode, f"is being run by process {first.pid} on" in said) == (2, True), said

        # The winner is held up, with a trial half done, for longer than its lease lasts: another one takes over.
        wait_for(lambda: FIRST in folder.trials() and folder.trials()[FIRST].finished, first)
        wait_for(lambda: SECOND in folder.trials(), first)
        (tmp_path / "hang").touch()
        time.sleep(1.5)
        first.send_signal(signal.SIGSTOP)
        kept, reached = checkpoints(folder, SECOND), folder.trials()[SECOND].env_steps
        time.sleep(LEASE_S + 2.5)
        (tmp_path / "hang").unlink()
        second = drivers["c"] = driver("c", tmp_path)
        wait_for(lambda: bool(checkpoints(folder, f"attempt-2/{SECOND}")), second)
        first.send_signal(signal.SIGCONT)  # it goes on where it stood, and finds out
        said = first.communicate(timeout=LIMIT_S)[0]
        assert first.returncode == 1, said
        assert f"not this driver's any more: process {second.pid} on" in said
        assert "Traceback" not in said
        assert kept, "it left a checkpoint, from which the other one went on"
        assert kept <= checkpoints(folder, SECOND), "it has pruned nothing"

        said = second.communicate(timeout=LIMIT_S)[0]
        assert second.returncode == 0, said
        assert "1 of 2 trials are finished, 1 go on from a checkpoint" in said
        assert status_of(folder).state == "finished"
        assert reached < STEPS
    finally:
        for each in drivers.values():
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait(LIMIT_S)

    # What the first one has not sent stays its own; delivered later, it adds no point to what is there.
    for late in (False, True):
        if late:
            variables = {"XDG_STATE_HOME": str(tmp_path / f"state of {name}")}
            tracked_again = started("track", folder.uri, cwd=tmp_path, **variables)
            assert tracked_again.wait(LIMIT_S) == 0, tracked_again.communicate()[0]
        tracked = read_sweep(mlflow_server.uri, "two drivers")
        assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
        assert set(tracked.children) == {FIRST, SECOND}
        for run in tracked.children.values():
            steps = [step for step, _ in tracked.history(run, "health/policy_loss")]
            assert len(steps) == len(set(steps)), "each report once"
            assert set(range(reached + PER_REPORT, STEPS + 1, PER_REPORT)) <= set(steps)
            assert [step for step, _ in tracked.history(run, "total")] == [STEPS]
            assert all(count == 1 for count in tracked.points(run).values())
