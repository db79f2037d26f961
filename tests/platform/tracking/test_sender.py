"""The sender behind a real HTTP proxy: outages are waited out, bad records are set aside, nobody else waits."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from tests.platform.proxy import Fate, Proxy
from tests.platform.records import closing, metrics, opening

from rpg_platform.tracking import sender as sender_module
from rpg_platform.tracking.identity import read_identity, write_identity
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record
from rpg_platform.tracking.sender import ATTEMPTS, Sender, TrackerState
from rpg_platform.tracking.spool import Spool, SpoolError, read_lines

if TYPE_CHECKING:
    from tests.platform.servers import MlflowServer, TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

LIMIT_S = 120  # for what takes a second on a machine with nothing else to do


def text(run: str, path: str) -> Record:
    return Record(run, "text", {"text": "hi", "path": path})


class Line:
    """A spool, its sender, the proxy, and the server behind it."""

    def __init__(self, folder: Path, proxy: Proxy, experiment: str) -> None:
        self.proxy = proxy
        self.spool = Spool(folder)
        self.spool.open()
        self.runs = MlflowRuns(f"http://127.0.0.1:{proxy.port}", experiment, "k")
        self.sender = Sender(self.spool, self.runs)
        self.sender.start()

    def put(self, *records: Record) -> None:
        for record in records:
            self.spool.append(record.payload())
            self.sender.wake()

    def rejected(self) -> list[dict[str, Any]]:
        return list(read_lines(self.spool.rejected_file))

    def close(self) -> None:
        self.sender.stop()
        self.spool.close()


@pytest.fixture
def proxy(mlflow_server: MlflowServer, unused_port: int) -> Iterator[Proxy]:
    made = Proxy(unused_port, mlflow_server.port)
    made.open()
    yield made
    made.close()


@pytest.fixture
def line(proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest, quick: None) -> Iterator[Line]:
    made = Line(tmp_path / "tracking", proxy, request.node.name)
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_FIRST_PAUSE_S": 0.02, "_LONGEST_PAUSE_S": 0.2, "_SHORTEST_REST_S": 0.05}.items():
        monkeypatch.setattr(sender_module, name, seconds)


def test_an_outage_is_waited_out_and_nothing_is_lost_or_doubled(
    mlflow_server: MlflowServer, line: Line, read_sweep: ReadSweep, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused connections, then 502 for everything, then answers that are lost."""
    line.proxy.close()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "rpg_platform"):
        line.put(opening(PARENT), opening("t"), *(metrics("t", step, a=float(step)) for step in range(50)))
        assert time.monotonic() - started < 10, "the caller waited for a server that is away"
        while line.sender.state().unreachable_s is None:
            time.sleep(0.01)
        assert not line.sender.flush(0.3)
        assert line.sender.state().spooled == 52
    assert len(caplog.records) == 1, "said once"
    line.proxy.fate = lambda path, body: 502
    line.proxy.open()
    time.sleep(ATTEMPTS * 0.3)
    state = line.sender.state()
    assert state == TrackerState(0, 52, unreachable_s=state.unreachable_s)
    left = Counter({"runs/create": 2, "runs/log-batch": 3, "runs/update": 1})

    def lose_some(path: str, body: bytes) -> Fate:
        kind = "/".join(path.split("/")[-2:])
        left[kind] -= 1
        return "lose" if left[kind] >= 0 else "pass"

    line.proxy.fate = lose_some
    assert line.sender.flush(LIMIT_S)
    line.proxy.fate = lambda path, body: 502  # once more, now that the runs are open
    line.put(metrics("t", 50, a=50.0), closing("t"), closing(PARENT))
    assert not line.sender.flush(ATTEMPTS * 0.4)
    assert (line.sender.state().rejected, line.sender.state().spooled) == (0, 3), "an outage rejects nothing"
    line.proxy.fate = lose_some
    assert line.sender.flush(LIMIT_S)
    assert line.proxy.lost == 6
    assert line.sender.state() == TrackerState(55, 0)
    found = read_sweep(mlflow_server.uri, line.runs.experiment)
    assert found.points(found.children["t"]) == {("a", step, 1_000 * step, float(step)): 1 for step in range(51)}
    assert (found.parent.info.status, found.children["t"].info.status) == ("FINISHED", "FINISHED")


@pytest.mark.parametrize("status", [413, 500])
def test_one_bad_record_is_set_aside_and_the_rest_goes_on(
    mlflow_server: MlflowServer, line: Line, read_sweep: ReadSweep, status: int
) -> None:
    """Whatever comes first in the queue, and though it shares its request with others."""
    attempts: list[float] = []

    def fate(path: str, body: bytes) -> Fate:
        if b'"poison"' not in body:
            return "pass"
        if body.count(b'"timestamp"') == 1:
            attempts.append(time.monotonic())
        return status

    line.proxy.fate = fate
    line.put(opening(PARENT), opening("t"), opening("u"))
    reports = [metrics("t", step, a=1.0) for step in range(24)]
    line.put(*reports[:17], metrics("t", 100, poison=1.0), *reports[17:], metrics("u", 1, a=1.0), closing("t"))
    assert line.sender.flush(LIMIT_S)
    assert len(attempts) == (1 if status < 500 else ATTEMPTS)
    [bad] = line.rejected()
    assert bad["data"] == metrics("t", 100, poison=1.0).data
    assert bad["refused"] == (status < 500)
    assert str(status) in bad["why"]
    found = read_sweep(mlflow_server.uri, line.runs.experiment)
    assert len(found.points(found.children["t"])) == 24
    assert len(found.points(found.children["u"])) == 1
    assert line.sender.state() == TrackerState(29, 0, rejected=1)

    line.proxy.fate = lambda path, body: "pass"
    line.put(closing(PARENT))  # before which what failed is tried once more, what was refused is not
    assert line.sender.flush(LIMIT_S)
    parent = read_sweep(mlflow_server.uri, line.runs.experiment).parent
    assert parent.data.tags["tracker_rejected"] == ("1" if status < 500 else "0")
    line.sender.retry_rejected()
    assert line.sender.flush(LIMIT_S)
    assert line.sender.state() == TrackerState(31, 0)
    assert not line.spool.rejected_file.exists()
    found = read_sweep(mlflow_server.uri, line.runs.experiment)
    assert found.parent.data.tags["tracker_rejected"] == "0"
    assert found.history(found.children["t"], "poison") == [(100, 1.0)]


def test_an_artifact_store_that_is_away_holds_up_nothing(line: Line, read_sweep: ReadSweep) -> None:
    tried: Counter[str] = Counter()

    def fate(path: str, body: bytes) -> Fate:
        if "mlflow-artifacts" not in path:
            return "pass"
        tried[path.rpartition("/")[2]] += 1
        return 500

    line.proxy.fate = fate
    line.put(opening(PARENT))
    for trial in range(8):
        line.put(opening(f"t{trial}"), metrics(f"t{trial}", 1, a=1.0), text(f"t{trial}", f"{trial}.txt"))
    assert line.sender.flush(LIMIT_S)
    assert tried.pop("0.txt") == ATTEMPTS
    assert set(tried.values()) == {1}, "after the first, one attempt each"
    assert line.sender.state() == TrackerState(17, 0, rejected=8)
    line.proxy.fate = lambda path, body: "pass"
    line.put(closing(PARENT))
    assert line.sender.flush(LIMIT_S)
    assert line.sender.state() == TrackerState(26, 0)
    run_id = line.runs.run_ids["t7"]
    assert [file.path for file in MlflowClient(line.runs.tracking_uri).list_artifacts(run_id)] == ["7.txt"]


def test_a_run_that_is_refused_or_gone_takes_nobody_with_it(
    mlflow_server: MlflowServer, line: Line, read_sweep: ReadSweep
) -> None:
    line.proxy.fate = lambda path, body: 400 if b'"never"' in body and path.endswith("runs/create") else "pass"
    line.put(opening(PARENT), opening("never"), metrics("never", 1, a=1.0), opening("gone"), opening("t"))
    assert line.sender.flush(LIMIT_S)
    MlflowClient(mlflow_server.uri).delete_run(line.runs.run_ids["gone"])
    line.put(*(metrics(run, 2, a=1.0) for run in ("gone", "t", "never")), closing("never"))
    assert line.sender.flush(LIMIT_S)
    found = read_sweep(mlflow_server.uri, line.runs.experiment)
    assert set(found.children) == {"t"}
    assert len(found.points(found.children["t"])) == 1
    assert Counter(bad["run"] for bad in line.rejected()) == {"never": 4, "gone": 1}
    MlflowClient(mlflow_server.uri).delete_run(line.runs.run_ids[PARENT])  # even that is no outage
    line.put(Record(PARENT, "tags", {"values": {"x": 1}}), metrics("t", 3, a=1.0), closing(PARENT))
    assert line.sender.flush(LIMIT_S)
    assert Counter(bad["run"] for bad in line.rejected()) == {"never": 4, "gone": 1, PARENT: 2}
    history = MlflowClient(mlflow_server.uri).get_metric_history(line.runs.run_ids["t"], "a")
    assert [each.step for each in history] == [2, 3]


def test_a_server_that_swallows_requests_costs_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    request_s = 30  # longer than everything below takes on a busy machine
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(request_s))  # what the user has set stays
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # this would make a run twice
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = Proxy(silent.getsockname()[1], 0)
        line = Line(tmp_path, proxy, "silent")
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        started = time.monotonic()
        line.put(opening(PARENT), *(metrics(PARENT, step, a=1.0) for step in range(1_000)))
        assert not line.sender.flush(1.5)
        assert time.monotonic() - started > 1.5
        line.close()
        assert time.monotonic() - started < request_s, "somebody waited for an answer"
    assert {name: os.environ.get(f"MLFLOW_HTTP_REQUEST_{name}") for name in ("TIMEOUT", "MAX_RETRIES")} == {
        "TIMEOUT": str(request_s),
        "MAX_RETRIES": "7",
    }
    deadline = time.monotonic() + LIMIT_S
    while threading.active_count() > threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
    again = Spool(tmp_path)
    again.open()
    assert again.waiting == 1_001
    again.close()


def test_at_most_two_requests_a_report(
    mlflow_server: MlflowServer, proxy: Proxy, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    """Eight trials of 25 reports, one every 0.1 s each: with everything that opens, closes and ends them."""
    line = Line(tmp_path, proxy, "requests")
    trials = [f"t{i}" for i in range(8)]
    line.put(opening(PARENT), *(text(PARENT, name) for name in ("sweep.yaml", "spec.json", "plan.json")))
    line.put(*(opening(trial, params={"lr": "1"}) for trial in trials))
    for step in range(25):
        line.put(*(metrics(trial, step, **{f"m{i}": 0.1 * step for i in range(25)}) for trial in trials))
        time.sleep(0.1)
    for trial in trials:
        line.put(text(trial, "card.json"), text(trial, "weights"), text(trial, "config.json"), closing(trial))
    line.put(text(PARENT, "summary.json"), closing(PARENT))
    assert line.sender.flush(LIMIT_S)
    line.close()
    found = read_sweep(mlflow_server.uri, "requests")
    assert all(len(found.points(found.children[trial])) == 25 * 25 for trial in trials)
    assert len(proxy.seen) / (25 * 8) < 0.8, Counter(proxy.seen)


def test_whose_records_they_are_is_kept_without_the_login(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.open()
    assert read_identity(tmp_path) is None
    write_identity(spool, MlflowRuns("http://me:secret@host:5000", "experiment", "k", "sweep"))
    identity = read_identity(tmp_path)
    assert identity is not None
    assert (identity.tracking_uri, identity.needs_login) == ("http://host:5000", True)
    file = tmp_path / "sweep.json"
    assert "secret" not in file.read_text()
    whole = file.read_text()
    for content, message in ((whole[:-9], "damaged"), (whole.replace('"format": 2', '"format": 3'), "use a newer one")):
        file.write_text(content)
        with pytest.raises(SpoolError, match=message):
            read_identity(tmp_path)
    spool.close()
