"""The command line as its users meet it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
