"""Before a sweep starts: its plan with everything that is known, in words, and what watches its disks and its rate."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_platform.planning.cluster import Amounts, cluster_nodes, this_machine
from rpg_platform.planning.estimate import (
    PlanError,
    SweepPlan,
    all_trials,
    check_writable,
    heaviest,
    make_plan,
)
from rpg_platform.planning.rates import (
    Rate,
    RateRecorder,
    keep_rate,
    measure_apart,
    rate_key,
)
from rpg_platform.run import disk_guard as disk
from rpg_platform.run.stopping import GracefulStop
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder


def plan_of(
    spec: SweepSpec,
    prior: PriorBundle | None,
    nodes: Sequence[Amounts],
    folder: SweepFolder,
    *,
    resume: bool = False,
    calibrate: bool = False,
) -> SweepPlan:
    """A sweep's plan, what is finished of it left out.

    Args:
        spec: the sweep.
        prior: its prior.
        nodes: resources of the machines that it will run on.
        folder: its folder, which need not exist.
        resume: it is there, and its trials are to go on.
        calibrate: measure the heaviest trial's rate now, for some seconds, and keep it.

    Raises:
        CapacityError: no trial could ever start.
        PlanError: the storage cannot be written to, or it or the temporary folder has too little room.
    """
    check_writable(folder.storage)
    states = folder.trials() if resume else {}
    trials = all_trials(spec, states)
    rate: Rate | None = None
    hardest = heaviest(trials, prior) if calibrate else None
    if hardest is not None:
        rate = measure_apart(hardest, prior)
        keep_rate(rate_key(hardest, nodes), rate, hardest)
    local = spec.tracking.uri is None or spec.tracking.uri == _embedded(folder.storage)
    plan = make_plan(spec, trials, prior, nodes, folder.storage, tracking_is_local=local, states=states, rate=rate)
    for path, needed in disk.by_disk(_needs(plan, folder, [Path(tempfile.gettempdir())]).items()):
        if (free := disk.free_bytes(path)) < needed:
            raise PlanError(
                f"{path}: {disk.size_text(free)} are free, and {disk.size_text(needed)} are needed to save the trials "
                "that run at once: make room (TMPDIR moves what is temporary), or run fewer (resources.max_concurrent)"
            )
    return plan


def _needs(plan: SweepPlan, folder: SweepFolder, temporary: Sequence[Path]) -> dict[str | Path, int]:
    """What the driver's folders must keep free; of the trials, its own node has its share."""
    storage = folder.uri if folder.is_local else None
    here = math.ceil(plan.at_once / max(1, len(plan.nodes)))
    return disk.guarded(storage, temporary, plan.checkpoint_bytes, plan.at_once, here)


def _embedded(storage: str) -> str | None:
    return None if "://" in storage else default_tracking_uri(storage)


def nodes_of(address: str | None) -> list[dict[str, float]]:
    """Resources of the cluster at ``address`` (or that ``RAY_ADDRESS`` names), else of this machine, without Ray.

    Raises:
        SweepError: there is no cluster at that address.
    """
    import ray

    if address is None and not os.environ.get("RAY_ADDRESS") and not ray.is_initialized():
        return [this_machine()]
    from rpg_platform.run.run import start_ray

    start_ray(address)
    return cluster_nodes()


def watchers(plan: SweepPlan, folder: SweepFolder, stop: GracefulStop, tell: Callable[[str], None]) -> list[Any]:
    """Tune's callbacks that stop the sweep before a disk is full, and that keep its rate for later plans."""
    where = f" --storage {shlex.quote(folder.storage)}"
    advice = f"Make room, then: rpg resume {folder.name}{where}"
    needs = _needs(plan, folder, disk.temporary_folders())
    setup_s = 3.0 if plan.rate is None else plan.rate.setup_s
    return [disk.DiskGuard(needs, stop.request, tell, advice), RateRecorder(plan.nodes, setup_s)]


# ---- in words -----------------------------------------------------------------------------------
def head_lines(plan: SweepPlan) -> list[str]:
    """A plan in a few lines, for the head of a sweep."""
    return [f"{label:<12}{text}" for label, text in _lines(plan)]


def _lines(plan: SweepPlan) -> list[tuple[str, str]]:
    shares = ", ".join(_share(each.method, each.settings, each.trials) for each in plan.methods)
    some = "" if plan.left == plan.trials else f", {plan.left} left"
    chosen = "" if plan.chosen_by is None else f", settings by {plan.chosen_by.replace('_', '-')} search"
    most = " at most" if plan.ends_early else ""
    steps = f"{plan.env_steps_left:,}{most}"
    trials = ("Trials", f"{plan.trials}{some}: {shares}{chosen}")
    if not plan.left:
        return [trials]
    return [
        trials,
        ("Env steps", f"{steps}, and {plan.evaluation_steps:,} at most in evaluations{_assumption(plan)}"),
        ("Time", _time(plan)),
        ("Cluster", _cluster(plan)),
        ("Disk", _disk(plan)),
    ]


def _assumption(plan: SweepPlan) -> str:
    if plan.assumed_episode is None:
        return ""
    return f" (the task sets no time limit; episodes of {plan.assumed_episode:,} steps are assumed)"


def _share(method: str, settings: int, trials: int) -> str:
    if not METHODS[method].trains:
        return "the prior"
    return f"{method} {settings} {'setting' if settings == 1 else 'settings'} x {_count(trials // settings, 'seed')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _time(plan: SweepPlan) -> str:
    if plan.rate is None or plan.wall_s is None or plan.cpu_hours is None:
        if not plan.env_steps_left:
            return "no training, evaluations only"
        return "known after the first reports; `rpg plan` measures it beforehand"
    most = "at most about" if plan.ends_early else "about"
    hours = f"{most} {period(plan.wall_s)}, {plan.cpu_hours:.3g} CPU-hours"
    hours += f", {plan.gpu_hours:.3g} GPU-hours" if plan.gpu_hours else ""
    share = f"{plan.evaluation_share:.0%} of it evaluations" if plan.evaluation_share is not None else ""
    return f"{hours} ({share}) at {plan.rate.env_steps_per_s:,.0f} env steps/s a trial, {plan.rate.source}"


def _cluster(plan: SweepPlan) -> str:
    cpus, gpus = (sum(node.get(name, 0.0) for node in plan.nodes) for name in ("CPU", "GPU"))
    there = f"{_count(len(plan.nodes), 'node')}, {cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
    each = f"{plan.per_trial['CPU']:g} CPU" + (f" and {plan.per_trial['GPU']:g} GPU" if plan.per_trial["GPU"] else "")
    together = f"{_count(plan.at_once, 'trial')} at once ({each} each), {_count(plan.rounds, 'round')}"
    return f"{there}: {together}"


def _disk(plan: SweepPlan) -> str:
    free = "" if plan.free_bytes is None else f", {disk.size_text(plan.free_bytes)} free"
    checkpoint = f"{disk.size_text(plan.checkpoint_bytes)} a checkpoint"
    return f"{disk.size_text(plan.storage_bytes)} in {plan.storage} ({checkpoint}{free})"


def period(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``12 min``, ``3 h 20 min``, ``5 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / 1_440:,.1f} days"


def render(plan: SweepPlan) -> RenderableType:
    """A plan as a table of what `head_lines` says."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("Sweep", f"{plan.sweep}, task {plan.task}")
    for label, text in _lines(plan):
        table.add_row(label, text)
    mlflow = f"{disk.size_text(plan.mlflow_bytes)} of figures and artifacts"
    table.add_row("MLflow", mlflow)
    table.add_row("Temporary", f"{disk.size_text(plan.temporary_bytes)} on the trials' machines")
    return table
