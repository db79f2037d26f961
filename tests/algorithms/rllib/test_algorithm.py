"""The conformance suite: what every registered configuration of SPG and RPG does."""

from __future__ import annotations

import copy
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from tests.algorithms.environments import WalkEnv
from tests.algorithms.registry import CASES, ENVS, STEPS, addon, built, learner_of, make_prior, same, weights_of

from rpg_algorithms import NonFiniteError, RPGConfig
from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
from rpg_algorithms.rllib.rollout import RolloutBatch

pytestmark = pytest.mark.usefixtures("local_ray")
BATCH = ENVS * STEPS


def flat(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results by their paths, ``a/b/c``."""
    found = {}
    for key, value in result.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.fixture(scope="module")
def stock_keys() -> set[str]:
    """The result keys of stock RLlib PPO in the same environment."""
    algorithm = (
        PPOConfig()
        .environment(WalkEnv, env_config={"length": 15})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS)
        .training(train_batch_size_per_learner=BATCH, minibatch_size=32, num_epochs=1)
        .build_algo()
    )
    try:
        return set(flat(algorithm.train()))
    finally:
        algorithm.stop()


# What stock PPO reports and SPG does not: its connectors, its own loss's terms, and timers and throughputs of
# steps that are not taken one by one here.
NOT_OURS = (
    "config/",
    "perf/",  # measured now and then
    "connector",
    "env_runners/env_to_module_sum",
    "throughput",
    "env_step_timer",
    "rlmodule_inference_timer",
    "default_policy/curr_entropy_coeff",
    "default_policy/curr_kl_coeff",
    "default_policy/diff_num_grad_updates_vs_sampler_policy",
    "default_policy/mean_kl_loss",
    "default_policy/module_train_batch_size_mean",
    "default_policy/total_loss",
    "default_policy/vf_loss_unclipped",
)


@pytest.mark.parametrize("name", CASES)
def test_trains_reports_and_evaluates(name: str, tmp_path: Path, stock_keys: set[str]) -> None:
    config = CASES[name].build_config(tmp_path)
    config.evaluation(
        evaluation_interval=100,
        evaluation_num_env_runners=0,
        evaluation_duration=5,
        evaluation_config=config.overrides(explore=False),
    )
    with built(config) as algorithm:
        before = weights_of(algorithm)
        algorithm.train()
        result = algorithm.train()
        after = weights_of(algorithm)
        evaluated = [algorithm.evaluate()["env_runners"] for _ in range(2)]
    keys = flat(result)
    missing = {k for k in stock_keys - set(keys) if not any(part in k for part in NOT_OURS)}
    assert not missing
    env_runners, learner = result["env_runners"], result["learners"]["default_policy"]
    assert result["training_iteration"] == 2
    assert env_runners["num_env_steps_sampled_lifetime"] == 2 * BATCH
    assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 2 * BATCH
    assert env_runners["episode_len_mean"] == 15
    assert env_runners["episode_total_return_mean"] == pytest.approx(
        env_runners["episode_basic_return_mean"] + env_runners["episode_addon_return_mean"]
    )
    statistics = ["policy_loss", "vf_loss", "entropy", "clip_fraction", "approx_kl", "vf_explained_var", "grad_norm"]
    terms = ["reward_addon_term", "reward_entropy_term"]
    terms += ["reward_prior_term", "kl_to_prior"] if config.prior is not None else ["reward_basic_term"]
    for key in statistics + terms:
        assert math.isfinite(learner[key]), key
    assert result["nonfinite_values"] == 0
    # It learned, and the prior did not.
    assert not same(before, after, "critic.")
    assert same(before, after, "policy.mlp.") == (name == "warm-up")
    if config.prior is not None:
        assert same(before, after, "prior.")
    # Evaluation: whole episodes of the deterministic policy, the same ones each time.
    assert evaluated[0]["num_episodes"] >= 5
    assert evaluated[0]["episode_return_mean"] == evaluated[1]["episode_return_mean"]


def optimizer_state(algorithm: Any) -> dict[str, Any]:
    return copy.deepcopy(learner_of(algorithm).get_optimizer("default_policy").state_dict())


def assert_equal_nested(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            assert_equal_nested(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_nested(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def update(algorithm: Any, batch: RolloutBatch, env_steps: int) -> dict[str, Any]:
    """One update on given data, from the same order of minibatches and no episode under way."""
    learner = learner_of(algorithm)
    learner._generator.manual_seed(123)
    learner._return_carry = None
    results = learner.update(training_data=batch, timesteps={"num_env_steps_sampled_lifetime": env_steps})
    timers = ("timer", "_s", "throughput")
    return {
        k: float(v) for k, v in flat(results).items() if "default_policy" in k and not any(part in k for part in timers)
    }


@pytest.mark.parametrize("name", CASES)
def test_restores_and_continues_equally(name: str, tmp_path: Path) -> None:
    config = CASES[name].build_config(tmp_path)
    with built(config) as algorithm:
        for _ in range(2):
            algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint")
        weights, optimizer = weights_of(algorithm), optimizer_state(algorithm)
        batch = RolloutBatch(algorithm.env_runner.sample())
        expected = update(algorithm, batch, 3 * BATCH)
        next_weights, next_optimizer = weights_of(algorithm), optimizer_state(algorithm)
    assert not same(weights, next_weights)
    if config.prior is not None:
        shutil.rmtree(tmp_path / "prior")  # the prior must come out of the checkpoint
    restored = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    try:
        # Weights, normaliser and reward moments are the module's; all equal to the bit.
        assert same(weights, weights_of(restored))
        assert_equal_nested(optimizer, optimizer_state(restored))
        runners = restored.env_runner.module.state_dict()
        assert set(runners) == {k for k in weights if k.startswith("policy.")}
        assert all(torch.equal(runners[k], weights[k]) for k in runners)
        found = update(restored, batch, 3 * BATCH)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert same(next_weights, weights_of(restored))
        assert_equal_nested(next_optimizer, optimizer_state(restored))
        # And real iterations go on from the counters.
        result = restored.train()
        assert result["training_iteration"] == 3
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 3 * BATCH
        assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 3 * BATCH
        assert result["learners"]["default_policy"]["weights_seq_no"] == 4
    finally:
        restored.stop()


def run(config: Any, iterations: int = 3) -> tuple[dict[str, torch.Tensor], list[float]]:
    with built(config) as algorithm:
        results = [algorithm.train() for _ in range(iterations)]
        return weights_of(algorithm), [r["env_runners"]["episode_basic_return_mean"] for r in results]


@pytest.mark.parametrize("name", ["spg-gaussian", "spg-categorical", "rpg-gaussian", "rpg-from-scratch"])
def test_seeded_runs_repeat(name: str, tmp_path: Path) -> None:
    first = run(CASES[name].build_config(tmp_path))
    torch.manual_seed(99)  # what else happened in the process must not matter
    np.random.seed(99)  # noqa: NPY002
    again = run(CASES[name].build_config(tmp_path))
    assert same(first[0], again[0])
    assert first[1] == again[1]
    other = run(CASES[name].build_config(tmp_path).debugging(seed=8))
    assert not same(first[0], other[0], "policy.mlp.")
    assert first[1] != other[1]


@pytest.mark.parametrize(("name", "twice"), [("spg-gaussian", True), ("rpg-categorical", False)])
def test_remote_env_runners(name: str, twice: bool, tmp_path: Path) -> None:
    def build() -> Any:
        config = CASES[name].build_config(tmp_path)
        return config.env_runners(num_env_runners=2, num_envs_per_env_runner=ENVS // 2, num_cpus_per_env_runner=0.5)

    with built(build()) as algorithm:
        assert algorithm.env_runner_group.num_remote_workers() == 2
        for _ in range(2):
            result = algorithm.train()
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 2 * BATCH
        assert result["env_runners"]["episode_len_mean"] == 15
        # Both hold the learner's newest policy, its normaliser included, and neither critic nor prior.
        newest = weights_of(algorithm)
        states = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: {k: v.clone() for k, v in runner.module.state_dict().items()}, local_env_runner=False
        )
        for state in states:
            assert set(state) == {k for k in newest if k.startswith("policy.")}
            assert all(torch.equal(state[k], newest[k]) for k in state)
        rollouts = algorithm.env_runner_group.foreach_env_runner(lambda r: r.sample()[0], local_env_runner=False)
        assert not np.array_equal(rollouts[0].actions, rollouts[1].actions)
    if twice:  # seeded runs repeat with remote env runners too
        again, _ = run(build(), iterations=2)
        assert same(newest, again)


class SlowEnvRunner(RolloutEnvRunner):
    """Takes its time over one state while a file says so: RLlib drops a sync while the one before is under way."""

    def set_state(self, state: Any) -> None:
        slow = Path(self.config.env_config["slow"])
        if slow.exists():
            slow.unlink()
            time.sleep(5.0)
        super().set_state(state)


def test_a_restored_run_gives_its_remote_env_runners_policy_and_normaliser(tmp_path: Path) -> None:
    config = CASES["spg-gaussian"].build_config(tmp_path)
    config.environment(env_config={"slow": str(tmp_path / "slow")})
    config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5, env_runner_cls=SlowEnvRunner)
    with built(config) as algorithm:
        algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint")
        expected = weights_of(algorithm)
    assert expected["policy.normalizer.count"] == BATCH
    (tmp_path / "slow").touch()
    restored = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    assert not (tmp_path / "slow").exists()
    try:
        (state,) = restored.env_runner_group.foreach_env_runner(
            lambda runner: dict(runner.module.state_dict()), local_env_runner=False
        )
    finally:
        restored.stop()
    assert all(torch.equal(state[k], expected[k]) for k in state)


def test_a_failed_runs_last_checkpoint_stays_good(tmp_path: Path) -> None:
    config = CASES["spg-gaussian"].build_config(tmp_path)
    config.environment(WalkEnv, env_config={"wrong": {"reward": np.nan}, "wrong_at": STEPS + 3})
    with built(config) as algorithm:
        algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint")
        saved = weights_of(algorithm)
        with pytest.raises(NonFiniteError):
            algorithm.train()
        assert same(saved, weights_of(algorithm))  # nothing was learned from it
    restored = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    try:
        assert same(saved, weights_of(restored))
    finally:
        restored.stop()


def test_a_missing_prior_is_an_error_at_a_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: no prior bundle there"):
        RPGConfig().training(prior=tmp_path / "gone")
    with pytest.raises(ValueError, match=r"prior=None: RPG customises a prior"):
        CASES["rpg-gaussian"].build_config(tmp_path, prior=None).build_algo()


def test_a_prior_of_other_spaces_is_refused(tmp_path: Path) -> None:
    config = (
        RPGConfig()
        .environment("Pendulum-v1")
        .training(prior=make_prior(tmp_path / "prior"), addon_reward=addon, kl_coefficient=0.1)
    )
    with pytest.raises(
        ValueError, match=r"prior 'random' \(walk\): its observation space .* is not that of Pendulum-v1"
    ):
        config.build_algo()
