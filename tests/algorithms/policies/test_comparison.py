"""A policy and a prior of different families: log-probabilities, rewards and KL against independent arithmetic."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from tests.algorithms.registry import CASES, RESIDUAL, Case, built, learner_of, make_prior, weights_of
from torch import Tensor

from rpg_algorithms import NetworkConfig, RPGConfig, SPGConfig
from rpg_algorithms.maths.distributions import make_distribution
from rpg_algorithms.maths.objectives import kl_estimate
from rpg_algorithms.policies.comparison import BOUND_STRIP, Comparison, compare
from rpg_algorithms.policies.network import NetworkSpec
from rpg_algorithms.rllib.rollout import RolloutBatch, TensorRollout

LOW, HIGH = (-2.0, 0.0), (2.0, 2.0)
FAMILIES = ("gaussian", "squashed_gaussian")
PAIRS = [("gaussian", "squashed_gaussian"), ("squashed_gaussian", "gaussian")]


def spec(family: str, low: tuple[float, ...] = LOW, high: tuple[float, ...] = HIGH) -> NetworkSpec:
    return NetworkSpec(3, len(low), family, action_low=low, action_high=high)  # type: ignore[arg-type]


# --- an independent definition, in 50 digits, of one dimension and in (-1, 1)


def mp_received(family: str, mean: float, log_std: float, action: mpmath.mpf, low: float, high: float) -> mpmath.mpf:
    """Log of the density, or mean density in a strip, of what the environment receives; ``action`` in its units."""
    half, middle = (mpmath.mpf(high) - low) / 2, (mpmath.mpf(high) + low) / 2
    y, edge, std = (action - middle) / half, 1 - mpmath.mpf(BOUND_STRIP), mpmath.exp(log_std)
    squashed = family == "squashed_gaussian"
    if abs(y) >= edge:
        start = mpmath.atanh(edge) if squashed else half * edge
        centre = 0 if squashed else middle
        side = 1 if y > 0 else -1
        # P(side * (x - centre) >= start) by the complementary error function
        z = (start - side * (mean - centre)) / std
        return mpmath.log(mpmath.erfc(z / mpmath.sqrt(2)) / 2 / BOUND_STRIP)
    x, slope = (mpmath.atanh(y), 1 - y * y) if squashed else (action, 1 / half)
    return -(((x - mean) / std) ** 2) / 2 - mpmath.log(std * mpmath.sqrt(2 * mpmath.pi)) - mpmath.log(slope)


def mp_action(family: str, sample: float, low: float, high: float) -> mpmath.mpf:
    """What the environment receives of a sample: clipped, or tanh rescaled."""
    low, high, sample = mpmath.mpf(low), mpmath.mpf(high), mpmath.mpf(sample)
    if family == "gaussian":
        return min(max(sample, low), high)
    return low + (mpmath.tanh(sample) + 1) / 2 * (high - low)


def mp_log_probs(policy: str, prior: str, inputs: Tensor, prior_inputs: Tensor, action: Tensor) -> tuple[float, float]:
    """The two log-probabilities of one action ``[A]`` in the coordinates of the policy's density."""
    totals = [mpmath.mpf(0), mpmath.mpf(0)]
    size = len(LOW)
    with mpmath.workdps(50):
        for i in range(size):
            a = mp_action(policy, float(action[i]), LOW[i], HIGH[i])
            units = mpmath.log((mpmath.mpf(HIGH[i]) - LOW[i]) / 2) if policy == "gaussian" else 0
            for k, (family, parameters) in enumerate(((policy, inputs), (prior, prior_inputs))):
                mean, log_std = float(parameters[i]), float(parameters[size + i])
                totals[k] += mp_received(family, mean, log_std, a, LOW[i], HIGH[i]) - units
    return float(totals[0]), float(totals[1])


@pytest.mark.parametrize(("policy", "prior"), PAIRS)
@pytest.mark.parametrize("prior_log_std", [-20.0, -5.0, 0.0, 2.0])
def test_log_probabilities_are_those_of_the_received_action(policy: str, prior: str, prior_log_std: float) -> None:
    torch.manual_seed(0)
    n, middle = 60, torch.tensor([0.0, 1.0])
    inputs = torch.cat((torch.randn(n, 2) + middle, torch.full((n, 2), -0.5)), -1)
    prior_inputs = torch.cat((torch.randn(n, 2) + middle, torch.full((n, 2), prior_log_std)), -1)
    actions = torch.randn(n, 2) * torch.linspace(0.1, 8.0, n)[:, None] + middle
    edge = 1.0 - BOUND_STRIP
    near = edge - 1e-6  # just inside of a strip, and far out
    if policy == "gaussian":
        actions[:4] = torch.tensor([[2.0 * near, 1.0], [-2.0 * near, 1.0 + near], [50.0, -50.0], [2.0, 0.0]])
    else:
        actions[:4] = torch.tensor([[math.atanh(near), 1.0], [-math.atanh(near), 0.0], [50.0, -50.0], [9.1, -20.0]])
    own, its = compare(spec(policy), inputs, spec(prior), prior_inputs).log_probs(actions)
    assert own is not None
    assert own.dtype == its.dtype == torch.float32
    expected = [mp_log_probs(policy, prior, *rows) for rows in zip(inputs, prior_inputs, actions, strict=True)]
    assert own.numpy() == pytest.approx(np.array([x[0] for x in expected]), rel=2e-6, abs=2e-6)
    assert its.numpy() == pytest.approx(np.array([x[1] for x in expected]), rel=2e-6, abs=2e-6)
    assert torch.isfinite(own).all()
    assert torch.isfinite(its).all()


@pytest.mark.parametrize(("policy", "prior"), PAIRS)
def test_inside_the_bounds_it_is_the_policys_own_density(policy: str, prior: str) -> None:
    torch.manual_seed(1)
    inputs = torch.cat((0.05 * torch.randn(200, 2) + torch.tensor([0.0, 1.0]), torch.full((200, 2), -3.0)), -1)
    pair = compare(spec(policy), inputs, spec(prior), inputs)
    actions = pair.policy.sample()
    own, its = pair.log_probs(actions)
    assert own is not None
    assert own.numpy() == pytest.approx(pair.policy.log_prob(actions).numpy(), abs=1e-4)
    # The prior's is not what its density says of the policy's sample, which is another variable.
    assert (its - pair.prior.log_prob(actions)).abs().mean() > 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_within_one_family_nothing_changes(family: str) -> None:
    torch.manual_seed(2)
    inputs, prior_inputs, actions = torch.randn(50, 4), torch.randn(50, 4), 3 * torch.randn(50, 2)
    pair = compare(spec(family), inputs, spec(family), prior_inputs)
    own, its = pair.log_probs(actions)
    assert own is None
    assert torch.equal(its, pair.prior.log_prob(actions))
    assert torch.equal(pair.kl(), pair.policy.kl(pair.prior))
    assert not pair.estimated


def test_families_are_compared_within_finite_bounds_only() -> None:
    unbounded = NetworkSpec(3, 1, "gaussian", action_low=(-math.inf,), action_high=(math.inf,))
    flat = NetworkSpec(3, 1, "squashed_gaussian", action_low=(1.0,), action_high=(1.0,))
    x = torch.zeros(1, 2)
    assert compare(unbounded, x, spec("squashed_gaussian", (-1.0,), (1.0,)), x).box is not None  # the other knows them
    with pytest.raises(ValueError, match=r"action bounds .*inf.*: expected finite ones, low < high"):
        compare(unbounded, x, flat, x)


def test_spaces_must_agree_and_a_categorical_goes_with_a_categorical() -> None:
    gaussian = spec("gaussian")
    gaussian.check_compatible(spec("squashed_gaussian"), "prior")
    spec("squashed_gaussian").check_compatible(gaussian, "prior")
    for other, message in (
        (replace(gaussian, observation_size=4), "prior: observation_size is 4, expected 3"),
        (replace(gaussian, distribution="categorical"), "prior: distribution is 'categorical', expected 'gaussian'"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian.check_compatible(other, "prior")


# --- KL


def numerical_kl(policy: str, prior: str, p: tuple[float, float], q: tuple[float, float]) -> float:
    """KL of what an environment with bounds -1, 3 receives, by adaptive integration over the action itself."""
    low, high = -1.0, 3.0

    def log_density(family: str, parameters: tuple[float, float], a: float) -> float:
        y, (mean, log_std) = (a - 1.0) / 2.0, parameters
        if family == "gaussian":
            return float(scipy.stats.norm.logpdf(a, mean, math.exp(log_std)))
        u = math.atanh(y)
        return float(scipy.stats.norm.logpdf(u, mean, math.exp(log_std))) - math.log((1.0 - y * y) * 2.0)

    def log_tails(family: str, parameters: tuple[float, float]) -> tuple[float, float]:
        edge = math.atanh(1.0 - BOUND_STRIP) if family == "squashed_gaussian" else 2.0 * (1.0 - BOUND_STRIP)
        centre = 0.0 if family == "squashed_gaussian" else 1.0
        normal = scipy.stats.norm(parameters[0], math.exp(parameters[1]))
        return float(normal.logcdf(centre - edge)), float(normal.logsf(centre + edge))

    def integrand(a: float) -> float:
        own = log_density(policy, p, a)
        return math.exp(own) * (own - log_density(prior, q, a))

    grid = np.linspace(low + 2 * BOUND_STRIP, high - 2 * BOUND_STRIP, 41)
    inside = sum(scipy.integrate.quad(integrand, a, b)[0] for a, b in itertools.pairwise(grid))
    tails = zip(log_tails(policy, p), log_tails(prior, q), strict=True)
    return float(inside + sum(math.exp(own) * (own - its) for own, its in tails))


PARAMETERS = [
    ((1.0, -0.5), (0.0, -1.0)),
    ((0.3, -2.0), (-0.2, 0.0)),
    ((2.9, -1.0), (2.0, -0.5)),  # at the upper bound
    ((-4.0, 0.5), (1.0, 0.5)),  # outside of the lower one
    ((0.5, 1.8), (0.3, -0.7)),
    ((8.0, -1.0), (5.0, -0.5)),  # saturated for certain
]


def one_dimension(policy: str, prior: str, p: tuple[float, float], q: tuple[float, float], rows: int) -> Comparison:
    specs = (spec(family, (-1.0,), (3.0,)) for family in (policy, prior))
    inputs = (torch.tensor([each]).double().expand(rows, 2) for each in (p, q))
    (policy_spec, prior_spec), (p_inputs, q_inputs) = specs, inputs
    return compare(policy_spec, p_inputs, prior_spec, q_inputs)


@pytest.mark.parametrize(("policy", "prior"), PAIRS)
@pytest.mark.parametrize(("p", "q"), PARAMETERS)
def test_kl_is_the_numerical_integral(policy: str, prior: str, p: tuple[float, float], q: tuple[float, float]) -> None:
    found, expected = one_dimension(policy, prior, p, q, 1).kl().item(), numerical_kl(policy, prior, p, q)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert expected > 1e-5
    # Neither the Gaussians' closed form, which would leave the change of variables out, nor the other direction.
    closed = one_dimension(policy, policy, p, q, 1).kl().item()
    assert abs(closed - expected) > 0.01 * expected
    assert abs(numerical_kl(prior, policy, q, p) - expected) > 0.01 * expected


@pytest.mark.parametrize(("policy", "prior"), PAIRS)
def test_kl_is_what_the_estimate_from_samples_converges_to(policy: str, prior: str) -> None:
    torch.manual_seed(0)
    p, q = ((1.3, 0.3), (0.2, -0.3)) if policy == "gaussian" else ((0.2, 0.5), (1.3, 0.3))
    expected, errors = one_dimension(policy, prior, p, q, 1).kl().item(), []
    for rows in (2_000, 200_000):
        pair = one_dimension(policy, prior, p, q, rows)
        actions = pair.policy.sample()
        own, its = pair.log_probs(actions)
        assert own is not None
        estimate = kl_estimate(own, its)
        errors.append(estimate.std().item() / math.sqrt(rows))
        assert estimate.mean().item() == pytest.approx(expected, abs=4 * errors[-1])
        # What makes it unbiased: the prior's probabilities of everything that the policy can do sum to one.
        ratio = torch.exp(its - own)
        assert ratio.mean().item() == pytest.approx(1.0, abs=4 * ratio.std().item() / math.sqrt(rows))
    assert expected > 20 * errors[1]
    assert errors[1] < errors[0] / 5
    # Without the strips' probabilities the densities of a clipped and a squashed policy are no such pair.
    y = ((actions - 1.0) / 2.0).clamp(-1 + 1e-6, 1 - 1e-6) if policy == "gaussian" else torch.tanh(actions)
    of_prior = torch.atanh(y) if prior == "squashed_gaussian" else 1.0 + 2.0 * y
    jacobian = math.log(2.0) if policy == "squashed_gaussian" else -math.log(2.0)
    naive = pair.prior.log_prob(of_prior) + jacobian
    assert abs((pair.policy.log_prob(actions) - naive).mean().item() - expected) > 0.1 * expected


@pytest.mark.parametrize(("policy", "prior"), PAIRS)
def test_kl_is_finite_and_small_only_where_they_agree(policy: str, prior: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(9_000, 4, generator=generator) * 10.0
    inputs[:, 2:] = inputs[:, 2:].clamp(-20.0, 2.0)
    kl = compare(spec(policy), inputs, spec(prior), inputs.flip(0)).kl()
    assert kl.shape == (9_000,)
    assert torch.isfinite(kl).all()
    assert kl.min() > -1e-4
    # The same spread about the middle, narrow: a clipped and a squashed Gaussian nearly coincide there.
    gaussian = torch.tensor([[0.0, 1.0, math.log(0.02), math.log(0.01)]])
    squashed = torch.tensor([[0.0, 0.0, math.log(0.01), math.log(0.01)]])
    pair = (gaussian, squashed) if policy == "gaussian" else (squashed, gaussian)
    assert compare(spec(policy), pair[0], spec(prior), pair[1]).kl().item() == pytest.approx(0.0, abs=1e-3)


# --- in training

pytest_ray = pytest.mark.usefixtures("local_ray")
CROSS = ["rpg-gaussian-to-squashed-prior", "rpg-squashed-to-gaussian-prior"]


def prepared(config: SPGConfig) -> tuple[Any, Any, dict[str, float], Any]:
    """A rollout, its training samples and statistics, and the module."""
    with built(config) as algorithm:
        rollout = algorithm.env_runner.sample()[0]
        learner = learner_of(algorithm)
        weights = {name: float(value) for name, value in config.reward_weights().items()}
        with torch.no_grad():
            samples, statistics = learner._prepare(TensorRollout.from_rollout(rollout, "cpu"), weights)
        return rollout, samples, statistics, learner.actor_critic


@pytest_ray
@pytest.mark.parametrize("name", CROSS)
def test_the_residual_reward_is_that_of_the_received_action(name: str, tmp_path: Path) -> None:
    config = CASES[name].build_config(tmp_path, gamma=0.0, lambda_=0.0, scale_rewards=False, omega_prime=0.3)
    settings = {"hidden": (8,), "log_std_init": 0.3, "distribution": None if "gaussian-to" in name else FAMILIES[1]}
    config.rl_module(model_config=NetworkConfig(**settings))  # wide: many actions reach the bounds
    rollout, samples, statistics, module = prepared(config)
    obs = torch.from_numpy(rollout.obs).flatten(0, 1)
    with torch.no_grad():
        inputs, prior_inputs = module.policy(obs), module.prior(obs)
    families = module.policy.spec.distribution, module.prior.spec.distribution
    actions, addon = rollout.actions.reshape(-1, 1), rollout.addon.reshape(-1)
    expected, bounds = [], 0
    with mpmath.workdps(50):
        for row in range(len(obs)):
            a = mp_action(families[0], float(actions[row, 0]), -1.0, 1.0)
            own, its = (
                mp_received(family, float(parameters[row, 0]), float(parameters[row, 1]), a, -1.0, 1.0)
                for family, parameters in zip(families, (inputs, prior_inputs), strict=True)
            )
            bounds += abs(a) >= 1.0 - BOUND_STRIP
            expected.append(float(addon[row] + 0.3 * its - 0.1 * own))
    assert 5 < bounds < len(obs) - 50
    # At gamma = 0 the value targets are the rewards themselves.
    assert samples.target.numpy() == pytest.approx(np.array(expected), rel=2e-5, abs=2e-5)
    assert np.array_equal(samples.logp_old.numpy(), rollout.logp.reshape(-1))  # PPO's ratio keeps the sample's own
    assert statistics["kl_to_prior_estimated"] == 1.0
    assert statistics["kl_to_prior"] > 0.01
    # Negative control: the density that the prior has at the number that the policy sampled.
    its_own = make_distribution(module.prior.spec.distribution, prior_inputs).log_prob(torch.from_numpy(actions))
    naive = addon + 0.3 * its_own.numpy() - 0.1 * rollout.logp.reshape(-1)
    assert np.abs(naive - np.array(expected)).max() > 0.1


@pytest_ray
def test_only_a_reward_with_a_prior_is_taken_of_the_received_action(tmp_path: Path) -> None:
    """The full policy knows a prior only to measure its KL: its reward is the one it has without."""
    training = {"alpha": 0.3, "gamma": 0.0, "lambda_": 0.0, "scale_rewards": False, "start_from_prior": False}
    case = Case(SPGConfig, training=training, prior=True, prior_family="squashed")
    rollout, samples, statistics, _ = prepared(case.build_config(tmp_path))
    assert samples.target.numpy() == pytest.approx((rollout.basic - 0.3 * rollout.logp).reshape(-1), abs=1e-5)
    assert statistics["kl_to_prior_estimated"] == 1.0


@pytest_ray
@pytest.mark.parametrize("name", CROSS)
def test_both_engines_take_the_same_steps(name: str, tmp_path: Path) -> None:
    found = []
    for engine in ("eager", "fused"):
        with built(CASES[name].build_config(tmp_path, update_engine=engine)) as algorithm:
            learner = learner_of(algorithm)
            before = weights_of(algorithm)
            results = [learner.update(training_data=RolloutBatch(algorithm.env_runner.sample())) for _ in range(2)]
            kl = float(results[-1]["default_policy"]["kl_to_prior"])
            found.append((weights_of(algorithm), kl))
    (eager, eager_kl), (fused, fused_kl) = found
    assert fused_kl == pytest.approx(eager_kl, rel=1e-4)
    for key, tensor in eager.items():
        assert torch.allclose(fused[key], tensor, atol=2e-5, rtol=1e-4), key
    assert max((eager[key] - before[key]).abs().max().item() for key in eager if "policy.mlp" in key) > 1e-3


@pytest_ray
def test_a_policy_cannot_start_from_a_prior_of_another_family(tmp_path: Path) -> None:
    prior = make_prior(tmp_path / "prior", "squashed")
    config = RPGConfig().environment("Pendulum-v1").training(prior=prior, **RESIDUAL)
    config.rl_module(model_config=NetworkConfig(distribution="gaussian"))
    with pytest.raises(ValueError, match=r"distribution='gaussian' with start_from_prior=True, .* 'squashed_gaussian'"):
        config.validate()
    config = RPGConfig().environment("Pendulum-v1").training(prior=prior, entropy_coeff=0.1, **RESIDUAL)
    with pytest.raises(ValueError, match=r"entropy_coeff=0\.1 with distribution='squashed_gaussian'"):
        config.validate()


@pytest_ray
@pytest.mark.parametrize("name", CROSS)
def test_it_learns_to_be_its_prior(name: str, tmp_path: Path) -> None:
    """Without an add-on, omega' = alpha_hat makes the reward -KL: a policy from scratch comes close to its prior."""
    config = CASES[name].build_config(
        tmp_path, addon_weight=0.0, omega_prime=0.2, alpha_hat=0.2, gamma=0.0, lambda_=0.0, num_epochs=10, lr=1e-2
    )
    with built(config) as algorithm:
        kls = [algorithm.train()["learners"]["default_policy"]["kl_to_prior"] for _ in range(25)]
    assert kls[0] > 0.1
    # A squashed policy cannot put as much on the bounds themselves as this clipped prior does.
    assert kls[-1] < (0.2 if "gaussian-to" in name else 0.4) * kls[0], kls
