"""`rpg track`: what a driver left spooled reaches MLflow later, once, and its runs are told the truth."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from tests.platform.proxy import Proxy
from tests.platform.records import CARD
from tests.platform.resolved import tracker_of
from typer.testing import CliRunner, Result

from rpg_platform.cli.main import app
from rpg_platform.results.report import finite_metrics
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.replay import replay
from rpg_platform.tracking.runs import PARENT, Record
from rpg_platform.tracking.spool import Spool, spool_folder
from rpg_platform.tracking.tracker import MlflowTracker

if TYPE_CHECKING:
    from tests.platform.servers import MlflowServer, TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

FINAL = {"eval/deterministic/total_return_mean": 1.0}
LIMIT_S = 120  # for what takes a second on a quiet machine


def sweep_of(name: str) -> tuple[SweepSpec, list[TrialSpec]]:
    raw = {"name": name, "task": "halfcheetah-foot-angle", "algorithm": "spg", "weights": {"alpha": 0.1}}
    spec = SweepSpec.model_validate(raw | {"seeds": 2, "budget": {"env_steps": 10_000}})
    return spec, expand(spec)


def begin(uri: str, name: str, storage: Path, *, resume: bool = False) -> tuple[MlflowTracker, list[TrialSpec]]:
    """A driver whose two trials have reported twice each."""
    spec, trials = sweep_of(name)
    tracker = tracker_of(uri, name, spec, trials, spool_folder(str(storage), name), resume=resume)
    tracker.start()
    for trial in trials:
        run: Any = SimpleNamespace(config={"trial": trial.model_dump(mode="json")}, checkpoint=None)
        tracker.on_trial_start(0, [], run)
        for step in (1, 2):
            tracker.on_trial_result(0, [], run, {"env_steps": step, "timestamp": step, "a": 0.5})
    return tracker, trials


def die(tracker: MlflowTracker) -> None:
    """What is left of a driver that was killed: its files."""
    assert tracker._sender is not None
    assert tracker._spool is not None
    tracker._sender.stop()
    tracker._spool.close()


def rpg_track(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["track", *map(str, arguments)], env={"COLUMNS": "200"})


def test_what_an_outage_left_is_sent_later_and_once(
    mlflow_server: MlflowServer,
    unused_port: int,
    tmp_path: Path,
    read_sweep: ReadSweep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rpg_platform.tracking.last_wait.SILENT_PATIENCE_S", 0.1)
    monkeypatch.setattr("rpg_platform.tracking.last_wait.FINAL_PATIENCE_S", 0.1)
    proxy = Proxy(unused_port, mlflow_server.port)
    tracker, trials = begin(f"http://127.0.0.1:{proxy.port}", "later", tmp_path)
    said: list[str] = []
    tracker.finish([(trial, FINAL, None) for trial in trials], tell=said.append)
    left = tracker.state().spooled
    assert left > 8
    assert f"rpg track {tmp_path / 'later'}" in said[-1]

    early = rpg_track(tmp_path / "later", "--wait", 0.2)
    assert early.exit_code == 3
    assert f"{left} records are still to send" in early.stdout

    refuse = [b'"seed"']  # a parameter of the second trial's run
    proxy.fate = lambda path, body: 400 if refuse and path.endswith("log-batch") and refuse[0] in body else "pass"
    proxy.open()
    once = rpg_track(tmp_path / "later", "--json")
    result = json.loads(once.stdout)
    assert once.exit_code == 3
    assert (result["sent_now"], result["spooled"], result["rejected"]) == (left, 0, 2)
    assert (result["ended"], result["complete"], result["experiment"]) == ([], False, "later")
    assert "secret" not in once.stdout
    refuse.clear()
    again = rpg_track(tmp_path / "later" / "tracking")  # the spool's own folder will do
    assert again.exit_code == 0, again.output
    assert "Sent now    0" in again.stdout
    proxy.close()

    found = read_sweep(mlflow_server.uri, "later")
    assert found.parent.info.status == "FINISHED"
    assert found.parent.data.tags["tracker_rejected"] == "0"
    for trial in trials:
        run = found.children[trial.trial_id]
        assert (run.info.status, run.data.params["seed"]) == ("FINISHED", str(trial.seed))
        assert found.history(run, "train/a") == [(1, 0.5), (2, 0.5)]
        assert set(found.points(run).values()) == {1}


def test_what_another_driver_has_finished_since_stays_finished(
    mlflow_server: MlflowServer, unused_port: int, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    proxy = Proxy(unused_port, mlflow_server.port)
    proxy.open()
    first, trials = begin(f"http://127.0.0.1:{proxy.port}", "two-heads", tmp_path / "head-1")
    assert first._sender is not None
    assert first._sender.flush(LIMIT_S)
    proxy.fate = lambda path, body: 502
    run: Any = SimpleNamespace(config={"trial": trials[0].model_dump(mode="json")}, checkpoint=None)
    first.on_trial_start(0, [], run)  # its process died and starts again, of which MLflow does not hear
    die(first)
    time.sleep(0.01)
    spec, _ = sweep_of("two-heads")
    folder = spool_folder(str(tmp_path / "head-2"), "two-heads")
    second = tracker_of(mlflow_server.uri, "two-heads", spec, trials, folder, resume=True, run_key=first.run_key)
    second.start()
    for trial in trials:
        run = SimpleNamespace(config={"trial": trial.model_dump(mode="json")}, checkpoint=None)
        second.on_trial_start(0, [], run)
    second.finish([(trial, FINAL | {"finished": True}, None) for trial in trials])

    proxy.fate = lambda path, body: "pass"
    place = tmp_path / "head-1" / "two-heads"
    running = {"state": "running", "host": "head-2", "pid": 7, "heartbeat": time.time(), "every_s": 5.0}
    (place / "status.json").write_text(json.dumps(running))
    refused = rpg_track(place)
    assert (refused.exit_code, "is being run by process 7 on head-2" in refused.stderr) == (2, True)
    (place / "status.json").unlink()
    late = rpg_track(place, "--json")
    assert late.exit_code == 0, late.output
    assert (json.loads(late.stdout)["sent_now"], json.loads(late.stdout)["ended"]) == (1, [])
    found = read_sweep(mlflow_server.uri, "two-heads")
    assert {each.info.status for each in (found.parent, *found.children.values())} == {"FINISHED"}
    proxy.close()


def test_runs_of_a_dead_driver_are_ended_and_a_resumed_one_goes_on_in_them(
    embedded_store: str, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    tracker, trials = begin(embedded_store, "dead", tmp_path)
    refused = rpg_track(tmp_path / "dead")
    assert refused.exit_code == 2
    assert f"in use by process {os.getpid()}: that sweep is still running" in refused.stderr
    die(tracker)
    before = int(1000 * time.time())
    ended = rpg_track(tmp_path / "dead", "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["ended"] == [*sorted((t.trial_id for t in trials), reverse=True), PARENT]
    found = read_sweep(embedded_store, "dead")
    runs = {run.info.run_id: run for run in (found.parent, *found.children.values())}
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert all(run.info.end_time <= before for run in runs.values()), "when it died, not when it was noticed"
    assert all(found.history(run, "train/a") == [(1, 0.5), (2, 0.5)] for run in found.children.values())
    assert json.loads(rpg_track(tmp_path / "dead", "--json").stdout)["sent_now"] == 0

    resumed, trials = begin(embedded_store, "dead", tmp_path, resume=True)
    assert resumed._sender is not None
    assert resumed._sender.flush(LIMIT_S)
    found = read_sweep(embedded_store, "dead")
    assert {run.info.status for run in (found.parent, *found.children.values())} == {"RUNNING"}
    resumed.finish([(trial, FINAL, None) for trial in trials])
    found = read_sweep(embedded_store, "dead")
    assert {run.info.run_id for run in (found.parent, *found.children.values())} == set(runs)
    assert {run.info.status for run in (found.parent, *found.children.values())} == {"FINISHED"}


def test_a_storage_that_was_moved_is_sent_whole_to_its_own_store(tmp_path: Path, read_sweep: ReadSweep) -> None:
    """Store and checkpoints are found where they lie now, though another storage has come to the old place."""
    old, new = tmp_path / "old", tmp_path / "new"
    spec, trials = sweep_of("moved")
    tracker = tracker_of(default_tracking_uri(old), "moved", spec, trials, spool_folder(str(old), "moved"))
    tracker.start()
    assert tracker._sender is not None
    assert tracker._sender.flush(LIMIT_S)
    tracker._sender.stop()
    bundle = old / "moved" / "attempt-2" / trials[0].trial_id / "checkpoint_000001" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "card.json").write_text(CARD)
    run: Any = SimpleNamespace(config={"trial": trials[0].model_dump(mode="json")}, last_result={"finished": True})
    run.checkpoint = SimpleNamespace(path=str(bundle.parent), filesystem=None)
    tracker.on_trial_start(0, [], run)
    tracker.on_trial_complete(0, [], run)
    die(tracker)
    old.rename(new)
    done = rpg_track(new / "moved", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tracking_uri"] == default_tracking_uri(new)
    found = read_sweep(default_tracking_uri(new), "moved")
    client = MlflowClient(default_tracking_uri(new))
    names = [each.path for each in client.list_artifacts(found.children[trials[0].trial_id].info.run_id, "bundle")]
    assert names == ["bundle/card.json"]


def test_a_trial_that_the_next_driver_never_comes_to_is_ended_too(
    embedded_store: str, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    tracker, trials = begin(embedded_store, "twice", tmp_path)
    die(tracker)
    spec, _ = sweep_of("twice")
    resumed = tracker_of(embedded_store, "twice", spec, trials, tracker.folder, resume=True)
    resumed.start()
    resumed.finish([(trials[0], FINAL, None)], interrupted=True)
    found = read_sweep(embedded_store, "twice")
    assert found.parent.info.status == "KILLED"
    assert [found.children[trial.trial_id].info.status for trial in trials] == ["FINISHED", "KILLED"]


def test_a_spool_of_an_earlier_version_is_sent_once(embedded_store: str, tmp_path: Path, read_sweep: ReadSweep) -> None:
    """Half of it had been sent when version 0.1.0's driver died."""
    tracker, trials = begin(embedded_store, "older", tmp_path)
    assert tracker._sender is not None
    assert tracker._sender.flush(LIMIT_S)
    die(tracker)
    spool = Spool(tracker.folder)
    spool.open()
    sent, runs = spool.acknowledged, spool.remembered()
    spool.close()
    (tracker.folder / "spool.db").unlink()

    def write(file: str, *payloads: dict[str, Any]) -> None:
        texts = [json.dumps(payload).encode() for payload in payloads]
        (tracker.folder / file).write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))

    write("acknowledged", {"segment": 1, "offset": 0, "number": sent})
    write("runs.log", *({"run": run, **known} for run, known in runs.items()))
    for step in (3, 4):
        data = {"values": {"a": 0.5}, "step": step, "timestamp": 1_000 * step}
        record = Record(trials[0].trial_id, "metrics", data).payload()
        write(f"00000{step}.log", {"n": sent + step - 2, **record})
    identity = tracker.folder / "sweep.json"
    identity.write_text(identity.read_text().replace('"format": 2', '"format": 1'))
    for count in (2, 0):
        done = json.loads(rpg_track(tmp_path / "older", "--json").stdout)
        assert (done["sent_now"], done["damaged"], done["complete"]) == (count, 0, True)
    found = read_sweep(embedded_store, "older")  # fails on a second run of a trial
    run = found.children[trials[0].trial_id]
    both = found.history(run, "train/a") + found.history(run, "a")  # as this version and the earlier one name it
    assert both == [(step, 0.5) for step in (1, 2, 3, 4)]
    assert '"format": 2' in identity.read_text(), "version 0.1.0 refuses it from now on"


def test_damage_is_told(embedded_store: str, tmp_path: Path, read_sweep: ReadSweep) -> None:
    """A damaged record costs itself, not its run, and makes no second run."""
    tracker, trials = begin(embedded_store, "damaged", tmp_path)
    assert tracker._sender is not None
    assert tracker._sender.flush(LIMIT_S)
    die(tracker)
    spool = Spool(tracker.folder)
    spool.open()
    for step in (3, 4, 5):
        data = {"values": {"a": 0.5}, "step": step, "timestamp": 1_000 * step}
        spool.append(Record(trials[0].trial_id, "metrics", data).payload())
    spool.close()
    database = tracker.folder / "spool.db"
    database.write_bytes(database.read_bytes().replace(b'"step":4', b'"step":9'))
    with closing(sqlite3.connect(database)) as kept:
        kept.execute("DELETE FROM remembered")  # as if that had been damaged, too
        kept.commit()
    done = json.loads(rpg_track(tmp_path / "damaged", "--json").stdout)
    assert (done["damaged"], done["spooled"], done["complete"]) == (1, 0, True)
    found = read_sweep(embedded_store, "damaged")  # fails on a second run of a trial
    run = found.children[trials[0].trial_id]
    assert [step for name in ("train/a", "a") for step, _ in found.history(run, name)] == [1, 2, 3, 5]


def test_no_spool_is_refused(tmp_path: Path) -> None:
    refused = rpg_track(tmp_path / "nothing")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"looked in {tmp_path}/nothing/tracking and {tmp_path}/nothing" in " ".join(refused.stderr.split())
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0])
def test_every_report_of_a_real_sweep_whose_driver_is_killed(
    tmp_path: Path, read_sweep: ReadSweep, seconds: float
) -> None:
    """Tune, its workers and its result files are real; the driver gets SIGKILL at some moment."""
    uri = default_tracking_uri(tmp_path)
    code = (
        "import sys; from pathlib import Path; import ray; import tests.platform.tracking.toy_sweep as toy\n"
        "from tests.platform.resolved import tracker_of\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "toy.STEPS = 100_000; spec, trials = toy.toy_sweep(); folder = Path(sys.argv[1])\n"
        "spool = folder / 'tune' / 'tracking'\n"
        "tracker = tracker_of(sys.argv[2], 'killed', spec, trials, spool); tracker.start()\n"
        "toy.make_tuner(tracker, trials, folder, faults={}).fit()\n"
    )
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join([str(root), *(each for each in sys.path if each)])
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), uri], env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("tune/*/result.json")):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(seconds)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = replay(str(tmp_path / "tune"))
    assert done.complete
    found = read_sweep(uri, "killed")
    reports = 0
    for file in tmp_path.glob("tune/*/result.json"):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        reports += len(lines)
        there = found.points(found.children[lines[0]["config"]["trial"]["trial_id"]])
        assert set(there.values()) == {1}
        for line in lines:
            for key, value in finite_metrics(line).items():
                assert there[key, int(line["env_steps"]), 1_000 * line["timestamp"], value] == 1, line
    assert reports > 20
    assert {run.info.status for run in (found.parent, *found.children.values())} == {"KILLED"}
