"""Every algorithm configuration that the conformance suite runs: registering one here is what tests it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.algorithms.environments import WalkEnv

from rpg_algorithms import Conditioned, NetworkConfig, PolicyNetwork, PriorCard, RPGConfig, SPGConfig, save_bundle
from rpg_algorithms.policies.network import spec_for_spaces

ENVS, STEPS = 4, 32
FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "state-dependent": {"state_dependent_std": True},
    "squashed": {"distribution": "squashed_gaussian"},
    "squashed-state-dependent": {"distribution": "squashed_gaussian", "state_dependent_std": True},
    "categorical": {},
}


def addon(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    """An add-on reward that goes against the environment's own."""
    return -np.abs(next_obs[:, 0] + 0.5)


def make_env(family: str) -> WalkEnv:
    return WalkEnv({"discrete": family == "categorical"})


def make_prior(folder: Path, family: str = "gaussian", alpha: float | None = 0.2, seed: int = 0, **spec: Any) -> Path:
    """A bundle of a random policy for ``WalkEnv``, its normaliser filled; returns the folder."""
    env = make_env(family)
    options: dict[str, Any] = {"hidden": (8,), "log_std_init": -0.5} | FAMILIES[family] | spec
    network_spec = spec_for_spaces(env.observation_space, env.action_space, **options)
    torch.manual_seed(seed)
    network = PolicyNetwork(network_spec)
    assert network.normalizer is not None
    network.normalizer.update(torch.randn(200, 2) + torch.tensor([0.5, 1.0]))
    card = PriorCard.describe("random", "walk", env.observation_space, env.action_space, network_spec, alpha=alpha)
    save_bundle(folder, network, card)
    return folder


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        config: SPG's or RPG's configuration class.
        family: key of ``FAMILIES``.
        training: settings of ``training()``.
        prior: whether it gets a prior.
        prior_family: key of ``FAMILIES`` for the prior, where it is not the policy's.
    """

    config: type[SPGConfig]
    family: str = "gaussian"
    training: dict[str, Any] = field(default_factory=dict)
    prior: bool = False
    prior_family: str | None = None

    def build_config(self, folder: Path, **training: Any) -> SPGConfig:
        """The configuration, small; a prior is written to ``folder / "prior"``."""
        settings = {
            "train_batch_size_per_learner": ENVS * STEPS,
            "minibatch_size": 32,
            "num_epochs": 2,
            "lr": 3e-3,
            "critic_warmup_iterations": 0,
        }
        from_prior = self.prior and self.training.get("start_from_prior", True)
        if self.prior:
            settings["prior"] = make_prior(folder / "prior", self.prior_family or self.family)
        network = {} if from_prior else {"hidden": (8,), "log_std_init": -0.5} | FAMILIES[self.family]
        config = (
            self.config()
            .environment(WalkEnv, env_config={"discrete": self.family == "categorical", "length": 15})
            .env_runners(num_envs_per_env_runner=ENVS)
            .training(**(settings | self.training | training))
            .debugging(seed=7)
        )
        if not from_prior:
            config.rl_module(model_config=NetworkConfig(**network))
        return config


RESIDUAL = {"addon_reward": addon, "omega_prime": 0.2, "alpha_hat": 0.1}
CASES: dict[str, Case] = {
    **{f"spg-{family}": Case(SPGConfig, family, {"alpha": 0.05}) for family in FAMILIES},
    **{f"rpg-{family}": Case(RPGConfig, family, RESIDUAL, prior=True) for family in FAMILIES},
    "ppo": Case(SPGConfig, training={"alpha": 0.0, "entropy_coeff": 0.01, "scale_rewards": False}),
    "repeat-entropy": Case(SPGConfig, "categorical", {"alpha": 0.05, "entropy_coeff": 0.05}),
    "full": Case(SPGConfig, training={"alpha": 0.05, "basic_weight": 0.5, "addon_weight": 1.0, "addon_reward": addon}),
    "greedy": Case(RPGConfig, training={"addon_reward": addon, "omega_prime": 0.0, "alpha_hat": 0.0}, prior=True),
    "kl": Case(RPGConfig, training={"addon_reward": addon, "kl_coefficient": [[0, 0.2], [1000, 0.0]]}, prior=True),
    "omega": Case(RPGConfig, training={"addon_reward": addon, "omega": 1.0, "alpha_hat": 0.1}, prior=True),
    "rpg-gaussian-to-squashed-prior": Case(
        RPGConfig, training=RESIDUAL | {"start_from_prior": False}, prior=True, prior_family="squashed"
    ),
    "rpg-squashed-to-gaussian-prior": Case(
        RPGConfig, "squashed", RESIDUAL | {"start_from_prior": False}, prior=True, prior_family="gaussian"
    ),
    "rpg-from-scratch": Case(RPGConfig, training=RESIDUAL | {"start_from_prior": False}, prior=True),
    "conditioned": Case(
        RPGConfig,
        training={"addon_reward": addon, "omega_prime": Conditioned(0.02, 0.8), "alpha_hat": Conditioned(0.0, 0.2)},
        prior=True,
    ),
    "conditioned-categorical": Case(SPGConfig, "categorical", {"alpha": Conditioned(0.01, 0.3)}),
    "warm-up": Case(RPGConfig, training=RESIDUAL | {"critic_warmup_iterations": 3, "target_kl": 0.01}, prior=True),
}


@contextlib.contextmanager
def built(config: SPGConfig) -> Iterator[Any]:
    """The algorithm, stopped at the end."""
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def learner_of(algorithm: Any) -> Any:
    """The local learner."""
    return algorithm.learner_group._learner


def weights_of(algorithm: Any) -> dict[str, torch.Tensor]:
    """A copy of everything in the learner's module: policy, critic, prior, moments."""
    return {k: v.clone() for k, v in learner_of(algorithm).actor_critic.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], prefix: str = "") -> bool:
    """Whether the tensors under ``prefix`` are equal to the bit."""
    keys = [k for k in a if k.startswith(prefix)]
    assert keys
    assert set(a) == set(b)
    return all(torch.equal(a[k], b[k]) for k in keys)
