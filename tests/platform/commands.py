"""The command line as its users meet it: in a process of its own, or in this one, which is quicker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from click.testing import Result
from typer.testing import CliRunner

from rpg_platform.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
LIMIT_S = 240.0  # for what takes seconds on a machine with nothing else to do
WAIT_S = 400.0  # for what a sweep does in half a minute there


def started(*arguments: str, cwd: Path, stderr: int | IO[str] = subprocess.STDOUT, **env: str) -> subprocess.Popen[str]:
    """``rpg <arguments>`` in a session of its own, so that it can be killed with all that it has started.

    Its standard output is a pipe. Modules of its folder can be imported.
    """
    path = os.pathsep.join([str(cwd), *(each for each in sys.path if each)])
    return subprocess.Popen(
        [sys.executable, "-m", "rpg_platform.cli", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "160"} | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )


def rpg(*arguments: str, cwd: Path = ROOT, limit_s: float = LIMIT_S, **env: str) -> subprocess.CompletedProcess[str]:
    """``rpg <arguments>``; never a traceback, and nothing but the result on standard output."""
    running = started(*arguments, cwd=cwd, stderr=subprocess.PIPE, **env)
    try:
        stdout, stderr = running.communicate(timeout=limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def wait_for(condition: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """What a condition gives when it holds, while a process of ``started`` runs; the process must not end before."""
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


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
