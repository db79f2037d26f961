"""Runs the commands that a page prints, in a folder that looks like the repository, with fakes where it says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.deploy.manifests import DEPLOY

BLOCK = re.compile(r"^<!-- test: (\S+) -->\n+```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w+)$", re.MULTILINE)


def blocks(page: Path) -> dict[str, str]:
    """The blocks of commands of a page, by name; each must have one, so that somebody runs it."""
    text = page.read_text(encoding="utf-8")
    found = dict(BLOCK.findall(text))
    assert len(found) == len(FENCE.findall(text)), "a block of commands without a name, which nobody would run"
    return found


class Shell:
    """A folder with the repository's deploy/, and commands of which some are fakes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._bin = folder / "repository", folder / "bin"
        self._bin.mkdir()
        shutil.copytree(DEPLOY, self.folder / "deploy", ignore=shutil.ignore_patterns(".env"))
        self.environment = {"PATH": f"{self._bin}:{os.environ['PATH']}", "HOME": str(folder)}

    def fake(self, name: str, script: str = "") -> None:
        """A command that writes down its arguments and does what ``script`` says."""
        path = self._bin / name
        record = f'import json, sys; print(json.dumps(sys.argv[1:]), file=open("{self._bin}/{name}.asked", "a"))'
        path.write_text(f"#!/bin/bash\n/usr/bin/env python3 -c '{record}' \"$@\"\n{script}\n")
        path.chmod(0o755)

    def asked(self, name: str) -> list[list[str]]:
        """The arguments of every call of a fake."""
        return [json.loads(line) for line in (self._bin / f"{name}.asked").read_text().splitlines()]

    def run(self, text: str, code: int = 0, timeout: float = 60, stdin: str | None = None) -> str:
        """Runs lines of a page, with what a user types; returns what they say."""
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=self.environment,
            text=True,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        assert done.returncode == code, f"{text}\n--- exit {done.returncode}\n{done.stdout}"
        return done.stdout
