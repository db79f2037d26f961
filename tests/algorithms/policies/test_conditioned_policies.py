"""A policy that is told weights starts as its prior, and at any weights is a plain policy of the prior's shape."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.algorithms.policies.graph_priors import make_graph_prior
from tests.algorithms.policies.networks import FAMILIES, HIGH, LOW, NORMALISERS, D, make_network
from tests.algorithms.registry import addon, make_prior

from rpg_algorithms import Conditioned, NetworkSpec, PolicyNetwork, PriorCard, RPGConfig, load_bundle, save_bundle
from rpg_algorithms.maths.conditioned import grid, told
from rpg_algorithms.policies.numpy_policy import NumpyPolicy

SHIPPED = Path(__file__).parents[3] / "platform/rpg_platform/shipped_priors/halfcheetah-spg"
CONTEXT = (Conditioned(0.02, 1.6, "omega_prime"), Conditioned(0.0, 0.1, "alpha_hat"))
SETTINGS = [*grid(CONTEXT, 3), {"omega_prime": 0.1234567, "alpha_hat": 0.01}]
KINDS = [
    *((family, normaliser, (16, 8)) for family in FAMILIES for normaliser in NORMALISERS),
    *((family, "clipped", ()) for family in FAMILIES),
]


def conditioned(prior: PolicyNetwork) -> PolicyNetwork:
    torch.manual_seed(1)
    network = PolicyNetwork(dataclasses.replace(prior.spec, context=CONTEXT))
    network.start_from(prior)
    return network


def perturbed(network: PolicyNetwork) -> PolicyNetwork:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def observations(weights: dict[str, float] | None = None, n: int = 64) -> torch.Tensor:
    obs = 3.0 * torch.randn(n, D, generator=torch.Generator().manual_seed(1)) + 1.0
    if weights is None:
        return obs
    return torch.cat((obs, told(CONTEXT, weights).float().expand(n, -1)), dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("family", "normaliser", "hidden"), KINDS)
def test_it_starts_as_the_prior_and_folds_into_a_plain_policy(
    family: str, normaliser: str, hidden: tuple[int, ...]
) -> None:
    prior = make_network(family, normaliser, hidden=hidden)
    network, expected = conditioned(prior), prior(observations())
    for weights in SETTINGS:
        assert torch.equal(network.folded(weights)(observations()), expected)  # to the bit
        assert network(observations(weights)).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    perturbed(network)
    found, actor = [], NumpyPolicy(network)
    for weights in SETTINGS:
        plain, obs = network.folded(weights), observations(weights)
        assert plain.spec == prior.spec
        found.append(network(obs))
        size = max(1.0, float(found[-1].abs().max()))  # float32 rounds its sums at the size of their terms
        assert (plain(observations()) - found[-1]).abs().max() <= 1e-6 * size
        assert actor.dist_inputs(obs.numpy()) == pytest.approx(found[-1].numpy(), abs=1e-5)
        assert NumpyPolicy(plain).dist_inputs(observations().numpy()) == pytest.approx(found[-1].numpy(), abs=1e-5)
        assert not any(p.requires_grad for p in plain.parameters())
    # The weights do something, to the standard deviation too.
    a = prior.spec.action_size
    parts = [slice(0, a)] if family == "categorical" else [slice(0, a), slice(a, 2 * a)]
    for part in parts:
        assert min((x[:, part] - y[:, part]).abs().max() for x in found for y in found if x is not y) > 1e-3


def test_folding_leaves_the_policy_alone_and_refuses_other_weights() -> None:
    network = perturbed(conditioned(make_network("gaussian")))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.folded(SETTINGS[0]).parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    with pytest.raises(ValueError, match=r"omega_prime=1\.7: the policy was trained from 0\.02 to 1\.6"):
        network.folded({"omega_prime": 1.7, "alpha_hat": 0.01})
    plain = make_network("gaussian")
    assert plain.folded({}) is plain
    with pytest.raises(ValueError, match="omega_prime given; the policy is of one setting"):
        plain.folded({"omega_prime": 0.3})


def test_samples_have_the_told_standard_deviation() -> None:
    network = perturbed(conditioned(make_network("gaussian")))
    actor, rng = NumpyPolicy(network), np.random.default_rng(0)
    obs = torch.cat([observations(weights, 1).expand(20_000, -1) for weights in (SETTINGS[0], SETTINGS[-2])]).numpy()
    outputs = actor.outputs(obs)
    sample = actor.sample(outputs, actor.noise(rng, (len(obs),)))
    assert np.array_equal(actor.mode(outputs), outputs[:, :3])
    with torch.no_grad():
        theirs = network.distribution(torch.from_numpy(obs))
        logp = theirs.log_prob(torch.from_numpy(sample)).numpy()
    assert actor.log_prob(actor.complete(outputs), sample) == pytest.approx(logp, abs=1e-4)
    for weights, half in ((SETTINGS[0], slice(0, 20_000)), (SETTINGS[-2], slice(20_000, None))):
        log_std = network.folded(weights).log_std
        assert log_std is not None
        assert np.log(sample[half].std(0)) == pytest.approx(log_std.numpy(), abs=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_keeps_it(family: str, tmp_path: Path) -> None:
    network = perturbed(conditioned(make_network(family)))
    spec = network.spec
    box = gym.spaces.Box(np.array(LOW, np.float32), np.array(HIGH, np.float32))
    actions: gym.spaces.Space = gym.spaces.Discrete(4, start=2) if family == "categorical" else box
    observed = gym.spaces.Box(-np.inf, np.inf, (D,), np.float32)
    card = save_bundle(tmp_path / "a", network, PriorCard.describe("slider", "none", observed, actions, spec))
    bundle = load_bundle(tmp_path / "a")
    again = bundle.build()
    assert again.spec == spec
    assert again.spec.context == CONTEXT
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items())
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    # The ranges are part of what the hash identifies.
    other = PolicyNetwork(dataclasses.replace(spec, context=(CONTEXT[0], Conditioned(0.0, 0.2, "alpha_hat"))))
    other.load_state_dict(network.state_dict())
    assert save_bundle(tmp_path / "b", other, card).content_hash != card.content_hash
    # Folded, it is a bundle like those of all times.
    plain = network.folded(SETTINGS[3])
    folded = save_bundle(tmp_path / "c", plain, PriorCard.describe("point", "none", observed, actions, plain.spec))
    assert "context" not in folded.network
    with torch.no_grad():
        assert torch.equal(load_bundle(tmp_path / "c").build()(observations()), plain(observations()))


def test_bundles_of_one_setting_keep_their_hash() -> None:
    card = load_bundle(SHIPPED).card  # which checks the hash
    assert card.content_hash == "fd242f12063c30dd3f2be970e294a7ee4faeb808a120c2ca71cb8b9659687b7f"
    assert NetworkSpec.from_dict(card.network).to_dict() == card.network


def test_networks_that_cannot_be_told_weights_are_refused(tmp_path: Path) -> None:
    def residual(prior: Path, **settings: object) -> RPGConfig:
        config = RPGConfig().environment("Pendulum-v1")  # the prior is looked at before it
        return config.training(prior=prior, addon_reward=addon, omega_prime=CONTEXT[0], alpha_hat=0.1, **settings)

    # A policy for a range as a prior: which of its policies?
    path = make_prior(tmp_path / "slider", context=CONTEXT)
    with pytest.raises(ValueError, match=r"'random' is a policy for a range of omega_prime, alpha_hat.*fold it at"):
        residual(path).validate()
    # A graph has no first layer to add to, before anything is built; from scratch, the graph is only asked.
    graph = make_graph_prior(tmp_path, "gaussian")
    with pytest.raises(ValueError, match="omega_prime conditioned: the network is a graph, which has no first layer"):
        residual(graph).validate()
    residual(graph, start_from_prior=False).validate()
    with pytest.raises(ValueError, match="context: weights beta, beta: expected different names"):
        NetworkSpec(D, 1, "categorical", context=(Conditioned(0, 1, "beta"), Conditioned(0, 2, "beta")))
    data = make_network("gaussian").spec.to_dict() | {"context": [{"low": 0.3, "high": 0.1, "name": "beta"}]}
    with pytest.raises(ValueError, match=r"beta=.*expected 0 <= low < high"):
        NetworkSpec.from_dict(data)
    with pytest.raises(ValueError, match="network specification is incomplete"):
        NetworkSpec.from_dict(data | {"context": [{"lowest": 0.3}]})
