"""Squashed priors: exact at the action bounds, and customised by RPG, with a standard deviation of the state's too."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from tests.algorithms.registry import CASES, built, learner_of, make_prior

from rpg_algorithms import RPGConfig, load_bundle
from rpg_algorithms.maths.distributions import SquashedGaussian
from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.rllib.rollout import RolloutBatch, TensorRollout

SAMPLES = (0.0, 1e-3, -0.3, 1.0, -2.65, 5.0, -8.7, 9.02, 15.0, -20.0, 20.0, -45.0, 89.0, -1000.0)
LOG_STDS = (-20.0, -12.5, -5.0, -1.0, 0.0, 1.3, 2.0)
DISTANCES = (0.0, 0.7, -3.0, 40.0)  # of the mean from the sample, in standard deviations


def by_mpmath(u: float, mean: float, log_std: float) -> tuple[float, float, float]:
    """At 50 digits: log of the density of tanh(u) in (-1, 1), and its derivatives by mean and log std."""
    with mpmath.workdps(50):
        u, mean, log_std = mpmath.mpf(u), mpmath.mpf(mean), mpmath.mpf(log_std)
        std = mpmath.exp(log_std)
        z = (u - mean) / std
        sech2 = 4 / (mpmath.exp(u) + mpmath.exp(-u)) ** 2  # 1 - tanh(u)^2, which itself needs 2 |u| more digits
        log_prob = -z * z / 2 - log_std - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(sech2)
        return float(log_prob), float(z / std), float(z * z - 1)


def table() -> tuple[np.ndarray, np.ndarray]:
    """Samples and means in float32, each with every log std: what is exact is exact of these numbers."""
    rows = [
        (u, np.float32(u) - np.float32(distance * math.exp(log_std)), log_std)
        for u, log_std, distance in itertools.product(SAMPLES, LOG_STDS, DISTANCES)
    ]
    rows += [(u, 0.5, log_std) for u, log_std in itertools.product(SAMPLES, LOG_STDS)]  # far off in standard deviations
    inputs = np.array(rows, np.float32)
    expected = np.array([by_mpmath(*(float(x) for x in row)) for row in inputs])
    return inputs, expected


def test_log_probabilities_and_gradients_are_exact_at_any_sample_and_spread() -> None:
    inputs, expected = table()
    u, mean, log_std = torch.from_numpy(inputs).unsqueeze(-1).unbind(1)
    mean, log_std = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
    torch_logp = SquashedGaussian(mean, log_std).log_prob(u)
    torch_logp.sum().backward()
    spec = NetworkSpec(1, 1, "squashed_gaussian", state_dependent_std=True, action_low=(-1,), action_high=(1,))
    policy = NumpyPolicy(PolicyNetwork(spec))
    numpy_logp = policy.log_prob(inputs[:, 1:], inputs[:, :1])
    assert numpy_logp.dtype == np.float32
    for found in (torch_logp.detach().numpy(), numpy_logp):
        assert np.isfinite(found).all()
        assert found == pytest.approx(expected[:, 0], rel=2e-6, abs=2e-6)
    for gradient, wanted in ((mean.grad, expected[:, 1]), (log_std.grad, expected[:, 2])):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient[:, 0].numpy() == pytest.approx(wanted, rel=2e-6, abs=2e-6)
    # Far out in the tail is in the table, not only near the mean.
    assert expected[:, 0].min() < -1e20
    assert expected[:, 0].max() > 100


def test_what_it_does_in_the_environment_stays_within_any_bounds() -> None:
    """Rounded in float32, ``low + (tanh(u) + 1) / 2 * (high - low)`` lies past the bound in one space of ten."""
    rng = np.random.default_rng(0)
    low = rng.uniform(-3.0, 3.0, 500).astype(np.float32)
    high = (low + rng.uniform(0.01, 5.0, 500)).astype(np.float32)
    spec = NetworkSpec(1, 500, "squashed_gaussian", action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
    policy = NumpyPolicy(PolicyNetwork(spec))
    actions = np.stack([np.full(500, u, np.float32) for u in (-20.0, 20.0, 0.0)])
    received = policy.to_env(actions)
    assert (received >= low).all()
    assert (received <= high).all()
    assert received[:2] == pytest.approx(np.stack((low, high)), abs=1e-6)
    assert received[2] == pytest.approx((low + high) / 2, abs=1e-6)
    assert (low + np.float32(0.5) * (np.tanh(actions[1]) + 1) * (high - low) > high).mean() > 0.05


# --- customising one


def saturated_prior(folder: Path, factor: float) -> Path:
    """A bundle whose means and log standard deviations are ``factor`` times a random network's."""
    from rpg_algorithms import save_bundle

    bundle = load_bundle(make_prior(folder, "squashed-state-dependent"))
    network = bundle.build()
    with torch.no_grad():
        last = network.mlp[-1]
        for parameter in last.parameters():
            parameter.mul_(factor)
    save_bundle(folder, network, bundle.card)
    return folder


def config(tmp_path: Path, prior: Path, **training: Any) -> RPGConfig:
    built_config = CASES["rpg-squashed-state-dependent"].build_config(tmp_path, **training)
    built_config.training(prior=prior)
    assert isinstance(built_config, RPGConfig)
    return built_config


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("factor", [1.0, 60.0])
def test_customisation_starts_at_the_prior_and_stays_finite(tmp_path: Path, engine: str, factor: float) -> None:
    prior = saturated_prior(tmp_path / "saturated", factor)
    with built(config(tmp_path, prior, update_engine=engine, omega_prime=0.3, alpha_hat=0.3)) as algorithm:
        module, learner = learner_of(algorithm).actor_critic, learner_of(algorithm)
        assert (learner._fused is not None) == (engine == "fused")
        rollout = algorithm.env_runner.sample()[0]
        obs = torch.from_numpy(rollout.obs).flatten(0, 1)
        with torch.no_grad():
            # log pi_theta = log pi to the bit, and what the policy acted by is the same to float32's rounding.
            inputs = module.policy(obs)
            assert torch.equal(inputs, module.prior(obs))
            log_std = inputs[:, 1]
            assert log_std.std() > 0.01  # it does depend on the state
            logp = module.prior.distribution(obs).log_prob(torch.from_numpy(rollout.actions).flatten(0, 1))
            assert logp.numpy() == pytest.approx(rollout.logp.reshape(-1), rel=1e-3, abs=1e-3 * factor)
            learner._return_carry = None
            _, statistics = learner._prepare(
                TensorRollout.from_rollout(rollout, "cpu"), {"omega_prime": 0.3, "alpha_hat": 0.3, "addon_weight": 1.0}
            )
        assert statistics["kl_to_prior"] == statistics["kl_to_prior_estimated"] == 0.0
        regularisation = statistics["reward_prior_term"] + statistics["reward_entropy_term"]
        assert abs(regularisation) < 1e-4 * max(1.0, abs(statistics["reward_prior_term"]))
        assert np.isfinite(rollout.logp).all()
        received = NumpyPolicy(module.policy).to_env(rollout.actions)
        assert (np.abs(received) == 1.0).any() == (factor > 1)  # actions that are the bound itself, in float32
        for _ in range(3):
            result = algorithm.train()
        learned = result["learners"]["default_policy"]
        for name in ("kl_to_prior", "reward_prior_term", "reward_entropy_term", "policy_loss", "vf_loss", "grad_norm"):
            assert math.isfinite(learned[name]), name
        assert learned["kl_to_prior"] > 0
        assert all(torch.isfinite(x).all() for x in module.state_dict().values())
        assert result["nonfinite_values"] == 0


@pytest.mark.usefixtures("local_ray")
def test_both_engines_take_the_same_steps_at_the_bounds(tmp_path: Path) -> None:
    prior, found = saturated_prior(tmp_path / "saturated", 10.0), []
    for engine in ("eager", "fused"):
        with built(config(tmp_path, prior, update_engine=engine, lr=1e-3)) as algorithm:
            learner = learner_of(algorithm)
            batch = RolloutBatch(algorithm.env_runner.sample())
            assert np.abs(batch.rollouts[0].actions).max() > 4.0
            learner.update(training_data=batch)
            found.append({k: v.clone() for k, v in learner.actor_critic.state_dict().items()})
    for key, tensor in found[0].items():
        assert torch.allclose(found[1][key], tensor, atol=2e-5, rtol=1e-4), key
    start = load_bundle(prior).build().state_dict()
    assert max((found[0][f"policy.{key}"] - value).abs().max().item() for key, value in start.items()) > 1e-3
