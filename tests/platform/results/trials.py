"""A sweep's trials, what they report, and the table as text: for tests of what is made of results."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rpg_platform.results.report import Mode
from rpg_platform.results.rows import Row
from rpg_platform.results.table import render_table
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec

FIGURES = ("basic_return", "addon_return", "total_return", "episode_length", "task_metric")


def trials_of(**changes: Any) -> dict[str, TrialSpec]:
    """The trials of a sweep with a prior, two weights and two seeds, by id."""
    raw = {
        "name": "toy",
        "task": "halfcheetah-foot-angle",
        "prior": "/priors/mine",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.05, 0.1]}, "alpha_hat": 0.02},
        "seeds": [0, 1],
        "budget": {"env_steps": 200_000},
    }
    return {trial.trial_id: trial for trial in expand(SweepSpec.model_validate(raw | changes))}


def evaluated(basic: float, addon: float, *, kl: float = 1.5, std: float = 7.0, metric: float = 0.2) -> dict[str, Any]:
    """A last report whose sampled figures are ten below the deterministic ones."""
    report: dict[str, Any] = {"env_steps": 200_000.0, "done": True, "eval/kl_to_prior": kl}
    for mode, less in (("deterministic", 0.0), ("sampled", 10.0)):
        values = (basic - less, addon - less, basic + addon - 2 * less, 1000.0, metric)
        for name, value in zip(FIGURES, values, strict=True):
            report |= {f"eval/{mode}/{name}_mean": value, f"eval/{mode}/{name}_std": std}
    return report


def text_of(rows: list[Row], width: int, mode: Mode | None = None) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(render_table(rows, mode=mode))
    return capture.get()
