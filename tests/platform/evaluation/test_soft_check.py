"""Does the check of a prior's log-probability find the temperature of soft-optimal priors, and refuse the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.algorithms.proofs.finite_mdp import FiniteMDPEnv, random_mdp, random_reward, soft_value_iteration

from rpg_algorithms.policies.bundle import PriorBundle, PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.rllib.vector_env import make_vector_env
from rpg_platform.bundles import resolve_prior
from rpg_platform.evaluation.interventions import UNCHANGED, Features, Interventions
from rpg_platform.evaluation.soft_check import SoftCheck, soft_check
from rpg_platform.priors.environment import bare_task
from rpg_platform.tasks.environments import make_env

ALPHA, GAMMA = 0.4, 0.9
MDP = random_mdp(3, states=6, actions=4, gamma=GAMMA)
REWARD = random_reward(3, MDP)
ENV = "SoftCheck/Finite-v0"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    config = {"mdp": MDP, "reward": REWARD, "max_steps": 200}
    gym.register(ENV, entry_point=lambda: FiniteMDPEnv(config))
    yield
    del gym.registry[ENV]


def tabular(folder: Path, policy: np.ndarray, alpha: float | None) -> PriorBundle:
    """A policy ``[S, A]`` as a bundle: one linear layer on one-hot observations."""
    env = FiniteMDPEnv({"mdp": MDP, "reward": REWARD, "max_steps": 200})
    states, actions = policy.shape
    spec = NetworkSpec(states, actions, "categorical", hidden=(), normalize_observations=False)
    network = PolicyNetwork(spec)
    with torch.no_grad():
        layer = next(m for m in network.modules() if isinstance(m, torch.nn.Linear))
        layer.weight.copy_(torch.from_numpy(np.log(policy).T))
        layer.bias.zero_()
    made_by = {"training": {"gamma": GAMMA}}
    card = PriorCard.describe(
        "tabular", ENV, env.observation_space, env.action_space, spec, alpha=alpha, made_by=made_by
    )
    save_bundle(folder, network, card)
    return load_bundle(folder)


def checked(bundle: PriorBundle, steps: int = 120_000) -> SoftCheck:
    return soft_check(bundle, bare_task(bundle.card.env_id), steps)


def test_a_soft_optimal_prior_costs_its_alpha_a_nat_whatever_changes(tmp_path: Path) -> None:
    found = checked(tabular(tmp_path, soft_value_iteration(MDP, REWARD, ALPHA), alpha=None))
    for each in found.prices:
        assert each.price.low <= ALPHA <= each.price.high, each
        assert each.price.high - each.price.low < ALPHA, each
    assert found.alpha.low <= ALPHA <= found.alpha.high
    assert found.alpha.value == pytest.approx(ALPHA, rel=0.15)
    assert found.step.low <= 0
    assert found.verdict == "good", found.reasons
    low, high = found.omega_prime or (0.0, 0.0)
    assert ALPHA / 2 < low <= found.reference <= high < 2 * ALPHA


@pytest.mark.parametrize("kind", ["uniform", "half-way", "of another reward", "greedier than its card says"])
def test_a_prior_that_is_no_soft_optimum_is_not_called_good(kind: str, tmp_path: Path) -> None:
    optimum = soft_value_iteration(MDP, REWARD, ALPHA)
    alpha = ALPHA
    if kind == "uniform":
        policy = np.full_like(optimum, 1.0 / optimum.shape[1])
    elif kind == "half-way":  # it knows the next reward alone
        policy = np.exp(REWARD / ALPHA)
    elif kind == "of another reward":
        policy = soft_value_iteration(MDP, random_reward(4, MDP), ALPHA)
    else:
        policy, alpha = optimum, 5 * ALPHA
    policy = np.maximum(policy / policy.sum(-1, keepdims=True), 1e-6)
    found = checked(tabular(tmp_path, policy, alpha))
    assert found.verdict != "good"
    assert found.reasons
    if kind in ("uniform", "of another reward"):
        assert found.verdict == "not informative"
        assert found.omega_prime is None


def test_copies_of_a_state_are_one_state_however_chaotic_the_way_there() -> None:
    """Hopper's way there amplifies what the rounding of one row of a product and of another differ by."""
    bundle = load_bundle(resolve_prior("hopper-spg"))
    task, changes = bare_task(bundle.card.env_id), 8 * [UNCHANGED]
    found = Interventions(NumpyPolicy(bundle.build()), task, 0.99, seed=0)
    with closing(make_vector_env(partial(make_env, task), 24, "sync", frozenset())) as envs:
        returns, nats, own = found._from_states(envs, changes, Features(np.zeros((2, 1, 11))), start=700)
    assert returns.shape[1] == len(changes)
    assert len(returns) > 0
    assert np.isfinite([returns, nats, own]).all()
