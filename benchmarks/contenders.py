"""One contender of the speed benchmark in a process of its own: trains, times every iteration, prints one JSON line.

Everybody does the same work: 8 environments × 256 steps an iteration, minibatches of 64, 10 epochs, separate actor and
critic of two 64-wide tanh layers, observations and rewards normalised by running moments, on one core.

    python benchmarks/contenders.py spg --env HalfCheetah-v5 --iterations 30
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

ENVS, STEPS, MINIBATCH, EPOCHS, WIDTH = 8, 256, 64, 10, 64
BATCH = ENVS * STEPS
GAMMA, LAMBDA, CLIP, RATE, GRADIENT_NORM = 0.99, 0.95, 0.2, 3e-4, 0.5
ENTRY = time.perf_counter()

Split = dict[str, float]
Contender = Callable[[str, int, int], Iterator[tuple[float, Split]]]
"""(env, seed, env steps in all) → seconds of each iteration, and where they went."""


def _start_ray() -> None:
    import logging

    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)


def _kwargs(env: str) -> dict[str, Any]:
    return {"include_cfrc_ext_in_observation": False} if env == "Ant-v5" else {}


def _rllib_iterations(config: Any) -> Iterator[tuple[float, Split]]:
    algo = config.build_algo()
    synced = (algo, "_sync_weights") if hasattr(algo, "_sync_weights") else (algo.env_runner_group, "sync_weights")
    split: Split = {}
    _timed(algo.env_runner.env, "step", split, "stepping")
    _timed(algo.env_runner, "sample", split, "sampling")
    _timed(algo.learner_group, "update", split, "update")
    _timed(*synced, split, "sync")
    while True:
        split.clear()
        start = time.perf_counter()
        result = algo.train()
        seconds = time.perf_counter() - start
        yield seconds, split | {"return": float(result["env_runners"].get("episode_return_mean", float("nan")))}


def _timed(owner: Any, method: str, split: Split, part: str) -> None:
    """Adds the seconds that a method takes to a part of the split."""
    inner = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        split[part] = split.get(part, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, method, outer)


def _rllib_settings(total: int) -> dict[str, Any]:
    """What RLlib's PPO and ours share of ``training()``'s arguments."""
    return {
        "lr": [[0, RATE], [total, 0.0]],
        "gamma": GAMMA,
        "lambda_": LAMBDA,
        "clip_param": CLIP,
        "grad_clip": GRADIENT_NORM,
        "num_epochs": EPOCHS,
        "minibatch_size": MINIBATCH,
        "train_batch_size_per_learner": BATCH,
    }


def _ours(config: Any, env: str, seed: int, total: int) -> Any:
    from rpg_algorithms import NetworkConfig

    return (
        config.environment(env, env_config=_kwargs(env))
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS)
        .training(**_rllib_settings(total))
        .rl_module(model_config=NetworkConfig(hidden=(WIDTH, WIDTH), activation="tanh", log_std_init=0.0))
        .debugging(seed=seed)
    )


def spg(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """Soft policy gradient of this project."""
    from rpg_algorithms import SPGConfig

    _start_ray()
    return _rllib_iterations(_ours(SPGConfig().training(alpha=0.01), env, seed, total))


def addon(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    """An add-on reward of the cost that real ones have."""
    import numpy as np

    return -np.abs(next_obs[:, 1])


def rpg(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """Residual policy gradient of this project, with a prior and an add-on reward."""
    return _customised(env, seed, total, 0.01, 0.01)


def conditioned(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """The same, for ranges of both weights."""
    from rpg_algorithms import Conditioned

    return _customised(env, seed, total, Conditioned(0.005, 0.02), Conditioned(0.005, 0.02))


def _customised(env: str, seed: int, total: int, omega_prime: Any, alpha_hat: Any) -> Iterator[tuple[float, Split]]:
    import tempfile

    import gymnasium as gym

    from rpg_algorithms import NetworkConfig, PolicyNetwork, PriorCard, RPGConfig, save_bundle
    from rpg_algorithms.policies.network import spec_for_spaces

    _start_ray()
    made = gym.make(env, **_kwargs(env))
    spec = spec_for_spaces(
        made.observation_space, made.action_space, hidden=(WIDTH, WIDTH), activation="tanh", log_std_init=-0.5
    )
    with tempfile.TemporaryDirectory() as folder:
        card = PriorCard.describe("benchmark", env, made.observation_space, made.action_space, spec)
        save_bundle(folder, PolicyNetwork(spec), card)
        config = RPGConfig().training(
            prior=folder,
            omega_prime=omega_prime,
            alpha_hat=alpha_hat,
            addon_reward=addon,
            critic_warmup_iterations=0,
        )
    config = _ours(config, env, seed, total)
    config._model_config = NetworkConfig(critic_hidden=(WIDTH, WIDTH)).__dict__
    return _rllib_iterations(config)


def rllib_ppo(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """Stock RLlib PPO, new API stack."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    _start_ray()
    config = (
        PPOConfig()
        .environment(env, env_config=_kwargs(env))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=ENVS,
            rollout_fragment_length=STEPS,
            env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
        )
        .training(
            **_rllib_settings(total),
            use_kl_loss=False,
            vf_loss_coeff=0.5,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[WIDTH, WIDTH], fcnet_activation="tanh"))
        .debugging(seed=seed)
    )
    return _rllib_iterations(config)


def _sb3_like(algorithm: Any, env: str, seed: int, total: int, policy_kwargs: dict[str, Any]) -> Any:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    marks: list[tuple[float, float]] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            window: Any = self.model.ep_info_buffer or []
            mean = sum(e["r"] for e in window) / len(window) if window else float("nan")
            marks.append((time.perf_counter(), mean))

        def _on_step(self) -> bool:
            return True

    envs = VecNormalize(make_vec_env(env, n_envs=ENVS, seed=seed, env_kwargs=_kwargs(env)), gamma=GAMMA)
    model = algorithm(
        "MlpPolicy",
        envs,
        n_steps=STEPS,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        learning_rate=lambda left: RATE * left,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        max_grad_norm=GRADIENT_NORM,
        ent_coef=0.0,
        seed=seed,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )
    model.learn(total, callback=Clock())
    marks.append((time.perf_counter(), marks[-1][1]))
    return iter([(b[0] - a[0], {"return": b[1]}) for a, b in itertools.pairwise(marks)])


def sb3_ppo(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """Stable-Baselines3 PPO with VecNormalize."""
    import torch
    from stable_baselines3 import PPO

    arch = {"pi": [WIDTH, WIDTH], "vf": [WIDTH, WIDTH]}
    iterations: Iterator[tuple[float, Split]] = _sb3_like(
        PPO, env, seed, total, {"net_arch": arch, "activation_fn": torch.nn.Tanh}
    )
    return iterations


def sbx_ppo(env: str, seed: int, total: int) -> Iterator[tuple[float, Split]]:
    """SBX PPO: Stable-Baselines3's interface, jitted JAX beneath."""
    from flax import linen
    from sbx import PPO

    arch = {"pi": [WIDTH, WIDTH], "vf": [WIDTH, WIDTH]}
    iterations: Iterator[tuple[float, Split]] = _sb3_like(
        PPO, env, seed, total, {"net_arch": arch, "activation_fn": linen.tanh}
    )
    return iterations


CONTENDERS: dict[str, Contender] = {f.__name__: f for f in (spg, rpg, conditioned, rllib_ppo, sb3_ppo, sbx_ppo)}


def main() -> None:
    """Runs one contender and prints its measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = arguments.iterations * BATCH
    rows: list[tuple[float, Split]] = []
    first = None
    for row in CONTENDERS[arguments.contender](arguments.env, arguments.seed, total):
        first = first or time.perf_counter() - ENTRY
        rows.append(row)
        if len(rows) == arguments.iterations:
            break
    line = {
        "contender": arguments.contender,
        "env": arguments.env,
        "seed": arguments.seed,
        "seconds": [seconds for seconds, _ in rows],
        "splits": [split for _, split in rows],
        "returns": [split.get("return") for _, split in rows],
        "first_iteration_s": first if arguments.contender not in ("sb3_ppo", "sbx_ppo") else None,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(line), flush=True)
    os._exit(0)  # a shutdown is not measured


if __name__ == "__main__":
    main()
