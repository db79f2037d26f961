"""SPG's estimator is the exact gradient of the entropy-regularised objective, on finite MDPs by enumeration.

The expected value of our estimator is computed twice without sampling: over all transitions with the discounted
state distribution (the stationary form), and over all whole trajectories of a finite horizon (the form that a rollout
has, through GAE's recursion). Both are compared with the autograd gradient of an objective that is written with the
states' entropies, not with sampled log-probabilities.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.algorithms.proofs.finite_mdp import (
    FiniteMDP,
    all_transitions,
    exact_gradient,
    policy_value,
    random_mdp,
    random_reward,
    soft_value_iteration,
    visitation,
)

from rpg_algorithms.maths.advantages import generalized_advantages
from rpg_algorithms.maths.objectives import policy_gradient_objective
from rpg_algorithms.maths.rewards import spg_reward

ALPHA = 0.3
TOLERANCE = 1e-10  # float64; the claim's bound is 1e-6
REFUTED = 1e-2


def stationary_estimate(
    mdp: FiniteMDP, logits: np.ndarray, reward: np.ndarray, alpha: float, gamma: float | None = None
) -> np.ndarray:
    """The expectation of SPG's estimator over all (s, a, s'), with the exact value of r_SPG for a critic."""
    gamma = mdp.gamma if gamma is None else gamma
    rows = all_transitions(mdp)
    theta = torch.tensor(logits, requires_grad=True)
    log_policy = torch.log_softmax(theta, -1)
    fixed = log_policy.detach()
    soft = spg_reward(torch.from_numpy(reward), fixed, alpha)
    policy = fixed.exp().numpy()
    value = torch.from_numpy(policy_value(FiniteMDP(mdp.transition, mdp.start, gamma), policy, soft.numpy()))
    at = (rows.state, rows.action)
    advantage = generalized_advantages(
        soft[at][None],
        value[rows.state][None],
        value[rows.next_state][None],
        rows.terminated[None],
        rows.terminated[None],
        gamma,
        lambda_=0.5,  # one row: GAE's recursion has nothing to add
    )[0]
    weight = (torch.from_numpy(visitation(mdp, policy))[:, None] * fixed.exp())[at] * rows.probability
    policy_gradient_objective(log_policy[at], advantage, weight).backward()
    assert theta.grad is not None
    return theta.grad.numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.05, ALPHA, 2.0])
def test_estimator_is_the_exact_gradient(seed: int, alpha: float) -> None:
    mdp = random_mdp(seed)
    reward, logits = random_reward(seed, mdp), random_reward(seed + 50, mdp)
    exact = exact_gradient(mdp, logits, reward, alpha)
    assert np.abs(exact).max() > 0.05
    assert stationary_estimate(mdp, logits, reward, alpha) == pytest.approx(exact, abs=TOLERANCE, rel=0)


@pytest.mark.parametrize("seed", range(5))
def test_estimator_vanishes_at_the_soft_optimum_alone(seed: int) -> None:
    mdp = random_mdp(seed)
    reward = random_reward(seed, mdp)
    optimum = np.log(soft_value_iteration(mdp, reward, ALPHA))
    assert np.abs(stationary_estimate(mdp, optimum, reward, ALPHA)).max() < TOLERANCE
    hotter = np.log(soft_value_iteration(mdp, reward, 2.0 * ALPHA))
    assert np.abs(stationary_estimate(mdp, hotter, reward, ALPHA)).max() > REFUTED


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("wrong", "settings"),
    [
        ("entropy reward dropped", {"alpha": 0.0}),
        ("its sign turned", {"alpha": -ALPHA}),
        ("temperature doubled", {"alpha": 2 * ALPHA}),
        ("discount", {"gamma": 0.8}),
        ("no future", {"gamma": 0.0}),
    ],
)
def test_any_other_temperature_or_discount_is_another_gradient(
    seed: int, wrong: str, settings: dict[str, float]
) -> None:
    mdp = random_mdp(seed)
    reward, logits = random_reward(seed, mdp), random_reward(seed + 50, mdp)
    estimate = stationary_estimate(mdp, logits, reward, **({"alpha": ALPHA} | settings))
    assert np.abs(estimate - exact_gradient(mdp, logits, reward, ALPHA)).max() > REFUTED, wrong


# --- whole trajectories


HORIZON = 3


def finite_horizon_objective(
    mdp: FiniteMDP, log_policy: torch.Tensor, reward: np.ndarray, alpha: float, end_value: np.ndarray
) -> torch.Tensor:
    """``E[sum_{t<H} gamma^t (r + alpha * entropy) + gamma^H V_end(s_H)]`` by backward induction; V_end is fixed."""
    policy, value = log_policy.exp(), torch.from_numpy(end_value)
    for _ in range(HORIZON):
        q = torch.from_numpy(reward) + mdp.gamma * torch.from_numpy(mdp.transition) @ value
        value = (policy * (q - alpha * log_policy)).sum(-1)
    return torch.from_numpy(mdp.start) @ value


def trajectories(mdp: FiniteMDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All trajectories of ``HORIZON`` steps as columns: states ``[T + 1, N]``, actions ``[T, N]``, ends, probability.

    The end flag ``[T, N]`` marks termination; columns of probability 0 and rows after an end are kept out of it.
    """
    columns = []
    ended = mdp.num_states  # index of "terminated"
    shape = [range(mdp.num_states)] + [range(mdp.num_actions), range(mdp.num_states + 1)] * HORIZON
    full = np.concatenate((mdp.transition, mdp.termination[..., None]), -1)
    for path in itertools.product(*shape):
        states, actions = path[0::2], path[1::2]
        probability, alive = mdp.start[states[0]], True
        for t in range(HORIZON):
            if not alive:  # one continuation stands for all of them
                probability *= actions[t] == 0 and states[t + 1] == ended
                continue
            probability *= policy[states[t], actions[t]] * full[states[t], actions[t], states[t + 1]]
            alive = states[t + 1] != ended
        if probability > 0:
            columns.append((states, actions, probability))
    states = np.array([c[0] for c in columns]).T
    actions = np.array([c[1] for c in columns]).T
    return states, actions, states[1:] == ended, np.array([c[2] for c in columns])


def trajectory_estimate(
    mdp: FiniteMDP,
    logits: np.ndarray,
    reward: np.ndarray,
    end_value: np.ndarray,
    gamma: float,
    lambda_: float = 1.0,
    bootstrap_everywhere: bool = False,
) -> np.ndarray:
    theta = torch.tensor(logits, requires_grad=True)
    log_policy = torch.log_softmax(theta, -1)
    states, actions, terminated, probability = trajectories(mdp, log_policy.detach().exp().numpy())
    assert probability.sum() == pytest.approx(1.0)
    lived = np.vstack((np.ones_like(terminated[:1]), ~np.maximum.accumulate(terminated[:-1], 0)))
    at = (torch.from_numpy(np.where(lived, states[:-1], 0)), torch.from_numpy(actions))
    # An arbitrary wrong critic: with lambda = 1 it must not matter, except for the last value, which is the bootstrap.
    critic = torch.from_numpy(np.append(3.0 * random_reward(7, mdp)[:, 0], 99.0))
    value, next_value = critic[states[:-1]], critic[states[1:]].clone()
    next_value[-1] = torch.from_numpy(np.append(end_value, 99.0))[states[-1]]
    flags = torch.from_numpy(terminated)
    advantage = generalized_advantages(
        spg_reward(torch.from_numpy(reward)[at], log_policy.detach()[at], ALPHA),
        value,
        next_value,
        torch.zeros_like(flags) if bootstrap_everywhere else flags,
        flags,
        gamma,
        lambda_,
    )
    weight = probability * lived * gamma ** np.arange(HORIZON)[:, None]
    policy_gradient_objective(
        log_policy[at].flatten(), advantage.flatten(), torch.from_numpy(weight).flatten()
    ).backward()
    assert theta.grad is not None
    return theta.grad.numpy()


@pytest.fixture(scope="module")
def horizon_problem() -> tuple[FiniteMDP, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """MDP, logits, reward, value of the cut, and the exact gradient."""
    mdp = random_mdp(2, states=3, actions=2)
    assert (mdp.termination > 0.05).any()
    reward, logits = random_reward(2, mdp), random_reward(52, mdp)
    end_value = np.array([0.5, -1.0, 2.0])
    theta = torch.tensor(logits, requires_grad=True)
    finite_horizon_objective(mdp, torch.log_softmax(theta, -1), reward, ALPHA, end_value).backward()
    assert theta.grad is not None
    return mdp, logits, reward, end_value, theta.grad.numpy()


def test_whole_trajectories_give_the_exact_gradient(horizon_problem) -> None:
    mdp, logits, reward, end_value, exact = horizon_problem
    estimate = trajectory_estimate(mdp, logits, reward, end_value, mdp.gamma)
    assert estimate == pytest.approx(exact, abs=TOLERANCE, rel=0)


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.8}, {"lambda_": 0.5}, {"bootstrap_everywhere": True}, {"end_value": np.zeros(3)}]
)
def test_trajectories_with_a_mistake_do_not(horizon_problem, settings) -> None:
    mdp, logits, reward, end_value, exact = horizon_problem
    right = {"gamma": mdp.gamma, "end_value": end_value}
    estimate = trajectory_estimate(mdp, logits, reward, **(right | settings))
    assert np.abs(estimate - exact).max() > REFUTED
