"""Policies that are graphs: as bundles on disk, as priors of a training, and as what a training starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.algorithms.policies.graph_priors import FAMILIES, D, make_graph_prior
from tests.algorithms.registry import CASES, built, learner_of, same, weights_of

from rpg_algorithms import BundleError, NetworkSpec, load_bundle, load_card, save_bundle
from rpg_algorithms.policies.bundle import CARD_FILE, WEIGHTS_FILE, _content_hash
from rpg_algorithms.rllib.module import NetworkConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_comes_back(family: str, tmp_path: Path) -> None:
    bundle = load_bundle(make_graph_prior(tmp_path, family))
    network = bundle.build()
    assert bundle.network_spec.graph is not None
    again = save_bundle(tmp_path / "again", network, bundle.card)
    assert again.content_hash == bundle.card.content_hash
    obs = torch.randn(20, D)
    assert torch.equal(load_bundle(tmp_path / "again").build()(obs), network(obs))
    assert "graph.t3_scale" in bundle.weights
    assert not any(p.requires_grad for p in network.parameters())


# --- hostile cards


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the card's network; the hash is made to fit, as an attacker would."""
    data = json.loads((folder / CARD_FILE).read_text())
    change(data["network"])
    (folder / CARD_FILE).write_text(json.dumps(data))
    card = load_card(folder).model_copy(update={"content_hash": ""})
    data["content_hash"] = _content_hash(card, (folder / WEIGHTS_FILE).read_bytes())
    (folder / CARD_FILE).write_text(json.dumps(data))


def nodes_of(network: dict[str, Any], *nodes: tuple[str, list[Any], dict[str, Any]]) -> None:
    network["graph"]["nodes"] = [
        {"op": op, "inputs": inputs, "output": f"v{i}", "attributes": attributes}
        for i, (op, inputs, attributes) in enumerate(nodes)
    ]


def doubling(network: dict[str, Any]) -> None:
    nodes_of(network, *(("concat", ["obs" if i == 0 else f"v{i - 1}"] * 2, {"axis": 1}) for i in range(60)))


def laborious(network: dict[str, Any]) -> None:
    wide = ("linear", ["obs", "t0_w"], {})
    nodes_of(network, wide, *(("linear", ["v0", "t5_big"], {}) for _ in range(200)))
    network["graph"]["tensors"][0]["shape"] = [2000, D]
    network["graph"]["tensors"].append({"name": "t5_big", "shape": [2000, 2000], "trainable": True})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown operation": (lambda n: nodes_of(n, ("eval", ["obs"], {})), r"graph node 0 \(eval\): unknown operation"),
    "cycle": (lambda n: nodes_of(n, ("add", ["obs", "v1"], {}), ("add", ["obs", "v0"], {})), r"'v1' is not defined"),
    "memory": (doubling, r"graph node 15 \(concat\): too large"),
    "time": (
        laborious,
        r"graph node \d+ \(linear\): too large: a result of \[None, 2000\], 2.7\d*e\+08 operations so far",
    ),
    "many nodes": (lambda n: nodes_of(n, *[("tanh", ["obs"], {})] * 2001), r"2001 nodes, more than 2000"),
    "huge tensors": (
        lambda n: n["graph"]["tensors"][0].update(shape=[2**26, D + 1]),
        r"graph: tensors of \d+ elements",
    ),
    "another tensor": (lambda n: n["graph"]["tensors"][0].update(shape=[4, D + 1]), r"do not fit"),
    "tensors that are not there": (
        lambda n: n["graph"]["tensors"].append({"name": "t9_more", "shape": [3], "trainable": True}),
        r"do not match the card's network .*graph\.t9_more",
    ),
    "names of torch's": (lambda n: n["graph"]["tensors"][0].update(name="forward"), r"expected names like t0_weight"),
    "names with dots": (lambda n: n["graph"]["tensors"][0].update(name="t0_a.b"), r"expected names like t0_weight"),
    "no graph": (lambda n: n.update(graph="import os"), r"graph: expected the keys .*, got str"),
    "nothing": (lambda n: n.update(graph={}), r"graph: expected the keys"),
    "outputs": (
        lambda n: n["graph"].update(outputs=["v0"]),
        r"outputs of shapes \[\(None, 4\)\], expected 1 of \(None, 1\)",
    ),
    "deep": (lambda n: n["graph"].update(outputs=json.loads("[" * 500 + "]" * 500)), r"graph output: expected str"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_cards_are_refused(what: str, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    folder = make_graph_prior(tmp_path, "gaussian")
    load_bundle(folder)
    edited(folder, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_card_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    bundle = load_bundle(make_graph_prior(tmp_path, "gaussian"))
    card = bundle.card.model_copy(update={"made_by": {"log": "x" * 1_000_000}})
    with pytest.raises(BundleError, match=r"the card takes \d+ bytes, more than the 1000000 that are read"):
        save_bundle(tmp_path / "new", bundle.build(), card)
    assert not list((tmp_path / "new").iterdir())


# --- training


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_starts_from_a_graph_is_trained(family: str, tmp_path: Path) -> None:
    prior = make_graph_prior(tmp_path / "prior", family)
    config = CASES[f"rpg-{family}"].build_config(tmp_path, prior=prior, num_epochs=1, minibatch_size=None)
    with built(config) as algorithm:
        learner = learner_of(algorithm)
        assert learner._fused is None
        assert learner.actor_critic.policy.spec == load_bundle(prior).network_spec
        before = weights_of(algorithm)
        first = algorithm.train()["learners"]["default_policy"]
        # At the start the policy is the prior: what numpy acted with is what torch computes.
        assert float(first["kl_to_prior"]) == pytest.approx(0.0, abs=1e-6)
        assert float(first["approx_kl"]) == pytest.approx(0.0, abs=1e-6)
        second = algorithm.train()["learners"]["default_policy"]
        assert float(second["kl_to_prior"]) > 1e-7
        after = weights_of(algorithm)
        assert same(before, after, "prior.")
        for name in before:
            if name.startswith("policy.graph."):
                assert torch.equal(before[name], after[name]) == (name == "policy.graph.t3_scale"), name
        # What it leaves as is a bundle of the same graph.
        card = save_bundle(tmp_path / "out", learner.actor_critic.policy, load_card(prior))
        assert NetworkSpec.from_dict(card.network) == load_bundle(tmp_path / "out").network_spec
        algorithm.save_to_path(tmp_path / "checkpoint")
        with built(config.copy(copy_frozen=False)) as other:
            other.restore_from_path(tmp_path / "checkpoint")
            assert same(after, weights_of(other))


@pytest.mark.usefixtures("local_ray")
def test_a_perceptron_is_customised_against_a_graph_by_the_fast_engine(tmp_path: Path) -> None:
    prior = make_graph_prior(tmp_path / "prior", "gaussian")
    config = CASES["rpg-from-scratch"].build_config(tmp_path, prior=prior)
    with built(config) as algorithm:
        assert learner_of(algorithm)._fused is not None
        assert learner_of(algorithm).actor_critic.prior.graph is not None
        for _ in range(2):
            result = algorithm.train()["learners"]["default_policy"]
        assert float(result["kl_to_prior"]) > 0.0


@pytest.mark.usefixtures("local_ray")
def test_the_fast_engine_is_refused_for_graphs_by_name(tmp_path: Path) -> None:
    prior = make_graph_prior(tmp_path / "prior", "gaussian")
    config = CASES["rpg-gaussian"].build_config(tmp_path, prior=prior, update_engine="fused")
    with pytest.raises(ValueError, match="update_engine='fused' needs perceptrons"):
        config.build_algo()


def test_the_critic_of_a_graph_has_a_size(tmp_path: Path) -> None:
    spec = load_bundle(make_graph_prior(tmp_path, "gaussian")).network_spec
    assert (spec.hidden, spec.activation) == ((8,), NetworkConfig().activation)
