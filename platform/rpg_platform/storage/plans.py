"""What each driver of a sweep planned when it began, kept in the sweep's folder beside what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rpg_platform.storage.sweep_folder import SweepFolder

FORMAT = 1
PLANS_FILE = "plans.json"


def keep_plan(folder: SweepFolder, plan: Mapping[str, Any]) -> str:
    """Adds a driver's plan to those of the drivers before it.

    Args:
        folder: the sweep's, which is there.
        plan: ``planning.estimate.SweepPlan`` as data.

    Returns:
        The file's whole content.
    """
    kept = [*plans_in(folder.read_bytes(PLANS_FILE)), {"at": time.time(), "plan": dict(plan)}]
    text = json.dumps({"format": FORMAT, "drivers": kept}, indent=1)
    folder.write_text(PLANS_FILE, text)
    return text


def plans_in(content: bytes | None) -> list[dict[str, Any]]:
    """The drivers' plans, each with ``at`` (seconds since the epoch) and ``plan``; none where none can be read."""
    try:
        data = json.loads(content or b"{}")
        return list(data["drivers"]) if data["format"] == FORMAT else []
    except (ValueError, KeyError, TypeError):
        return []
