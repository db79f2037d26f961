"""A plan in words: lines for the head of a sweep, and `rpg plan`'s table."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from rpg_platform.planning.cluster import in_words, total
from rpg_platform.planning.estimate import MethodPlan, SweepPlan
from rpg_platform.spec.methods import METHODS
from rpg_platform.trial.room import size_text


def head_lines(plan: SweepPlan) -> list[str]:
    """A plan in a few lines, for the head of a sweep."""
    return [f"{label:<12}{text}" for label, text in _lines(plan)]


def render(plan: SweepPlan) -> RenderableType:
    """A plan as a table: what `head_lines` says, and what MLflow and the temporary folders take."""
    rows = [
        ("Sweep", f"{plan.sweep}, task {plan.task}"),
        *_lines(plan),
        ("MLflow", f"{size_text(plan.mlflow_bytes)} of figures and artifacts"),
        ("Temporary", f"{size_text(plan.temporary_bytes)} on the trials' machines"),
    ]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


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


def _lines(plan: SweepPlan) -> list[tuple[str, str]]:
    some = "" if plan.left == plan.trials else f", {plan.left} left"
    chosen = "" if plan.chosen_by is None else f", settings by {plan.chosen_by.replace('_', '-')} search"
    trials = ("Trials", f"{plan.trials}{some}: {', '.join(map(_share, plan.methods))}{chosen}")
    if not plan.left:
        return [trials]
    most, assumed = " at most" if plan.ends_early else "", ""
    if plan.assumed_episode is not None:
        assumed = f" (the task sets no time limit; episodes of {plan.assumed_episode:,} steps are assumed)"
    steps = f"{plan.env_steps_left:,}{most}, and {plan.evaluation_steps:,} at most in evaluations{assumed}"
    return [
        trials,
        ("Env steps", steps),
        ("Time", _time(plan)),
        ("Cluster", _cluster(plan)),
        ("Disk", _disk(plan)),
    ]


def _share(its: MethodPlan) -> str:
    if not METHODS[its.method].trains:
        return "the prior"
    settings = "1 setting" if its.settings == 1 else f"{its.settings} settings"
    return f"{its.method} {settings} x {_count(its.trials // its.settings, 'seed')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"


def _time(plan: SweepPlan) -> str:
    if plan.rate is None or plan.wall_s is None:
        if not plan.env_steps_left:
            return "no training, evaluations only"
        return "known after the first reports; `rpg plan` measures it beforehand"
    most = "at most about" if plan.ends_early else "about"
    gpus = f", {plan.gpu_hours:.3g} GPU-hours" if plan.gpu_hours else ""
    return (
        f"{most} {period(plan.wall_s)}, {plan.cpu_hours:.3g} CPU-hours{gpus} ({plan.evaluation_share:.0%} of it "
        f"evaluations) at {plan.rate.env_steps_per_s:,.0f} env steps/s a trial, {plan.rate.source}"
    )


def _cluster(plan: SweepPlan) -> str:
    cpus, gpus = total(plan.nodes, "CPU"), total(plan.nodes, "GPU")
    there = f"{_count(len(plan.nodes), 'node')}, {cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
    each = " and ".join(in_words(name, amount) for name, amount in plan.per_trial.items() if amount)
    together = f"{_count(plan.at_once, 'trial')} at once ({each} each), {_count(plan.rounds, 'round')}"
    return f"{there}: {together}"


def _disk(plan: SweepPlan) -> str:
    free = "" if plan.free_bytes is None else f", {size_text(plan.free_bytes)} free"
    checkpoint = f"{size_text(plan.checkpoint_bytes)} a checkpoint"
    return f"{size_text(plan.storage_bytes)} in {plan.storage} ({checkpoint}{free})"
