"""The sign of life that a sweep's driver leaves in ``status.json``: who it is, and whether it is still there.

Where a lock is one that other machines do not see (some network file systems), or an object store has no conditional
writes for a lease (``lease``), this is all that tells one driver of the other.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"
WRITE_EVERY_S = 5.0
DEAD_AFTER_S = 60.0
_MISSED = 6  # heartbeats, after which a driver that writes more rarely counts as dead
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_JOB_CONFIG, _JOB_ID = "RAY_JOB_CONFIG_JSON_ENV_VAR", "job_submission_id"  # Ray's names: its job has them so


def this_process() -> dict[str, Any]:
    """Who a driver is, as its heartbeats say it.

    Returns:
        ``host``, ``boot`` (of the machine's kernel), ``pid``, and ``job``: the id that it was submitted to Ray as, None
        where it was not.
    """
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "job": this_job()}


def this_job() -> str | None:
    """The id that this process was submitted to Ray as; None where it is no Ray job's."""
    try:
        metadata: dict[str, str] = json.loads(os.environ.get(_JOB_CONFIG, "{}")).get("metadata") or {}
    except (ValueError, AttributeError):
        return None
    return metadata.get(_JOB_ID)


def in_words(driver: Mapping[str, Any]) -> str:
    """A driver as people find it: ``process 7 on head, Ray job quickstart-1``."""
    job = f", Ray job {driver['job']}" if driver.get("job") else ""
    return f"process {driver['pid']} on {driver['host']}{job}"


def is_here(content: Mapping[str, Any]) -> bool:
    """Whether the driver's machine is surely this one: names of hosts alone may be the same on two."""
    return content["host"] == socket.gethostname() and content.get("boot") == _boot() != ""


def silent_for_s(content: Mapping[str, Any], now: float) -> float:
    """Seconds since the last heartbeat; 0 where the driver's clock is ahead of ours."""
    return max(0.0, now - float(content["heartbeat"]))


def dead_after_s(content: Mapping[str, Any]) -> float:
    """Seconds of silence after which a driver counts as dead."""
    return max(DEAD_AFTER_S, _MISSED * float(content["every_s"]))


def alive(text: str | None, now: float, *, locked: bool = False) -> str | None:
    """Which driver, by the sweep's ``status.json``, runs it now; None: none does, or nobody knows of one.

    Args:
        text: of the file; None: there is none.
        now: seconds since the epoch.
        locked: we hold the sweep's lock, so that no other driver of this machine is alive.
    """
    try:
        content = json.loads(text or "{}")
        silent, limit = silent_for_s(content, now), dead_after_s(content)
        if content["state"] != "running" or silent > limit:
            return None
        if (locked and content["host"] == socket.gethostname()) or has_ended(content):
            return None
        left = f"last heard of {silent:.0f} s ago; it counts as dead after {limit:.0f} s"
        return f"{in_words(content)} ({left})"
    except (ValueError, KeyError, TypeError):  # of another version, or cut short
        return None


def has_ended(content: Mapping[str, Any]) -> bool:
    """Whether a driver was surely on this machine and is gone, by what ``this_process`` said there."""
    return is_here(content) and _ended(int(content["pid"]))


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return pid == os.getpid() or _is_zombie(pid)  # this process runs no sweep yet: the number has come round


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how, as in a container whose first process never asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
