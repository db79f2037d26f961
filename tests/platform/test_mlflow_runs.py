"""Delivery to MLflow: nothing lost, nothing doubled, whatever happens between us and the server."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from rpg_platform import mlflow_runs
from rpg_platform.mlflow_runs import (
    PARENT,
    MlflowRuns,
    Record,
    create_embedded_store,
    default_tracking_uri,
    metric_key,
)

if TYPE_CHECKING:
    from tests.platform.conftest import MlflowServer, TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]


def opening(run: str, **more: Any) -> Record:
    kind = {"kind": "trial" if run else "sweep"}
    return Record(run, "open", {"name": run or "s", "params": {}, "tags": kind, "start_time": 1_000, **more})


def metrics(run: str, step: int, **values: float) -> Record:
    return Record(run, "metrics", {"values": values, "step": step, "timestamp": 1_000 * step})


@dataclass
class Relay:
    """A loopback port before a server: open or closed, and able to lose the answer to one kind of request."""

    port: int
    target: int
    lose_answer_to: bytes = b""
    lost: int = 0

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                lose = threading.Event()
                for source, sink in ((near, far), (far, near)):
                    arguments = (source, sink, source is near, lose)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, inward: bool, lose: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if inward and self.lose_answer_to and self.lose_answer_to in data:
                    self.lose_answer_to = b""
                    lose.set()
                elif not inward and lose.is_set():  # the server has done it, and nobody hears of it
                    self.lost += 1
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def test_a_replay_adds_nothing(embedded_store: str, read_sweep: ReadSweep) -> None:
    runs = MlflowRuns(embedded_store, "replay", "k")
    records = [opening(PARENT), opening("t", params={"lr": "1"}), metrics("t", 10, a=1.0, b=2.0)]
    records += [
        Record("t", "tags", {"values": {"x": 1}}),
        Record("t", "text", {"text": "hi", "path": "a.txt"}),
    ]
    records += [Record("t", "close", {"status": "FINISHED", "end_time": 2_000})]
    for record in records:
        runs.put(record)
    before = read_sweep(embedded_store, "replay").children["t"]
    later = MlflowRuns(embedded_store, "replay", "k")  # a driver that knows of nothing
    later.expect_earlier_runs(PARENT, "t")
    for record in records + records:
        later.put(record)
    found = read_sweep(embedded_store, "replay")
    after = found.children["t"]
    assert later.errors == later.dropped == 0
    assert after.to_dictionary() == before.to_dictionary()
    assert found.points(after) == {("a", 10, 10_000, 1.0): 1, ("b", 10, 10_000, 2.0): 1}


def test_records_wait_out_an_outage_and_a_lost_answer_doubles_nothing(
    mlflow_server: MlflowServer, unused_port: int, read_sweep: ReadSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "_FIRST_PAUSE_S", 0.2)
    relay = Relay(unused_port, mlflow_server.port)
    runs = MlflowRuns(f"http://127.0.0.1:{relay.port}", "outage", "k")
    start = time.monotonic()
    runs.put(opening(PARENT))
    for step in range(50):
        runs.put(metrics(PARENT, step, a=float(step)))
    assert time.monotonic() - start < 5, "the caller waited for a server that is away"
    assert runs.pending == 51
    relay.lose_answer_to = b"runs/create"
    relay.open()
    assert runs.flush(patience_s=20)
    for lose, record in (
        (b"runs/log-batch", metrics(PARENT, 50, a=50.0)),
        (b"runs/create", opening("t")),
    ):
        relay.lose_answer_to = lose
        runs.put(record)
        assert runs.flush(patience_s=20)
    relay.close()
    assert relay.lost == 3
    assert runs.dropped == 0
    found = read_sweep(mlflow_server.uri, "outage")
    assert list(found.children) == ["t"]
    assert found.points(found.parent) == {("a", step, 1_000 * step, float(step)): 1 for step in range(51)}


def test_what_is_refused_is_counted_and_does_not_hold_up_the_rest(
    embedded_store: str, read_sweep: ReadSweep, caplog: pytest.LogCaptureFixture
) -> None:
    runs = MlflowRuns(embedded_store, "refused", "k")
    for record in (opening(PARENT), opening("gone"), opening("there")):
        runs.put(record)
    client = MlflowClient(embedded_store)
    client.delete_run(runs.run_ids["gone"])
    with caplog.at_level(logging.WARNING, "rpg_platform"):
        for step in (1, 2):
            for run in ("gone", "there", "never opened"):
                runs.put(metrics(run, step, a=1.0))
    assert runs.pending == 0
    assert runs.dropped == 4
    assert runs.errors == 2
    assert len(caplog.records) == 1
    found = read_sweep(embedded_store, "refused")
    assert len(found.points(found.children["there"])) == 2


def test_a_tag_of_any_length_and_a_key_of_any_kind_are_taken(embedded_store: str, read_sweep: ReadSweep) -> None:
    runs = MlflowRuns(embedded_store, "odd", "k")
    runs.put(opening(PARENT, params={"long": "x" * 10_000}, tags={"kind": "sweep", "long": "x" * 10_000}))
    runs.put(metrics(PARENT, 1, **{"omega'·log π": 1.0, "eval/sampled/total_return_mean": 2.0}))
    assert (runs.errors, runs.dropped) == (0, 0)
    parent = read_sweep(embedded_store, "odd").parent
    assert parent.data.metrics == {"omega__log _": 1.0, "eval/sampled/total_return_mean": 2.0}
    assert metric_key("a" * 300) == "a" * 250


# ---- the embedded store --------------------------------------------------------------------------
def test_two_sweeps_may_make_the_embedded_store_at_once(tmp_path: Path) -> None:
    database = tmp_path / "new" / "mlflow.db"
    code = (
        "import sys; from pathlib import Path; from rpg_platform.mlflow_runs import create_embedded_store; "
        "sys.stdout.write(str(create_embedded_store(Path(sys.argv[1]))))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(database)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    outputs = [each.communicate(timeout=90) for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert sorted(output for output, _ in outputs) == ["False", "True"]
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"], "something half-made was left"
    experiment = MlflowClient(f"sqlite:///{database}").get_experiment("0")
    assert experiment.artifact_location == f"file://{tmp_path}/new/mlartifacts/0"


def test_an_empty_file_is_no_store_and_a_store_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()  # what a kill at the wrong moment leaves of SQLite
    assert create_embedded_store(database)
    content = database.read_bytes()
    assert not create_embedded_store(database)
    assert database.read_bytes() == content


def test_artifacts_of_an_embedded_store_lie_under_the_storage(embedded_store: str) -> None:
    runs = MlflowRuns(embedded_store, "../odd name", "k")
    runs.put(opening(PARENT))
    runs.put(Record(PARENT, "text", {"text": "hi", "path": "a.txt"}))
    assert runs.errors == 0
    folder = Path(embedded_store.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert [path.read_text() for path in folder.glob("__odd_name/*/artifacts/a.txt")] == ["hi"]


def test_default_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri(f"file://{tmp_path}/a%20b") == f"sqlite:///{tmp_path}/a b/mlflow.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_tracking_uri("~/results") == f"sqlite:///{tmp_path}/results/mlflow.db"
    with pytest.raises(ValueError, match=r"storage: 's3://bucket/x'.*tracking\.uri"):
        default_tracking_uri("s3://bucket/x")


def test_a_server_that_swallows_requests_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")  # what the user sets stays
    with socket.create_server(("127.0.0.1", 0)) as silent:
        runs = MlflowRuns(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent", "k")
        start = time.monotonic()
        runs.put(opening(PARENT))
        for step in range(100):
            runs.put(metrics(PARENT, step, a=1.0))
        assert time.monotonic() - start < 6, "more than one request was waited for"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert (runs.errors, runs.pending) == (1, 101)
