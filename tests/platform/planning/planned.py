"""A sweep to plan, and its plan at a rate that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rpg_platform.planning.cluster import Amounts
from rpg_platform.planning.estimate import SweepPlan, make_plan
from rpg_platform.planning.rates import Rate
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.trial_state import TrialState

PRIOR = "halfcheetah-spg"
RATE = Rate(1_000.0, 4_000.0, 2.0, "measured here", 1.8e9)
TWO = [{"CPU": 2.0}]


def spec(**changes: Any) -> SweepSpec:
    """Two settings of RPG and one of greedy, at three seeds, of 100,000 env steps each; and the prior."""
    return SweepSpec.model_validate(
        {
            "name": "planned",
            "task": "halfcheetah-foot-angle",
            "prior": PRIOR,
            "algorithm": "rpg",
            "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
            "baselines": ["greedy"],
            "seeds": 3,
            "budget": {"env_steps": 100_000},
            "evaluation": {"episodes": 10, "validations": 2, "validation_episodes": 5},
            **changes,
        }
    )


def resolved(storage: Path, wanted: SweepSpec | None = None) -> Sweep:
    """The sweep, its results in ``storage``."""
    return Sweep.resolve((wanted or spec()).model_copy(update={"storage": str(storage)}))


def planned(
    storage: Path,
    wanted: SweepSpec | None = None,
    *,
    states: Mapping[str, TrialState] | None = None,
    nodes: Sequence[Amounts] = TWO,
    rate_of: Callable[[TrialSpec], Rate | None] = lambda trial: RATE,
) -> SweepPlan:
    """The plan of a sweep whose heaviest trial has a rate that is given."""
    return make_plan(resolved(storage, wanted), nodes, rate_of, states)
