"""What it costs to act otherwise than a prior: in return, and in nats of the prior's own log-probability.

From states on the prior's way it goes on as it is, and beside that changed: with less noise, with more, other actions.
All of them get the same random numbers, so that the difference is what the change did. A state needs no copy of its
simulator: environments that were reset with one seed and received the same actions are in the same state.

Dimension letters: S states, C changes, N = S * C environments, D observation size, F features, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpg_algorithms.maths.advantages import generalized_advantages
from rpg_algorithms.policies.graph_ops import np_log_softmax
from rpg_algorithms.policies.network import NetworkSpec
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_algorithms.rllib.vector_env import make_vector_env, time_limit
from rpg_platform.evaluation.play import play
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import Task

Array = NDArray[np.float64]
LATEST_START = 200
"""Most steps that the prior takes to a state from which changes begin."""
SMALLEST_DISCOUNT = 0.05
"""What a step counts at least; later ones are not played."""
LONGEST = 1000
STATES_AT_ONCE = 8
_PLAYING = 16
_FARTHEST = 3.0  # standard deviations of an observation that a feature tells apart
_CRITIC_FEATURES, _CRITIC_ROUNDS, _LAMBDA, _RIDGE = 200, 8, 0.95, 1e-3


@dataclass(frozen=True)
class Change:
    """A way to act otherwise than a prior.

    Attributes:
        name: what tables call it.
        noise: factor of the standard deviation, or of a categorical's temperature.
        weaker: share that the mean loses of its distance from the middle of the actions.
        nats: KL to the prior, per state on average, of moving the mean (or the logits) along a function of the state.
        along: ``[F, A]`` that function's weights; None: drawn anew for every state, so that all directions are tried.
    """

    name: str
    noise: float = 1.0
    weaker: float = 0.0
    nats: float = 0.0
    along: Array | None = field(default=None, compare=False)


UNCHANGED = Change("unchanged")


@dataclass(frozen=True)
class Costs:
    """What changes did, relative to the unchanged prior from the same states; each ``[S, C]`` and discounted.

    Attributes:
        gained: return.
        nats: sum of log pi, the prior's log-probability of the actions.
        own_nats: sum of the changed policy's own log-probability less the prior's sum of its own.
        base: ``[S]`` return of the unchanged prior.
    """

    gained: Array
    nats: Array
    own_nats: Array
    base: Array


@dataclass(frozen=True)
class Recording:
    """Steps of a sampled prior, ``[T, N]``, and what follows from them.

    Attributes:
        obs, next_obs: ``[T, N, D]``.
        sampled: ``[T, N, ...]`` as the policy sampled them.
        inputs: ``[T, N, P]`` of the action distribution.
        reward, logp, terminated, done: ``[T, N]``.
    """

    obs: NDArray[Any]
    next_obs: NDArray[Any]
    sampled: NDArray[Any]
    inputs: NDArray[Any]
    reward: Array
    logp: Array
    terminated: NDArray[np.bool_]
    done: NDArray[np.bool_]

    @property
    def episode_length(self) -> float:
        """Mean steps of an episode, as far as they were seen."""
        ends: int = max(int(self.done.sum()), self.done.shape[1])
        return float(self.done.size / ends)


class Features:
    """Observations in a common scale, with a constant, as vectors of length 1."""

    def __init__(self, obs: NDArray[Any]) -> None:
        flat = obs.reshape(-1, obs.shape[-1]).astype(np.float64)
        self._mean, std = flat.mean(0), flat.std(0)
        self._scale = np.where(std > 1e-6, 1.0 / np.maximum(std, 1e-6), 0.0)

    def scaled(self, obs: NDArray[Any]) -> Array:
        """``[..., D]`` observations in standard deviations."""
        result: Array = np.clip((obs - self._mean) * self._scale, -_FARTHEST, _FARTHEST)
        return result

    def __call__(self, obs: NDArray[Any]) -> Array:
        """``[..., F]`` of observations ``[..., D]``."""
        x = np.concatenate((self.scaled(obs), np.ones((*obs.shape[:-1], 1))), axis=-1)
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


class Interventions:
    """Plays a prior and its changes on a task.

    Args:
        acting: the prior.
        task: the environment; its own reward counts.
        gamma: discount per step.
        seed: the first seed; every episode has another.

    Attributes:
        played: env steps so far.
        horizon: steps of a change, until later ones hardly count.
    """

    def __init__(self, acting: NumpyPolicy, task: Task, gamma: float, seed: int) -> None:
        self.acting, self.gamma = acting, gamma
        self.played = 0
        self._task, self._seed = task, seed
        self._rng = np.random.default_rng(seed)
        horizon = math.inf if gamma == 1 else math.log(SMALLEST_DISCOUNT) / math.log(gamma)
        self.horizon = math.ceil(min(LONGEST, horizon))

    def record(self, steps: int) -> Recording:
        """Plays the sampled prior for about ``steps`` env steps."""
        with closing(make_vector_env(partial(make_env, self._task), _PLAYING, "sync", frozenset())) as envs:
            count = max(2, steps // _PLAYING)
            taken = islice(play(self.acting, envs, frozenset(), self._seeds(_PLAYING), "sampled"), count)
            rows = [
                # Copies: environments hand out buffers that the next step overwrites.
                (s.obs, s.next_obs, s.sampled, s.outputs, s.reward.copy(), s.terminated.copy(), s.done.copy())
                for s in taken
            ]
        obs, next_obs, sampled, outputs, reward, terminated, done = map(np.stack, zip(*rows, strict=True))
        inputs = self.acting.complete(outputs)
        self.played += reward.size
        logp = self.acting.log_prob(inputs, sampled).astype(np.float64)
        return Recording(obs, next_obs, sampled, inputs, reward.astype(np.float64), logp, terminated, done)

    def costs(self, changes: Sequence[Change], features: Features, episode_length: float, steps: int) -> Costs:
        """Tries every change from as many states as ``steps`` env steps allow, at least eight.

        Args:
            changes: what is tried.
            features: of the states, for changes that depend on them.
            episode_length: typical steps of an episode; states come from its first half.
            steps: env steps in all.
        """
        tried = [UNCHANGED, *changes]
        number, end = STATES_AT_ONCE * len(tried), self.played + steps
        found: list[tuple[Array, ...]] = []
        with closing(make_vector_env(partial(make_env, self._task), number, "sync", frozenset())) as envs:
            limit = time_limit(envs.envs[0]) or LONGEST
            latest = max(0, min(LATEST_START, int(episode_length / 2), limit - self.horizon))
            while not found or self.played < end:
                start = int(self._rng.integers(latest + 1)) if found else 0
                found.append(self._from_states(envs, tried, features, start))
        returns, nats, own = (np.concatenate(each) for each in zip(*found, strict=True))
        gained, lost, own = (each[:, 1:] - each[:, :1] for each in (returns, nats, own))
        return Costs(gained, lost, own, returns[:, 0])

    def _seeds(self, count: int) -> int:
        self._seed += count
        return self._seed - count

    def _from_states(self, envs: Any, changes: Sequence[Change], features: Features, start: int) -> tuple[Array, ...]:
        """Sums of return, log pi and log pi', ``[S, C]`` each, of the states reached in ``start`` steps."""
        acting, spec, count = self.acting, self.acting.spec, len(changes)
        space, states = envs.single_observation_space, envs.num_envs // count
        first = self._seeds(states)
        observed, _ = envs.reset(seed=[first + s for s in range(states) for _ in changes])
        directions = self._directions(changes, states, features(flatten_observations(space, observed)).shape[-1])
        playing, sums = np.ones(envs.num_envs, bool), np.zeros((3, envs.num_envs))
        reached: NDArray[np.bool_] = np.ones(states, bool)
        for t in range(start + self.horizon):
            obs = flatten_observations(space, observed)
            if t < start:  # by one of the copies: another row of a product is rounded otherwise, which chaos amplifies
                inputs = changed = np.repeat(acting.dist_inputs(obs[::count]), count, axis=0)
            else:
                inputs = changed = acting.dist_inputs(obs)
            if t == start:
                reached = np.asarray(playing.reshape(states, count).all(1))
                self._check_equal(obs.reshape(states, count, -1)[reached])
            if t >= start:
                shift = np.einsum("nf,nfa->na", features(obs), directions)
                changed = _changed(spec, inputs, shift, changes)
            sampled = _sampled(spec, changed, np.repeat(_noise(spec, self._rng, states), count, axis=0))
            log_probs = acting.log_prob(inputs, sampled), acting.log_prob(changed, sampled)
            observed, reward, terminated, truncated, _ = envs.step(acting.to_env(sampled))
            self.played += envs.num_envs
            if t >= start:
                sums[:, playing] += self.gamma ** (t - start) * np.stack((reward, *log_probs))[:, playing]
            playing &= ~(terminated | truncated)
            if not playing.any():
                break
        else:
            return tuple(each.reshape(states, count)[reached] for each in sums)
        kept = reached if t >= start else np.zeros(states, bool)
        return tuple(each.reshape(states, count)[kept] for each in sums)

    def _directions(self, changes: Sequence[Change], states: int, size: int) -> Array:
        """``[N, F, A]`` along what each environment's mean moves."""
        found = self._rng.standard_normal((states * len(changes), size, self.acting.spec.action_size))
        for c, change in enumerate(changes):
            if change.along is not None:
                found[c :: len(changes)] = change.along
        return found

    def _check_equal(self, obs: NDArray[Any]) -> None:
        """Raises ValueError unless the copies ``[S, C, D]`` of each state are one state."""
        if not np.allclose(obs, obs[:, :1], rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"{self._task.env_id}: environments that were reset with one seed and received the same actions "
                "observe different things, so what a change of the actions does cannot be told from chance; "
                "expected an environment whose randomness comes from the seed of its reset"
            )


def _noise(spec: NetworkSpec, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """``[count, A]``: Gumbel noise of a categorical, else standard normal."""
    shape = (count, spec.action_size)
    noise = rng.gumbel(size=shape) if spec.distribution == "categorical" else rng.standard_normal(shape)
    return noise.astype(np.float32)


def _sampled(spec: NetworkSpec, inputs: NDArray[Any], noise: NDArray[Any]) -> NDArray[Any]:
    if spec.distribution == "categorical":
        return np.asarray(np.argmax(inputs + noise, axis=-1))
    mean, log_std = np.split(inputs, 2, axis=-1)
    return np.asarray(mean + np.exp(log_std) * noise)


def _changed(spec: NetworkSpec, inputs: NDArray[Any], shift: Array, changes: Sequence[Change]) -> NDArray[np.float32]:
    """``[N, P]`` distribution inputs, those of environment n changed as ``changes[n % C]`` says.

    Args:
        spec: the prior's.
        inputs: ``[N, P]`` of the prior.
        shift: ``[N, A]`` of about unit size.
        changes: C of them.
    """
    count = len(changes)
    columns = {
        name: np.tile([getattr(c, name) for c in changes], len(inputs) // count)[:, None]
        for name in ("noise", "weaker", "nats")
    }
    if spec.distribution == "categorical":
        logits = np_log_softmax(inputs)
        return np.asarray(logits / columns["noise"] + np.sqrt(2.0 * columns["nats"]) * shift, np.float32)
    mean, log_std = np.split(inputs.astype(np.float64), 2, axis=-1)
    middle = middle_of_actions(spec)
    size = np.sqrt(2.0 * columns["nats"] / spec.action_size)
    mean = mean - columns["weaker"] * (mean - middle) + np.exp(log_std) * size * shift
    return np.concatenate((mean, log_std + np.log(columns["noise"])), axis=-1).astype(np.float32)


def middle_of_actions(spec: NetworkSpec) -> Array:
    """``[A]`` the middle of the actions as a policy samples them; 0 where they have no bounds."""
    if spec.distribution == "gaussian" and spec.action_low is not None and spec.action_high is not None:
        middle = (np.array(spec.action_low) + np.array(spec.action_high)) / 2.0
        return np.where(np.isfinite(middle), middle, 0.0)
    return np.zeros(spec.action_size)


# ---- the direction of the policy gradient -------------------------------------------------------
def gradient(spec: NetworkSpec, played: Recording, features: Features, alpha: float, gamma: float) -> Array:
    """``[F, A]`` the natural policy gradient of the soft objective, as a function of the state that moves the mean.

    The mean moves by ``std * (W . features)`` (a categorical's logits by ``W . features``), so the score is the outer
    product of the features and the standardised action; its Fisher matrix is that of the features alone. Its length
    is such that the KL of moving by it is 1 nat per state on average at ``Change.nats`` 1.

    Args:
        spec: the prior's.
        played: steps of the sampled prior.
        features: of its states.
        alpha: entropy temperature, reward per nat.
        gamma: discount per step.
    """
    advantage = _advantages(played, features, alpha, gamma).reshape(-1)
    x = features(played.obs).reshape(len(advantage), -1)
    inputs = played.inputs.reshape(len(advantage), -1).astype(np.float64)
    sampled = played.sampled.reshape(len(advantage), -1)
    if spec.distribution == "categorical":
        probabilities = np.exp(np_log_softmax(inputs))
        score = np.eye(spec.action_size)[sampled[:, 0]] - probabilities
    else:
        mean, log_std = np.split(inputs, 2, axis=-1)
        score = (sampled - mean) * np.exp(-log_std)
    fisher = x.T @ x / len(x)
    ridge = _RIDGE * np.trace(fisher) / len(fisher)
    along: Array = np.linalg.solve(fisher + ridge * np.eye(len(fisher)), x.T @ (score * advantage[:, None]) / len(x))
    moved: Array = x @ along
    if spec.distribution == "categorical":
        size = float(((probabilities * moved**2).sum(-1) - (probabilities * moved).sum(-1) ** 2).mean())
    else:
        size = float((moved**2).sum(-1).mean()) / spec.action_size
    return np.asarray(along / math.sqrt(max(size, 1e-12)))


def _advantages(played: Recording, features: Features, alpha: float, gamma: float) -> Array:
    """``[T, N]`` soft advantages, by a critic of random features that is fitted to its own lambda-returns."""
    rng = np.random.default_rng(0)
    size = features.scaled(played.obs[0]).shape[-1]
    weights = rng.standard_normal((size, _CRITIC_FEATURES)) / math.sqrt(size)
    bias = rng.standard_normal(_CRITIC_FEATURES)

    def hidden(obs: NDArray[Any]) -> Array:
        x = features.scaled(obs)
        return np.concatenate((x, np.tanh(x @ weights + bias), np.ones((*x.shape[:-1], 1))), axis=-1)

    now, later = hidden(played.obs), hidden(played.next_obs)
    flat = now.reshape(-1, now.shape[-1])
    gram = flat.T @ flat + _RIDGE * np.eye(flat.shape[-1])
    reward = torch.from_numpy(played.reward - alpha * played.logp)
    ends = torch.from_numpy(played.terminated), torch.from_numpy(played.done)
    solution: Array = np.zeros(flat.shape[-1])
    advantage: Array = np.zeros(played.reward.shape)
    for _ in range(_CRITIC_ROUNDS):
        value, next_value = now @ solution, later @ solution
        values = torch.from_numpy(value), torch.from_numpy(next_value)
        advantage = generalized_advantages(reward, *values, *ends, gamma, _LAMBDA).numpy()
        solution = np.asarray(np.linalg.solve(gram, flat.T @ (advantage + value).reshape(-1)), np.float64)
    return advantage
