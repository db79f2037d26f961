"""Real RLlib algorithms, tiny, saved as checkpoints, with what RLlib itself computes of their actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.connectors.env_to_module.flatten_observations import FlattenObservations
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.connectors.module_to_env.normalize_and_clip_actions import NormalizeAndClipActions
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

Array = NDArray[Any]
STATES = 1_000
OWN_ENV = "tests.platform.priors.rllib_policies:UnevenEnv"


class UnevenEnv(gym.Env[Array, Array]):
    """Two action dimensions with bounds of different widths, neither symmetric."""

    observation_space = gym.spaces.Box(-5.0, 5.0, (3,), np.float32)
    action_space = gym.spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([1.0, 9.0], np.float32))

    def __init__(self, context: Any = None) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Array:
        drawn: Array = self.np_random.normal([1.0, -2.0, 0.0], [0.5, 1.0, 2.0])
        return np.clip(drawn, -5.0, 5.0).astype(np.float32)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        self.steps += 1
        return self.observe(), float(action.sum()), False, self.steps >= 20, {}


@dataclass(frozen=True)
class Reference:
    """What RLlib itself says.

    Attributes:
        folder: the checkpoint.
        observations: ``[1000, D]`` as the environment gives them.
        actions: ``[1000, ...]`` sampled by RLlib's module, before they are mapped for the environment; SAC's before
            tanh.
        log_prob: ``[1000]`` of those, nats.
        deterministic: ``[1000, ...]`` the mean or the most probable action, as above (of SAC before tanh).
        env_actions: ``[1000, ...]`` what RLlib's connector makes of ``actions``.
        alpha: SAC's entropy temperature.
    """

    folder: Path
    observations: Array
    actions: Array
    log_prob: Array
    deterministic: Array
    env_actions: Array
    alpha: float | None = None


def _ppo(env: Any, *connectors: Any, **model: Any) -> AlgorithmConfig:
    config = PPOConfig().environment(env).rl_module(model_config=DefaultModelConfig(**model))

    def pieces(env: Any, spaces: Any = None, device: Any = None) -> list[Any]:
        return [make() for make in connectors]

    config.env_runners(num_env_runners=0, env_to_module_connector=pieces if connectors else None)
    return config.training(train_batch_size_per_learner=64, minibatch_size=64, num_epochs=1)


def _sac(env: Any, **model: Any) -> AlgorithmConfig:
    config = SACConfig().environment(env).env_runners(num_env_runners=0)
    config.rl_module(model_config=DefaultModelConfig(fusionnet_hiddens=[8], **model))
    return config.training(
        train_batch_size_per_learner=16,
        num_steps_sampled_before_learning_starts=16,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 200},
    ).reporting(min_sample_timesteps_per_iteration=20)


def configurations() -> dict[str, AlgorithmConfig]:
    """Name → configuration: each way in which RLlib's own modules differ."""
    return {
        "filter": _ppo("Pendulum-v1", MeanStdFilter, fcnet_hiddens=[16, 8]),
        "shared": _ppo(UnevenEnv, FlattenObservations, MeanStdFilter, fcnet_hiddens=[8], vf_share_layers=True),
        "free": _ppo(
            UnevenEnv, fcnet_hiddens=[8], head_fcnet_hiddens=[8], head_fcnet_activation="tanh", free_log_std=True
        ),
        "clamped": _ppo(UnevenEnv, fcnet_hiddens=[8], log_std_clip_param=0.1),
        "norms": _ppo(
            "Pendulum-v1",
            fcnet_hiddens=[8, 8],
            fcnet_activation="swish",
            fcnet_use_layernorm=True,
            head_fcnet_hiddens=[8],
        ),
        "discrete": _ppo("CartPole-v1", fcnet_hiddens=[8]),
        "one-hot": _ppo("FrozenLake-v1", FlattenObservations, fcnet_hiddens=[8]),
        "sac": _sac(UnevenEnv, fcnet_hiddens=[8, 8], fcnet_activation="relu"),
        "sac-discrete": _sac("CartPole-v1", fcnet_hiddens=[8]),
    }


def make(name: str, config: AlgorithmConfig, folder: Path) -> Reference:
    """Builds the algorithm, trains an iteration, perturbs its weights and saves it; its own answers come with it."""
    algorithm = config.debugging(seed=0, log_level="ERROR").build_algo()
    try:
        algorithm.train()
        rng = np.random.default_rng(7)
        _perturb(algorithm, rng, 1.5 if name == "sac" else 0.4)
        algorithm.save_to_path(str(folder / name))
        return _answers(algorithm, folder / name, rng)
    finally:
        algorithm.stop()


def _perturb(algorithm: Algorithm, rng: np.random.Generator, scale: float) -> None:
    """Fresh policies hardly differ from state to state: larger weights make clamps and bounds matter."""
    state = algorithm.learner_group.get_weights()["default_policy"]
    for key, value in state.items():
        if not key.endswith("const"):
            state[key] = (value + rng.normal(0.0, scale, value.shape)).astype(np.float32)
    algorithm.learner_group.set_weights({"default_policy": state})


def _answers(algorithm: Algorithm, folder: Path, rng: np.random.Generator) -> Reference:
    runner = algorithm.env_runner
    space = runner.env.single_observation_space
    if isinstance(space, gym.spaces.Discrete):
        raw = rng.integers(space.n, size=STATES)
        seen = np.eye(space.n, dtype=np.float32)[raw]
    else:
        raw = rng.normal(0.0, 1.5, (STATES, *space.shape)).astype(np.float32)
        seen = raw
    for piece in runner._env_to_module.connectors:
        if isinstance(piece, MeanStdFilter):
            seen = np.stack([piece._filters[None](each, update=False) for each in raw])
    module = algorithm.learner_group._learner.module["default_policy"]
    torch.manual_seed(0)
    with torch.no_grad():
        inputs = module.forward_inference({"obs": torch.from_numpy(seen)})["action_dist_inputs"]
        distribution = module.get_inference_action_dist_cls().from_logits(inputs)
        actions = distribution.sample()
        log_prob = distribution.logp(actions)
        deterministic = distribution.to_deterministic().sample()
    mapping = next(each for each in runner._module_to_env.connectors if isinstance(each, NormalizeAndClipActions))
    batch = {"actions": list(actions.numpy())}
    env_actions = np.stack(mapping(rl_module=module, batch=batch, episodes=[])["actions_for_env"])
    if isinstance(distribution, TorchSquashedGaussian):
        actions = distribution._unsquash(actions)
    alphas = getattr(algorithm.learner_group._learner, "curr_log_alpha", {})
    alpha = float(np.exp(alphas["default_policy"].item())) if alphas else None
    return Reference(folder, raw, actions.numpy(), log_prob.numpy(), deterministic.numpy(), env_actions, alpha)
