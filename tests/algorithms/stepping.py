"""What tests of sampling and learning do with rollouts: put them together, and learn from them with either engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tests.algorithms.registry import built, learner_of, weights_of

from rpg_algorithms import SPGConfig
from rpg_algorithms.rllib.rollout import Rollout, RolloutBatch


def join(rollouts: list[Rollout]) -> Rollout:
    """Consecutive rollouts of the same environments, one after the other."""
    offsets = np.cumsum([0] + [r.basic.shape[0] for r in rollouts[:-1]])
    names = ("obs", "actions", "logp", "basic", "addon", "terminated", "truncated")
    return Rollout(
        **{name: np.concatenate([getattr(r, name) for r in rollouts]) for name in names},
        last_obs=rollouts[-1].last_obs,
        final_index=np.concatenate([r.final_index + np.array([o, 0]) for r, o in zip(rollouts, offsets, strict=True)]),
        final_obs=np.concatenate([r.final_obs for r in rollouts]),
    )


def after_updates(config: SPGConfig, engine: str, updates: int = 3) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Weights, Adam's state and the last statistics after updates on fixed data (each seeded run has the same)."""
    config = config.copy(copy_frozen=False).training(update_engine=engine)
    with built(config) as algorithm:
        learner = learner_of(algorithm)
        assert (learner._fused is not None) == (engine == "fused")
        for rollout in [algorithm.env_runner.sample()[0] for _ in range(updates)]:
            results = learner.update(training_data=RolloutBatch([rollout]))["default_policy"]
        state = learner.get_optimizer("default_policy").state_dict()["state"]
        statistics = {k: float(v) for k, v in results.items() if "throughput" not in k}
        return weights_of(algorithm), state, statistics
