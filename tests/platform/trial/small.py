"""The specification of a small trial of any method."""

from __future__ import annotations

from typing import Any

from rpg_platform.spec.checks import expand
from rpg_platform.spec.methods import METHODS, MethodName
from rpg_platform.spec.sweep import SweepSpec, TrialSpec

PRIOR = "halfcheetah-spg"
STEPS_PER_ITERATION = 8 * 64
WEIGHTS: dict[MethodName, dict[str, float]] = {
    "rpg": {"omega_prime": 0.1, "alpha_hat": 0.02},
    "kl": {"kl_coefficient": 0.1},
    "greedy": {},
    "full": {"alpha": 0.02},
    "spg": {"alpha": 0.1},
    "ppo": {},
    "repeat-entropy": {"alpha": 0.1},
    "prior": {},
}


def trial_spec(method: MethodName, **changes: Any) -> TrialSpec:
    """The one trial of ``method`` in a sweep of two iterations."""
    raw: dict[str, Any] = {
        "name": "small",
        "task": "halfcheetah-foot-angle",
        "prior": None if not METHODS[method].uses_prior else PRIOR,
        "algorithm": "greedy" if method == "prior" else method,
        "weights": WEIGHTS[method],
        "budget": {"env_steps": 2 * STEPS_PER_ITERATION},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 1},
        "evaluation": {"episodes": 2, "validations": 0},
    }
    spec = SweepSpec.model_validate(raw | changes)
    [trial] = [each for each in expand(spec) if each.method == method]
    return trial
