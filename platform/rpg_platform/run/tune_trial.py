"""What Tune hands over of a trial, as plain data: figures, steps, errors, and where a checkpoint lies."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rpg_platform.search.judge import RUNG

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

STEP_KEY = "env_steps"
DROPPED_KEY = "dropped_nonfinite"

_AT_RUNGS = f"{RUNG}/"  # for the scheduler, in every report from the rung on; MLflow has them once, under validation/

# Tune's bookkeeping, not the trial's figures; `time_total_s` is kept.
_NOT_METRICS = frozenset(
    {
        *(
            "timestamp",
            "date",
            "pid",
            "hostname",
            "node_ip",
            "trial_id",
            "config",
            "done",
            "finished",
            "failed",
            "should_checkpoint",
        ),
        *("iterations_since_restore", "time_since_restore", "timesteps_since_restore", "time_this_iter_s"),
        *(
            "training_iteration",
            "timesteps_total",
            "episodes_total",
            "checkpoint_dir_name",
            STEP_KEY,
            DROPPED_KEY,
        ),
    }
)


def finite_metrics(result: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, float], int]:
    """The figures of a report that MLflow can hold.

    Args:
        result: a report; nested mappings give ``outer/inner``. Tune's own entries and what is no number
            are left out.
        prefix: of the keys.

    Returns:
        The finite figures, and how many were NaN or infinite.
    """
    values: dict[str, float] = {}
    dropped = 0
    for key, value in result.items():
        if not prefix and (key in _NOT_METRICS or key.startswith(_AT_RUNGS)):
            continue
        if isinstance(value, Mapping):
            inner, inner_dropped = finite_metrics(value, f"{prefix}{key}/")
            values |= inner
            dropped += inner_dropped
        elif not isinstance(value, bool) and isinstance(value, numbers.Real):
            if math.isfinite(value):
                values[prefix + key] = float(value)
            else:
                dropped += 1
    return values, dropped


def report_step(result: Mapping[str, Any]) -> int:
    """The step that a report is of: its env steps, or, should it lack them, its iteration."""
    step = result.get(STEP_KEY)
    if step is None or not math.isfinite(step):
        step = result.get("training_iteration", 0)
    return int(step)


_RAYS_WORDS = "its worker process has died"
_DIED = "its process died: killed, by the system for want of memory perhaps, or crashed in native code"
_ENDED_BECAUSE: WeakKeyDictionary[Trial, str] = WeakKeyDictionary()


def explain_end(trial: Trial, why: str | None) -> None:
    """Says why a trial's process is ended by us, which its error would not tell; None: it is not any more."""
    _ENDED_BECAUSE.pop(trial, None)
    if why is not None:
        _ENDED_BECAUSE[trial] = why


def error_text(trial: Trial) -> tuple[str, str]:
    """The last line of a trial's error (or why its process was ended), and all of it."""
    local = trial.error_file  # on this machine at once; Tune copies it to the storage, where get_error() looks, later
    written = Path(local).read_text(encoding="utf-8", errors="replace") if local and Path(local).is_file() else None
    full = str(written or trial.get_error() or "no error text").strip()
    full = re.sub(r"\bip=[0-9A-Fa-f.:]+", "ip=-", full)  # hosts are nobody's business on a shared server
    last = full.splitlines()[-1]
    why = _ENDED_BECAUSE.get(trial) or (_DIED if _RAYS_WORDS in last else None)
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
