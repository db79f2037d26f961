"""The command line as its users meet it: ``rpg`` in a process of its own, ``here`` in this one, which is quicker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from rpg_platform.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


def rpg(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """``rpg <arguments>``; never a traceback, and nothing but the result on standard output."""
    ended = subprocess.run(
        [sys.executable, "-m", "rpg_platform.cli", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "COLUMNS": "160"} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def here(*arguments: str, code: int = 0) -> Result:
    """``rpg <arguments>``; raises whatever error the command does not turn into a message."""
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert ended.exit_code == code, ended.output
    return ended


def refused(*arguments: str) -> str:
    """What a refused command says; it says it on standard error alone and exits with 2."""
    ended = here(*arguments, code=2)
    assert ended.stdout == ""
    return ended.stderr
