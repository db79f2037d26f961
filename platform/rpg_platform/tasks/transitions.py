"""Real transitions of a task's environment, and what an add-on reward makes of them."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.tasks.task import StepFunction


class MisbehaviourError(ValueError):
    """An environment did something that it must not; the message says what."""


@dataclass(frozen=True)
class Step:
    """One step of an environment.

    Attributes:
        obs, next_obs: flat observations ``[D]`` before and after it, float32.
        action: ``[A]``, or an index.
        reward: the environment's own.
        terminated, truncated: whether the episode ended.
        info: everything that the environment told.
    """

    obs: Array
    action: Any
    next_obs: Array
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """Whether it is the last step of its episode."""
        return self.terminated or self.truncated

    def difference(self, other: Step) -> str | None:
        """The first thing in which another step is not exactly the same, in words; None where it is."""
        pairs: dict[str, tuple[Any, Any]] = {
            "observation before the step": (self.obs, other.obs),
            "observation": (self.next_obs, other.next_obs),
            "reward": (self.reward, other.reward),
            "end": ((self.terminated, self.truncated), (other.terminated, other.truncated)),
        }
        for key, value in self.info.items():
            if numeric(value) and numeric(other.info.get(key)):
                pairs[f"info {key!r}"] = (float(value), float(other.info[key]))
        return next((name for name, pair in pairs.items() if not np.array_equal(*pair, equal_nan=True)), None)


@dataclass(frozen=True)
class Transitions:
    """Arguments of a step function: ``[B, D]``, ``[B, A]`` or ``[B]``, ``[B, D]``, and infos ``[B]``."""

    obs: Array
    actions: Array
    next_obs: Array
    infos: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.obs)

    def of(self, function: StepFunction) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Copies of what ``function`` is called with."""
        infos = {key: self.infos[key].copy() for key in function.info_keys}
        return self.obs.copy(), self.actions.copy(), self.next_obs.copy(), infos

    def row(self, index: int) -> Transitions:
        """The transition at ``index``, as a batch of one."""
        at = slice(index, index + 1)
        infos = {key: values[at] for key, values in self.infos.items()}
        return Transitions(self.obs[at], self.actions[at], self.next_obs[at], infos)


def flat(space: gym.Space[Any], obs: Any) -> Array:
    """One observation as the policy sees it: float32 ``[D]``, one-hot for Discrete.

    Raises:
        MisbehaviourError: it is not in its space.
    """
    if isinstance(space, gym.spaces.Discrete):
        if obs not in space:
            raise MisbehaviourError(f"gave the observation {obs!r:.60}, which is not in {space}")
        return gym.spaces.flatten(space, obs).astype(np.float32)  # type: ignore[union-attr]
    try:
        array = np.asarray(obs, np.float32)
    except (TypeError, ValueError):
        raise MisbehaviourError(f"gave an observation of type {type(obs).__name__}, expected numbers") from None
    if array.shape != space.shape:
        raise MisbehaviourError(f"gave an observation of shape {array.shape}, and its space has {space.shape}")
    if not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array))
        raise MisbehaviourError(f"gave an observation with {count} values that are not finite")
    return array.reshape(-1)


def random_action(space: gym.Space[Any], rng: np.random.Generator) -> Any:
    """An action as a policy's: float32 ``[A]`` within the bounds, or an index."""
    if isinstance(space, gym.spaces.Discrete):
        return np.int64(int(space.start) + rng.integers(int(space.n)))
    assert isinstance(space, gym.spaces.Box)
    low, high = (np.nan_to_num(bound, posinf=1.0, neginf=-1.0) for bound in (space.low, space.high))
    return rng.uniform(low, high).astype(np.float32)


def reset(env: gym.Env[Any, Any], seed: int | None = None) -> Array:
    """The flat observation after a reset.

    Raises:
        MisbehaviourError: it raised, or gave something else.
    """
    try:
        given: Any = env.reset(seed=seed)
    except Exception as error:  # whatever an environment may raise
        raise MisbehaviourError(f"reset(seed={seed}) raised {said(error)}") from error
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], dict):
        raise MisbehaviourError(f"reset gave {_shape_of(given)}, expected (observation, info)")
    return flat(env.observation_space, given[0])


def steps(env: gym.Env[Any, Any], seed: int | None, rng: np.random.Generator) -> Iterator[Step]:
    """Endless steps of random actions, over episodes; the first one is reset with ``seed``.

    Raises:
        MisbehaviourError: a step raised, or gave something else.
    """
    obs = reset(env, seed)
    while True:
        action = random_action(env.action_space, rng)
        step = take(env, obs, action)
        yield step
        obs = reset(env) if step.ended else step.next_obs


def take(env: gym.Env[Any, Any], obs: Array, action: Any) -> Step:
    """One step. Raises MisbehaviourError."""
    try:
        given: Any = env.step(action.copy() if isinstance(action, np.ndarray) else action)
    except Exception as error:  # whatever an environment may raise
        raise MisbehaviourError(f"step raised {said(error)}") from error
    if not isinstance(given, tuple) or len(given) != 5 or not isinstance(given[4], dict):
        raise MisbehaviourError(f"step gave {_shape_of(given)}, expected (obs, reward, terminated, truncated, info)")
    after, reward, terminated, truncated, info = given
    if np.ndim(reward) != 0 or isinstance(reward, str | bytes) or not numeric(reward):
        raise MisbehaviourError(f"gave the reward {reward!r:.60}, expected one number")
    if not np.isfinite(float(reward)):
        raise MisbehaviourError(f"gave the reward {float(reward)}")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            raise MisbehaviourError(f"gave {name} = {flag!r:.60}, expected True or False")
    next_obs = flat(env.observation_space, after).copy()
    return Step(obs, action, next_obs, float(reward), bool(terminated), bool(truncated), info)


def numeric(value: Any) -> bool:
    """Whether an entry of an info can be recorded: one number or truth value."""
    return isinstance(value, numbers.Real | np.bool_) or (isinstance(value, np.ndarray) and not value.shape)


def transitions(played: Iterable[Step]) -> Transitions:
    """Stacks steps, with the infos that are one number in each of them."""
    rows = list(played)
    keys = [key for key, value in rows[0].info.items() if numeric(value)]
    infos = {
        key: np.array([float(row.info[key]) for row in rows])
        for key in keys
        if all(numeric(row.info.get(key)) for row in rows)
    }
    obs, actions, next_obs = (np.stack([getattr(r, name) for r in rows]) for name in ("obs", "action", "next_obs"))
    return Transitions(obs, actions, next_obs, infos)


def call(function: StepFunction, batch: Transitions) -> tuple[Array | None, str | None]:
    """Values ``[B]`` of a step function in float64, or what is wrong with them."""
    arguments = batch.of(function)
    try:
        given = np.asarray(function(*arguments))
    except Exception as error:  # whatever their code may raise
        return None, f"raised {said(error)}"
    if given.shape != (len(batch),):
        return None, f"gave shape {given.shape} for {len(batch)} steps, expected ({len(batch)},)"
    if given.dtype.kind not in "fiub":
        return None, f"gave values of type {given.dtype}, expected numbers"
    return given.astype(np.float64), None


def said(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _shape_of(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
