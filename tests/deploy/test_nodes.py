"""deploy/rpg-node on three hosts with the real Ray: a head, a worker, and one outside that submits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.deploy.hosts import Hosts, hosts
from tests.deploy.manifests import DEPLOY, ROOT, page_ports
from tests.deploy.pages import blocks

LIMIT_S = 400
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * LIMIT_S)]


class Machines:
    """Runs lines in the hosts, from the root of the repository, each host with a home of its own."""

    def __init__(self, made: Hosts, folder: Path) -> None:
        self._hosts, self._folder = made, folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW", "XDG"))}
        self.environment = (
            clean
            | made.mark
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HEAD": made.address(1),
                "RAY_TMPDIR": str(folder),
                "RAY_AUTH_MODE": "token",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )

    def home(self, host: int) -> Path:
        path = self._folder / f"home{host}"
        path.mkdir(exist_ok=True)
        return path

    def start(self, host: int, text: str, **environment: str) -> subprocess.Popen[str]:
        log = (self._folder / f"log{host}").open("a")
        return subprocess.Popen(
            [*self._hosts.command(host), "bash", "-euc", text],
            cwd=ROOT,
            env=self.environment | {"HOME": str(self.home(host))} | environment,
            stdout=log,
            stderr=log,
            text=True,
        )

    def run(self, host: int, text: str, **environment: str) -> tuple[int, str]:
        log = self._folder / f"log{host}"
        before = log.stat().st_size if log.exists() else 0
        code = self.start(host, text, **environment).wait(LIMIT_S)
        return code, log.read_text()[before:]

    def up(self, host: int, text: str) -> subprocess.Popen[str]:
        """Starts a node; again if Ray did not come up in the 30 s that it gives itself, on a busy machine."""
        log = self._folder / f"log{host}"
        for _ in range(5):
            running, end = self.start(host, text), time.monotonic() + LIMIT_S
            while running.poll() is None and "This command will now block" not in log.read_text():
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            if running.poll() is None:
                return running
            assert "timed out during startup" in log.read_text(), log.read_text()
        raise AssertionError(log.read_text())


def test_hosts_form_a_cluster_that_only_the_token_opens() -> None:
    page = blocks(DEPLOY / "README.md")
    folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))  # short: Ray's sockets lie in it
    head, worker = (line.split("#")[0].strip() for line in page["several"].splitlines())
    try:
        with hosts(3, folder) as made:
            machines = Machines(made, folder)
            code, said = machines.run(1, head)
            assert code == 2
            assert "there is no token" in said
            code, said = machines.run(1, page["token"])
            assert code == 0, said
            token = machines.home(1) / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o077 == 0
            (machines.home(2) / ".ray").mkdir()
            shutil.copy(token, machines.home(2) / ".ray" / "auth_token")

            first = machines.up(1, f"{head} --node-ip-address=$HEAD --num-cpus=0")
            machines.up(2, f"{worker} --num-cpus=1")
            count = "import ray; ray.init(); print(len(ray.nodes()))"
            submit = f"ray job submit --address http://$HEAD:8265 -- python -c '{count}'"
            secret = token.read_text().strip()
            for given, status in (({}, "401"), ({"RAY_AUTH_TOKEN": "x" * 64}, "403")):
                code, said = machines.run(3, submit, **given)
                assert code != 0
                assert status in said or "token" in said.lower(), said
                assert "submitted successfully" not in said
            code, said = machines.run(3, submit, RAY_AUTH_TOKEN=secret)
            assert code == 0, said
            assert "\n2\n" in said
            logs = [path.read_text() for path in folder.glob("log*")]
            assert not any(secret in each for each in logs)

            # Only the ports of the page are open to the other hosts.
            listening = subprocess.run(
                [*made.command(1), "ss", "-Hltn"], capture_output=True, text=True, timeout=60, check=True
            ).stdout.split("\n")
            local = [line.split()[3] for line in listening if line.strip()]
            ports = {int(each.rpartition(":")[2]) for each in local if not each.startswith(("127.", "[::1]"))}
            assert ports <= page_ports()
            assert first.poll() is None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
