"""Servers of a cluster as deploy/ has them, for tests: PostgreSQL, and MLflow by deploy/docker/mlflow-server."""

from __future__ import annotations

import csv
import os
import pwd
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.deploy.manifests import DEPLOY, ROOT
from tests.platform.servers import free_port

LIMIT_S = 600


def install_locked(folder: Path) -> Path:
    """The `bin` of an environment with what requirements/mlflow.lock lists and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=LIMIT_S)
    pip = [str(folder / "bin" / "pip"), "install", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements" / "mlflow.lock")], check=True, timeout=2 * LIMIT_S)
    return folder / "bin"


@dataclass
class Postgres:
    """A PostgreSQL of a test alone, with the user and the database `mlflow`.

    Attributes:
        password: of the user.
        enter: the command that enters its host, as `Hosts.command` has it; empty: this one.
        address: what it listens on.
        network: who may log in beside this machine, as `10.0.0.0/24`; empty: nobody.
        port: what it listens on.
    """

    password: str
    enter: Sequence[str] = ()
    address: str = "127.0.0.1"
    network: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        where = shutil.which("initdb") or (str(programs[-1] / "initdb") if programs else "")
        if not where:
            pytest.skip("no PostgreSQL")
        self._bin = Path(where).resolve().parent
        self._user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses root
        self._folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        self._server: subprocess.Popen[bytes] | None = None
        self.port = self.port or free_port()
        (self._folder / "password").write_text(self.password)
        if self._user:
            for path in (self._folder, self._folder / "password"):
                shutil.chown(path, self._user)
        options = ["--username=mlflow", f"--pwfile={self._folder}/password", "--auth=scram-sha-256"]
        command = [self._bin / "initdb", *options, "-D", f"{self._folder}/data"]
        subprocess.run(command, user=self._user, check=True, capture_output=True, timeout=LIMIT_S)
        if self.network:
            with (self._folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {self.network} scram-sha-256\n")

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        settings = [f"port={self.port}", f"listen_addresses={self.address}", "unix_socket_directories="]
        options = [word for each in settings for word in ("-c", each)]
        enter = list(self.enter)
        if self._user and enter:
            found = pwd.getpwnam(self._user)
            enter += ["--setuid", str(found.pw_uid), "--setgid", str(found.pw_gid)]
        with self._folder.with_suffix(".log").open("a") as log:
            self._server = subprocess.Popen(
                [*enter, self._bin / "postgres", "-D", self._folder / "data", *options],
                user=None if enter else self._user,
                stdout=log,
                stderr=log,
            )
        make = [*self.enter, self._bin / "createdb", f"--host={self.address}", f"--port={self.port}"]
        end = time.monotonic() + LIMIT_S
        while True:
            made = subprocess.run(
                [*make, "--username=mlflow", "mlflow"],
                env=os.environ | {"PGPASSWORD": self.password},
                capture_output=True,
                text=True,
            )
            if made.returncode == 0 or "already exists" in made.stderr:
                return
            assert self._server.poll() is None, self._folder.with_suffix(".log").read_text()
            assert time.monotonic() < end, made.stderr
            time.sleep(0.2)

    def rows(self, query: str) -> list[list[str]]:
        """What the database answers."""
        asked = [*self.enter, self._bin / "psql", f"--host={self.address}", f"--port={self.port}", "--username=mlflow"]
        done = subprocess.run(
            [*asked, "--csv", "--tuples-only", f"--command={query}", "mlflow"],
            env=os.environ | {"PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_S,
        )
        return list(csv.reader(done.stdout.splitlines()))

    def crash(self) -> None:
        """Ends it and its connections at once, without a checkpoint: the next start recovers from its log."""
        if self._server is not None:
            self._server.send_signal(3)  # SIGQUIT, PostgreSQL's "immediate shutdown"
            self._server.wait(60)

    def end(self) -> None:
        """Ends it and removes what it had."""
        self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.with_suffix(".log").unlink(missing_ok=True)


@contextmanager
def postgres(password: str) -> Iterator[int]:
    """A PostgreSQL on loopback; its port."""
    server = Postgres(password)
    try:
        server.start()
        yield server.port
    finally:
        server.end()


def mlflow_environment(locked: Path, home: Path, address: str, database: str, names: Sequence[str]) -> dict[str, str]:
    """What deploy/docker/mlflow-server is told, without its secrets.

    Args:
        locked: `bin` of its environment.
        home: its home, with its artifacts.
        address: HOST:PORT that it listens on.
        database: HOST:PORT of PostgreSQL.
        names: HOST:PORT that it may be asked for as.
    """
    host, _, port = address.partition(":")
    return {
        "PATH": f"{locked}{os.pathsep}/usr/bin:/bin",
        "HOME": str(home),
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow@{database}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": str(home / "artifacts"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join([*names, address]),
        "MLFLOW_HOST": host,
        "MLFLOW_PORT": port,
        "MLFLOW_WORKERS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@contextmanager
def serving(
    environment: Mapping[str, str],
    log: Path,
    health: str,
    cafile: Path | None = None,
    *,
    enter: Sequence[str] = (),
    ask: Callable[[str], object] | None = None,
) -> Iterator[int]:
    """The MLflow server, once it answers; its process.

    Args:
        environment: of it.
        log: takes what it says.
        health: address that answers once it is there.
        cafile: certificate that it shows.
        enter: the command that enters its host.
        ask: asks the address, from where it can be reached; raises OSError while nobody answers.
    """
    with log.open("a") as output:
        command = [*enter, str(DEPLOY / "docker" / "mlflow-server")]
        server = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output)
    try:
        context = None if cafile is None else ssl.create_default_context(cafile=str(cafile))
        end = time.monotonic() + LIMIT_S
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with suppress(OSError):
                if ask is not None:
                    ask(health)
                else:
                    urllib.request.urlopen(health, timeout=10, context=context).close()
                break
            time.sleep(0.5)
        yield server.pid
    finally:
        server.terminate()
        server.wait(120)
