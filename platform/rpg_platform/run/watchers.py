"""What watches a sweep's disks and its rate while it runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from ray.tune import Callback

from rpg_platform.planning.estimate import SweepPlan
from rpg_platform.planning.preflight import must_stay_free
from rpg_platform.planning.rates import RateRecorder
from rpg_platform.run.disk_guard import DiskGuard
from rpg_platform.run.stopping import GracefulStop
from rpg_platform.storage.sweep_folder import SweepFolder

_SETUP_S = 3.0  # of a trial, where nothing is known


def watchers(plan: SweepPlan, folder: SweepFolder, stop: GracefulStop, tell: Callable[[str], None]) -> list[Callback]:
    """Tune's callbacks that stop the sweep before a disk is full, and that keep its rate for later plans."""
    advice = f"Make room, then: rpg resume {folder.name} --storage {shlex.quote(folder.storage)}"
    setup_s = _SETUP_S if plan.rate is None else plan.rate.setup_s
    guard = DiskGuard(must_stay_free(plan, folder), stop.request, tell, advice)
    return [guard, RateRecorder(plan.nodes, setup_s)]
