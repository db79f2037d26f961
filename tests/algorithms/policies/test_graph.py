"""Policy graphs: each operation in torch and in numpy is torch's own, and what is no graph is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.algorithms.policies.graph_cases import CASES, B, D, network_of, node

from rpg_algorithms import NetworkSpec, PolicyNetwork
from rpg_algorithms.policies.graph import Graph, GraphTensor, NumpyGraph
from rpg_algorithms.policies.graph_ops import OPS, GraphError
from rpg_algorithms.policies.numpy_policy import NumpyPolicy


def test_every_operation_has_its_cases() -> None:
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_operations_in_torch_and_numpy_are_torchs_own(op: str) -> None:
    for nodes, shapes, reference in CASES[op]:
        torch.manual_seed(1)
        network = network_of(nodes, shapes)
        obs = 3.0 * torch.randn(B, D)
        kept = obs.clone()
        tensors = [network.state_dict()[f"t{i}_x"] for i in range(len(shapes))]
        expected = reference(obs, *tensors)
        inferred = network.definition.check(D)[nodes[-1].output]
        assert inferred == (None, *expected.shape[1:])
        found = network(obs)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        acted = NumpyGraph(network)(obs.numpy())
        assert acted.dtype == np.float32
        np.testing.assert_allclose(acted, expected.detach().numpy(), atol=2e-6, rtol=2e-5)
        assert torch.equal(obs, kept), "an operation changed its input"
        # Gradient flows to the observation and to the parameters that are used.
        obs.requires_grad_()
        network(obs).sum().backward()
        x = obs.detach().requires_grad_()
        wanted = reference(x, *tensors)
        if wanted.requires_grad:
            wanted.sum().backward()
            torch.testing.assert_close(obs.grad, x.grad, atol=1e-5, rtol=1e-4)
        for parameter in network.parameters():
            assert parameter.grad is not None


@pytest.mark.parametrize("op", ["sigmoid", "silu", "softplus", "mish", "elu", "selu", "gelu", "tanh", "log_softmax"])
def test_extremes_are_torchs_too(op: str) -> None:
    (nodes, shapes, reference), *_ = CASES[op]
    obs = torch.tensor([-1e4, -200.0, -90.0, -30.0, -1e-6, 0.0, 1e-6, 30.0, 90.0, 200.0, 1e4, 1.0]).repeat(2, 1)
    acted = NumpyGraph(network_of(nodes, shapes))(obs.numpy())
    np.testing.assert_allclose(acted, reference(obs).numpy(), atol=1e-6, rtol=1e-5)


# --- policies


def two_heads(**options: Any) -> NetworkSpec:
    """A residual block with a layer norm, then a mean and a clamped log standard deviation."""
    nodes = [
        node("linear", "obs", "t0_x", "t1_x"),
        node("silu", "v0", out="v1"),
        node("add", "obs", "v1", out="v2"),
        node("layer_norm", "v2", out="v3", dims=1, eps=1e-5),
        node("linear", "v3", "t2_x", out="v4"),
        node("slice", "v4", out="v5", axis=1, start=0, stop=2, step=1),
        node("slice", "v4", out="v6", axis=1, start=2, stop=4, step=1),
        node("clamp", "v6", out="v7", min=-5.0, max=1.5),
    ]
    tensors = tuple(GraphTensor(f"t{i}_x", s, True) for i, s in enumerate([(D, D), (D,), (4, D)]))
    settings = {
        "distribution": "gaussian",
        "state_dependent_std": True,
        "action_low": (-1.0, -1.0),
        "action_high": (1, 2),
    }
    outputs = ("v5", "v7") if options.get("state_dependent_std", True) else ("v5",)
    return NetworkSpec(D, 2, graph=Graph(tensors, tuple(nodes), outputs), **(settings | options))


def policy_of(spec: NetworkSpec) -> PolicyNetwork:
    torch.manual_seed(0)
    network = PolicyNetwork(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    if network.normalizer is not None:
        network.normalizer.update(2.0 * torch.randn(100, D) + 1.0)
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_observations": False},
        {"distribution": "squashed_gaussian"},
        {"state_dependent_std": False, "observation_clip": 0.5},
        {"state_dependent_std": False, "distribution": "categorical"},
    ],
)
def test_policies_of_a_graph_act_as_they_compute(options: dict[str, Any]) -> None:
    network = policy_of(two_heads(**options))
    obs = 2.0 * torch.randn(50, D)
    with torch.no_grad():
        inputs, distribution = network(obs), network.distribution(obs)
        actions = distribution.sample()
    policy = NumpyPolicy(network)
    outputs = policy.outputs(obs.numpy())
    assert outputs.shape == (50, policy.outputs_size)
    np.testing.assert_allclose(policy.complete(outputs), inputs.numpy(), atol=1e-5)
    logp = policy.log_prob(policy.dist_inputs(obs.numpy()), actions.numpy())
    np.testing.assert_allclose(logp, distribution.log_prob(actions).numpy(), atol=1e-4)
    noise = policy.noise(np.random.default_rng(0), (50,))
    assert policy.sample(outputs, noise).shape == actions.shape
    assert inputs.shape == (50, network.spec.dist_inputs_size)
    # Everything that is trained gets a gradient, and the numpy side is a snapshot.
    network(obs).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    np.testing.assert_array_equal(policy.outputs(obs.numpy()), outputs)


def test_a_specification_with_a_graph_is_json_and_hashable() -> None:
    spec = two_heads()
    data = json.loads(json.dumps(spec.to_dict(), allow_nan=False))
    assert NetworkSpec.from_dict(data) == spec
    assert hash(NetworkSpec.from_dict(data)) == hash(spec)
    assert "graph" not in NetworkSpec(3, 2, "categorical").to_dict()
    assert copy.deepcopy(policy_of(spec)).state_dict().keys() == PolicyNetwork(spec).state_dict().keys()
    assert dataclasses.replace(spec, log_std_init=0.0).graph == spec.graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_size": 3}, r"outputs of shapes \[\(None, 2\), \(None, 2\)\], expected 2 of \(None, 3\)"),
        ({"state_dependent_std": False}, r"expected 1 of \(None, 2\) \(distribution='gaussian'"),
        ({"distribution": "categorical"}, r"expected 1 of \(None, 2\) \(distribution='categorical'"),
        (
            {"observation_size": 5},
            r"graph node 0 \(linear\): input \[B, 5\], weight and bias \[12, 12\], \[12\] do not",
        ),
    ],
)
def test_graphs_that_do_not_fit_their_policy_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(two_heads(), **options)


# --- what is refused

GOOD = two_heads().graph.to_json()  # type: ignore[union-attr]


def changed(*path: Any, to: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    target: Any = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = to
    return data


def with_node(op: str, inputs: list[Any], output: str = "v99", **attributes: Any) -> dict[str, Any]:
    new = {"op": op, "inputs": inputs, "output": output, "attributes": attributes}
    return changed("nodes", to=[*GOOD["nodes"], new])


def bomb(doublings: int) -> dict[str, Any]:
    """A value that doubles with each node."""
    names = ["obs", *(f"v{i}" for i in range(20, 20 + doublings))]
    nodes = [
        {"op": "concat", "inputs": [a, a], "output": b, "attributes": {"axis": 1}} for a, b in itertools.pairwise(names)
    ]
    return changed("nodes", to=nodes)


REFUSED: dict[str, tuple[Any, str]] = {
    "no mapping": ([], r"graph: expected the keys \['nodes', 'outputs', 'tensors'\], got list"),
    "other keys": ({"nodes": [], "code": ""}, r"got \['code', 'nodes'\]"),
    "nodes a string": (changed("nodes", to="abc"), r"expected a list, got str"),
    "node a list": (changed("nodes", 0, to=[]), r"graph node: expected the keys"),
    "unknown operation": (with_node("eval", ["obs"]), r"graph node 8 \(eval\): unknown operation; known are abs, add"),
    "operation no name": (changed("nodes", 0, "op", to=3), r"expected str, got int"),
    "undefined": (with_node("tanh", ["v98"]), r"graph node 8 \(tanh\): input 'v98' is not defined before"),
    "cycle": (changed("nodes", 0, "inputs", 0, to="v4"), r"graph node 0 \(linear\): input 'v4' is not defined before"),
    "itself": (with_node("tanh", ["v99"]), r"'v99' is not defined"),
    "twice": (with_node("tanh", ["obs"], "v1"), r"output 'v1': expected names like v0, each once"),
    "hides a tensor": (with_node("tanh", ["obs"], "t0_x"), r"output 't0_x': expected names like v0"),
    "too few inputs": (with_node("add", ["obs"]), r"1 inputs, expected 2 to 2"),
    "number where none is": (with_node("tanh", [1.0]), r"input 1.0: expected the name of a value"),
    "NaN": (with_node("add", ["obs", math.nan]), r"expected a name or a number, got float"),
    "infinity": (with_node("clamp", ["obs"], min=None, max=math.inf), r"max=inf is not allowed"),
    "missing attribute": (with_node("clamp", ["obs"], min=0), r"attributes \['min'\], expected \['max', 'min'\]"),
    "nested attribute": (with_node("reshape", ["obs"], shape=[[1]]), r"expected int, got list"),
    "string attribute": (with_node("elu", ["obs"], alpha="1"), r"expected a number or a list, got str"),
    "batch axis": (with_node("concat", ["obs", "obs"], axis=0), r"axis 0 of \[B, 12\]: expected 1 to 1"),
    "batch in a product": (
        with_node("matmul", ["obs", "v1"]),
        r"matrices \[B, 12\] and \[B, 12\] do not fit",
    ),
    "no batch": (with_node("tanh", ["t1_x"]), r"its result has no batch axis"),
    "no broadcast": (with_node("add", ["obs", "v5"]), r"shapes \[B, 12\], \[B, 2\] do not broadcast"),
    "reshape": (with_node("reshape", ["obs"], shape=[5]), r"\[B, 12\] cannot become \[B, 5\]"),
    "slice": (with_node("slice", ["obs"], axis=1, start=4, stop=20, step=1), r"slice 4:20:1 of 12"),
    "take": (with_node("take", ["obs"], axis=1, indices=[12]), r"indices \[12\] of 12"),
    "output": (changed("outputs", to=["v5", "t0_x"]), r"graph output 't0_x': expected the name of a result"),
    "output twice too many": (changed("outputs", to=["v5"] * 3), r"3 outputs, more than 2"),
    "doubling": (bomb(40), r"graph node 12 \(concat\): too large: a result of \[None, 98304\]"),
    "expansion": (with_node("expand", ["t1_x", "obs"], shape=[10**9, 12]), r"too large: a result of"),
    "rank": (with_node("reshape", ["obs"], shape=[1] * 9 + [12]), r"too large"),
    "work": (
        changed("nodes", to=[{"op": "linear", "inputs": ["obs", "t0_x"], "output": "v0", "attributes": {}}])
        | {"tensors": [{"name": "t0_x", "shape": [10**5, 12], "trainable": True}]},
        r"too large: a result of \[None, 100000\]",
    ),
    "many nodes": (changed("nodes", to=[GOOD["nodes"][0]] * 2001), r"2001 nodes, more than 2000"),
    "many tensors": (changed("tensors", to=[GOOD["tensors"][0]] * 1001), r"1001 tensors, more than 1000"),
    "huge tensor": (changed("tensors", 0, "shape", to=[10**6, 10**6]), r"tensors of 10000000000\d\d elements"),
    "overflowing tensor": (changed("tensors", 0, "shape", to=[2**62, 4]), r"graph tensor t0_x: shape"),
    "empty tensor": (changed("tensors", 0, "shape", to=[0]), r"graph tensor t0_x: shape \[0\]"),
    "tensor name": (changed("tensors", 0, "name", to="__class__"), r"graph tensor '__class__': expected names like"),
    "tensor twice": (changed("tensors", 1, "name", to="t0_x"), r"graph tensor 't0_x': expected names like"),
    "trainable": (changed("tensors", 0, "trainable", to="yes"), r"expected bool, got str"),
    "size a bool": (changed("tensors", 0, "shape", to=[True, 2]), r"expected int, got bool"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_graph_is_refused(what: str) -> None:
    Graph.from_json(GOOD).check(D)
    data, message = REFUSED[what]
    with pytest.raises(GraphError, match=message):
        Graph.from_json(data).check(D)
