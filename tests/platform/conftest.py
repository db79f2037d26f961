"""Real MLflow for the platform's tests: a server process, an embedded store, and a strict reader of runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rpg_platform.mlflow_runs import create_embedded_store, default_tracking_uri


@dataclass(frozen=True)
class TrackedSweep:
    """What one experiment holds."""

    client: MlflowClient
    parent: Run
    children: dict[str, Run]

    def points(self, run: Run) -> Counter[tuple[str, int, int, float]]:
        """Every stored metric point: (key, step, timestamp in ms, value)."""
        return Counter(
            (key, each.step, each.timestamp, each.value)
            for key in run.data.metrics
            for each in self.client.get_metric_history(run.info.run_id, key)
        )

    def history(self, run: Run, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in the order of steps."""
        return sorted((each.step, each.value) for each in self.client.get_metric_history(run.info.run_id, key))


def read_sweep(uri: str, experiment: str) -> TrackedSweep:
    """The one parent of an experiment and its children by trial; fails on any run beside."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = list(client.search_runs([found.experiment_id]))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, f"{len(parents)} parent runs"
    children = {run.data.tags["trial_id"]: run for run in runs if run is not parents[0]}
    assert len(children) == len(runs) - 1, "two runs of one trial"
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} <= {parents[0].info.run_id}
    return TrackedSweep(client, parents[0], children)


@pytest.fixture(scope="session", name="read_sweep")
def _read_sweep() -> Callable[[str, str], TrackedSweep]:
    return read_sweep


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def unused_port() -> int:
    """A loopback port on which nothing listens."""
    return free_port()


@dataclass(frozen=True)
class MlflowServer:
    uri: str
    port: int
    log: Path

    def requests(self) -> list[str]:
        """Method and path of each request so far, from the server's access log."""
        return re.findall(r'"((?:GET|POST|PUT|PATCH) [^ ?]+)', self.log.read_text())


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real `mlflow server` on a loopback port, over SQLite."""
    folder = tmp_path_factory.mktemp("server")
    create_embedded_store(folder / "mlflow.db")
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield MlflowServer(f"http://127.0.0.1:{port}", port, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an embedded store that the first user makes; each test takes its own experiment in it."""
    return default_tracking_uri(tmp_path_factory.mktemp("store"))
