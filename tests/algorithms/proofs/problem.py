"""A customization problem on a random finite MDP and its soft-optimal policy, for the proofs of RPG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.algorithms.proofs.finite_mdp import FiniteMDP, random_mdp, random_reward, soft_value_iteration

ALPHA, OMEGA, ALPHA_HAT = 0.6, 1.2, 0.4  # omega' = 0.72, and alpha_hat is neither omega' nor alpha


@dataclass(frozen=True)
class Problem:
    """What the proof is about. ``hidden_reward`` is r: nothing that learns may read it."""

    mdp: FiniteMDP
    hidden_reward: np.ndarray
    addon: np.ndarray
    prior: np.ndarray
    target: np.ndarray


def make_problem(
    seed: int,
    alpha: float = ALPHA,
    omega: float = OMEGA,
    alpha_hat: float = ALPHA_HAT,
    addon_scale: float = 1.0,
) -> Problem:
    mdp = random_mdp(seed)
    hidden, addon = random_reward(seed, mdp), random_reward(seed + 1, mdp, addon_scale)
    return Problem(
        mdp,
        hidden,
        addon,
        prior=soft_value_iteration(mdp, hidden, alpha),
        target=soft_value_iteration(mdp, omega * hidden + addon, alpha_hat),
    )
