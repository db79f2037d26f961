"""deploy/docker/mlflow-server as its image runs it: what the lock says, with a real PostgreSQL, a login and TLS."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.deploy.manifests import DEPLOY, ROOT
from tests.platform.servers import free_port

LIMIT_S = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * LIMIT_S)]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with what requirements/mlflow.lock lists and nothing else."""
    folder = tmp_path_factory.mktemp("mlflow")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=LIMIT_S)
    pip = [str(folder / "bin" / "pip"), "install", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements" / "mlflow.lock")], check=True, timeout=2 * LIMIT_S)
    return folder / "bin"


@contextmanager
def postgres(password: str) -> Iterator[int]:
    """A PostgreSQL of this test alone on loopback, with the user and the database `mlflow`; its port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    where = shutil.which("initdb") or (str(programs[-1] / "initdb") if programs else "")
    if not where:
        pytest.skip("no PostgreSQL")
    bin_folder = Path(where).resolve().parent
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses root
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    (folder / "password").write_text(password)
    try:
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        options = ["--username=mlflow", f"--pwfile={folder}/password", "--auth=scram-sha-256", "-D", f"{folder}/data"]
        subprocess.run([bin_folder / "initdb", *options], user=user, check=True, capture_output=True, timeout=LIMIT_S)
        port = free_port()
        settings = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with (folder.with_suffix(".log")).open("w") as log:
            server = subprocess.Popen(
                [bin_folder / "postgres", "-D", folder / "data", *settings], user=user, stdout=log, stderr=log
            )
        try:
            login = os.environ | {"PGPASSWORD": password}
            command = ["createdb", "--host=127.0.0.1", f"--port={port}", "--username=mlflow", "mlflow"]
            end = time.monotonic() + LIMIT_S
            while subprocess.run([bin_folder / command[0], *command[1:]], env=login, capture_output=True).returncode:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
            yield port
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def answer(address: str, password: str | None = None, host: str | None = None, cafile: Path | None = None) -> int:
    """The status of a request for the experiments, with a login or a Host header of its own."""
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=1")
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    if host is not None:
        request.add_header("Host", host)
    context = None if cafile is None else ssl.create_default_context(cafile=str(cafile))
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as said:
            return int(said.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def serving(environment: dict[str, str], log: Path, health: str, cafile: Path | None = None) -> Iterator[int]:
    """The server, once it answers; its process."""
    with log.open("a") as output:
        server = subprocess.Popen(
            [str(DEPLOY / "docker" / "mlflow-server")], env=environment, stdout=output, stderr=output
        )
    try:
        context = None if cafile is None else ssl.create_default_context(cafile=str(cafile))
        end = time.monotonic() + LIMIT_S
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with suppress(OSError):
                urllib.request.urlopen(health, timeout=10, context=context).close()
                break
            time.sleep(0.5)
        yield server.pid
    finally:
        server.terminate()
        server.wait(120)


def test_only_the_login_opens_it_and_only_by_its_names(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    admin, database, key = (secrets.token_hex(32) for _ in range(3))
    log, port = tmp_path / "log", free_port()
    address = f"http://127.0.0.1:{port}"
    with postgres(database) as database_port:
        environment = {
            "PATH": f"{locked}{os.pathsep}/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PGPASSWORD": database,
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow@127.0.0.1:{database_port}/mlflow",
            "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"mlflow:5000,127.0.0.1:{port}",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with serving(environment, log, f"{address}/health") as process:
            assert answer(address) == 401
            assert answer(address, "wrong" * 4) == 401
            assert answer(address, admin) == 200
            assert answer(address, admin, host="mlflow:5000") == 200
            assert answer(address, admin, host="elsewhere:5000") == 403
            command = Path(f"/proc/{process}/cmdline").read_text()
            assert not [each for each in (admin, database, key) if each in command]
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", admin)
            client = MlflowClient(address)
            run = client.create_run(client.create_experiment("x"))
            client.log_metric(run.info.run_id, "a", 1.0)
            client.log_text(run.info.run_id, "hello", "there.txt")
        # Again, with certificates: users and runs are in the database, artifacts in their folder.
        certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
        names = "subjectAltName=IP:127.0.0.1,DNS:mlflow"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mlflow"]
        make += ["-addext", names, "-keyout", str(private), "-out", str(certificate)]
        subprocess.run(make, check=True, capture_output=True, timeout=60)
        environment |= {"MLFLOW_TLS_CERT": str(certificate), "MLFLOW_TLS_KEY": str(private)}
        secure = f"https://127.0.0.1:{port}"
        with serving(environment, log, f"{secure}/health", certificate):
            assert answer(secure, cafile=certificate) == 401
            assert answer(secure, admin, cafile=certificate) == 200
            monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
            client = MlflowClient(secure)
            assert client.get_run(run.info.run_id).data.metrics == {"a": 1.0}
            assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["there.txt"]
    assert not [each for each in (admin, database, key) if each in log.read_text()]
