"""What a sweep's last driver planned, against what happened."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from rpg_platform.results.report import EVALUATION_STEPS_PER_S, env_steps, is_over, number
from rpg_platform.review.found import Found
from rpg_platform.storage.plans import PLANS_FILE, plans_in


def plan_against_what_happened(found: Found, seconds: float | None) -> dict[str, Any] | None:
    """Compares the plan of the driver that began last, of what was left then, with what has come of it.

    Args:
        found: the sweep.
        seconds: how long that driver has run; None: unknown.

    Returns:
        ``drivers``, how many there were, and ``rows``: what, its unit, planned and measured (None where unknown). None
        for a sweep without a plan, of an earlier version.
    """
    plans = plans_in(found.source.read_bytes(PLANS_FILE))
    if not plans:
        return None
    plan = plans[-1]["plan"]
    rate = plan.get("rate") or {}
    over = sum(error is not None or is_over(report) for _, report, error in found.trained)
    reports = [report for _, report, _ in found.trained if report]
    trained = sum(steps for report in reports if math.isfinite(steps := env_steps(report)))
    speeds = [number(report, EVALUATION_STEPS_PER_S) for report in reports]
    rows = [
        ("trials that ended", "", plan["trials_left"], over - (plan["trials"] - plan["trials_left"])),
        ("env steps", "", plan["env_steps_left"], trained - (plan["env_steps"] - plan["env_steps_left"])),
        ("env steps/s of a trial", "", rate.get("env_steps_per_s"), _median(t.speed for t in found.trainings.values())),
        ("evaluation steps/s of a trial", "", rate.get("evaluation_steps_per_s"), _median(speeds)),
        ("time", "s", plan.get("wall_s"), seconds),
    ]
    names = ("what", "unit", "planned", "measured")
    return {"drivers": len(plans), "rows": [dict(zip(names, row, strict=True)) for row in rows]}


def _median(values: Iterable[float]) -> float | None:
    finite = [each for each in values if math.isfinite(each)]
    return statistics.median(finite) if finite else None
