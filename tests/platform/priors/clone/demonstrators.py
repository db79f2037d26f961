"""Demonstrators for the tests of cloning, and the demonstrations that they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.bundles import SHIPPED
from rpg_platform.tasks.environments import quiet_mujoco

Array = NDArray[Any]
Demonstrator = Callable[[Array], Array]


def swing_up(noise: float, seed: int = 0) -> Demonstrator:
    """Pendulum-v1's energy controller: pump until the pendulum can reach the top, then hold it; with noise."""
    rng = np.random.default_rng(seed)

    def act(obs: Array) -> Array:
        cos, sin, speed = obs.T
        energy = 0.5 * speed**2 + 15.0 * cos  # 15 at rest at the top
        pump = np.where(np.abs(speed) < 0.05, 1.0, np.sign(speed)) * (15.0 - energy) * 0.4
        torque = np.where(cos > 0.85, -8.0 * np.arctan2(sin, cos) - 2.0 * speed, pump)
        return np.clip(torque + noise * rng.standard_normal(len(obs)), -2.0, 2.0)[:, None].astype(np.float32)

    return act


def balance(obs: Array) -> Array:
    """CartPole-v1: push to the side that the pole falls to."""
    return (obs[:, 2] + 0.4 * obs[:, 3] + 0.1 * obs[:, 1] > 0).astype(np.int64)


def shipped(seed: int = 0) -> Demonstrator:
    """The shipped HalfCheetah prior, sampled as an environment receives it."""
    policy, rng = NumpyPolicy(load_bundle(SHIPPED["halfcheetah-spg"]).build()), np.random.default_rng(seed)

    def act(obs: Array) -> Array:
        return policy.to_env(policy.sample(policy.outputs(obs), policy.noise(rng, (len(obs),))))

    return act


def play(env_id: str, act: Demonstrator, episodes: int, steps: int, seed: int = 0) -> dict[str, Array]:
    """Arrays of an ``.npz`` file of the first ``steps`` steps of episodes that last at least as long."""
    quiet_mujoco()
    envs = gym.make_vec(env_id, episodes, vectorization_mode="sync")
    obs, _ = envs.reset(seed=seed)
    rows: list[tuple[Array, Array, Array]] = []
    for step in range(steps):
        seen = obs.astype(np.float32)
        action = act(seen)
        obs, reward, terminated, truncated, _ = envs.step(action)
        rows.append((seen, action, reward))
        if step < steps - 1:
            assert not (terminated | truncated).any()
    envs.close()
    observations, actions, rewards = (np.stack(column, 1) for column in zip(*rows, strict=True))
    return {
        "observations": observations.reshape(episodes * steps, -1),
        "actions": actions.reshape(episodes * steps, *actions.shape[2:]),
        "rewards": rewards.reshape(-1),
        "episode_ids": np.repeat(np.arange(episodes), steps),
    }


def save(path: Path, arrays: dict[str, Array], **changes: Any) -> Path:
    """Writes an ``.npz`` file; a change to None leaves an array out."""
    kept = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez_compressed(path, **kept)
    return path


def record(root: Path, data_set: str, env: gym.Env[Any, Any], act: Demonstrator, episodes: int, **options: Any) -> Path:
    """A Minari data set of whole episodes; the folder of it, below ``root``.

    Minari's own ``DataCollector`` does the same with the help of JAX.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        observations, steps = [observation], []
        while not steps or not (steps[-1][2] or steps[-1][3]):
            action = act(np.asarray(observations[-1], np.float32)[None])[0]
            observation, *outcome, _ = env.step(action)
            observations.append(observation)
            steps.append((action, *outcome))
        actions, rewards, terminations, truncations = (list(column) for column in zip(*steps, strict=True))
        # Lists, as the collector keeps them.
        buffers.append(EpisodeBuffer(None, seed, None, observations, actions, rewards, terminations, truncations))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(data_set, buffers, env=env, **options)
    return root / data_set
