"""A customization problem on a random finite MDP and its soft-optimal policy, for the proofs of RPG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tests.algorithms.proofs.finite_mdp import (
    FiniteMDP,
    FiniteMDPEnv,
    TabularReward,
    random_mdp,
    random_reward,
    soft_value_iteration,
)

from rpg_algorithms import PolicyNetwork, PriorCard, RPGConfig, save_bundle

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


def save_prior(folder: Path, network: PolicyNetwork) -> Path:
    """A prior on a finite MDP as a bundle."""
    spaces = gym.spaces.Discrete(network.spec.observation_size), gym.spaces.Discrete(network.spec.action_size)
    save_bundle(folder, network, PriorCard.describe("tabular", "finite-mdp", *spaces, network.spec, alpha=ALPHA))
    return folder


def residual_config(p: Problem, prior: Path, **training: Any) -> RPGConfig:
    """RPG on the problem, in an environment whose own reward is misleading."""
    return (
        RPGConfig()
        .environment(FiniteMDPEnv, env_config={"mdp": p.mdp, "reward": -50.0 * p.hidden_reward, "max_steps": 25})
        .env_runners(num_envs_per_env_runner=64)
        .training(
            prior=prior,
            addon_reward=TabularReward(p.addon),
            critic_warmup_iterations=4,
            gamma=p.mdp.gamma,
            lambda_=0.95,
            clip_param=0.3,
            grad_clip=None,
            normalize_advantages="none",
            **training,
        )
        .debugging(seed=0)
    )
