"""deploy/ray-up, deploy/systemd and deploy/skypilot.yaml: they fit what reads them. No host and no cloud is reached."""

from __future__ import annotations

import configparser
import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from tests.deploy.manifests import DEPLOY, ROOT, SCHEMAS, node_ports
from tests.deploy.pages import Shell, blocks

RAY_UP = sorted((DEPLOY / "ray-up").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "rpg-ray-worker.service"
SKY: dict[str, Any] = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())


def ports_in(command: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]*port)=(\d+)", command))


# ---- ray up -------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", RAY_UP, ids=lambda file: file.stem)
def test_ray_takes_the_configuration(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"worker_start_commands": []}, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    workers = [each for name, each in prepared["available_node_types"].items() if name != "head"]
    assert [each["max_workers"] for each in workers] == [2 if file.stem == "onpremises" else 8]
    assert {str(origin).split("/")[0] for origin in config["file_mounts"].values()} <= {"~", "dist", "requirements"}


@pytest.mark.parametrize("file", RAY_UP, ids=lambda file: file.stem)
def test_nodes_ask_for_a_token_and_keep_to_the_ports(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    (_, head), (_, worker) = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    ports = node_ports()
    assert ports_in(head) == ports
    for name in ("port", "dashboard-port", "ray-client-server-port"):
        del ports[name]
    assert ports_in(worker) == ports
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in head
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "--block" not in command  # ray up waits for each command


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Run as printed, with fakes of `ray` and of Python's build, which tests/test_distribution.py runs."""
    page = blocks(DEPLOY / "ray-up" / "README.md")
    shell = Shell(tmp_path)
    shell.fake("ray", f"echo $RAY_AUTH_MODE >> {tmp_path}/mode")
    shell.fake("python")
    shell.run(page.pop("up") + page.pop("tunnel"))
    generate, up, tunnel = shell.asked("ray")
    assert generate == ["get-auth-token", "--generate"]
    assert (tmp_path / "mode").read_text().split() == ["token", "token"]
    for command in (up, tunnel):
        assert (shell.folder / command[-1]).is_file()
    assert not page


# ---- systemd ------------------------------------------------------------------------------------
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_a_worker_comes_back_however_it_ended() -> None:
    found = unit()
    service = found["Service"]
    assert service["Restart"] == "always"
    assert found["Unit"]["StartLimitIntervalSec"] == "0"  # however often
    assert service["ExecStart"] == "/opt/rpg/bin/rpg-node worker ${RPG_HEAD}"
    assert service["User"] != "root"
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%d/auth_token" in service["Environment"]
    assert service["LoadCredential"].startswith("auth_token:")
    assert int(service["TimeoutStopSec"]) >= 60


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    copied = tmp_path / UNIT.name
    copied.write_text(UNIT.read_text().replace("/opt/rpg/bin/rpg-node", str(DEPLOY / "rpg-node")))

    def verify() -> str:
        done = subprocess.run(["systemd-analyze", "verify", str(copied)], capture_output=True, text=True, timeout=60)
        return "\n".join(line for line in done.stderr.splitlines() if copied.name in line)

    assert verify() == ""
    copied.write_text(copied.read_text().replace("Restart=always", "Restart=allways"))
    assert "allways" in verify()


# ---- SkyPilot -----------------------------------------------------------------------------------
def test_skypilot_takes_the_task() -> None:
    schemas = json.loads((SCHEMAS / "skypilot.json").read_text())
    jsonschema.validate(SKY, schemas["task"])
    jsonschema.validate(SKY["resources"], schemas["resources"])
    for mount in SKY["file_mounts"].values():
        if isinstance(mount, dict):
            jsonschema.validate(mount, schemas["storage"])
        else:
            assert mount in ("dist", "SWEEP.yaml") or (ROOT / mount).exists(), mount
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(SKY | {"setpu": ""}, schemas["task"])
    assert set(SKY["secrets"].values()) == {None}  # given on the command line, by name alone


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_scripts_are_sound(part: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!/bin/bash\n{SKY[part]}")
    done = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_it_starts_a_head_or_a_worker_and_goes_on_with_the_sweep(rank: int, tmp_path: Path) -> None:
    """With fakes of `rpg-node`, `ray` and `rpg`."""
    shell = Shell(tmp_path)
    shell.fake("rpg-node", "[ $1 = head ] || kill $PPID")
    shell.fake("ray")
    shell.fake("rpg")
    shell.environment |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": str(rank)}
    run = SKY["run"].replace("PATH=~/rpg/bin:/tmp/rpg:$PATH ", "")
    shell.run(run, code=0 if rank == 0 else -15)
    if rank == 0:
        assert shell.asked("rpg") == [
            ["sweep", "/tmp/rpg/sweep.yaml", "--resume-or-start", "--address", "10.0.0.1:6379"]
        ]
        assert shell.asked("rpg-node") == [["head", "--node-ip-address=10.0.0.1"]]
    else:
        assert shell.asked("rpg-node") == [["worker", "10.0.0.1"]]
