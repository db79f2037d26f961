"""What computes the same looks the same: each rule on its own, and that a rule never changes what is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rpg_algorithms.policies.graph import GraphNetwork
from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.network.graph_builder import BATCH, Constant, GraphBuilder, Symbol, Value, to_graph
from rpg_platform.priors.network.simplify import affine, constant_of, simplified

D = 6
torch.manual_seed(0)
W, V, S = torch.randn(4, D), torch.rand(D) + 0.5, torch.rand(4) + 0.5


def c(value: Tensor | float, trainable: bool = False) -> Constant:
    return Constant(torch.as_tensor(value), "c", trainable)


def evaluated(value: Value, obs: Tensor) -> Tensor:
    if isinstance(value, Constant):
        return value.value.expand(len(obs), -1)
    graph, tensors = to_graph([value])
    graph.check(D)
    network = GraphNetwork(graph)
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network(obs)


def ops(value: Value) -> list[str]:
    """Operations from the result back to the observation, along the first inputs."""
    found: list[str] = []
    while isinstance(value, Symbol) and value.op != "obs":
        found.append(value.op)
        value = next(each for each in value.inputs if isinstance(each, Symbol | Constant))
    return found


def hidden(b: GraphBuilder) -> Value:
    return b.unary("tanh", b.obs)


def silu(b: GraphBuilder, x: Value) -> Value:
    return b.binary("div", x, b.binary("add", b.unary("exp", b.unary("neg", x)), 1.0))


def elu(b: GraphBuilder, x: Value) -> Value:
    below = b.binary("sub", b.unary("exp", b.unary("clamp", x, min=None, max=0.0)), 1.0)
    return b.binary("add", b.binary("maximum", x, 0.0), below)


RULES: dict[str, tuple[Callable[[GraphBuilder], Value], list[str]]] = {
    "zero and one": (lambda b: b.binary("div", b.binary("mul", b.binary("add", hidden(b), 0.0), 1.0), 1.0), ["tanh"]),
    "zero and one, on the left": (lambda b: b.binary("mul", 1.0, b.binary("add", 0.0, hidden(b))), ["tanh"]),
    "reshapes": (lambda b: b.reshape(b.reshape(hidden(b), [BATCH, 2, 3]), [-1, D]), ["tanh"]),
    "a part of what was joined": (
        lambda b: b.slice(b.concat([b.unary("abs", b.obs), hidden(b)], 1), 1, D, 2 * D),
        ["tanh"],
    ),
    "parts of parts": (lambda b: b.slice(b.slice(hidden(b), 1, 1, 5), 1, 1, 3), ["slice", "tanh"]),
    "minimum of maximum": (lambda b: b.binary("minimum", b.binary("maximum", b.obs, -0.5), 0.7), ["clamp"]),
    "bounds as constants": (lambda b: b.binary("minimum", c(torch.full((D,), 0.7)), b.obs), ["clamp"]),
    "relu": (lambda b: b.binary("maximum", 0.0, b.obs), ["relu"]),
    "silu": (lambda b: silu(b, hidden(b)), ["silu", "tanh"]),
    "silu by a product": (lambda b: b.binary("mul", b.unary("sigmoid", b.obs), b.obs), ["silu"]),
    "elu": (lambda b: elu(b, hidden(b)), ["elu", "tanh"]),
    "product and sum": (lambda b: b.binary("add", b.matmul(b.obs, c(W.T)), c(S)), ["linear"]),
    "scales after a layer": (
        lambda b: b.binary("sub", 2.0, b.binary("div", b.linear(b.obs, c(W), c(S)), c(S))),
        ["linear"],
    ),
    "log of softmax": (lambda b: b.unary("log", b.softmax("softmax", b.obs, -1)), ["log_softmax"]),
    "an expanded constant": (lambda b: b.binary("mul", hidden(b), b.expand(c(V), [BATCH, D])), ["mul", "tanh"]),
    "constants, expanded": (
        lambda b: b.binary("add", b.unary("exp", b.expand(c(V), [BATCH, D])), b.full([BATCH, D], 2.0)),
        ["expand"],
    ),
    "zeros of the batch's shape": (lambda b: b.binary("add", b.binary("mul", b.obs, 0.0), c(V)), ["expand"]),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_change_the_form_and_not_the_value(name: str) -> None:
    make, wanted = RULES[name]
    builder = GraphBuilder(D)
    value = make(builder)
    (after,) = simplified([value], builder)
    assert ops(after) == wanted
    obs = 3.0 * torch.randn(100, D)
    torch.testing.assert_close(evaluated(after, obs), evaluated(value, obs), atol=2e-6, rtol=2e-6)


ALIKE: dict[str, Callable[[GraphBuilder], Value]] = {
    "another slope": lambda b: b.binary("maximum", b.obs, c(V)),
    "a trained bound": lambda b: b.binary("maximum", b.obs, c(torch.zeros(D), trainable=True)),
    "a clamp the other way round": lambda b: b.unary(
        "clamp", b.unary("clamp", b.obs, min=0.5, max=None), min=None, max=0.1
    ),
    "another gate": lambda b: b.binary("mul", b.unary("sigmoid", hidden(b)), b.obs),
    "a sum after another thing": lambda b: b.binary("add", hidden(b), c(V)),
    "a part of two": lambda b: b.slice(b.concat([b.obs, hidden(b)], 1), 1, D - 1, D + 1),
    "a wider result": lambda b: b.binary("add", b.slice(b.obs, 1, 0, 1), c(V)),
    "elu of another alpha": lambda b: b.binary(
        "add", b.unary("relu", b.obs), b.binary("sub", b.unary("exp", b.unary("clamp", b.obs, min=None, max=0.1)), 1.0)
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_only_looks_alike_is_left(name: str) -> None:
    builder = GraphBuilder(D)
    value = ALIKE[name](builder)
    (after,) = simplified([value], builder)
    assert ops(after) == ops(value)
    obs = 3.0 * torch.randn(100, D)
    torch.testing.assert_close(evaluated(after, obs), evaluated(value, obs))


def test_what_is_computed_twice_is_computed_once() -> None:
    builder = GraphBuilder(D)
    first, second = (builder.unary("tanh", builder.unary("abs", builder.obs)) for _ in range(2))
    a, b = simplified([first, second], builder)
    assert first is not second
    assert a is b


def test_affine_maps_are_followed_through_any_order() -> None:
    builder = GraphBuilder(D)
    value: Value = builder.obs
    value = builder.binary("div", builder.binary("sub", value, c(V)), c(V + 1.0))
    value = builder.binary("add", builder.binary("mul", 3.0, builder.unary("neg", value)), 0.5)
    value = builder.binary("sub", c(V), value)
    found = affine(value, lambda x: x.op == "obs")
    assert found is not None
    x, scale, shift = found
    assert x is builder.obs
    obs = torch.randn(50, D)
    torch.testing.assert_close((obs * scale + shift).float(), evaluated(value, obs))
    assert affine(builder.unary("tanh", builder.obs), lambda x: x.op == "obs") is None
    assert affine(builder.binary("mul", builder.obs, builder.obs), lambda x: x.op == "obs") is None
    assert affine(builder.binary("div", 1.0, builder.obs), lambda x: x.op == "obs") is None
    assert affine(builder.binary("div", builder.obs, c(torch.zeros(D))), lambda x: x.op == "obs") is None


def test_constants_are_known_for_what_they_are() -> None:
    builder = GraphBuilder(D)
    constant = c(V)
    assert constant_of(constant) is constant
    assert constant_of(builder.expand(constant, [BATCH, D])) is constant
    assert constant_of(builder.expand(builder.obs, [BATCH, D])) is None


MISUSED: dict[str, tuple[Callable[[GraphBuilder], Any], str]] = {
    "a batch in the second axis": (lambda b: b.reshape(b.obs, [2, BATCH, 3]), r"does not keep the batch axis"),
    "the batch first, in parts": (lambda b: b.reshape(b.obs, [-1, 3]), r"does not keep the batch axis"),
    "two unknown sizes": (lambda b: b.reshape(b.obs, [-1, -1]), r"sizes \[-1, -1\]"),
    "a constant of the batch's size": (lambda b: b.reshape(c(V), [BATCH, 1]), r"a constant cannot take the size"),
    "rows": (lambda b: b.slice(b.obs, 0, 0, 5), r"a part of the batch"),
    "one row": (lambda b: b.select(b.obs, 0, 0), r"entry 0 of the batch"),
    "an axis too many": (lambda b: b.softmax("softmax", b.obs, 2), r"axis 2 of a tensor with 2 axes"),
    "across the batch": (lambda b: b.softmax("softmax", b.obs, 0), r"axis 0 of \[B, 6\]"),
    "sum of everything": (lambda b: b.reduce("sum", b.obs, [], False), r"reduces over the batch"),
    "transposed": (lambda b: b.permute(b.obs, (1, 0)), r"moves the batch axis"),
    "rows in front": (lambda b: b.unsqueeze(b.obs, [0]), r"does not keep the batch axis"),
    "constant rows": (lambda b: b.concat([b.obs, c(torch.ones(1, D))], 1), r"joins a constant of fixed batch size"),
    "weights by the data": (lambda b: b.linear(c(W), b.obs), r"weights that depend on the observation"),
    "a product of two batches": (lambda b: b.matmul(b.obs, b.obs), r"matrices \[B, 6\] and \[B, 6\] do not fit"),
    "numbers that are none": (lambda b: b.binary("mul", b.obs, float("nan")), r"the number nan for an input"),
    "complex numbers": (lambda b: b.binary("mul", b.obs, c(torch.ones(D, dtype=torch.complex64))), r"complex64"),
    "a huge repetition": (lambda b: b.expand(b.unsqueeze(b.obs, [1]), [BATCH, 10**7, D]), r"numbers per observation"),
    "a huge constant": (lambda b: b.constant(lambda x: x.expand(2**40, D), c(V)), r"a constant of \d+ numbers is too"),
    "no constant": (lambda b: b.constant(torch.matmul, c(V), c(W)), r"reduction dim|size mismatch"),
}


@pytest.mark.parametrize("what", MISUSED)
def test_what_a_graph_cannot_hold_is_not_built(what: str) -> None:
    make, message = MISUSED[what]
    with pytest.raises(GraphError, match=message):
        make(GraphBuilder(D))


def test_a_policy_through_every_rule_is_the_same() -> None:
    """All rules at once, deep: x is used again and again in forms that simplify."""
    builder = GraphBuilder(D)
    value: Value = builder.obs
    for i in range(12):
        layer = builder.binary("add", builder.matmul(value, c(torch.randn(D, D) / 3.0)), c(torch.randn(D)))
        value = (silu, elu)[i % 2](builder, layer)
        value = builder.binary(
            "add", builder.slice(builder.concat([value, layer], 1), 1, 0, D), builder.unary("tanh", layer)
        )
    (after,) = simplified([value], builder)
    names = {node.op for node in to_graph([after])[0].nodes}  # type: ignore[list-item]
    assert names == {"linear", "silu", "elu", "add", "tanh"}
    obs = torch.randn(200, D)
    torch.testing.assert_close(evaluated(after, obs), evaluated(value, obs), atol=1e-4, rtol=1e-5)
    assert F.silu(torch.zeros(1)).item() == 0.0
