"""Training over a range of weights: who is told what and when, and that at fixed weights nothing is different."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from tests.algorithms.environments import WalkEnv
from tests.algorithms.registry import CASES, ENVS, STEPS, addon, built, learner_of, same, weights_of
from tests.algorithms.stepping import after_updates, join

from rpg_algorithms import Conditioned, NetworkConfig, Rollout, RPGConfig, SPGConfig
from rpg_algorithms.maths.conditioned import told
from rpg_algorithms.policies.running import ToldScale
from rpg_algorithms.policies.told import Draws
from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
from rpg_algorithms.rllib.rollout import RolloutBatch, TensorRollout

pytestmark = pytest.mark.usefixtures("local_ray")
BATCH = ENVS * STEPS
ALPHA = Conditioned(0.01, 0.3)


def width(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    """What an add-on sees of both observations."""
    return np.full(len(obs), obs.shape[-1] + 100.0 * next_obs.shape[-1], np.float32)


def soft(env: Any, env_config: dict[str, Any], envs: int = 3, steps: int = 40, **training: Any) -> SPGConfig:
    settings = {"alpha": ALPHA, "train_batch_size_per_learner": envs * steps, "minibatch_size": envs * steps // 2}
    return (
        SPGConfig()
        .environment(env, env_config=env_config)
        .env_runners(num_envs_per_env_runner=envs)
        .rl_module(model_config=NetworkConfig(hidden=(8,), log_std_init=0.0))
        .training(**(settings | {"num_epochs": 1} | training))
        .debugging(seed=5)
    )


def assert_held(rollout: Rollout, size: int) -> np.ndarray:
    """Checks that what was told changes with an episode's end alone; returns every episode's ``[M, K]``."""
    u, done = rollout.obs[..., size:], rollout.terminated | rollout.truncated
    after = np.concatenate((u[1:], rollout.last_obs[None, :, size:]))
    assert np.array_equal(after == u, np.broadcast_to(~done[..., None], u.shape))
    assert len(rollout.final_index)
    for (t, n), final in zip(rollout.final_index, rollout.final_obs, strict=True):
        assert np.array_equal(final[size:], u[t, n])  # the value of an episode's end is of the weights it had
    return np.concatenate((u[0], after[done]))


# --- env runner


@pytest.mark.parametrize(
    ("env", "env_config", "size"),
    [
        ("Pendulum-v1", {"max_episode_steps": 17}, 3),  # cut off, the first episodes at different ages
        ("CartPole-v1", {"max_episode_steps": 14}, 4),  # falls, too
    ],
)
@pytest.mark.parametrize("random_actions", [False, True])
def test_weights_are_an_episodes_own_and_add_ons_do_not_see_them(
    env: str, env_config: dict[str, Any], size: int, random_actions: bool
) -> None:
    config = soft(env, env_config, addon_reward=width, addon_weight=0.0, step_metrics={"width": width})
    with built(config) as algorithm:
        runner = algorithm.env_runner
        rollouts = [runner.sample(num_timesteps=120, explore=True, random_actions=random_actions)[0] for _ in range(3)]
        whole = join(rollouts)
        if not random_actions:  # what was acted with is what was told
            with torch.no_grad():
                distribution = runner.module.policy.distribution(torch.from_numpy(whole.obs).flatten(0, 1))
                logp = distribution.log_prob(torch.from_numpy(whole.actions).flatten(0, 1))
            assert logp.numpy() == pytest.approx(whole.logp.ravel(), abs=1e-5)
        result, seed = algorithm.train()["env_runners"], runner._seed
    episodes = assert_held(whole, size)
    expected = Draws(1, np.random.default_rng([seed, 0])).take(len(episodes))
    assert np.array_equal(np.sort(episodes, axis=0), np.sort(expected, axis=0))  # each draw is used, once
    assert whole.truncated.any()
    assert whole.terminated.any() == (env == "CartPole-v1")
    assert (whole.addon == size + 100 * size).all()
    assert result["episode_width_mean"] == size + 100 * size


def test_evaluations_tell_the_same_weights_each_time() -> None:
    with built(soft("CartPole-v1", {})) as algorithm:
        first, again = (join(algorithm.env_runner.sample(num_episodes=7, explore=False)) for _ in range(2))
    assert np.array_equal(first.obs, again.obs)
    assert len(np.unique(first.obs[..., 4:])) >= 7


def test_a_failed_environments_episodes_start_anew_with_weights_of_their_own(tmp_path: Path) -> None:
    config = soft(WalkEnv, {"raise_once": str(tmp_path / "failed"), "wrong_at": 31})
    config.fault_tolerance(restart_failed_sub_environments=True)
    with built(config) as algorithm:
        result = algorithm.train()
        assert result["env_runners"]["num_env_step_failures"] == 1
        rollout = algorithm.env_runner.sample()[0]
        assert_held(rollout, 2)
        steps = np.round(10 * rollout.obs[..., 1])
        ended = (rollout.terminated | rollout.truncated)[:-1]
        assert (steps[1:] == np.where(ended, 0, steps[:-1] + 1)).all()


def test_env_runners_draw_differently_and_a_restored_run_draws_anew(tmp_path: Path) -> None:
    config = soft(WalkEnv, {"length": 15})
    with built(config) as algorithm:
        drawn = [assert_held(algorithm.env_runner.sample()[0], 2)]
        algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint")
        for worker in (1, 2):
            runner = RolloutEnvRunner(config=algorithm.config, worker_index=worker, num_workers=2)
            drawn.append(assert_held(runner.sample()[0], 2))
            runner.stop()
    restored = Algorithm.from_checkpoint(tmp_path / "checkpoint")
    try:
        drawn.append(assert_held(restored.env_runner.sample()[0], 2))
    finally:
        restored.stop()
    assert np.diff(np.sort(np.concatenate(drawn).ravel())).min() > 1e-5


# --- at fixed weights nothing is different

RESIDUAL = {"addon_reward": addon, "prior_logp_floor": 1.0}
FIXED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # case, given fixed, given as ranges
    "rpg": (
        "rpg-gaussian",
        RESIDUAL | {"omega_prime": 0.3, "alpha_hat": 0.05},
        {"omega_prime": Conditioned(0.02, 1.6), "alpha_hat": Conditioned(0.0, 0.1)},
    ),
    "one of two": (
        "rpg-squashed-state-dependent",
        RESIDUAL | {"omega_prime": 0.3, "alpha_hat": 0.05},
        {"omega_prime": Conditioned(0.0, 1.6)},
    ),
    "kl": ("rpg-gaussian", RESIDUAL | {"kl_coefficient": 0.3}, {"kl_coefficient": Conditioned(0.1, 0.5)}),
    "omega of the prior's alpha": (
        "rpg-categorical",
        RESIDUAL | {"omega": 1.5, "alpha_hat": 0.1},
        {"omega": Conditioned(0.5, 4.0)},
    ),
    "spg": ("spg-gaussian", {"alpha": 0.05}, {"alpha": ALPHA}),
}


def build_config(name: str, folder: Path, training: dict[str, Any]) -> SPGConfig:
    case, size = CASES[name], {"scale_rewards": False, "gamma": 0.9}
    kept = {k: v for k, v in case.training.items() if k not in ("omega_prime", "alpha_hat", "alpha")}
    return replace(case, training=kept).build_config(folder, **(size | training))


@torch.no_grad()
@pytest.mark.parametrize("what", FIXED)
def test_the_fixed_paths_rewards_advantages_and_kl(what: str, tmp_path: Path) -> None:
    name, fixed, ranges = FIXED[what]
    weights = {key: fixed[key] for key in ranges}
    results = []
    with built(build_config(name, tmp_path, fixed | ranges)) as algorithm:
        rollout, learner = algorithm.env_runner.sample()[0], learner_of(algorithm)
        module = learner.actor_critic
        for parameter in (*module.policy.parameters(), *module.critic.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        policy, critic = module.policy.folded(weights), copy.deepcopy(module.critic.state_dict())
        prior = None if module.prior is None else module.prior.state_dict()
        u, size = told(module.policy.spec.context, weights).float().numpy(), module.policy.spec.observation_size
        which = module.policy.spec.multiplying
        here = {key: np.copy(getattr(rollout, key)) for key in ("obs", "last_obs", "final_obs")}
        for array in here.values():
            array[..., size:] = u
        rows = TensorRollout.from_rollout(replace(rollout, **here), "cpu")
        given = learner._told_weights(rows)
        for key, value in given.items():
            factor = 0.2 if what.startswith("omega of") and key == "omega_prime" else 1.0
            own = weights.get(key, weights.get("kl_coefficient", weights.get("omega")))
            assert value.numpy() == pytest.approx(np.full(value.shape, factor * own), rel=1e-5)
        results.append(learner._prepare(rows, {**learner._current_weights({}), **given}))
    with built(build_config(name, tmp_path, fixed)) as algorithm:
        learner = learner_of(algorithm)
        module = learner.actor_critic
        module.policy.load_state_dict(policy.state_dict())
        row, first = size + len(u), critic["0.weight"]
        bias = critic["0.bias"] + first[:, size:row] @ torch.from_numpy(u)
        weight = first[:, :size] + sum(
            float(u[k]) * x for k, x in zip(which, first[:, row:].split(size, 1), strict=True)
        )
        module.critic.load_state_dict({**critic, "0.weight": weight, "0.bias": bias})
        if prior is not None:
            assert module.prior.state_dict().keys() == prior.keys()
            assert all(torch.equal(v, prior[k]) for k, v in module.prior.state_dict().items())
        plain = replace(rollout, **{key: array[..., :size] for key, array in here.items()})
        results.append(learner._prepare(TensorRollout.from_rollout(plain, "cpu"), learner._current_weights({})))
    (samples, statistics), (expected, its_statistics) = results
    assert statistics == pytest.approx(its_statistics, rel=1e-4, abs=1e-6)
    if prior is not None:
        assert statistics["kl_to_prior"] > 1e-3
    for field in ("actions", "logp_old", "advantage", "target"):
        assert getattr(samples, field).numpy() == pytest.approx(getattr(expected, field).numpy(), rel=1e-4, abs=1e-5)
    assert torch.equal(samples.obs[:, :size], expected.obs)
    assert float(samples.advantage.std()) > 0.01


def test_ranges_of_other_settings_are_refused(tmp_path: Path) -> None:
    for name, training, message in (
        ("spg-gaussian", {"basic_weight": ALPHA}, r"basic_weight=.*a range is possible for alpha alone"),
        ("rpg-gaussian", {"addon_weight": ALPHA}, r"addon_weight=.*possible for omega_prime, omega, alpha_hat, kl_"),
        ("rpg-gaussian", {"omega_prime": Conditioned(0.2, 0.1)}, r"omega_prime=.*expected 0 <= low < high"),
        ("rpg-gaussian", {"omega_prime": Conditioned(0.1, 0.2, "beta")}, r"omega_prime=.*its name is 'beta'"),
        ("rpg-gaussian", {"kl_coefficient": ALPHA}, r"given in more than one way \(alpha_hat, kl_coefficient, omega_"),
    ):
        with pytest.raises(ValueError, match=message):
            CASES[name].build_config(tmp_path, **training).validate()


# --- learning


def test_the_fused_engine_is_autograd(tmp_path: Path) -> None:
    """With entropy in the loss, so that the told standard deviation has both of its gradients."""
    config = CASES["conditioned"].build_config(tmp_path, entropy_coeff=0.05).debugging(seed=1)
    eager, fused = (after_updates(config, engine) for engine in ("eager", "fused"))
    for key, tensor in eager[0].items():
        assert torch.allclose(fused[0][key], tensor, atol=2e-5, rtol=1e-4), key
    assert fused[2] == pytest.approx(eager[2], rel=1e-3, abs=1e-4, nan_ok=True)
    # What is told had a gradient, all of it.
    assert (eager[0]["policy.log_std_context"].abs() > 1e-3).all()
    assert (eager[0]["policy.mlp.0.weight"][:, 2:].abs() > 1e-4).any(0).all()


def test_values_follow_the_scale_of_rewards(tmp_path: Path) -> None:
    config = CASES["conditioned"].build_config(tmp_path)
    config.environment(env_config={"length": 1000})
    with built(config) as algorithm:
        learner = learner_of(algorithm)
        module = learner.actor_critic
        assert isinstance(module.reward_scale, ToldScale)
        rows = TensorRollout.from_rollout(algorithm.env_runner.sample()[0], "cpu")
        u, obs = rows.obs[..., 2:], module.policy.normalize(rows.obs)
        # Rewards a hundred times as large where omega' is largest.
        reward = torch.randn(STEPS, ENVS, generator=torch.Generator().manual_seed(0)) * 10 ** (1 + u[..., 0])
        with torch.no_grad():
            first = module.values(obs)
            learner._update_reward_scale(reward, rows)
            assert torch.equal(module.values(obs), first)  # nothing was learned in another scale before
            before = module.values(obs) * module.reward_scale.at(u)
            for _ in range(50):
                scale = learner._update_reward_scale(50 * reward, rows)
            after = module.values(obs) * scale
        assert scale.shape == (STEPS, ENVS)
        ratio = (after / before).log()
        assert ratio.mean().item() == pytest.approx(0.0, abs=1e-4)  # in the geometric mean over what was told
        assert (after.sign() == before.sign()).all()
        assert ((reward * 50 / scale).std(0) < 3).all()
        assert ((reward * 50 / scale).std(0) > 0.2).all()
        assert scale.max() / scale.min() > 10


def test_short_episodes_rewards_are_scaled(tmp_path: Path) -> None:
    """Its episodes have 15 steps; rewards a thousand times as large are the same problem."""
    found = []
    for factor in (1.0, 1000.0):
        training = {"addon_weight": factor, "kl_coefficient": Conditioned(0.1 * factor, 0.5 * factor)}
        case = replace(CASES["kl"], training={"addon_reward": addon} | training)
        with built(case.build_config(tmp_path)) as algorithm:
            algorithm.train()
            learner = learner_of(algorithm)
            assert float(learner.actor_critic.reward_scale.moments[0, 0]) == BATCH
            found.append(weights_of(algorithm))
    for key, tensor in found[0].items():
        if key.startswith(("policy.", "critic.")):
            assert torch.allclose(found[1][key], tensor, atol=1e-4), key


@pytest.mark.slow
def test_two_learners_stay_equal_and_are_one(tmp_path: Path) -> None:
    """Each has other environments, so other weights; the factor on the critic's values is of all of them."""
    settings: dict[str, Any] = {"minibatch_size": None, "normalize_advantages": "none", "num_epochs": 2}

    def config(**training: Any) -> RPGConfig:
        result = CASES["conditioned"].build_config(tmp_path, **settings, **training)
        return result.environment(env_config={"length": 1000})  # parts of episodes are the same ones then

    with built(config()) as algorithm:
        rollouts = [algorithm.env_runner.sample()[0] for _ in range(3)]
        rollouts = [replace(r, addon=r.addon * 3**i) for i, r in enumerate(rollouts)]  # the scale moves
        state = algorithm.learner_group.get_state()
        for rollout in rollouts:
            learner_of(algorithm).update(training_data=RolloutBatch([rollout]))
        expected = weights_of(algorithm)
    two = config(train_batch_size_per_learner=BATCH // 2).learners(num_learners=2, num_cpus_per_learner=0.5)
    with built(two) as algorithm:
        algorithm.learner_group.set_state(state)
        for rollout in rollouts:
            algorithm.learner_group.update(training_data=RolloutBatch([rollout]), minibatch_size=None)
        found = [
            result.get()
            for result in algorithm.learner_group.foreach_learner(
                lambda each: {k: v.clone() for k, v in each.actor_critic.state_dict().items()}
            )
        ]
    assert same(found[0], found[1])
    for key, tensor in expected.items():
        assert torch.allclose(found[0][key], tensor, atol=2e-5, rtol=1e-4), key
