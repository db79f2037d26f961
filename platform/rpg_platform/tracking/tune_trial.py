"""What Tune knows of a trial beside its reports: its error, and where its checkpoint lies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

NODE_DIED = "its node has died"
"""Ray's words, of which its exception keeps no more."""
_PROCESS_DIED = "its worker process has died"
_WORDS = {
    _PROCESS_DIED: "its process died: killed, by the system for want of memory perhaps, or crashed in native code",
    NODE_DIED: "its node died, or was cut off",
    "actor is temporarily unavailable": "its node can't be reached",
}
_ENDED_BECAUSE: WeakKeyDictionary[Trial, str] = WeakKeyDictionary()
_RESTARTS: WeakKeyDictionary[Trial, int] = WeakKeyDictionary()


def explain_end(trial: Trial, why: str | None) -> None:
    """Notes why we end a trial's process, which its error will not tell; None clears the reason."""
    _ENDED_BECAUSE.pop(trial, None)
    if why is not None:
        _ENDED_BECAUSE[trial] = why


def count_restart(trial: Trial) -> int:
    """How often a trial has been started again by this driver, this time included; Tune counts no lost nodes."""
    _RESTARTS[trial] = _RESTARTS.get(trial, 0) + 1
    return _RESTARTS[trial]


def error_text(trial: Trial) -> tuple[str, str]:
    """The last line of a trial's error (or why its process was ended), and all of it."""
    local = trial.error_file  # on this machine at once; Tune copies it to the storage, where get_error() looks, later
    written = Path(local).read_text(encoding="utf-8", errors="replace") if local and Path(local).is_file() else None
    full = str(written or trial.get_error() or "no error text").strip()
    full = re.sub(r"\bip=[0-9A-Fa-f.:]+", "ip=-", full)  # hosts are nobody's business on a shared server
    last = full.splitlines()[-1]
    why = _ENDED_BECAUSE.get(trial) or next((ours for rays, ours in _WORDS.items() if rays in last), None)
    return (last[:500], full) if why is None else (why, f"{why}\n\n{full}")


def checkpoint_address(checkpoint: Any, storage: str | None) -> str:
    """A checkpoint's place as a path or URI that another process can open.

    Args:
        checkpoint: a ``ray.tune.Checkpoint``.
        storage: URI of the sweep's storage, where it is not a local path.
    """
    path = str(checkpoint.path)
    if checkpoint.filesystem is None or checkpoint.filesystem.type_name == "local" or "://" not in (storage or ""):
        return path
    scheme, _, rest = str(storage).partition("://")
    return f"{scheme}://{path}" + "".join(rest.partition("?")[1:])


def trial_spec(trial: Trial) -> dict[str, Any]:
    """The ``TrialSpec`` that a trial runs, as data."""
    spec: dict[str, Any] = trial.config["trial"]
    return spec


def movable(checkpoint: str, folder: Path) -> str:
    """A checkpoint's address relative to the sweep's folder where it is inside: that folder may be moved."""
    if "://" not in checkpoint and Path(checkpoint).is_relative_to(folder):
        return str(Path(checkpoint).relative_to(folder))
    return checkpoint
