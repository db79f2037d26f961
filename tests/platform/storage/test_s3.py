"""A sweep whose storage is an object store: run, killed, asked after, resumed and extended from S3 alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.platform.commands import started, wait_for
from tests.platform.in_bucket import FIRST, PER_REPORT, RAW, SECOND, write_sweep
from tests.platform.servers import MlflowServer

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import write_state

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

LIMIT_S = 300
REPORTS = 120
STEPS = REPORTS * PER_REPORT


def rpg(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return started(*arguments, cwd=cwd, XDG_STATE_HOME=str(cwd / "state"))


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def ask(storage: str, cwd: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(finish(rpg("status", "remote", "--storage", storage, "--json", cwd=cwd)))
    return answer


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT_S)
def test_a_sweep_lives_in_an_object_store(
    bucket: str, tmp_path: Path, mlflow_server: MlflowServer, read_sweep: ReadSweep
) -> None:
    sections = {"budget": {"env_steps": STEPS}, "checkpoint": {"every_env_steps": STEPS // 4}}
    folder = write_sweep(tmp_path, "remote", bucket, mlflow_server, "in S3", **sections)
    driver = rpg("sweep", "remote.yaml", cwd=tmp_path)
    try:
        wait_for(lambda: SECOND in folder.trials(), driver)
        (tmp_path / "hang").touch()
        assert ask(bucket, tmp_path)["state"] == "running"
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    (tmp_path / "hang").unlink()
    ended = folder.trials()
    assert (ended[FIRST].finished, ended[SECOND].finished) == (True, False)
    reached = ended[SECOND].env_steps
    first_file = folder._fs.get_file_info(f"sweeps/lab/remote/{FIRST}/result.json")

    # Another machine: what the spool of the first had not sent is lost, the storage has it all.
    (tmp_path / "state").rename(tmp_path / "the state of a machine that is gone")
    output = finish(rpg("resume", "remote", "--storage", bucket, cwd=tmp_path))
    assert "1 of 2 trials are finished, 1 go on from a checkpoint" in output
    states = folder.trials()
    assert all(state.finished for state in states.values())
    assert states[SECOND].checkpoint.startswith("s3://sweeps/lab/remote/attempt-2/")
    assert folder._fs.get_file_info(first_file.path).mtime == first_file.mtime
    status = ask(bucket, tmp_path)
    assert (status["state"], status["trials"]["finished"], status["command"]) == ("finished", 2, None)
    tracked = read_sweep(mlflow_server.uri, "in S3")
    assert set(tracked.children) == {FIRST, SECOND}
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
    for run in tracked.children.values():
        history = tracked.history(run, "total")
        assert [step for step, _ in history] == [STEPS]
        steps = [step for step, _ in tracked.history(run, "health/policy_loss")]
        assert len(steps) == len(set(steps))
        assert STEPS in steps
        files = {file.path for file in tracked.client.list_artifacts(run.info.run_id)}
        assert files >= {"bundle", "evaluation"}

    steps = [step for step, _ in tracked.history(tracked.children[SECOND], "health/policy_loss")]
    assert set(range(reached + PER_REPORT, STEPS + 1, PER_REPORT)) <= set(steps)
    [listed] = json.loads(finish(rpg("status", "--storage", bucket, "--json", cwd=tmp_path)))
    assert listed == status

    output = finish(rpg("extend", "remote", "--env-steps", str(STEPS + 2048), "--storage", bucket, cwd=tmp_path))
    assert "0 of 2 trials are finished, 2 go on from a checkpoint" in output
    assert {state.env_steps for state in folder.trials().values()} == {STEPS + 2048}
    tracked = read_sweep(mlflow_server.uri, "in S3")
    for run in tracked.children.values():
        history = tracked.history(run, "total")
        assert [step for step, _ in history] == [STEPS, STEPS + 2048]
    assert "Sent now    0" in finish(rpg("track", folder.uri, cwd=tmp_path))  # it finds the spool, which is empty


def test_a_trials_policy_is_fetched_and_a_video_put(bucket: str, tmp_path: Path) -> None:
    folder, trial = SweepFolder(bucket, "remote"), tmp_path / FIRST
    prior = SHIPPED["halfcheetah-spg"]
    spec = SweepSpec.model_validate(RAW | {"name": "remote", "budget": {"env_steps": STEPS}})
    folder.create(spec, None, load_bundle(prior))
    shutil.copytree(prior, trial / "bundle")
    write_state(trial, STEPS, {"finished": True})
    for file in (each for each in trial.rglob("*") if each.is_file()):
        folder.write_bytes(f"{FIRST}/checkpoint_000000/{file.relative_to(trial).as_posix()}", file.read_bytes())
    checkpoint = folder.trials()[FIRST].checkpoint
    assert checkpoint.startswith("s3://")
    for source in (checkpoint, None):  # the second over the first
        fetched = load_bundle(folder.fetch_bundle(tmp_path / "deep" / "fetched", source))
        assert fetched.card.content_hash == load_bundle(prior).card.content_hash
    folder.write_bytes("videos/best.mp4", b"\x00mp4")
    assert (folder.read_bytes("videos/best.mp4"), folder.read_bytes("videos/prior.mp4")) == (b"\x00mp4", None)
