"""Acting from numpy is the torch network: every family, activation and normaliser; and its samples are right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from tests.algorithms.policies.networks import FAMILIES, LOW, NORMALISERS, D, make_network

from rpg_algorithms.maths.distributions import make_distribution
from rpg_algorithms.policies.network import ACTIVATIONS
from rpg_algorithms.policies.numpy_policy import NumpyPolicy


def observations(n: int = 64) -> torch.Tensor:
    return 3.0 * torch.randn(n, D, generator=torch.Generator().manual_seed(1)) + 1.0


@pytest.mark.parametrize(
    ("family", "activation", "normaliser"), list(itertools.product(FAMILIES, ACTIVATIONS, NORMALISERS))
)
def test_forward_pass_and_log_probabilities_are_torchs(family: str, activation: str, normaliser: str) -> None:
    network = make_network(family, normaliser, activation=activation)
    policy, obs = NumpyPolicy(network), observations()
    inputs = policy.dist_inputs(obs.numpy())
    with torch.no_grad():
        expected = network(obs)
    assert inputs.dtype == np.float32
    assert inputs == pytest.approx(expected.numpy(), abs=1e-5)
    actions = policy.sample(policy.outputs(obs.numpy()), policy.noise(np.random.default_rng(0), (64,)))
    theirs = make_distribution(network.spec.distribution, torch.from_numpy(inputs)).log_prob(torch.from_numpy(actions))
    assert policy.log_prob(inputs, actions) == pytest.approx(theirs.numpy(), abs=1e-5)
    assert np.array_equal(
        policy.mode(policy.outputs(obs.numpy())),
        make_distribution(network.spec.distribution, torch.from_numpy(inputs)).mode().numpy(),
    )


def test_an_observation_that_hardly_varies_keeps_its_digits() -> None:
    """Mean 1,000 and deviation 0.001: in float32 alone, what is left after the mean is off by a third of it."""
    network = make_network("gaussian", "unclipped", observation_epsilon=0.0, hidden=())
    assert network.normalizer is not None
    network.normalizer.mean.fill_(1_000.00003)
    network.normalizer.var.fill_(1e-6)
    obs = np.nextafter(np.full((9, D), 1_000.0, np.float32), np.float32(np.inf)) + np.zeros(D, np.float32)
    exact = (obs.astype(np.float64) - 1_000.00003) / 1e-3
    assert network.normalize(torch.from_numpy(obs)).numpy() == pytest.approx(exact, rel=1e-6)
    with torch.no_grad():
        expected = network.head(torch.from_numpy(exact.astype(np.float32))).numpy()
    assert NumpyPolicy(network).dist_inputs(obs) == pytest.approx(expected, abs=1e-5)


def test_without_hidden_layers_it_is_linear() -> None:
    network = make_network("categorical", "none", hidden=())
    obs = observations()
    with torch.no_grad():
        expected = obs @ network.mlp[0].weight.T + network.mlp[0].bias
    assert NumpyPolicy(network).dist_inputs(obs.numpy()) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_snapshot_does_not_follow_the_network_and_changes_nothing() -> None:
    network = make_network("gaussian")
    obs = observations().numpy()
    kept = obs.copy()
    policy = NumpyPolicy(network)
    before = policy.dist_inputs(obs)
    assert np.array_equal(obs, kept)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert np.array_equal(policy.dist_inputs(obs), before)
    assert np.abs(NumpyPolicy(network).dist_inputs(obs) - before).max() > 0.1


@pytest.mark.parametrize("family", ["gaussian", "state-dependent", "squashed"])
def test_gaussian_samples_have_mean_and_std(family: str) -> None:
    policy = NumpyPolicy(make_network(family))
    n = 40_000
    inputs = np.repeat(policy.dist_inputs(observations(1).numpy()), n, axis=0)
    outputs = np.repeat(policy.outputs(observations(1).numpy()), n, axis=0)
    sample = policy.sample(outputs, policy.noise(np.random.default_rng(0), (n,)))
    for a in range(3):
        normal = scipy.stats.norm(inputs[0, a], np.exp(inputs[0, 3 + a]))
        assert scipy.stats.kstest(sample[:, a], normal.cdf).pvalue > 1e-3
    # Its dimensions are independent.
    assert np.abs(np.corrcoef(sample.T) - np.eye(3)).max() < 0.02


def test_categorical_samples_have_the_probabilities() -> None:
    policy = NumpyPolicy(make_network("categorical"))
    n = 40_000
    inputs = np.repeat(policy.dist_inputs(observations(1).numpy()), n, axis=0)
    outputs = np.repeat(policy.outputs(observations(1).numpy()), n, axis=0)
    sample = policy.sample(outputs, policy.noise(np.random.default_rng(0), (n,)))
    expected = n * np.exp(policy.log_prob(inputs[:4], np.arange(4)).astype(float))
    expected *= n / expected.sum()  # float32's rounding
    assert scipy.stats.chisquare(np.bincount(sample, minlength=4), expected).pvalue > 1e-3
    assert np.exp(policy.log_prob(inputs[:4], np.arange(4))).sum() == pytest.approx(1.0, abs=1e-6)


def test_squashed_log_probabilities_far_out_are_finite_and_right() -> None:
    policy = NumpyPolicy(make_network("squashed", log_std_init=1.0))
    inputs = policy.dist_inputs(observations(5).numpy())
    actions = np.array([[-60.0, 0.0, 60.0]] * 5, np.float32)
    theirs = make_distribution("squashed_gaussian", torch.from_numpy(inputs).double()).log_prob(
        torch.from_numpy(actions).double()
    )
    assert policy.log_prob(inputs, actions) == pytest.approx(theirs.numpy(), rel=1e-5)


def test_what_the_environment_gets() -> None:
    raw = np.array([[-9.0, 0.2, 9.0], [0.0, 0.0, 2.0]], np.float32)
    gaussian, squashed = (NumpyPolicy(make_network(f)) for f in ("gaussian", "squashed"))
    assert gaussian.to_env(raw).tolist() == pytest.approx(np.array([[-1.0, 0.2, 4.0], [0.0, 0.0, 2.0]]))
    assert raw[0, 0] == -9.0  # the sample itself stays
    # tanh to [low, high]: 0 is the middle; low + (tanh(2) + 1) / 2 * 4 = 3.928055 for the last one
    squashed_actions = squashed.to_env(raw)
    assert squashed_actions[1] == pytest.approx([0.0, 0.0, 3.928055], abs=1e-5)
    assert squashed_actions[0] == pytest.approx([-1.0, np.tanh(0.2) / 2, 4.0], abs=1e-5)
    assert (squashed_actions >= np.array(LOW) - 1e-6).all()
    categorical = NumpyPolicy(make_network("categorical"))
    assert categorical.to_env(np.array([0, 3])).tolist() == [2, 5]  # the space starts at 2
