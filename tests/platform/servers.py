"""A real MLflow server for tests, and a strict reader of the runs that a store holds."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from rpg_platform.tracking.store import create_embedded_store


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


# Below the ports that the kernel gives to connections of its own accord, and each only once in a session.
_PORTS = iter(random.sample(range(20_000, 32_000), 12_000))


def free_port() -> int:
    """A loopback port on which nothing listens."""
    for port in _PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port was used once")


@dataclass
class MlflowServer:
    """A real `mlflow server` on a loopback port, over SQLite in its folder; may be killed and started again."""

    folder: Path
    port: int
    backend: str = ""

    def __post_init__(self) -> None:
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = self.folder / "log"
        self.backend = self.backend or f"sqlite:///{self.folder}/mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.backend.startswith("sqlite"):
            create_embedded_store(self.folder / "mlflow.db")
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.backend, "--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # more processes, and none is used
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, env=environment
            )
        deadline = time.monotonic() + 180
        while True:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, to it and its workers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def requests(self) -> list[str]:
        """Method and path of each request so far, from the server's access log."""
        return re.findall(r'"((?:GET|POST|PUT|PATCH) [^ ?]+)', self.log.read_text())
