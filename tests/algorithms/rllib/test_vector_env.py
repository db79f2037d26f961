"""The two engines behind one interface: envpool and gymnasium agree where both have the environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext

from rpg_algorithms import NetworkConfig, SPGConfig
from rpg_algorithms.rllib.vector_env import EnvPool, make_vector_env, open_vector_env

ENVS = {"HalfCheetah-v5": 1, "Hopper-v5": 1, "Swimmer-v5": 2, "Walker2d-v5": 1}
"""MuJoCo environment → how many leading positions its observation leaves out."""


def set_state(env: Any, obs: np.ndarray, left_out: int) -> None:
    """Puts a MuJoCo environment of gymnasium into the state that an observation shows."""
    nq = env.unwrapped.model.nq
    qpos = np.concatenate((np.zeros(left_out), obs[: nq - left_out]))
    env.unwrapped.set_state(qpos, obs[nq - left_out :])


@pytest.mark.parametrize("env_id", ENVS)
def test_same_rewards_terminations_and_addon_from_the_same_states_and_actions(env_id: str) -> None:
    left_out = ENVS[env_id]
    pool = EnvPool(env_id, num_envs=3, threads=1, infos=frozenset(), seed=5)
    envs = [gym.make(env_id) for _ in range(3)]
    for env in envs:
        env.reset(seed=0)
    rng = np.random.default_rng(0)
    obs, _ = pool.reset()
    ended = 0
    for _ in range(60):
        for env, row in zip(envs, obs, strict=True):
            set_state(env, row, left_out)
        actions = rng.uniform(-1, 1, (3, pool.single_action_space.shape[0])).astype(np.float32)
        stepped, reward, terminated, _, infos = pool.step(actions)
        after = np.array(stepped)
        for n in np.flatnonzero(terminated):
            after[n] = infos["final_obs"][n]
        ended += int(terminated.sum())
        for n, env in enumerate(envs):
            expected_obs, expected_reward, expected_terminated, _, _ = env.step(actions[n])
            # Velocities are clipped at 10 in Hopper's and Walker's observations, so a state cannot be set beyond.
            if np.abs(obs[n]).max() < 10:
                np.testing.assert_allclose(after[n], expected_obs, atol=2e-5)
                assert reward[n] == pytest.approx(float(expected_reward), abs=1e-4)
                assert terminated[n] == expected_terminated
                addon, expected_addon = -np.abs(after[n][1]), -np.abs(expected_obs[1])
                assert addon == pytest.approx(expected_addon, abs=2e-5)
            env.unwrapped.data.time = 0.0
            env.reset(seed=0)
        obs = np.array(stepped)
    assert ended or env_id in ("HalfCheetah-v5", "Swimmer-v5")  # which never end by themselves
    pool.close()


def test_an_ended_environment_is_reset_in_the_same_step() -> None:
    pool = EnvPool("Hopper-v5", num_envs=4, threads=1, infos=frozenset(("x_position",)), seed=1)
    pool.reset(seed=1)
    rng = np.random.default_rng(1)
    for _ in range(200):
        obs, _, terminated, truncated, infos = pool.step(rng.uniform(-1, 1, (4, 3)))
        done = terminated | truncated
        if done.any():
            assert np.abs(obs[done] - infos["final_obs"][done]).max() > 0.01
            assert (obs[done][:, 0] > 1.2).all()  # standing again
            assert set(infos) == {"x_position", "final_obs", "final_info"}
            pool.close()
            return
    pytest.fail("no episode ended")


def test_reset_with_a_seed_repeats() -> None:
    pool = EnvPool("HalfCheetah-v5", num_envs=2, threads=1, infos=frozenset(), seed=None)
    first, _ = pool.reset(seed=3)
    first = first.copy()
    pool.step(np.ones((2, 6)))
    again, _ = pool.reset(seed=3)
    np.testing.assert_array_equal(again, first)
    other, _ = pool.reset(seed=4)
    assert np.abs(other - first).max() > 1e-3
    pool.close()


def config(backend: str, env: Any = "Hopper-v5", **env_config: Any) -> SPGConfig:
    return (
        SPGConfig()
        .environment(env, env_config=env_config, env_backend=backend)
        .env_runners(num_envs_per_env_runner=4)
        .training(train_batch_size_per_learner=400, minibatch_size=100, num_epochs=2)
        .rl_module(model_config=NetworkConfig(hidden=(8,)))
        .debugging(seed=0, log_level="ERROR")
    )


@pytest.mark.usefixtures("local_ray")
def test_trains_on_envpool() -> None:
    algo = config("envpool").build_algo()
    assert isinstance(algo.env_runner.env, EnvPool)
    for _ in range(2):
        result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 800
    assert 5 < result["env_runners"]["episode_len_mean"] < 200
    assert result["env_runners"]["episode_return_mean"] > 0
    algo.stop()


def test_auto_takes_envpool_only_where_it_pays_and_can() -> None:
    def opened(setting: SPGConfig) -> Any:
        context = EnvContext(setting.env_config, worker_index=0)
        env = open_vector_env(setting, context, frozenset(), 0)
        env.close()
        return env

    several = config("auto").env_runners(num_cpus_per_env_runner=2)
    assert isinstance(opened(several), EnvPool)
    assert not isinstance(opened(config("auto")), EnvPool)
    with_arguments = config("auto", reset_noise_scale=0.1).env_runners(num_cpus_per_env_runner=2)
    assert not isinstance(opened(with_arguments), EnvPool)
    assert not isinstance(opened(config("gymnasium").env_runners(num_cpus_per_env_runner=2)), EnvPool)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (config("envpool", "NoSuchEnv-v0"), "envpool has no environment 'NoSuchEnv-v0'"),
        (config("envpool", reset_noise_scale=0.1), r"does not take the keyword arguments \['reset_noise_scale'\]"),
        (config("envpool", gym.Env), "needs an environment given by its gymnasium id"),
    ],
)
def test_envpool_that_cannot_be_used_says_why(setting: SPGConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_vector_env(setting, EnvContext(setting.env_config, worker_index=0), frozenset(), 0)


def test_infos_that_envpool_lacks_are_named() -> None:
    with pytest.raises(ValueError, match=r"HalfCheetah-v5 gives no infos \['reward_forward'\]"):
        EnvPool("HalfCheetah-v5", 1, 1, frozenset(("reward_forward",)), 0)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 'sync' or 'async'"):
        make_vector_env(lambda: gym.make("CartPole-v1"), 1, "vectorised", frozenset())


@pytest.mark.parametrize("env_id", ["Hopper-v5", "CartPole-v1", "Pendulum-v1"])
def test_steps_and_time_limits_are_those_of_gymnasium(env_id: str) -> None:
    """Terminations and truncations, episode after episode, with a reset of all in the middle."""
    limits = {"max_episode_steps": 17}
    ours = make_vector_env(lambda: gym.make(env_id, **limits), 3, "sync", frozenset())
    stock = gym.vector.SyncVectorEnv(
        [lambda: gym.make(env_id, **limits)] * 3, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    ours.action_space.seed(0)
    ended = 0
    for _ in range(2):
        for envs in (ours, stock):
            envs.reset(seed=[1, 2, 3])
        for _ in range(60):
            actions = ours.action_space.sample()
            mine, theirs = ours.step(actions), stock.step(actions)
            for a, b in zip(mine[:4], theirs[:4], strict=True):
                np.testing.assert_array_equal(a, b)
            for n in np.flatnonzero(mine[2] | mine[3]):
                np.testing.assert_array_equal(mine[4]["final_obs"][n], theirs[4]["final_obs"][n])
            ended += int(mine[3].sum())
    assert ended >= 6
    ours.close(), stock.close()
