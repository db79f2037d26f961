"""Real Stable-Baselines3 models, trained for a moment, with everything that changes what a policy computes."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from numpy.typing import NDArray
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

SPREAD, CENTRE = np.array([1.0, 5.0, 0.2, 1e-3, 1.0]), np.array([0.0, 3.0, 0.0, 1_000.0, -20.0])


class Drift(gym.Env[NDArray[np.float32], Any]):
    """Five numbers that actions push about, two actions with odd bounds.

    Unless they are plain, the numbers are far from normalised; one is large and nearly constant.
    """

    def __init__(self, discrete: bool = False, one_hot: bool = False, plain: bool = False) -> None:
        self.one_hot, self.plain = one_hot, plain
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(SPREAD),))
        if one_hot:
            self.observation_space = gym.spaces.Discrete(6)  # type: ignore[assignment]
        low, high = np.array([-1.0, 0.5], np.float32), np.array([3.0, 2.0], np.float32)
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(low, high)

    def action_masks(self) -> NDArray[np.bool_]:
        """What MaskablePPO asks for; the first action is forbidden now and then."""
        return np.array([self.time % 3 > 0, True, True])

    def observe(self) -> Any:
        if self.one_hot:
            return int(abs(self.state[0]) * 7) % 6
        return (self.state if self.plain else CENTRE + SPREAD * self.state).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.state = 0, self.np_random.standard_normal(len(SPREAD))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.state = 0.9 * self.state + 0.3 * self.np_random.standard_normal(len(SPREAD)) + 0.1 * np.sum(action)
        return self.observe(), float(-np.square(self.state).sum()), False, self.time >= 25, {}


@dataclass(frozen=True)
class Recipe:
    """A model to train: class, settings, environment, how observations are normalised (None: not), and its family.

    ``std`` is what the import is told, ``own_std`` what a deterministic policy's action noise has.
    """

    algorithm: type[Any]
    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    normalize: Mapping[str, Any] | None = None
    std: float | None = None
    own_std: tuple[float, ...] | None = None
    policy: str = "MlpPolicy"


@dataclass(frozen=True)
class Trained:
    """A trained model, the file that it was saved to, and its normaliser."""

    recipe: Recipe
    model: Any
    path: Path
    normalize: Callable[[NDArray[Any]], NDArray[Any]]


ON_POLICY = {"n_steps": 64}
OFF_POLICY = {"learning_starts": 20, "batch_size": 16}
SMALL = {"net_arch": [32, 16]}
RECIPES: dict[str, Recipe] = {
    "ppo": Recipe(sb3.PPO, "gaussian", ON_POLICY, normalize={"clip_obs": 2.0, "epsilon": 1e-6}),
    "ppo of discrete actions": Recipe(
        sb3.PPO,
        "categorical",
        ON_POLICY | {"policy_kwargs": SMALL | {"activation_fn": nn.ReLU}},
        {"discrete": True, "plain": True},
    ),
    "ppo of discrete observations": Recipe(sb3.PPO, "gaussian", ON_POLICY, {"one_hot": True}),
    "ppo without hidden layers": Recipe(
        sb3.PPO, "gaussian", ON_POLICY | {"policy_kwargs": {"net_arch": []}}, {"plain": True}
    ),
    "ppo, gSDE": Recipe(sb3.PPO, "gaussian", ON_POLICY | {"use_sde": True}, normalize={}),
    "ppo, squashed gSDE": Recipe(
        sb3.PPO,
        "squashed_gaussian",
        ON_POLICY
        | {
            "use_sde": True,
            "policy_kwargs": {"squash_output": True, "full_std": False, "use_expln": True, "log_std_init": 0.3},
        },
        normalize={},
    ),
    "a2c": Recipe(
        sb3.A2C,
        "gaussian",
        {"policy_kwargs": {"net_arch": {"pi": [8, 16], "vf": [4]}, "activation_fn": nn.ELU, "log_std_init": -1.0}},
        normalize={"norm_reward": False},
    ),
    "a2c of an activation that needs a graph": Recipe(
        sb3.A2C, "gaussian", {"policy_kwargs": SMALL | {"activation_fn": nn.GELU, "ortho_init": False}}, normalize={}
    ),
    "sac": Recipe(sb3.SAC, "squashed_gaussian", OFF_POLICY | {"policy_kwargs": SMALL}, normalize={}),
    "sac of a fixed temperature": Recipe(
        sb3.SAC,
        "squashed_gaussian",
        OFF_POLICY | {"ent_coef": 0.2, "policy_kwargs": SMALL | {"activation_fn": nn.Tanh}},
        {"plain": True},
        normalize={"norm_obs": False},
    ),
    "sac, gSDE": Recipe(
        sb3.SAC,
        "squashed_gaussian",
        OFF_POLICY | {"use_sde": True, "policy_kwargs": SMALL | {"clip_mean": 0.1, "log_std_init": -0.5}},
        normalize={},
    ),
    "td3": Recipe(sb3.TD3, "squashed_gaussian", OFF_POLICY | {"policy_kwargs": SMALL}, normalize={}, std=0.2),
    "td3 of action noise": Recipe(
        sb3.TD3,
        "squashed_gaussian",
        OFF_POLICY | {"policy_kwargs": SMALL, "action_noise": NormalActionNoise(np.zeros(2), np.array([0.1, 0.3]))},
        {"plain": True},
        own_std=(0.1, 0.3),
    ),
    "ddpg": Recipe(sb3.DDPG, "squashed_gaussian", OFF_POLICY | {"policy_kwargs": SMALL}, normalize={}, std=0.1),
    "tqc": Recipe(sb3_contrib.TQC, "squashed_gaussian", OFF_POLICY | {"policy_kwargs": SMALL}, normalize={}),
    "tqc, gSDE": Recipe(
        sb3_contrib.TQC, "squashed_gaussian", OFF_POLICY | {"use_sde": True, "policy_kwargs": SMALL}, normalize={}
    ),
    "crossq": Recipe(
        sb3_contrib.CrossQ,
        "squashed_gaussian",
        OFF_POLICY | {"policy_kwargs": SMALL | {"batch_norm_momentum": 0.3, "batch_norm_eps": 0.2}},
    ),
    "crossq of normalised observations": Recipe(
        sb3_contrib.CrossQ, "squashed_gaussian", OFF_POLICY | {"policy_kwargs": SMALL, "ent_coef": 0.2}, normalize={}
    ),
    "crossq, gSDE": Recipe(
        sb3_contrib.CrossQ,
        "squashed_gaussian",
        OFF_POLICY | {"use_sde": True, "policy_kwargs": SMALL | {"log_std_init": -1.0}},
        normalize={},
    ),
    "maskable ppo": Recipe(
        sb3_contrib.MaskablePPO,
        "categorical",
        ON_POLICY | {"policy_kwargs": SMALL | {"ortho_init": False}},
        {"discrete": True, "plain": True},
    ),
    "ars": Recipe(sb3_contrib.ARS, "squashed_gaussian", {"n_delta": 2, "policy_kwargs": SMALL}, normalize={}, std=0.1),
    "linear ars": Recipe(
        sb3_contrib.ARS, "gaussian", {"n_delta": 2, "delta_std": 0.5}, normalize={}, std=0.1, policy="LinearPolicy"
    ),
}


@functools.cache
def trained(name: str) -> Trained:
    """A model of ``RECIPES``, trained once in this process."""
    if not _FOLDER:
        _FOLDER.append(tempfile.TemporaryDirectory())  # goes when the process does
    return train(RECIPES[name], Path(_FOLDER[0].name) / name.replace(" ", "-"))


_FOLDER: list[tempfile.TemporaryDirectory[str]] = []


def observations(case: Trained, n: int = 1_000) -> NDArray[Any]:
    """Observations as its environment gives them."""
    space, rng = case.model.observation_space, np.random.default_rng(1)
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=n)
    plain = 1.5 * rng.standard_normal((n, len(SPREAD)))
    return (plain if case.recipe.env.get("plain") else CENTRE + SPREAD * plain).astype(np.float32)


def train(recipe: Recipe, folder: Path, steps: int = 128) -> Trained:
    """Trains a model and saves it with ``model.save`` and ``VecNormalize.save``."""
    folder.mkdir(parents=True)
    envs: Any = DummyVecEnv([lambda: Drift(**recipe.env)])
    normalize: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
    if recipe.normalize is not None:
        envs = VecNormalize(envs, **recipe.normalize)
        normalize = envs.normalize_obs
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would only wait for each other
    try:
        model = recipe.algorithm(recipe.policy, envs, seed=0, device="cpu", **copy.deepcopy(dict(recipe.settings)))
        model.learn(steps)
    finally:
        torch.set_num_threads(threads)
    model.save(folder / "model.zip")
    if recipe.normalize is not None:
        envs.save(str(folder / "vecnormalize.pkl"))
    return Trained(recipe, model, folder / "model.zip", normalize)
