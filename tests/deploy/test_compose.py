"""deploy/compose.yaml: fits the published schema, and every part of it finds what it needs. No Docker runs here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.deploy.manifests import DEPLOY, SCHEMAS, secret_names
from tests.deploy.pages import Shell, blocks
from tests.platform.buckets import new_bucket

from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.storage.location import file_system

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = {"sweep", "bucket"}
OURS = {"rpg-node", "rpg", "ray", "python", "mlflow-server"}
"""Commands of our images: two scripts that the Dockerfile copies, and what the locks install."""


def schema_faults(document: dict[str, Any]) -> list[str]:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def test_it_fits_the_schema() -> None:
    assert schema_faults(COMPOSE) == []
    assert schema_faults(COMPOSE | {"services": {"head": {"imagee": "rpg"}}})


def test_every_secret_is_a_variable_of_the_env_file_and_has_no_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?[^}]+\}", text))
    assert asked == set(secret_names())
    assert set(re.findall(r"\$\{(\w+)", text)) - asked == {
        "RPG_IMAGE",
        "RPG_MLFLOW_IMAGE",
        "TORCH",
        "TORCH_INDEX",
        "WORKER_CPUS",
        "WORKER_MEMORY",
    }
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    listed = subprocess.run(
        ["git", "check-ignore", "deploy/.env"], cwd=DEPLOY.parent, capture_output=True, text=True, timeout=60
    )
    assert listed.stdout.strip() == "deploy/.env"


def test_every_service_finds_what_it_needs() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["command"][0] in OURS, name
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for other, condition in service.get("depends_on", {}).items():
            healthy = condition["condition"] == "service_healthy"
            assert healthy == (other not in ONCE), f"{name} waits for {other}"
            assert set(service["networks"]) & set(SERVICES[other]["networks"]), f"{name} can't reach {other}"
        for mount in service.get("volumes", []):
            origin = mount.split(":")[0]
            assert (DEPLOY / origin).is_dir() if origin.startswith(".") else origin in COMPOSE["volumes"]
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        if name not in ONCE:
            assert service["healthcheck"]["test"][0] == "CMD"
            assert service["stop_grace_period"] == "60s"
            assert service["restart"] == "unless-stopped"
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), f"{name}: on every interface"
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_names_and_ports_agree() -> None:
    server = SERVICES["mlflow"]["environment"]
    database = urllib.parse.urlsplit(server["MLFLOW_BACKEND_STORE_URI"])
    assert database.hostname in SERVICES
    assert database.password is None
    assert database.username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    assert database.path == f"/{SERVICES['postgres']['environment']['POSTGRES_DB']}"
    spec = load_spec(DEPLOY / "sweeps" / "stack.yaml")
    assert spec.tracking.uri is not None
    assert urllib.parse.urlsplit(spec.tracking.uri).netloc in server["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert str(spec.storage).split("/")[2] == server["MLFLOW_ARTIFACTS_DESTINATION"].split("/")[2] == "rpg"
    assert SERVICES["worker"]["command"] == ["rpg-node", "worker", "head"]
    assert "rpg sweep /sweeps/stack.yaml --resume-or-start" in " ".join(SERVICES["sweep"]["command"])
    assert SERVICES["s3"]["environment"].keys() <= SERVICES["worker"]["environment"].keys()
    assert "MLFLOW_TRACKING_PASSWORD" not in SERVICES["worker"]["environment"]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with new_bucket(tmp_path, monkeypatch) as storage:
        yield storage


def test_the_bucket_is_made_and_found(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the service `bucket`, and the variables that nodes have, on a real S3 server."""
    at = urllib.parse.parse_qs(urllib.parse.urlsplit(bucket).query)["endpoint_override"][0]
    python, option, program = SERVICES["bucket"]["command"]
    assert (python, option) == ("python", "-c")
    endpoint = urllib.parse.urlsplit(SERVICES["worker"]["environment"]["AWS_ENDPOINT_URL"])
    assert endpoint.netloc in program
    for _ in range(2):  # again when the stack comes up again
        subprocess.run(
            [sys.executable, "-c", program.replace(endpoint.netloc, at)], check=True, env=dict(os.environ), timeout=120
        )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{endpoint.scheme}://{at}")
    files, path = file_system(str(load_spec(DEPLOY / "sweeps" / "stack.yaml").storage))
    with files.open_output_stream(f"{path}/there") as stream:
        stream.write(b"1")
    assert files.get_file_info(f"{path}/there").size == 1


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Run as printed, with a fake `docker`, which records what it is asked."""
    page = blocks(DEPLOY / "docker" / "README.md")
    shell = Shell(tmp_path)
    shell.fake("docker")
    shell.run(page.pop("secrets"))
    made = shell.folder / "deploy" / ".env"
    assert made.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in made.read_text().splitlines() if not line.startswith("#"))
    assert list(values) == secret_names()
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values.values())
    assert len(set(values.values())) == len(values)
    shell.run(page.pop("stack"))
    up, run = shell.asked("docker")
    assert up == ["compose", "--file", "deploy/compose.yaml", "up", "--build", "--wait", "--detach"]
    assert run == ["compose", "--file", "deploy/compose.yaml", "run", "--rm", "sweep"]
    assert SERVICES["sweep"]["profiles"] == ["sweep"]
    shell.environment |= {"REGISTRY": "registry.example/team", "TORCH_INDEX": "https://index.example"}
    shell.run(page.pop("images"))
    built, tagged = [], []
    for each in shell.asked("docker")[2:4]:
        built.append(each[each.index("--target") + 1])
        tagged.append(each[each.index("--tag") + 1])
    assert built == ["rpg", "mlflow"]
    assert tagged == [f"registry.example/team/{name}:0.1.0" for name in ("rpg", "rpg-mlflow")]
    assert [each[1] for each in shell.asked("docker")[4:]] == tagged
    assert not page
