"""Finite Markov decision processes solved exactly in float64, independently of the code under test.

Nothing here imports ``rpg_algorithms``: what the tests compare with is written from the definitions.
Dimension letters: S states, A actions.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch


@dataclass(frozen=True)
class FiniteMDP:
    """Transition probabilities that may sum to less than one: the rest is termination.

    Attributes:
        transition: ``[S, A, S]`` probability of the next state.
        start: ``[S]`` distribution of the first state.
        gamma: discount per step.
    """

    transition: np.ndarray
    start: np.ndarray
    gamma: float

    @property
    def num_states(self) -> int:
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        return self.transition.shape[1]

    @property
    def termination(self) -> np.ndarray:
        """``[S, A]`` probability that the episode ends with this step."""
        return np.maximum(1.0 - self.transition.sum(-1), 0.0)


def random_mdp(seed: int, states: int = 4, actions: int = 3, gamma: float = 0.9) -> FiniteMDP:
    """An MDP in which every state is reachable and every third state-action pair may terminate."""
    rng = np.random.default_rng(seed)
    # Uneven, so that what comes later matters for what is done now.
    transition = rng.dirichlet(np.full(states, 0.3), size=(states, actions))
    may_end = np.arange(states)[:, None] % 3 == np.arange(actions)
    survival = np.where(may_end, rng.uniform(0.5, 0.9, (states, actions)), 1.0)
    return FiniteMDP(transition * survival[..., None], rng.dirichlet(np.ones(states)), gamma)


def random_reward(seed: int, mdp: FiniteMDP, scale: float = 1.0) -> np.ndarray:
    """``[S, A]`` rewards."""
    return scale * np.random.default_rng(seed + 10_000).standard_normal((mdp.num_states, mdp.num_actions))


def soft_value_iteration(mdp: FiniteMDP, reward: np.ndarray, alpha: float) -> np.ndarray:
    """The policy ``[S, A]`` that maximises ``E sum gamma^t (r + alpha * entropy)``, to machine precision."""
    value = np.zeros(mdp.num_states)
    for _ in range(100_000):
        q = reward + mdp.gamma * mdp.transition @ value
        top = q.max(-1, keepdims=True)
        new = (top + alpha * np.log(np.exp((q - top) / alpha).sum(-1, keepdims=True)))[:, 0]
        if np.abs(new - value).max() < 1e-14 * max(1.0, np.abs(new).max()):
            return np.exp((q - new[:, None]) / alpha)
        value = new
    raise AssertionError("soft value iteration did not converge")


def policy_value(mdp: FiniteMDP, policy: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """``[S]`` expected discounted sum of ``reward`` ``[S, A]``, by a linear solve."""
    step = np.einsum("sa,sat->st", policy, mdp.transition)
    return np.linalg.solve(np.eye(mdp.num_states) - mdp.gamma * step, (policy * reward).sum(-1))


def visitation(mdp: FiniteMDP, policy: np.ndarray) -> np.ndarray:
    """``[S]`` discounted expected number of visits ``sum_t gamma^t P(s_t = s)``, by a linear solve."""
    step = np.einsum("sa,sat->st", policy, mdp.transition)
    return np.linalg.solve(np.eye(mdp.num_states) - mdp.gamma * step.T, mdp.start)


def regularised_return(
    mdp: FiniteMDP,
    logits: torch.Tensor,
    reward: np.ndarray,
    alpha: float,
    prior_log: np.ndarray | None = None,
) -> torch.Tensor:
    """``E sum gamma^t (r + alpha * H(pi(.|s)))``, or with a prior ``E sum gamma^t (r - alpha * KL(pi || prior))``.

    Written with the state's entropy or divergence, not with sampled log-probabilities, and differentiable in
    ``logits`` ``[S, A]`` (float64): its autograd gradient is the exact policy gradient.
    """
    log_policy = torch.log_softmax(logits, -1)
    policy = log_policy.exp()
    reference = torch.zeros_like(log_policy) if prior_log is None else torch.from_numpy(prior_log)
    regulariser = (policy * (log_policy - reference)).sum(-1)
    transition, start = torch.from_numpy(mdp.transition), torch.from_numpy(mdp.start)
    step = torch.einsum("sa,sat->st", policy, transition)
    per_state = (policy * torch.from_numpy(reward)).sum(-1) - alpha * regulariser
    eye = torch.eye(mdp.num_states, dtype=logits.dtype)
    return start @ torch.linalg.solve(eye - mdp.gamma * step, per_state)


def exact_gradient(
    mdp: FiniteMDP, logits: np.ndarray, reward: np.ndarray, alpha: float, prior_log: np.ndarray | None = None
) -> np.ndarray:
    """``[S, A]`` gradient of ``regularised_return`` in the logits."""
    theta = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    regularised_return(mdp, theta, reward, alpha, prior_log).backward()
    assert theta.grad is not None
    return theta.grad.numpy()


def kl_per_state(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``[S]`` KL(p || q) in nats."""
    return (p * (np.log(p) - np.log(q))).sum(-1)


@dataclass(frozen=True)
class Transitions:
    """Every (s, a, s') of an MDP in one row each, termination included.

    Attributes:
        state, action: ``[M]`` indices.
        next_state: ``[M]`` index; 0 where the episode terminated, which nothing may depend on.
        terminated: ``[M]`` bool.
        probability: ``[M]`` P(s' | s, a).
    """

    state: torch.Tensor
    action: torch.Tensor
    next_state: torch.Tensor
    terminated: torch.Tensor
    probability: torch.Tensor


def all_transitions(mdp: FiniteMDP) -> Transitions:
    rows = []
    for s in range(mdp.num_states):
        for a in range(mdp.num_actions):
            rows += [(s, a, t, False, mdp.transition[s, a, t]) for t in range(mdp.num_states)]
            rows.append((s, a, 0, True, mdp.termination[s, a]))
    state, action, next_state, terminated, probability = zip(*rows, strict=True)
    return Transitions(
        torch.tensor(state),
        torch.tensor(action),
        torch.tensor(next_state),
        torch.tensor(terminated),
        torch.tensor(probability, dtype=torch.float64),
    )


class FiniteMDPEnv(gym.Env[np.int64, np.int64]):
    """A ``FiniteMDP`` as a gymnasium environment, truncated after ``max_steps``.

    Args:
        config: ``mdp``; ``reward`` ``[S, A]``; ``max_steps``, steps after which an episode is truncated.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.mdp: FiniteMDP = config["mdp"]
        self.reward: np.ndarray = config["reward"]
        self.max_steps: int = config["max_steps"]
        self.observation_space = gym.spaces.Discrete(self.mdp.num_states)
        self.action_space = gym.spaces.Discrete(self.mdp.num_actions)
        self._rewards: list[list[float]] = self.reward.tolist()
        self._next: list[list[list[float]]] = np.cumsum(self.mdp.transition, -1).tolist()
        self._first: list[float] = np.cumsum(self.mdp.start).tolist()
        self._terminates = (self.mdp.termination > 1e-12).tolist()
        self._state = self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = min(bisect_right(self._first, self.np_random.random()), self.mdp.num_states - 1)
        self._steps = 0
        return self._state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self._rewards[self._state][action]
        drawn, last = (
            bisect_right(self._next[self._state][action], self.np_random.random()),
            self.mdp.num_states - 1,
        )
        terminated = drawn > last and self._terminates[self._state][action]
        if not terminated:
            self._state = min(drawn, last)
        self._steps += 1
        return self._state, reward, terminated, self._steps >= self.max_steps, {}


class TabularReward:
    """An add-on reward ``[S, A]`` read from one-hot observations."""

    info_keys: tuple[str, ...] = ()

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def __call__(self, obs: np.ndarray, actions: np.ndarray, next_obs: np.ndarray, infos: Any) -> np.ndarray:
        return self.table[obs.argmax(-1), actions]
