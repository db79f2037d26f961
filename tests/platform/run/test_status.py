"""How a sweep is doing, asked from another process: while it runs, when it has ended, and when its driver is dead."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rpg_platform.cli.main import app
from rpg_platform.run import status as status_module
from rpg_platform.run.status import StatusWriter, status_of
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError
from rpg_platform.storage.trial_state import write_state

RAW: dict[str, Any] = {
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "greedy",
    "budget": {"env_steps": 10_000},
}
TRIALS = {"total": 2, "finished": 1, "running": 1, "pending": 0, "failed": 0}
CONTENT: dict[str, Any] = {
    "trials": TRIALS,
    "env_steps": 2_500,
    "env_steps_total": 10_000,
    "env_steps_per_s": 500.0,
    "time_left_s": 15.0,
    "running": [{"trial": "greedy-seed=0", "env_steps": 2_500, "budget": 10_000}],
    "failures": [],
    "best": {"setting": "greedy", "text": "greedy: total 5,712 (validation)"},
    "tracker": {"sent": 3, "spooled": 1, "text": "3 sent, 1 spooled"},
}
DRIVER = """
import json, sys, time
from rpg_platform.run.status import StatusWriter
from rpg_platform.storage.sweep_folder import SweepFolder
folder = SweepFolder(sys.argv[1], sys.argv[2])
with folder.lock():
    StatusWriter(folder, lambda: json.loads(sys.argv[3])).start()
    while not folder.read_text("status.json"):
        time.sleep(0.05)
    print("started", flush=True)
    time.sleep(100)
"""


def make(storage: Path, name: str) -> SweepFolder:
    folder = SweepFolder(str(storage), name)
    folder.create(SweepSpec.model_validate(RAW | {"name": name}), None)
    return folder


def rpg(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["status", *arguments], env={"COLUMNS": "120"})
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the sweep ``live`` and writes its status, as a driver does."""
    make(tmp_path, "live")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "live", json.dumps(CONTENT)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        yield running
    finally:
        running.kill()
        running.communicate()


def test_a_running_sweep_and_its_death(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    folder, storage = SweepFolder(str(tmp_path), "live"), ("--storage", str(tmp_path))
    shown = rpg("live", *storage)
    for text in (
        f"State       running (process {driver.pid} on {socket.gethostname()}), since 20",
        "Trials      2: 1 finished, 1 running",
        "Env steps   2,500 of 10,000 (25 %)",
        "Pace        500 env steps/s, about 0:15 left",
        "Best        greedy: total 5,712 (validation)",
        "MLflow      3 sent, 1 spooled",
        "Running     greedy-seed=0: 2,500 of 10,000",
        f"Folder      {tmp_path}/live",
    ):
        assert text in shown
    assert "Go on" not in shown
    content = json.loads(rpg("live", *storage, "--json"))
    assert (content["state"], content["command"], content["trials"]) == ("running", None, TRIALS)
    with pytest.raises(SweepFolderError, match="is being run by process"), folder.lock():
        pass  # asking has not let go of it

    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    shown = rpg("live", *storage)  # at once: the lock is free
    assert f"the driver (process {driver.pid} on {socket.gethostname()}) is dead; it was last heard of 20" in shown
    assert f"Go on       rpg resume live --storage {tmp_path}" in shown
    assert "Pace" not in shown
    assert json.loads(rpg("live", *storage, "--json"))["state"] == "dead"


def test_of_a_driver_elsewhere_only_its_silence_tells(tmp_path: Path) -> None:
    folder, now = make(tmp_path, "far"), 1_000_000.0
    content = {"format": 1, "state": "running", "host": "elsewhere", "pid": 7, "started": now, "every_s": 5.0}
    for age, every_s, state in ((59, 5.0, "running"), (61, 5.0, "dead"), (100, 20.0, "running"), (121, 20.0, "dead")):
        beat = {"heartbeat": now - age, "every_s": every_s}
        folder.write_text(STATUS_FILE, json.dumps(content | CONTENT | beat))
        assert status_of(folder, now=now).state == state


def test_a_second_driver_is_refused_while_the_first_one_gives_signs_of_life(bucket: str, tmp_path: Path) -> None:
    """In an object store, which has no locks, and on a file system that keeps a machine's locks to itself."""
    spec = SweepSpec.model_validate(RAW | {"name": "two", "storage": bucket, "tracking": {"uri": "http://mlflow"}})
    remote = SweepFolder(bucket, "two")
    remote.create(spec, None)
    with remote.lock():  # nobody has run it yet
        pass
    beat = {"format": 1, "state": "running", "host": "elsewhere", "pid": 7, "every_s": 5.0}
    for folder in (remote, make(tmp_path, "two")):
        for changes, refused in (
            ({}, True),
            ({"every_s": 30.0, "silent": 170}, True),  # a slow storage is written to more rarely
            ({"silent": -300}, True),  # its clock is ahead
            ({"silent": 61}, False),
            ({"state": "stopped"}, False),
        ):
            content = beat | {"heartbeat": time.time() - float(str(changes.get("silent", 0)))} | changes
            folder.write_text(STATUS_FILE, json.dumps(content))
            said = pytest.raises(SweepFolderError, match=r"is being run by process 7 on elsewhere \(last heard of")
            with said if refused else contextlib.nullcontext(), folder.lock():
                pass


def test_after_its_own_driver_was_killed_an_object_store_is_free_at_once(bucket: str) -> None:
    spec = SweepSpec.model_validate(RAW | {"name": "live", "storage": bucket, "tracking": {"uri": "http://mlflow"}})
    folder = SweepFolder(bucket, "live")
    folder.create(spec, None)
    command = [sys.executable, "-c", DRIVER, bucket, "live", json.dumps(CONTENT)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        with pytest.raises(SweepFolderError, match=f"is being run by process {running.pid} on"), folder.lock():
            pass
    finally:
        running.kill()
        running.communicate()
    with folder.lock():
        pass


@pytest.mark.parametrize(("outcome", "state"), [("FINISHED", "finished"), ("KILLED", "stopped"), ("FAILED", "failed")])
def test_an_end_is_told_as_mlflow_has_it(tmp_path: Path, outcome: str, state: str) -> None:
    folder = make(tmp_path, "ended")
    writer = StatusWriter(folder, lambda: CONTENT)
    writer.start()
    writer.stop(outcome)
    found = status_of(folder, "some where")
    assert found.state == state
    assert found.words.startswith(f"{state} 20")
    assert found.command == (None if state == "finished" else "rpg resume ended --storage 'some where'")


def test_it_is_written_again_and_again_and_no_failure_reaches_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_module, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(status_module, "_REST_PER_WORK", 0.0)
    folder, calls = make(tmp_path, "often"), 0

    def content() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise RuntimeError("a defect")
        return CONTENT | {"env_steps": calls}

    writer = StatusWriter(folder, content)
    writer.start()
    seen = set()
    end = time.monotonic() + 120
    while len(seen) < 5:
        assert time.monotonic() < end
        text = folder.read_text(STATUS_FILE)
        if text is not None:
            seen.add(json.loads(text)["env_steps"])  # never half a document
    writer.stop("FINISHED")
    assert not list((tmp_path / "often").glob("*.part"))


def test_without_a_status_the_checkpoints_speak(tmp_path: Path) -> None:
    folder = make(tmp_path, "old")
    assert status_of(folder).state == "unknown"
    for name, steps, finished in (("prior", 0, True), ("greedy-seed=0", 4_000, False)):
        checkpoint = tmp_path / "old" / name / "checkpoint_000000"
        checkpoint.mkdir(parents=True)
        (checkpoint / "file").write_text("something")
        write_state(checkpoint, steps, {"finished": finished})
    found = status_of(folder)
    assert (found.state, found.command) == ("unknown", "rpg resume old")
    assert found.content["trials"] == {"total": 2, "finished": 1, "pending": 1}
    assert (found.content["env_steps"], found.content["env_steps_total"]) == (4_000, 10_000)
    with folder.lock():
        assert status_of(folder).state == "running"
    write_state(checkpoint, 10_000, {"finished": True})
    assert (status_of(folder).state, status_of(folder).command) == ("finished", None)
    assert "Trials      2: 2 finished" in rpg("old", "--storage", str(tmp_path))


def test_all_sweeps_of_a_storage(tmp_path: Path) -> None:
    assert rpg("--storage", str(tmp_path)) == f"No sweep in {tmp_path}\n"
    assert json.loads(rpg("--storage", str(tmp_path / "none"), "--json")) == []
    StatusWriter(make(tmp_path, "one"), lambda: CONTENT).stop("FINISHED")
    make(tmp_path, "two")
    (tmp_path / "mlartifacts").mkdir()
    lines = [line.split() for line in rpg("--storage", str(tmp_path)).splitlines() if line.strip()]
    assert lines[1:] == [
        ["one", "finished", "1", "of", "2", "–", "25", "%", "–"],
        ["two", "unknown", "0", "of", "2", "–", "0", "%", "–"],
    ]
    documents = json.loads(rpg("--storage", str(tmp_path), "--json"))
    assert [(each["sweep"], each["state"]) for each in documents] == [("one", "finished"), ("two", "unknown")]


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "there")
    assert "no sweep there" in rpg("thre", "--storage", str(tmp_path), code=2)
    folder.write_text(STATUS_FILE, '{"format": 99}')
    assert "format 99, this version reads 1" in rpg("there", "--storage", str(tmp_path), code=2)
