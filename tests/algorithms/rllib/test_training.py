"""How training goes: schedules, warm-up, stops, scaling, normalisers, several learners, Tune, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from tests.algorithms.registry import CASES, ENVS, STEPS, addon, built, learner_of, same, weights_of

from rpg_algorithms import RPG, NetworkConfig, NonFiniteError, SPGConfig, load_bundle
from rpg_algorithms.maths.advantages import spread
from rpg_algorithms.rllib.rollout import RolloutBatch, TensorRollout

pytestmark = pytest.mark.usefixtures("local_ray")
BATCH = ENVS * STEPS


def learned(result: dict[str, Any]) -> dict[str, Any]:
    return result["learners"]["default_policy"]


def train(config: Any, iterations: int) -> list[dict[str, Any]]:
    with built(config) as algorithm:
        return [learned(algorithm.train()) for _ in range(iterations)]


# --- schedules


def test_weights_follow_their_schedules_over_env_steps(tmp_path: Path) -> None:
    config = CASES["rpg-gaussian"].build_config(
        tmp_path, omega_prime=[[0, 1.0], [4 * BATCH, 0.0]], alpha_hat=[[0, 0.0], [2 * BATCH, 0.2]], addon_weight=0.5
    )
    results = train(config, 5)
    # At the end of sampling 1, 2, ... batches.
    assert [r["current_omega_prime"] for r in results] == pytest.approx([0.75, 0.5, 0.25, 0.0, 0.0])
    assert [r["current_alpha_hat"] for r in results] == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.2])
    assert [r["current_addon_weight"] for r in results] == [0.5] * 5
    # And they are what the reward is made of.
    assert results[0]["reward_prior_term"] != 0
    assert results[3]["reward_prior_term"] == 0


def test_the_learning_rate_follows_its_schedule(tmp_path: Path) -> None:
    config = CASES["spg-gaussian"].build_config(tmp_path, lr=[[0, 1e-2], [2 * BATCH, 0.0]])
    with built(config) as algorithm:
        rates = []
        for _ in range(3):
            before = weights_of(algorithm)
            rates.append(learned(algorithm.train())["default_optimizer_learning_rate"])
            moved = not same(before, weights_of(algorithm), "policy.mlp.")
            assert moved == (len(rates) < 3)
    assert rates[0] > rates[1] >= rates[2] == 0


# --- starting from a prior


@pytest.mark.parametrize("warmup", [0, 2])
def test_critic_warms_up_alone_for_exactly_so_many_iterations(tmp_path: Path, warmup: int) -> None:
    config = CASES["rpg-gaussian"].build_config(tmp_path, critic_warmup_iterations=warmup)
    prior = load_bundle(tmp_path / "prior").build().state_dict()
    with built(config) as algorithm:
        for iteration in range(warmup + 2):
            before = weights_of(algorithm)
            result = learned(algorithm.train())
            after = weights_of(algorithm)
            assert not same(before, after, "critic.")
            still = all(torch.equal(after[f"policy.{name}"], tensor) for name, tensor in prior.items())
            assert still == (iteration < warmup)
            assert result["critic_warmup"] == (iteration < warmup)
            # Measured before the update: zero up to the first one that moves the policy.
            assert (result["kl_to_prior"] == 0.0) == (iteration <= warmup)


def test_from_scratch_there_is_no_warm_up(tmp_path: Path) -> None:
    config = CASES["rpg-from-scratch"].build_config(tmp_path, critic_warmup_iterations=5)
    with built(config) as algorithm:
        before = weights_of(algorithm)
        assert learned(algorithm.train())["critic_warmup"] == 0
        assert not same(before, weights_of(algorithm), "policy.mlp.")


def test_the_priors_normaliser_is_frozen_and_ones_own_is_not(tmp_path: Path) -> None:
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        before = weights_of(algorithm)
        for _ in range(2):
            algorithm.train()
        after = weights_of(algorithm)
        assert same(before, after, "policy.normalizer.")
        assert after["policy.normalizer.count"] == 200
    rollouts: list[Any] = []
    config = CASES["rpg-from-scratch"].build_config(tmp_path)
    config.callbacks(on_sample_end=lambda *, samples, **_: rollouts.extend(samples))
    with built(config) as algorithm:
        before = weights_of(algorithm)
        for _ in range(3):
            algorithm.train()
        after = weights_of(algorithm)
    assert same(before, after, "prior.")
    seen = np.concatenate([r.obs.reshape(-1, 2) for r in rollouts]).astype(float)
    assert after["policy.normalizer.count"] == len(seen) == 3 * BATCH
    assert after["policy.normalizer.mean"].numpy() == pytest.approx(seen.mean(0), rel=1e-9)
    assert after["policy.normalizer.var"].numpy() == pytest.approx(seen.var(0), rel=1e-9)


# --- the update


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize(("target_kl", "epochs"), [(None, 8), (1e3, 8), (1e-5, None)])
def test_target_kl_stops_the_policy_and_not_the_critic(
    tmp_path: Path, target_kl: float | None, epochs: int | None, engine: str
) -> None:
    config = CASES["spg-gaussian"].build_config(
        tmp_path, target_kl=target_kl, num_epochs=8, lr=1e-2, update_engine=engine
    )
    with built(config) as algorithm:
        learner = learner_of(algorithm)
        result = learned(algorithm.train())
        taken = {
            name: int(learner.get_optimizer("default_policy").state[parameter]["step"])
            for name, parameter in learner.actor_critic.named_parameters()
            if not name.startswith("prior")
        }
    minibatches = BATCH // config.minibatch_size
    steps = {name.split(".")[0]: count for name, count in taken.items()}
    assert steps["critic"] == 8 * minibatches
    assert result["approx_kl_max"] > 1e-5
    if epochs is not None:
        assert (steps["policy"], result["epochs"]) == (8 * minibatches, epochs)
    else:  # at the first minibatch that had moved, which is looked at and not learned from
        assert steps["policy"] == result["epochs"] * minibatches - 1 == 1


def one_step_targets(tmp_path: Path, scale: bool, **training: Any) -> tuple[torch.Tensor, Any]:
    """Value targets at gamma = 0: they are the (scaled) transformed rewards themselves."""
    config = CASES["rpg-gaussian"].build_config(tmp_path, gamma=0.0, lambda_=0.0, scale_rewards=scale, **training)
    with built(config) as algorithm:
        rollout = algorithm.env_runner.sample()[0]
        learner = learner_of(algorithm)
        weights = {name: float(value) for name, value in config.reward_weights().items()}
        with torch.no_grad():
            return learner._prepare(TensorRollout.from_rollout(rollout, "cpu"), weights)[0].target, rollout


def test_scaling_divides_the_whole_reward_by_one_factor(tmp_path: Path) -> None:
    raw, rollout = one_step_targets(tmp_path, scale=False)
    scaled, same_rollout = one_step_targets(tmp_path, scale=True)
    assert np.array_equal(rollout.obs, same_rollout.obs)
    ratio = raw / scaled
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-4)
    # At gamma = 0 the running return is the reward, and the factor its spread.
    assert ratio.mean().item() == pytest.approx(spread(raw).item(), rel=1e-4)
    assert abs(ratio.mean().item() - 1.0) > 0.1
    # Hence the weights keep their ratio: ten times all of them is the same problem, ten times one is another.
    times_ten = {"omega_prime": 2.0, "alpha_hat": 1.0, "addon_weight": 10.0}
    assert torch.allclose(one_step_targets(tmp_path, scale=True, **times_ten)[0], scaled, rtol=1e-4)
    other = {"omega_prime": 2.0, "alpha_hat": 0.1}
    assert not torch.allclose(one_step_targets(tmp_path, scale=True, **other)[0], scaled, rtol=0.1)


def test_the_critic_moves_with_the_scale(tmp_path: Path) -> None:
    """Its values times the scale, which are what it has learned, stay when the scale changes (PopArt)."""
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        algorithm.train()
        module, rollout = learner_of(algorithm).actor_critic, algorithm.env_runner.sample()[0]
        obs = torch.from_numpy(rollout.obs.reshape(STEPS * ENVS, -1))
        with torch.no_grad():
            before = module.values(obs) * module.reward_scale.value
            module.rescale_values(module.reward_scale.merge(module.reward_scale.value * 50, BATCH))
            after = module.values(obs) * module.reward_scale.value
    assert after.numpy() == pytest.approx(before.numpy(), rel=1e-4, abs=1e-6)


def test_the_priors_tail_is_bounded_in_the_reward_and_not_in_the_kl(tmp_path: Path) -> None:
    config = CASES["rpg-gaussian"].build_config(tmp_path, prior_logp_floor=1e-3)
    with built(config) as algorithm:
        learner, rollout = learner_of(algorithm), algorithm.env_runner.sample()[0]
        tensors = TensorRollout.from_rollout(rollout, "cpu")
        weights = {name: float(value) for name, value in config.reward_weights().items()}
        far = torch.tensor([0.0, -1.0, -2.0, -500.0]).repeat(STEPS * ENVS // 4).view(STEPS, ENVS)
        reward = learner.transform_reward(tensors, far, weights)
    bounded = far.clamp_min(far.median() - 1e-3)
    expected = rollout.addon + 0.2 * bounded.numpy() - 0.1 * rollout.logp
    assert reward.numpy() == pytest.approx(expected, abs=1e-4)


def test_a_state_of_an_earlier_version_keeps_its_scale(tmp_path: Path) -> None:
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        module = learner_of(algorithm).actor_critic
        state = module.get_state()
        del state["reward_scale.log"], state["reward_scale.count"]
        old = {"mean": np.array(3.0), "var": np.array(49.0), "count": np.array(8192.0)}
        module.set_state(state | {f"reward_moments.{name}": value for name, value in old.items()})
        assert float(module.reward_scale.value) == pytest.approx(7.0)
        assert float(module.reward_scale.count) == 8192.0


def test_targets_are_the_residual_reward(tmp_path: Path) -> None:
    raw, rollout = one_step_targets(tmp_path, scale=False)
    policy = load_bundle(tmp_path / "prior").build()
    with torch.no_grad():
        prior_logp = policy.distribution(torch.from_numpy(rollout.obs)).log_prob(torch.from_numpy(rollout.actions))
    expected = rollout.addon + 0.2 * prior_logp.numpy() - 0.1 * rollout.logp
    assert raw.view(STEPS, ENVS).numpy() == pytest.approx(expected, abs=1e-5)


def test_rpg_never_sees_the_basic_reward(tmp_path: Path) -> None:
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        rollout = algorithm.env_runner.sample()[0]
    found = []
    for basic in (rollout.basic, -50.0 * rollout.basic):
        with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
            learner_of(algorithm).update(training_data=RolloutBatch([replace(rollout, basic=basic)]))
            found.append(weights_of(algorithm))
    assert same(*found)
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        changed = RolloutBatch([replace(rollout, addon=rollout.addon * 0.5)])
        learner_of(algorithm).update(training_data=changed)
        assert not same(found[0], weights_of(algorithm), "policy.mlp.")


def test_the_entropy_coefficient_keeps_the_policy_wide(tmp_path: Path) -> None:
    def final_entropy(coefficient: float) -> float:
        config = CASES["spg-gaussian"].build_config(tmp_path, alpha=0.0, entropy_coeff=coefficient, lr=1e-2)
        return train(config, 8)[-1]["entropy"]

    assert final_entropy(1.0) > final_entropy(0.0) + 0.3


def test_a_loss_that_is_not_finite_stops_training_and_names_itself(tmp_path: Path) -> None:
    config = CASES["spg-gaussian"].build_config(tmp_path, lr=1e30, grad_clip=None)
    message = r"vf_loss, .* NaN or infinite in update 1 \(env step 128\) on .*WalkEnv"
    with built(config) as algorithm, pytest.raises(NonFiniteError, match=message):
        algorithm.train()


# --- several learners


def states(algorithm: Any) -> list[dict[str, torch.Tensor]]:
    def copy(learner: Any) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in learner.actor_critic.state_dict().items()}

    return [result.get() for result in algorithm.learner_group.foreach_learner(copy)]


@pytest.mark.parametrize("learners", [1, 2])
def test_remote_learners_are_one_local_learner_on_the_same_data(tmp_path: Path, learners: int) -> None:
    """Whole-shard minibatches, so that the averaged gradient is the gradient of all the data."""
    settings: dict[str, Any] = {"minibatch_size": None, "normalize_advantages": "none", "num_epochs": 4}
    name = "rpg-from-scratch"  # its normaliser moves too
    with built(CASES[name].build_config(tmp_path, **settings)) as algorithm:
        rollouts = [algorithm.env_runner.sample()[0] for _ in range(2)]
        learner = learner_of(algorithm)
        state = algorithm.learner_group.get_state()
        for rollout in rollouts:
            metrics = learner.update(training_data=RolloutBatch([rollout]))
        expected, norm = weights_of(algorithm), float(metrics["default_policy"]["grad_norm"])
    size = BATCH // learners
    config = CASES[name].build_config(tmp_path, train_batch_size_per_learner=size, **settings)
    config.learners(num_learners=learners, num_cpus_per_learner=0.5)
    with built(config) as algorithm:
        algorithm.learner_group.set_state(state)
        for rollout in rollouts:
            results = algorithm.learner_group.update(training_data=RolloutBatch([rollout]), minibatch_size=None)
        found = states(algorithm)
        assert len(results) == len(found) == learners
        for each, metrics in zip(found, results, strict=True):
            assert same(found[0], each)  # all learners hold the same policy
            # Adam hardly sees a factor on the gradient: the norm does.
            assert float(metrics["default_policy"]["grad_norm"]) == pytest.approx(norm, rel=1e-3)
            for key, tensor in expected.items():
                assert torch.allclose(each[key], tensor, atol=2e-5, rtol=1e-4), key
        result = algorithm.train()
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] == BATCH
        assert result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == BATCH
        assert np.isfinite(learned(result)["policy_loss"])
        assert all(same(states(algorithm)[0], each) for each in states(algorithm))


# --- Tune


def test_runs_under_tune(tmp_path: Path) -> None:
    config = CASES["rpg-gaussian"].build_config(tmp_path)
    config.training(omega_prime=tune.grid_search([0.0, 0.3]))
    results = tune.Tuner(
        RPG,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            storage_path=str(tmp_path / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert len(results) == 2
    assert not results.errors
    found = {}
    for result in results:
        assert result.metrics["training_iteration"] == 2
        learner = result.metrics["learners"]["default_policy"]
        found[learner["current_omega_prime"]] = learner["reward_prior_term"]
    assert sorted(found) == pytest.approx([0.0, 0.3])
    assert found[0.0] == 0.0
    restored = Algorithm.from_checkpoint(results[0].checkpoint.path)
    try:
        assert restored.train()["training_iteration"] == 3
    finally:
        restored.stop()


# --- learning


def cartpole(lr: float) -> float:
    """Mean return over the last episodes after 41k env steps of CartPole."""
    config = (
        SPGConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=8)
        .rl_module(model_config=NetworkConfig(hidden=(32, 32), activation="tanh"))
        .training(
            alpha=0.01,
            lr=lr,
            train_batch_size_per_learner=1024,
            minibatch_size=128,
            num_epochs=8,
            gamma=0.98,
            lambda_=0.9,
        )
        .reporting(metrics_num_episodes_for_smoothing=20)
        .debugging(seed=0)
    )
    with built(config) as algorithm:
        means = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(40)]
    return [mean for mean in means if mean == mean][-1]  # none where no episode ended: a good policy's last 500 steps


def test_spg_learns_cartpole_and_not_without_a_learning_rate() -> None:
    assert cartpole(lr=2e-3) > 150
    assert cartpole(lr=0.0) < 60


def learns_to_walk(tmp_path: Path, **training: Any) -> float:
    """Change of the mean add-on return per episode by customising a random prior in ``WalkEnv``."""
    config = CASES["rpg-gaussian"].build_config(tmp_path, num_epochs=8, addon_reward=addon, **training)
    config.reporting(metrics_num_episodes_for_smoothing=8)
    with built(config) as algorithm:
        returns = [algorithm.train()["env_runners"]["episode_addon_return_mean"] for _ in range(40)]
    return float(np.mean(returns[-5:]) - np.mean(returns[:2]))


def test_rpg_learns_the_addon_and_not_when_the_prior_holds_it(tmp_path: Path) -> None:
    free = learns_to_walk(tmp_path, omega_prime=0.0, alpha_hat=0.0, lr=5e-3)
    held = learns_to_walk(tmp_path, omega_prime=100.0, alpha_hat=100.0, lr=5e-3)
    assert free > 2.0
    assert abs(held) < 0.5 * free
