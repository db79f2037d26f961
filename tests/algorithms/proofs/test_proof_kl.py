"""RPG with omega' = alpha_hat = beta is the KL-regularised objective, and its known optima are reached."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.algorithms.proofs.finite_mdp import (
    FiniteMDP,
    all_transitions,
    exact_gradient,
    kl_per_state,
    policy_value,
    random_mdp,
    random_reward,
    visitation,
)

from rpg_algorithms import NetworkSpec, PolicyNetwork, PriorBundle, PriorCard, RPGConfig
from rpg_algorithms.maths.advantages import generalized_advantages
from rpg_algorithms.maths.distributions import DiagonalGaussian
from rpg_algorithms.maths.objectives import policy_gradient_objective
from rpg_algorithms.maths.rewards import rpg_reward

BETA = 0.4
REFUTED = 1e-2


def rpg_gradient(
    mdp: FiniteMDP, logits: np.ndarray, addon: np.ndarray, prior_log: np.ndarray, omega_prime: float, alpha_hat: float
) -> np.ndarray:
    """The expectation of RPG's estimator over all transitions, with exact values."""
    rows = all_transitions(mdp)
    theta = torch.tensor(logits, requires_grad=True)
    log_policy = torch.log_softmax(theta, -1)
    fixed = log_policy.detach()
    reward = rpg_reward(torch.from_numpy(addon), torch.from_numpy(prior_log), fixed, omega_prime, alpha_hat)
    value = torch.from_numpy(policy_value(mdp, fixed.exp().numpy(), reward.numpy()))
    at, done = (rows.state, rows.action), rows.terminated[None]
    advantage = generalized_advantages(
        reward[at][None], value[rows.state][None], value[rows.next_state][None], done, done, mdp.gamma, 1.0
    )[0]
    visits = torch.from_numpy(visitation(mdp, fixed.exp().numpy()))[:, None]
    weight = (visits * fixed.exp())[at] * rows.probability
    policy_gradient_objective(log_policy[at], advantage, weight).backward()
    assert theta.grad is not None
    return theta.grad.numpy()


@pytest.mark.parametrize("seed", range(5))
def test_gradient_is_that_of_the_kl_regularised_objective(seed: int) -> None:
    mdp = random_mdp(seed)
    addon, logits = random_reward(seed, mdp), random_reward(seed + 50, mdp)
    prior_log = torch.log_softmax(torch.from_numpy(random_reward(seed + 90, mdp)), -1).numpy()
    exact = exact_gradient(mdp, logits, addon, BETA, prior_log)
    assert rpg_gradient(mdp, logits, addon, prior_log, BETA, BETA) == pytest.approx(exact, abs=1e-10, rel=0)
    for omega_prime, alpha_hat in ((0.0, BETA), (BETA, 0.0), (-BETA, BETA), (1.2 * BETA, BETA), (BETA, 1.2 * BETA)):
        other = rpg_gradient(mdp, logits, addon, prior_log, omega_prime, alpha_hat)
        assert np.abs(other - exact).max() > REFUTED, (omega_prime, alpha_hat)


def bandit_optimum(prior: np.ndarray, addon: np.ndarray, omega_prime: float, alpha_hat: float) -> np.ndarray:
    """Closed form ``pi ∝ prior^(omega' / alpha_hat) * exp(r_R / alpha_hat)``."""
    unnormalised = prior ** (omega_prime / alpha_hat) * np.exp(addon / alpha_hat)
    return unnormalised / unnormalised.sum()


def ascend_bandit(prior: np.ndarray, addon: np.ndarray, omega_prime: float, alpha_hat: float) -> np.ndarray:
    """Plain gradient ascent on the logits of a bandit."""
    actions = len(prior)
    mdp = FiniteMDP(np.zeros((1, actions, 1)), np.ones(1), 0.9)
    logits = np.zeros((1, actions))
    for _ in range(1500):
        logits += 2.0 * rpg_gradient(mdp, logits, addon[None], np.log(prior)[None], omega_prime, alpha_hat)
    return np.exp(logits[0]) / np.exp(logits[0]).sum()


@pytest.mark.parametrize(("omega_prime", "alpha_hat"), [(BETA, BETA), (0.4, 0.25), (0.1, 0.5), (0.0, 0.4)])
def test_bandit_has_the_closed_forms_optimum(omega_prime: float, alpha_hat: float) -> None:
    prior, addon = np.array([0.5, 0.3, 0.15, 0.05]), np.array([-0.2, 0.1, 0.0, 0.6])
    found = ascend_bandit(prior, addon, omega_prime, alpha_hat)
    assert kl_per_state(found, bandit_optimum(prior, addon, omega_prime, alpha_hat)) < 1e-8
    for other in ((-omega_prime, alpha_hat), (omega_prime + 0.3, alpha_hat), (omega_prime, 2 * alpha_hat)):
        if other != (omega_prime, alpha_hat):
            assert kl_per_state(found, bandit_optimum(prior, addon, *other)) > REFUTED


# --- Gaussian policies


PRIOR_MEAN, PRIOR_STD = np.array([0.5, -1.0]), np.array([0.8, 0.3])
CENTRE, CURVATURE = np.array([-0.3, 0.4]), np.array([1.5, 0.7])  # r_R(a) = -1/2 sum k (a - c)^2


def gaussian_optimum(omega_prime: float, alpha_hat: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of ``prior^(omega' / alpha_hat) * exp(r_R / alpha_hat)``: precisions add, means are weighted."""
    prior_precision, addon_precision = omega_prime / alpha_hat / PRIOR_STD**2, CURVATURE / alpha_hat
    precision = prior_precision + addon_precision
    return (prior_precision * PRIOR_MEAN + addon_precision * CENTRE) / precision, precision**-0.5


def ascend_gaussian(omega_prime: float, alpha_hat: float) -> tuple[np.ndarray, np.ndarray]:
    """Ascent in mean and log-std, expectations by Gauss-Hermite quadrature (exact for these polynomials)."""
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(6)
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    noise = torch.from_numpy(np.stack((first.ravel(), second.ravel()), -1))
    weight = torch.from_numpy(np.outer(node_weights, node_weights).ravel() / (2 * np.pi))
    prior = DiagonalGaussian(torch.from_numpy(PRIOR_MEAN), torch.from_numpy(np.log(PRIOR_STD)))
    mean = torch.from_numpy(PRIOR_MEAN.copy()).requires_grad_()
    log_std = torch.from_numpy(np.log(PRIOR_STD)).requires_grad_()
    for _ in range(400):
        policy = DiagonalGaussian(mean, log_std)
        action = (mean + log_std.exp() * noise).detach()
        addon = -0.5 * (torch.from_numpy(CURVATURE) * (action - torch.from_numpy(CENTRE)).square()).sum(-1)
        logp = policy.log_prob(action)
        reward = rpg_reward(addon, prior.log_prob(action), logp.detach(), omega_prime, alpha_hat)
        advantage = reward - (weight * reward).sum()
        objective = policy_gradient_objective(logp, advantage, weight)
        mean_gradient, std_gradient = torch.autograd.grad(objective, (mean, log_std))
        with torch.no_grad():  # the natural gradient: Fisher information 1 / std^2 and 2
            mean += 0.3 / alpha_hat * log_std.exp().square() * mean_gradient
            log_std += 0.3 / alpha_hat * 0.5 * std_gradient
    return mean.detach().numpy(), log_std.detach().exp().numpy()


@pytest.mark.parametrize(("omega_prime", "alpha_hat"), [(BETA, BETA), (0.4, 0.25), (0.1, 0.5), (0.0, 0.4)])
def test_gaussian_prior_with_quadratic_addon_has_the_closed_forms_optimum(omega_prime: float, alpha_hat: float) -> None:
    mean, std = ascend_gaussian(omega_prime, alpha_hat)
    expected_mean, expected_std = gaussian_optimum(omega_prime, alpha_hat)
    assert mean == pytest.approx(expected_mean, abs=1e-8)
    assert std == pytest.approx(expected_std, abs=1e-8)
    for other in ((omega_prime + 0.1, alpha_hat), (omega_prime, 1.3 * alpha_hat)):
        other_mean, other_std = gaussian_optimum(*other)
        assert max(np.abs(mean - other_mean).max(), np.abs(std - other_std).max()) > REFUTED


# --- a policy that is still its prior


def test_policy_equal_to_its_prior_has_no_regularisation() -> None:
    logp, addon = torch.randn(1000), torch.randn(1000)
    assert torch.equal(rpg_reward(torch.zeros(1000), logp, logp, BETA, BETA), torch.zeros(1000))
    assert not torch.allclose(rpg_reward(addon, logp, logp, 1.1 * BETA, BETA), addon, atol=REFUTED)
    assert not torch.allclose(rpg_reward(addon, logp, logp, -BETA, BETA), addon, atol=REFUTED)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("omega_prime", "zero"), [(BETA, True), (2 * BETA, False)])
def test_algorithm_starts_from_its_prior_with_no_regularisation(omega_prime: float, zero: bool) -> None:
    env = gym.make("Pendulum-v1")
    spec = NetworkSpec(3, 1, "gaussian", hidden=(8,), action_low=(-2.0,), action_high=(2.0,))
    network = PolicyNetwork(spec)
    card = PriorCard.describe("random", "Pendulum-v1", env.observation_space, env.action_space, spec)
    bundle = PriorBundle(card, {k: v.numpy() for k, v in network.state_dict().items()})
    algorithm = (
        RPGConfig()
        .environment("Pendulum-v1")
        .env_runners(num_envs_per_env_runner=2)
        .training(
            prior=bundle,
            addon_reward=lambda obs, actions, next_obs, infos: 0.0 * obs[:, 0],
            omega_prime=omega_prime,
            alpha_hat=BETA,
            train_batch_size_per_learner=128,
            minibatch_size=64,
            num_epochs=1,
        )
        .build_algo()
    )
    try:
        result = algorithm.train()["learners"]["default_policy"]
    finally:
        algorithm.stop()
    assert result["kl_to_prior"] == 0.0
    # The acting log-probability comes from numpy, the prior's from torch: equal to float32's rounding.
    regularisation = result["reward_prior_term"] + result["reward_entropy_term"]
    assert abs(result["reward_entropy_term"]) > REFUTED
    assert (abs(regularisation) < 1e-6) == zero
