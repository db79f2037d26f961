"""The env runner in real environments: every row is a transition that happened, and every failure is seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.tune.registry import register_env
from tests.algorithms.environments import WalkEnv
from tests.algorithms.registry import built
from tests.algorithms.stepping import join

from rpg_algorithms import NetworkConfig, NonFiniteError, Rollout, SPGConfig
from rpg_algorithms.rllib.env_runner import env_seeds

pytestmark = pytest.mark.usefixtures("local_ray")
N, T = 3, 40


class Addon:
    """Reads everything that an add-on may: both observations, the action, and an info where there is one."""

    def __init__(self, *info_keys: str) -> None:
        self.info_keys = info_keys

    def __call__(self, obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
        assert set(infos) == set(self.info_keys)
        result = obs[:, 0] - 2.0 * next_obs[:, 1] + 0.5 * actions.reshape(len(obs), -1)[:, 0]
        for key in self.info_keys:
            result = result + 10.0 * infos[key]
        return result


def height(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, 0]


ENVIRONMENTS: dict[str, tuple[str, dict[str, Any], Addon, bool]] = {
    # Short episodes, so that both kinds of end occur; float64 observations and infos...
    "cheetah": ("HalfCheetah-v5", {"max_episode_steps": 15}, Addon("x_velocity"), False),
    # ... and float32 ones, which gymnasium's vector environment overwrites in place.
    "cartpole": ("CartPole-v1", {"max_episode_steps": 14}, Addon(), True),
    "pendulum": ("Pendulum-v1", {"max_episode_steps": 17}, Addon(), False),
}


def configure(env: Any, env_config: dict[str, Any], **training: Any) -> SPGConfig:
    settings = {
        "train_batch_size_per_learner": N * T,
        "minibatch_size": 60,
        "num_epochs": 1,
        "lr": 1e-3,
        "alpha": 0.01,
    }
    return (
        SPGConfig()
        .environment(env, env_config=env_config)
        .env_runners(num_envs_per_env_runner=N)
        .rl_module(model_config=NetworkConfig(hidden=(8,), log_std_init=0.0))
        .training(**(settings | training))
        .debugging(seed=5)
    )


def replay(
    rollout: Rollout, env_id: str, env_config: dict[str, Any], seed: int, addon: Addon
) -> list[dict[str, float]]:
    """Steps plain environments with the rollout's actions from the same seeds and compares every row.

    Environment n of N is cut off at n/N of its time limit, once, unless its first episode has ended before.

    Returns the episodes that ended, recomputed: basic and add-on return, length, mean of ``height``.
    """
    finals = {tuple(i): obs for i, obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True)}
    episodes = []
    num_envs = rollout.basic.shape[1]
    for n in range(num_envs):
        env = gym.make(env_id, **env_config)
        assert env.spec is not None
        cut = math.ceil(n * (env.spec.max_episode_steps or 0) / num_envs)
        obs, _ = env.reset(seed=env_seeds(seed, 0, rollout.basic.shape[1])[n])
        sums = np.zeros(4)
        for t in range(rollout.basic.shape[0]):
            action = rollout.actions[t, n]
            if isinstance(env.action_space, gym.spaces.Box):
                action = np.clip(action, env.action_space.low, env.action_space.high)
            assert np.array_equal(rollout.obs[t, n], np.asarray(obs, np.float32)), (t, n)
            next_obs, reward, terminated, truncated, info = env.step(action)
            assert rollout.basic[t, n] == np.float32(reward)
            is_cut = t + 1 == cut and not (terminated or truncated)
            truncated |= is_cut
            assert (rollout.terminated[t, n], rollout.truncated[t, n]) == (terminated, truncated)
            row = [np.asarray(x, np.float32)[None] for x in (obs, action, next_obs)]
            expected = addon(*row, {key: np.array([info[key]]) for key in addon.info_keys})[0]
            assert rollout.addon[t, n] == pytest.approx(expected, rel=1e-5, abs=1e-5), (t, n)
            assert ((t, n) in finals) == (truncated and not terminated)
            if (t, n) in finals:
                assert np.array_equal(finals[t, n], np.asarray(next_obs, np.float32))
            sums += [reward, expected, 1.0, next_obs[0]]
            obs = next_obs
            if terminated or truncated:
                cut = 0
                if not is_cut:
                    episodes.append(
                        {"basic": sums[0], "addon": sums[1], "length": sums[2], "height": sums[3] / sums[2]}
                    )
                sums = np.zeros(4)
                obs, _ = env.reset()
        assert np.array_equal(rollout.last_obs[n], np.asarray(obs, np.float32))
    return episodes


@pytest.mark.parametrize(
    ("name", "vectorize"), [*((name, "sync") for name in ENVIRONMENTS), ("cheetah", "async"), ("cartpole", "async")]
)
def test_rows_are_real_transitions_and_returns_are_theirs(name: str, vectorize: str) -> None:
    env_id, env_config, addon, terminates = ENVIRONMENTS[name]
    collected: list[list[Rollout]] = []
    config = configure(env_id, env_config, addon_reward=addon, step_metrics={"height": height}).callbacks(
        on_sample_end=lambda *, samples, **_: collected.append(samples)
    )
    config.env_runners(gym_env_vectorize_mode=vectorize)
    with built(config) as algorithm:
        policy = algorithm.env_runner.module.policy
        rollouts = [algorithm.env_runner.sample()[0] for _ in range(2)]
        for rollout in rollouts:
            assert rollout.basic.shape == (T, N)
            assert rollout.nonfinite == ()
            distribution = policy.distribution(torch.from_numpy(rollout.obs.reshape(T * N, -1)))
            actions = torch.from_numpy(rollout.actions.reshape(T * N, *rollout.actions.shape[2:]))
            with torch.no_grad():
                assert distribution.log_prob(actions).numpy() == pytest.approx(rollout.logp.ravel(), abs=1e-5)
        # A third one inside train(), where the metrics are those of all three.
        result = algorithm.train()["env_runners"]
        seed = algorithm.env_runner._seed
    whole = join([rollout for samples in collected for rollout in samples])
    assert whole.basic.shape == (3 * T, N)
    assert whole.truncated.any()
    assert whole.terminated.any() == terminates
    episodes = replay(whole, env_id, env_config, seed, addon)
    assert 5 < len(episodes) < 100  # RLlib's smoothing window
    mean = {key: np.mean([episode[key] for episode in episodes]) for key in episodes[0]}
    for key, expected in (
        ("episode_return_mean", mean["basic"]),
        ("episode_basic_return_mean", mean["basic"]),
        ("episode_addon_return_mean", mean["addon"]),
        ("episode_total_return_mean", mean["basic"] + mean["addon"]),
        ("episode_len_mean", mean["length"]),
        ("episode_height_mean", mean["height"]),
        ("episode_return_min", min(e["basic"] for e in episodes)),
        ("episode_return_max", max(e["basic"] for e in episodes)),
    ):
        assert result[key] == pytest.approx(expected, rel=1e-4, abs=1e-4), key
    assert result["num_episodes_lifetime"] == len(episodes)
    assert result["num_env_steps_sampled_lifetime"] == 3 * T * N


def test_actions_are_clipped_for_the_environment_only() -> None:
    with built(configure("Pendulum-v1", {})) as algorithm:
        with torch.no_grad():
            algorithm.env_runner.module.policy.log_std.fill_(2.0)
        rollout = algorithm.env_runner.sample()[0]
    assert (np.abs(rollout.actions) > 2.0).mean() > 0.3  # Pendulum's bound; replay() above steps with the clipped ones


def test_exploration_is_random_and_inference_is_the_mode() -> None:
    with built(configure("Pendulum-v1", {})) as algorithm:
        runner = algorithm.env_runner
        for explore in (True, False):
            rollout = runner.sample(num_timesteps=N * T, explore=explore)[0]
            with torch.no_grad():
                mode = runner.module.policy.distribution(torch.from_numpy(rollout.obs)).mode().numpy()
            assert np.allclose(rollout.actions, mode, atol=1e-5) == (not explore)


def test_asked_for_episodes_it_gives_whole_ones_from_the_same_start() -> None:
    with built(configure("CartPole-v1", {})) as algorithm:
        runner = algorithm.env_runner
        first, again = (runner.sample(num_episodes=7, explore=False) for _ in range(2))
    ends = sum(int((r.terminated | r.truncated).sum()) for r in first)
    assert ends >= 7
    assert np.array_equal(first[0].obs, again[0].obs)  # deterministic policy and the same seed


# --- failures


def test_a_failed_environment_is_made_again_and_training_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "failed"
    config = configure(WalkEnv, {"raise_once": str(mark), "wrong_at": 31}).fault_tolerance(
        restart_failed_sub_environments=True
    )
    with built(config) as algorithm:
        first = algorithm.train()
        assert mark.exists()
        assert first["env_runners"]["num_env_step_failures"] == 1
        # What was sampled before the failure is dropped; what counts is one full rollout of real transitions.
        assert first["env_runners"]["num_env_steps_sampled_lifetime"] == N * T
        rollout = algorithm.env_runner.sample()[0]
        second = algorithm.train()
    assert second["env_runners"]["num_env_step_failures"] == 1
    assert rollout.basic.shape == (T, N)
    same_episode = ~(rollout.terminated | rollout.truncated)[:-1]
    steps = np.round(10 * rollout.obs[..., 1])
    assert (steps[1:] == np.where(same_episode, steps[:-1] + 1, 0)).all()
    assert first["env_runners"]["episode_len_max"] == 20  # none is counted across the failure


def test_a_failed_environment_stops_training_unless_asked(tmp_path: Path) -> None:
    config = configure(WalkEnv, {"raise_once": str(tmp_path / "failed"), "wrong_at": 31})
    with built(config) as algorithm, pytest.raises(RuntimeError) as caught:
        algorithm.train()
    assert "the simulator fell over" in str(caught.value.__cause__)


def addon_that_is_wrong(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return np.where(next_obs[:, 1] == np.float32(0.7), np.inf, 0.0)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # At the 47th step of every sub-environment, in the second rollout of 40: (47 - 1) * 3 = 138.
    "nan reward": ({"wrong": {"reward": np.nan}, "wrong_at": 47}, {}, r"^reward is NaN or infinite at env step 138"),
    "inf reward": ({"wrong": {"reward": np.inf}, "wrong_at": 47}, {}, r"^reward is NaN or infinite at env step 138"),
    "nan observation": (
        {"wrong": {"observation": np.nan}, "wrong_at": 47},
        {},
        r"^observation is NaN or infinite at env step 138",
    ),
    "inf observation": (
        {"wrong": {"observation": -np.inf}, "wrong_at": 47},
        {},
        r"^observation is NaN or infinite at env step 138",
    ),
    # An episode's 7th step, in the first rollout: (7 - 1) * 3 = 18.
    "inf add-on": ({}, {"addon_reward": addon_that_is_wrong}, r"^add-on reward is NaN or infinite at env step 18"),
}


@pytest.mark.parametrize(
    ("what", "env_runners"), [*((what, 0) for what in WRONG), ("nan reward", 2), ("inf add-on", 2)]
)
def test_nonfinite_values_stop_training_and_name_themselves(what: str, env_runners: int) -> None:
    env_config, training, message = WRONG[what]
    register_env("walk", WalkEnv)
    # Only the last env runner's environments go wrong.
    config = configure("walk", {**env_config, "worker": env_runners}, **training)
    config.env_runners(num_env_runners=env_runners, num_cpus_per_env_runner=0.5)
    config.training(train_batch_size_per_learner=N * T * max(1, env_runners))
    if env_runners:  # the second rollout starts after two times 120 steps, not one
        message = message.replace("138", "258")
    with built(config) as algorithm:
        while "add-on" not in what and algorithm.iteration == 0:
            algorithm.train()  # the first rollout is good
        with pytest.raises(NonFiniteError, match=message) as caught:
            algorithm.train()
    assert f"of walk (env runner {env_runners})" in str(caught.value) or what == "inf add-on"
    assert "sub-environment 0 (" in str(caught.value)


def test_finite_values_do_not_stop_training() -> None:
    with built(configure(WalkEnv, {"wrong": {"reward": 1e30}, "wrong_at": 7}, scale_rewards=True)) as algorithm:
        assert algorithm.train()["nonfinite_values"] == 0
