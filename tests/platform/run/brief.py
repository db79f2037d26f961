"""A sweep of one trial that trains on two short rollouts."""

from __future__ import annotations

from typing import Any

BRIEF: dict[str, Any] = {
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "greedy",
    "budget": {"env_steps": 1024},
    "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1, "critic_warmup_iterations": 1},
    "evaluation": {"episodes": 1, "validations": 0},
}
