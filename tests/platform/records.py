"""Records as the tracker spools them, for tests of what sends them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from rpg_platform.tracking.runs import Record
from rpg_platform.tracking.spool import Spool

CARD = json.dumps({"content_hash": "c" * 64, "parents": ["b" * 64, "a" * 64]})
"""Of a policy's card what MLflow is told."""


def opening(run: str, **more: Any) -> Record:
    kind = {"kind": "trial" if run else "sweep"}
    return Record(run, "open", {"name": run or "s", "params": {}, "tags": kind, "start_time": 1_000, **more})


def metrics(run: str, step: int, **values: float) -> Record:
    return Record(run, "metrics", {"values": values, "step": step, "timestamp": 1_000 * step})


def closing(run: str, status: str = "FINISHED") -> Record:
    return Record(run, "close", {"status": status, "end_time": 2_000})


def records_in(folder: Path) -> int:
    """How many records a closed spool still has on the disk."""
    with contextlib.closing(sqlite3.connect(folder / "spool.db")) as database:
        [count] = database.execute("SELECT count(*) FROM records").fetchone()
    return int(count)


def reopened(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.open()
    return spool
