"""A sweep of two weights and two seeds, whose trials are only told of."""

from __future__ import annotations

from typing import Any

MANY: dict[str, Any] = {
    "name": "many",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
    "seeds": 2,
    "budget": {"env_steps": 100_000},
}
