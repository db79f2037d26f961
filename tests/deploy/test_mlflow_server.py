"""deploy/docker/mlflow-server as its image runs it: what the lock says, with a real PostgreSQL, a login and TLS."""

from __future__ import annotations

import base64
import secrets
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.deploy.services import LIMIT_S, mlflow_environment, postgres, serving
from tests.platform.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * LIMIT_S)]


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


def test_only_the_login_opens_it_and_only_by_its_names(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    admin, database, key = (secrets.token_hex(32) for _ in range(3))
    log, port = tmp_path / "log", free_port()
    address = f"http://127.0.0.1:{port}"
    with postgres(database) as database_port:
        names = (f"127.0.0.1:{database_port}", ["mlflow:5000"])
        environment = mlflow_environment(locked, tmp_path, f"127.0.0.1:{port}", *names)
        environment |= {
            "PGPASSWORD": database,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
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
