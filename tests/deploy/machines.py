"""Ray on hosts of a test, by deploy/rpg-node: each host with a home of its own, the same token in all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.deploy.hosts import Hosts
from tests.deploy.manifests import ROOT

LIMIT_S = 400


class Machines:
    """Runs lines in the hosts, from the root of the repository unless told, each host with a home of its own."""

    def __init__(self, made: Hosts, folder: Path) -> None:
        self._hosts, self._folder = made, folder
        for host in range(1, made.count + 1):  # on one disk Ray's nodes would remove each other's files
            made.own_disk(host, folder / f"disk{host}", folder / "ray")
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

    def log(self, host: int) -> str:
        """What was said there."""
        log = self._folder / f"log{host}"
        return log.read_text() if log.exists() else ""

    def start(self, host: int, text: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
        log = (self._folder / f"log{host}").open("a")
        return subprocess.Popen(
            [*self._hosts.within(host), "bash", "-euc", f"cd {cwd}; {text}"],
            env=self.environment | {"HOME": str(self.home(host))} | environment,
            stdout=log,
            stderr=log,
            text=True,
        )

    def run(self, host: int, text: str, *, cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
        log = self._folder / f"log{host}"
        before = log.stat().st_size if log.exists() else 0
        code = self.start(host, text, cwd=cwd, **environment).wait(LIMIT_S)
        return code, log.read_text()[before:]

    def up(self, host: int, text: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a node; again if Ray did not come up in the 30 s that it gives itself, on a busy machine."""
        for _ in range(5):
            before = len(self.log(host))
            running, end = self.start(host, text, cwd=ROOT, **environment), time.monotonic() + LIMIT_S
            while running.poll() is None and "This command will now block" not in (said := self.log(host)[before:]):
                assert time.monotonic() < end, said
                time.sleep(0.2)
            if running.poll() is None:
                return running
            assert "timed out during startup" in self.log(host)[before:], self.log(host)[before:]
        raise AssertionError(self.log(host))
