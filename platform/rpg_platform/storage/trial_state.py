"""What completes a trial's checkpoint: how far it is, its last report, and every file with its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
STATE_FILE = "trial.json"


def write_state(checkpoint: Path, env_steps: int, report: Mapping[str, Any]) -> None:
    """Completes a checkpoint's folder: ``trial.json`` is written last and names all other files and their sizes.

    Args:
        checkpoint: the folder, everything else already in it.
        env_steps: env steps that the trial has trained.
        report: the trial's last report; numbers, flags and texts of it are kept.
    """
    files = {
        file.relative_to(checkpoint).as_posix(): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file != checkpoint / STATE_FILE
    }
    kept = {key: value for key, value in report.items() if isinstance(value, bool | int | float | str)}
    state = {"format": FORMAT, "env_steps": env_steps, "report": kept, "files": files}
    (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


def read_state(checkpoint: Path) -> Mapping[str, Any]:
    """What ``write_state`` wrote."""
    state: Mapping[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state
