"""The dashboard: a real MLflow server over a real embedded store, started and stopped as a user does."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.dashboard import UiError, serve
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record

LIMIT_S = 120  # for what takes seconds on a machine with nothing else to do
NO_WAY_HOME = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9") | {"no_proxy": "", "NO_PROXY": ""}
PROGRAM = """
import sys
from rpg_platform.tracking.dashboard import serve
sys.exit(serve(sys.argv[1], "127.0.0.1", int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage directory with a store that holds one run and one artifact."""
    folder = tmp_path_factory.mktemp("my results")
    runs = MlflowRuns(default_tracking_uri(folder), "sweep", "k")
    runs.put(Record(PARENT, "open", {"name": "s", "params": {}, "tags": {}, "start_time": 1}))
    runs.put(Record(PARENT, "text", {"text": "the summary", "path": "summary/summary.md"}))
    (folder / "run_id").write_text(runs.run_ids[PARENT])
    return folder


@pytest.fixture
def taken() -> Iterator[int]:
    """A loopback port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return str(answer.read().decode())


def first_line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    timer = threading.Timer(LIMIT_S, process.terminate)
    timer.start()
    try:
        for line in process.stdout:
            if text in line:
                return line
    finally:
        timer.cancel()
    raise AssertionError(f"ended with {process.wait(LIMIT_S)} before it printed {text!r}")


@pytest.fixture
def dashboard(storage: Path, unused_port: int) -> Iterator[subprocess.Popen[str]]:
    """`serve` in a process of its own, on `unused_port`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(storage), str(unused_port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | NO_WAY_HOME,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # and not kill: the server is its child
            process.wait(LIMIT_S)


def servers_on(port: int) -> list[str]:
    """Command lines of the processes that were told to listen on `port`, beside the dashboard itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes().decode(errors="replace").split("\0")
            if "--port" in command and str(port) in command:
                found.append(" ".join(command))
    return found


def test_the_dashboard_shows_the_store_and_ends_with_its_server(
    storage: Path, unused_port: int, dashboard: subprocess.Popen[str]
) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    assert url in first_line_with(dashboard, "http")
    assert read(f"{url}/health") == "OK"  # printed only once it answers
    run_id = (storage / "run_id").read_text()
    assert read(f"{url}/get-artifact?path=summary/summary.md&run_uuid={run_id}") == "the summary"
    assert servers_on(unused_port)
    dashboard.send_signal(signal.SIGINT)
    assert dashboard.wait(LIMIT_S) == 0
    assert not servers_on(unused_port)
    with pytest.raises(urllib.error.URLError):
        read(f"{url}/health")


def test_sigterm_while_it_starts_leaves_nothing(unused_port: int, dashboard: subprocess.Popen[str]) -> None:
    first_line_with(dashboard, "Starting MLflow")
    deadline = time.monotonic() + LIMIT_S
    while not servers_on(unused_port):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    dashboard.terminate()
    assert dashboard.wait(LIMIT_S) == 0
    assert not servers_on(unused_port)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UiError, match=r"storage: there is no MLflow store at .*/nowhere/mlflow\.db.*first sweep"):
        serve(tmp_path / "nowhere")
    with pytest.raises(UiError, match=r"no MLflow store at .*other\.db"):
        serve(f"sqlite:///{tmp_path}/other.db")
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
    with pytest.raises(ValueError, match=r"s3://bucket"):
        serve("s3://bucket/results")


def test_what_is_no_database_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, whatever its name says")
    with pytest.raises(UiError, match=r"mlflow\.db is not a SQLite database"):
        serve(tmp_path)


def test_a_taken_port_gives_the_nearest_free_one(storage: Path, taken: int) -> None:
    with pytest.raises(UiError, match=rf"port: {taken} on 127\.0\.0\.1 can't be used.*") as caught:
        serve(storage, "127.0.0.1", taken)
    suggested = int(str(caught.value).rpartition("--port ")[2].rstrip(")"))
    assert taken < suggested < taken + 100
    with socket.create_server(("127.0.0.1", suggested)):
        pass


def test_a_host_that_is_not_ours(storage: Path) -> None:
    with pytest.raises(UiError, match=r"host: 'no-such-host\.invalid'"):
        serve(storage, "no-such-host.invalid", 0)
    with pytest.raises(UiError, match=r"0 on 192\.0\.2\.1 can't be used"):
        serve(storage, "192.0.2.1", 0)


def test_a_server_that_dies_at_its_start_shows_its_last_words(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:  # a store of a version that nobody knows
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('from the future')")
        database.execute("create table experiments (x int)")
    console = Console(quiet=True)
    with pytest.raises(UiError, match=r"ended at its start with code \d+:\n(.|\n)*from the future"):
        serve(tmp_path, port=0, console=console)


def test_a_server_elsewhere_is_named_and_not_started() -> None:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        assert serve("https://me:secret@mlflow.example.org/team/one", console=console) == 0
    assert "https://***@mlflow.example.org/team/one" in capture.get()
    assert "secret" not in capture.get()
