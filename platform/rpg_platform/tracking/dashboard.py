"""``rpg ui``: MLflow's server over a sweep's embedded store, for as long as the command runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from rich.console import Console

from rpg_platform.spec.logins import without_login
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.identity import read_identity
from rpg_platform.tracking.spool import spool_folder
from rpg_platform.tracking.store import ARTIFACT_FOLDER, embedded_database, follow_move
from rpg_platform.tracking.variables import variables
from rpg_platform.tracking.views import EXPERIMENTS, runs_address, view_address, view_tag

START_LIMIT_S = 90.0
STOP_LIMIT_S = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
PORTS_TO_TRY = 100
DATABASES = ("sqlite:", "postgresql:", "postgresql+", "mysql:", "mysql+", "mssql:", "mssql+")
QUIET_SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
# A server that does not answer is no reason to wait for MLflow's four minutes: its plain address is as good.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SQLITE_HEADER = b"SQLite format 3\x00"


class UiError(ValueError):
    """The dashboard can't be started; the message says what to do."""


def serve(
    storage_or_uri: str | Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    sweep: str | None = None,
    browse: bool = False,
    console: Console | None = None,
) -> int:
    """Runs the dashboard until Ctrl-C, SIGTERM or its own end.

    Args:
        storage_or_uri: a storage directory of sweeps, or a database URI (``sqlite:///…``). For an ``http(s)``
            address nothing is started: that server has its own dashboard, and its address is printed.
            A sweep of a storage directory that is tracked elsewhere is looked for there.
        host: interface to listen on.
        port: port to listen on; 0 takes a free one.
        sweep: name of the sweep whose view is to be shown; None: the one that began last.
        browse: open the address in a browser too.
        console: where the address is printed; None: standard output.

    Returns:
        Exit code: 0 after a stop that was asked for, else the server's.

    Raises:
        UiError: there is no store or no such sweep in it, the port is taken, or the server does not come up.
    """
    console = console or Console()
    text = _tracked_at(str(storage_or_uri), sweep)
    if text.startswith(("http://", "https://")):
        with variables(IMPATIENT):
            address = address_of(text, sweep)
        console.print(f"The dashboard of this tracking server: {address}", soft_wrap=True, highlight=False)
        if browse:
            webbrowser.open(address)
        return 0
    uri, artifacts = _store(text)
    port = _free_port(host, port)
    url = f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host]
    command += ["--port", str(port), "--workers", "1"]
    if host not in LOOPBACK:  # MLflow answers 403 to names that it does not know
        command += ["--allowed-hosts", ",".join(_names(host, port))]
    if artifacts is not None:
        command += ["--artifacts-destination", str(artifacts)]
    console.print(f"Starting MLflow on {without_login(uri)} …", soft_wrap=True)
    try:
        with tempfile.TemporaryFile() as log, _stop_signals():
            # Its own group: Ctrl-C reaches us alone, and we end the server together with its workers.
            child = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | QUIET_SERVER
            )
            try:
                with variables(IMPATIENT | _without_proxies(url)):
                    _await_health(child, f"{url}/health", log)
                    address = address_of(url, sweep)
                console.print(f"{address}  (Ctrl-C ends it)", soft_wrap=True, highlight=False)
                if browse:
                    webbrowser.open(address)
                return child.wait()
            finally:
                _end(child)
    except KeyboardInterrupt:
        return 0


def _without_proxies(url: str) -> dict[str, str]:
    """What lets this process reach a server of this machine, of whose ports a proxy knows nothing."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    both = ",".join(filter(None, [known, urlsplit(url).hostname, *LOOPBACK]))
    return {"no_proxy": both, "NO_PROXY": both}


def _names(host: str, port: int) -> list[str]:
    """The Host headers under which other machines reach a server of this one, and those of this machine itself."""
    own = socket.gethostname()
    names = dict.fromkeys((*LOOPBACK, host, own, socket.getfqdn(), own.partition(".")[0]))
    with suppress(OSError):
        names |= dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(own, None))
    return [f"{name}{end}" for name in names for end in ("", f":{port}")]


def address_of(server: str, sweep: str | None = None) -> str:
    """The address of a sweep's view of its trade-off at a server that runs; of its list of experiments if it has none.

    Args:
        server: its address.
        sweep: the sweep's name; None: of the sweep that began last.

    Raises:
        UiError: the server has no such sweep, with the nearest names; or it does not answer.
    """
    from mlflow import MlflowClient  # seconds, while the server starts
    from mlflow.exceptions import MlflowException

    from rpg_platform.tracking.stored import StoreError, find_sweep

    shown = without_login(server).rstrip("/")
    client, run = MlflowClient(server), None
    try:
        run = find_sweep(client, sweep)
    except StoreError as error:
        raise UiError(str(error)) from error
    except MlflowException as error:
        if sweep is not None:
            raise UiError(f"{shown}: {without_login(str(error))}") from error
    if run is None:
        return f"{shown}/{EXPERIMENTS}"
    name, experiment = run.data.tags["sweep"], run.info.experiment_id
    has_view = view_tag(name) in client.get_experiment(experiment).tags  # an earlier version made none
    return f"{shown}/{view_address(experiment, name) if has_view else runs_address(experiment)}"


def _tracked_at(text: str, sweep: str | None) -> str:
    """Where a sweep of a storage is tracked, if it says so itself; else what was given."""
    if sweep is None or text.startswith((*DATABASES, "http://", "https://")):
        return text
    identity = read_identity(spool_folder(text, sweep))
    if identity is None:
        return text
    database = embedded_database(identity.tracking_uri)
    moved = database is not None and not database.is_file()  # with its results, perhaps from another machine
    return text if moved else identity.tracking_uri


def _store(text: str) -> tuple[str, Path | None]:
    """The database URI and the artifact folder of a storage directory or URI."""
    uri = text if text.startswith(DATABASES) else default_tracking_uri(text)
    database = embedded_database(uri)
    if database is None:
        return uri, None
    if not database.is_file():
        raise UiError(
            f"storage: there is no MLflow store at {database}. It is made by the first sweep; "
            "if the sweep has another storage or tracking.uri, name that"
        )
    with database.open("rb") as file:
        if file.read(len(SQLITE_HEADER)) != SQLITE_HEADER:  # MLflow would try again for minutes
            raise UiError(f"storage: {database} is not a SQLite database")
    follow_move(database)
    return uri, database.parent / ARTIFACT_FOLDER


def _free_port(host: str, port: int) -> int:
    """``port`` itself, or a free one for 0.

    Raises:
        UiError: it is taken, with the nearest free one above; or ``host`` is not ours.
    """
    found = _bound(host, port)
    if isinstance(found, int):
        return found
    if isinstance(found, socket.gaierror):
        raise UiError(f"host: {host!r} can't be resolved: {found.strerror}") from found
    above = range(port + 1, min(port + PORTS_TO_TRY, 65_536))
    free = next((each for each in above if isinstance(_bound(host, each), int)), None)
    advice = f"; {free} is free (--port {free})" if free else ""
    raise UiError(f"port: {port} on {host} can't be used: {found.strerror or found}{advice}") from found


def _bound(host: str, port: int) -> int | OSError:
    """The port that a listener gets, which is closed again; or why it gets none."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        # As servers do: a port whose last connection was closed a moment ago is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            return int(listener.getsockname()[1])
        except OSError as error:
            return error


def _await_health(child: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise UiError(f"MLflow ended at its start with code {child.returncode}:\n{_tail(log)}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise UiError(f"MLflow did not answer at {url} within {START_LIMIT_S:.0f} s:\n{_tail(log)}")


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into ``KeyboardInterrupt``, so that the child is ended on the way out."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers: asked first, then, after a while or a second signal, made."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        child.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):  # also workers that outlived the server
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
