"""No file of deploy/ holds a secret, and none puts one on a command line."""

from __future__ import annotations

import re
import subprocess

import pytest
from tests.deploy.manifests import DEPLOY, ROOT

ASSIGNED = re.compile(
    r"""(?ix) [\w.-]* (?: password | passwd | token | secret | api_?key | access_?key(?:_id)? | secret_?key ) [\w.-]*
    ["']? \s* (?: [=:] | ,\s*value: ) \s* ["']? ([^\s"',}]+)"""
)
HARMLESS = re.compile(
    r"""(?x) \$ .*               # a variable, or what a command prints
    | token | disabled | required | null | true | false
    | -\$ .* | -                 # a default of a shell's variable: another, or nothing
    | [%~/].*                    # a path
    | \{name: | PGPASSWORD       # a reference, a variable's name
    | rpg-ray.* | auth_token:/etc/rpg/auth_token | s3://.*""",
)
LOGIN = re.compile(r"://[^/\s@:]+:[^/\s@$]+@")
RANDOM = re.compile(r"\b(?:[0-9a-f]{32,}|AKIA[0-9A-Z]{16}|[A-Za-z0-9+]{40,}={0,2})\b")
COMMAND = re.compile(r"--(?:from-literal|password|token|admin-password)[= ]\S")
KEY = re.compile("-----BEGIN [A-Z ]*PRIVATE KEY")


def secrets(text: str) -> list[str]:
    """What in a text is, or may be, a secret."""
    found = [match[0] for line in text.splitlines() for match in ASSIGNED.finditer(line) if not _harmless(match[1])]
    for pattern in (LOGIN, RANDOM, COMMAND, KEY):
        found += [match[0] for match in pattern.finditer(text)]
    return found


def _harmless(value: str) -> bool:
    return HARMLESS.fullmatch(value.rstrip(".;)`")) is not None


def files() -> dict[str, str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "deploy", ".dockerignore"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name: (ROOT / name).read_text() for name in filter(None, listed.split("\0")) if (ROOT / name).is_file()}


def test_no_file_holds_a_secret() -> None:
    texts = files()
    assert {name: found for name, text in texts.items() if (found := secrets(text))} == {}
    assert {"deploy/compose.yaml", "deploy/.env.example", "deploy/slurm/sweep.sbatch"} <= set(texts)
    assert not [name for name in texts if name.endswith((".env", ".pem", ".key"))]


def test_the_example_has_no_values() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    assert all(line.startswith("#") or line.endswith("=") for line in lines)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("POSTGRES_PASSWORD: hunter22", 1),
        ("{name: RAY_AUTH_TOKEN, value: abcdefgh}", 1),
        ("export AWS_SECRET_ACCESS_KEY='wJalr'", 1),
        ("uri: postgresql://mlflow:hunter2@postgres/mlflow", 1),
        ("RAY_AUTH_X=" + "0a" * 16, 1),
        ("kubectl create secret generic rpg --from-literal=a=b", 1),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", 1),
        ("PGPASSWORD: ${POSTGRES_PASSWORD:?see}", 0),
        ("RAY_AUTH_MODE: token", 0),
        ("RAY_AUTH_TOKEN_PATH=%d/auth_token", 0),
        ("uri: postgresql://mlflow@postgres:5432/mlflow", 0),
    ],
)
def test_the_guard_sees_what_it_should(text: str, count: int) -> None:
    assert len(secrets(text)) == count, secrets(text)
