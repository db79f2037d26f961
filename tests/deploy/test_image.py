"""deploy/docker: linted, and built as far as can be without Docker. No test here builds an image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from tests.deploy.manifests import DEPLOY, ROOT, node_ports, page_ports

TOOLS = Path(sys.executable).parent
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
SCRIPTS = [DEPLOY / "rpg-node", DEPLOY / "docker" / "mlflow-server"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: their word and the rest, lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined)]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = [(word, rest)]
        elif found:
            found[list(found)[-1]].append((word, rest))
    return found


def test_the_linters_have_nothing_to_say() -> None:
    for command in ([TOOLS / "hadolint", DOCKERFILE], [TOOLS / "shellcheck", *SCRIPTS]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)


def test_an_image_runs_as_nobody_in_particular_and_asks_for_a_token() -> None:
    base, node, server = (stages()[name] for name in ("base", "rpg", "mlflow"))
    assert ("USER", "1000:1000") in base
    assert ("ENTRYPOINT", '["tini", "--"]') in base  # signals reach what runs
    for stage in (node, server):
        assert stage[0][1].startswith("base AS ")
        assert not {word for word, _ in stage} & {"USER", "ENTRYPOINT", "ADD"}
    (settings,) = [rest for word, rest in node if word == "ENV"]
    assert {"RAY_AUTH_MODE=token", "MUJOCO_GL=egl"} <= set(settings.split())


def test_the_dockerfile_names_no_registry_and_holds_no_secret() -> None:
    for word, rest in instructions():
        if word == "ARG" and rest.startswith("PYTHON_IMAGE="):
            assert "." not in rest.partition("=")[2].split("/")[0].split(":")[0]
        if word in ("ARG", "ENV"):
            assert not re.search(r"(?i)(token|secret|password|key)\w*=", rest), rest
    for _, rest in instructions():
        assert "http" not in rest


def test_everything_is_installed_from_a_lock() -> None:
    installs = [each.split("&&")[0] for _, rest in instructions() for each in rest.split("pip install")[1:]]
    assert len(installs) == 4
    for options in installs:
        assert re.search(r"--requirement \S+\.lock|--constraint \S+\.lock|--no-deps /wheels/", options), options


def context(folder: Path) -> None:
    """Copies what .dockerignore lets through: of its rules those that it uses, `*`, `!path` and `**/name`."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    refused = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    assert len(allowed) + len(refused) + 1 == len(rules), "a rule that is not read here"
    ignore = shutil.ignore_patterns(*refused)
    for pattern in allowed:
        found = list(ROOT.glob(pattern))
        assert found, pattern
        for path in found:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True, ignore=ignore)
            elif not any(fnmatch(path.name, each) for each in refused):
                shutil.copy2(path, target)


def test_what_the_build_copies_makes_the_whole_wheel(tmp_path: Path) -> None:
    sent, source = tmp_path / "sent", tmp_path / "source"
    context(sent)
    assert not (sent / "tests").exists()
    for stage in ("build", "mlflow-build", "mlflow", "rpg"):
        for word, rest in stages()[stage]:
            if word != "COPY" or rest.startswith("--from"):
                continue
            *origins, target = rest.removeprefix("--chmod=755 ").split()
            for origin in origins:
                assert (sent / origin).exists(), f"COPY {origin}: .dockerignore keeps it out"
                if stage == "build":
                    to = source / target / ("" if (sent / origin).is_dir() else Path(origin).name)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    if (sent / origin).is_dir():
                        shutil.copytree(sent / origin, to, symlinks=True)
                    else:
                        shutil.copy2(sent / origin, to)
    wheels = {}
    for name, folder in (("image", source), ("checkout", ROOT)):
        out = tmp_path / name
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = out.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wheels[name] = sorted((each.filename, each.CRC) for each in archive.infolist())
    assert wheels["image"] == wheels["checkout"]


# ---- rpg-node -----------------------------------------------------------------------------------
def node(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs rpg-node with a fake `ray`, which prints what it is given."""
    fake = folder / "ray"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "mode $RAY_AUTH_MODE" "wait $RAY_JOB_STOP_WAIT_TIME_S"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)} | environment
    command = [str(DEPLOY / "rpg-node"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_node_has_fixed_ports_and_a_token(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    head = node(tmp_path, "head", "--num-cpus=0").stdout.splitlines()
    worker = node(tmp_path, "worker", "here").stdout.splitlines()
    ports = {f"--{name}={port}" for name, port in node_ports().items()}
    assert ports <= set(head)
    assert {"start", "--head", "--block", "--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(head)
    assert {"mode token", "wait 60"} <= set(head)
    assert "--address=here:6379" in worker
    assert {each for each in worker if "port" in each} == {
        each for each in ports if not each.startswith(("--port=", "--dashboard-port=", "--ray-client"))
    }
    known = {name: int(port) for name, port in node_ports().items()}
    workers = set(range(known.pop("min-worker-port"), known.pop("max-worker-port") + 1))
    assert len(set(known.values())) == len(known)
    assert page_ports() == workers | set(known.values()) | {5000, 44217, 44227}  # MLflow's, and Ray's own constants


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("head",), {}, "there is no token in RAY_AUTH_TOKEN nor in"),
        (("head",), {"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled: expected token"),
        (("worker", "--num-cpus=1"), {"RAY_AUTH_TOKEN": "t"}, "expected the head's name or address"),
        (("both",), {"RAY_AUTH_TOKEN": "t"}, "expected head or worker, not 'both'"),
    ],
)
def test_a_node_refuses(tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], says: str) -> None:
    done = node(tmp_path, *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize(("found", "code"), [("127.0.0.1", 2), ("10.0.0.9", 0)])
def test_a_head_that_no_worker_would_reach_is_refused(tmp_path: Path, found: str, code: int) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho {found}\n")
    fake.chmod(0o755)
    several = {"RAY_AUTH_TOKEN": "t", "RPG_DASHBOARD_HOST": "0.0.0.0"}
    done = node(tmp_path, "head", **several)
    assert done.returncode == code
    assert ("add --node-ip-address=ADDRESS" in done.stderr) == (code == 2)
    assert node(tmp_path, "head", "--node-ip-address=10.0.0.1", **several).returncode == 0
    assert node(tmp_path, "head", RAY_AUTH_TOKEN="t").returncode == 0  # for this machine alone


# ---- mlflow-server ------------------------------------------------------------------------------
SERVER = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://mlflow@postgres/mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://rpg/mlflow",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "s" * 20,
    "MLFLOW_AUTH_ADMIN_PASSWORD": "p" * 20,
}


def server(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs mlflow-server with a fake `mlflow`, which prints its arguments and its login's configuration."""
    fake = folder / "mlflow"
    fake.write_text('#!/bin/sh\necho "$@"\nstat -c %a "$MLFLOW_AUTH_CONFIG_PATH"\ncat "$MLFLOW_AUTH_CONFIG_PATH"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder)} | SERVER | environment
    command = [str(DEPLOY / "docker" / "mlflow-server")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_server_has_a_login_and_no_secret_on_its_command_line(tmp_path: Path) -> None:
    done = server(tmp_path)
    assert done.returncode == 0, done.stderr
    arguments, mode, *config = done.stdout.splitlines()
    assert arguments == "server --app-name basic-auth"
    assert mode == "600"
    assert {
        "default_permission = NO_PERMISSIONS",
        "database_uri = postgresql+psycopg2://mlflow@postgres/mlflow",
    } <= set(config)
    assert "ssss" not in done.stdout
    assert "pppp" not in done.stdout
    (tmp_path / "cert").touch()
    done = server(tmp_path, MLFLOW_TLS_CERT=str(tmp_path / "cert"), MLFLOW_TLS_KEY=str(tmp_path / "cert"))
    assert f"--ssl-certfile={tmp_path / 'cert'} --ssl-keyfile=" in done.stdout


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}, "MLFLOW_FLASK_SERVER_SECRET_KEY is not set"),
        ({"MLFLOW_BACKEND_STORE_URI": "postgresql://a:b@c/d"}, "has a password in it: expected it in PGPASSWORD"),
        ({"MLFLOW_TLS_CERT": "/etc/hostname"}, "expected two files that can be read"),
    ],
)
def test_the_server_refuses(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    done = server(tmp_path, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
