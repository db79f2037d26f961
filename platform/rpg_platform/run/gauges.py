"""A running sweep's gauges beside Ray's own metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

# Name → description, and the tag beside `sweep` that tells series apart, if any. Ray exports each as ray_<name>.
GAUGES: Mapping[str, tuple[str, str | None]] = {
    "rpg_trials": ("Trials of a sweep by state.", "state"),
    "rpg_env_steps": ("Env steps of a sweep so far.", None),
    "rpg_env_steps_total": ("Env steps that a sweep will take.", None),
    "rpg_env_steps_per_s": ("Env steps per second of a sweep over the last minutes.", None),
    "rpg_time_left_s": ("Seconds until a sweep ends, estimated.", None),
    "rpg_tracker_records": ("Records of a sweep by where they are: sent, spooled, rejected, damaged.", "where"),
    "rpg_tracker_unreachable_s": ("Seconds since MLflow can't be used; 0 while it can.", None),
}
_WHERE = ("sent", "spooled", "rejected", "damaged")


class Gauges:
    """The gauges of one sweep. Ray's agent on the driver's node exports them from the port of Ray's metrics.

    Args:
        sweep: its name, a tag of every series.
    """

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._gauges = {
            name: Gauge(name, description=text, tag_keys=("sweep", tag) if tag else ("sweep",))
            for name, (text, tag) in GAUGES.items()
        }

    def show(self, status: dict[str, Any]) -> dict[str, Any]:
        """Sets every gauge to what a sweep's status says (``Snapshot.as_json``), and returns the status."""
        for state, count in status["trials"].items():
            if state != "total":
                self._set("rpg_trials", count, state=state)
        for name in ("env_steps", "env_steps_total", "env_steps_per_s", "time_left_s"):
            self._set(f"rpg_{name}", status[name])
        if (tracker := status["tracker"]) is not None:
            for where in _WHERE:
                self._set("rpg_tracker_records", tracker[where], where=where)
            self._set("rpg_tracker_unreachable_s", tracker["unreachable_s"] or 0.0)
        return status

    def _set(self, name: str, value: float | None, **tags: str) -> None:
        if value is not None:
            self._gauges[name].set(float(value), {"sweep": self._sweep, **tags})
