"""The yardstick itself: the exact solver of finite MDPs against values worked by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.algorithms.proofs.finite_mdp import (
    FiniteMDP,
    FiniteMDPEnv,
    exact_gradient,
    policy_value,
    random_mdp,
    random_reward,
    regularised_return,
    soft_value_iteration,
    visitation,
)


def test_soft_value_iteration_of_a_bandit_is_a_softmax() -> None:
    # One state, always terminating: pi ∝ exp(r / alpha); r = (0, ln 3) at alpha 1 gives 1/4 and 3/4.
    mdp = FiniteMDP(np.zeros((1, 2, 1)), np.ones(1), 0.9)
    assert soft_value_iteration(mdp, np.array([[0.0, np.log(3.0)]]), 1.0) == pytest.approx(np.array([[0.25, 0.75]]))


def test_soft_optimum_is_stationary_and_better_than_its_neighbours() -> None:
    mdp = random_mdp(0)
    reward = random_reward(0, mdp)
    optimum = np.log(soft_value_iteration(mdp, reward, 0.4))
    assert np.abs(exact_gradient(mdp, optimum, reward, 0.4)).max() < 1e-12
    best = regularised_return(mdp, torch.from_numpy(optimum), reward, 0.4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = optimum + 0.1 * rng.standard_normal(optimum.shape)
        assert regularised_return(mdp, torch.from_numpy(other), reward, 0.4) < best


def test_value_and_visitation_agree_with_summing_over_time() -> None:
    mdp = random_mdp(1)
    reward = random_reward(1, mdp)
    policy = np.random.default_rng(2).dirichlet(np.ones(3), size=4)
    step = np.einsum("sa,sat->st", policy, mdp.transition)
    occupied, visits, total = mdp.start.copy(), np.zeros(4), 0.0
    for t in range(500):
        visits += mdp.gamma**t * occupied
        total += mdp.gamma**t * (occupied @ (policy * reward).sum(-1))
        occupied = occupied @ step
    assert visitation(mdp, policy) == pytest.approx(visits)
    assert mdp.start @ policy_value(mdp, policy, reward) == pytest.approx(total)


def test_environment_has_the_probabilities_of_its_mdp() -> None:
    mdp = random_mdp(3)
    env = FiniteMDPEnv({"mdp": mdp, "reward": random_reward(3, mdp), "max_steps": 10**9})
    env.reset(seed=0)
    counts = np.zeros(5)
    for _ in range(20_000):
        env._state = 2
        state, reward, terminated, _, _ = env.step(1)
        counts[4 if terminated else state] += 1
        assert reward == env.reward[2, 1]
    expected = np.append(mdp.transition[2, 1], mdp.termination[2, 1])
    assert counts / 20_000 == pytest.approx(expected, abs=0.015)
