"""Every operation of a policy graph with what torch itself makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from rpg_algorithms.policies.graph import Graph, GraphNetwork, GraphTensor, Node

B, D = 7, 12
W, BIAS, VECTOR, CUBE = (5, D), (5,), (D,), (2, 3)


def node(op: str, *inputs: str | float, out: str = "v0", **attributes: Any) -> Node:
    return Node(op, inputs, out, tuple(sorted(attributes.items())))


def network_of(nodes: list[Node], shapes: list[tuple[int, ...]] = (), output: str | None = None) -> GraphNetwork:  # type: ignore[assignment]
    """A graph network with random tensors ``t0_x``, ``t1_x``, …; odd ones are buffers."""
    tensors = tuple(GraphTensor(f"t{i}_x", shape, i % 2 == 0) for i, shape in enumerate(shapes))
    graph = Graph(tensors, tuple(nodes), (output or nodes[-1].output,))
    graph.check(D)
    network = GraphNetwork(graph)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
    return network


def cube(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), 2, 2, 3)


CUBE_NODE = node("reshape", "obs", shape=(2, 2, 3))
Case = tuple[list[Node], list[tuple[int, ...]], Callable[..., torch.Tensor]]


def unary(name: str, reference: Callable[..., torch.Tensor], **attributes: Any) -> Case:
    return [node(name, "obs", **attributes)], [], reference


def positive(name: str, reference: Callable[..., torch.Tensor], **attributes: Any) -> Case:
    nodes = [node("abs", "obs"), node("add", "v0", 0.1, out="v1"), node(name, "v1", out="v2", **attributes)]
    return nodes, [], lambda x: reference(x.abs() + 0.1)


def binary(name: str, reference: Callable[..., torch.Tensor]) -> list[Case]:
    return [
        ([node(name, "obs", "t0_x")], [VECTOR], reference),
        ([node(name, "obs", 0.7)], [], lambda x: reference(x, torch.tensor(0.7))),
        ([node(name, -2, "obs")], [], lambda x: reference(torch.tensor(-2.0), x)),
        ([node("tanh", "obs"), node(name, "v0", "obs", out="v1")], [], lambda x: reference(x.tanh(), x)),
        ([CUBE_NODE, node(name, "t0_x", "v0", out="v1")], [(1, 3)], lambda x, w: reference(w, cube(x))),
    ]


def reductions(name: str, reference: Callable[..., torch.Tensor]) -> list[Case]:
    return [
        ([node(name, "obs", axes=(1,), keepdims=True)], [], lambda x: reference(x, (1,), keepdim=True)),
        (
            [CUBE_NODE, node(name, "v0", out="v1", axes=(1, 3), keepdims=False)],
            [],
            lambda x: reference(cube(x), (1, 3)),
        ),
    ]


CASES: dict[str, list[Case]] = {
    "linear": [
        ([node("linear", "obs", "t0_x", "t1_x")], [W, BIAS], F.linear),
        ([node("linear", "obs", "t0_x")], [W], F.linear),
        ([CUBE_NODE, node("linear", "v0", "t0_x", out="v1")], [(4, 3)], lambda x, w: F.linear(cube(x), w)),
    ],
    "matmul": [
        ([node("matmul", "obs", "t0_x")], [(D, 4)], torch.matmul),
        ([CUBE_NODE, node("matmul", "v0", "t0_x", out="v1")], [(3, 4)], lambda x, w: cube(x) @ w),
        ([CUBE_NODE, node("matmul", "t0_x", "v0", out="v1")], [(5, 2)], lambda x, w: w @ cube(x)),
        (
            [
                CUBE_NODE,
                node("permute", "v0", out="v1", axes=(1, 3, 2)),
                node("matmul", "v0", "v1", out="v2"),
            ],
            [],
            lambda x: cube(x) @ cube(x).transpose(-1, -2),
        ),
    ],
    "add": binary("add", torch.add),
    "sub": binary("sub", torch.sub),
    "mul": binary("mul", torch.mul),
    "div": binary("div", torch.div),
    "minimum": binary("minimum", torch.minimum),
    "maximum": binary("maximum", torch.maximum),
    **{name: [unary(name, getattr(torch, name))] for name in ("neg", "abs", "exp", "expm1", "sin", "cos", "erf")},
    **{name: [positive(name, getattr(torch, name))] for name in ("log", "log1p", "sqrt")},
    "pow": [unary("pow", torch.square, exponent=2), positive("pow", lambda x: x**-0.3, exponent=-0.3)],
    "tanh": [unary("tanh", torch.tanh)],
    "sigmoid": [unary("sigmoid", torch.sigmoid)],
    "relu": [unary("relu", F.relu)],
    "leaky_relu": [unary("leaky_relu", lambda x: F.leaky_relu(x, 0.2), slope=0.2)],
    "elu": [unary("elu", lambda x: F.elu(x, 0.5), alpha=0.5)],
    "selu": [unary("selu", F.selu)],
    "silu": [unary("silu", F.silu)],
    "gelu": [unary("gelu", F.gelu, tanh=False), unary("gelu", lambda x: F.gelu(x, approximate="tanh"), tanh=True)],
    "softplus": [unary("softplus", F.softplus)],
    "mish": [unary("mish", F.mish)],
    "clamp": [
        unary("clamp", lambda x: x.clamp(-1, 0.5), min=-1, max=0.5),
        unary("clamp", lambda x: x.clamp(min=0.1), min=0.1, max=None),
        unary("clamp", lambda x: x.clamp(max=0.1), min=None, max=0.1),
    ],
    "softmax": [
        unary("softmax", lambda x: x.softmax(-1), axis=1),
        ([CUBE_NODE, node("softmax", "v0", out="v1", axis=2)], [], lambda x: cube(x).softmax(2)),
    ],
    "log_softmax": [unary("log_softmax", lambda x: x.log_softmax(-1), axis=1)],
    "layer_norm": [
        unary("layer_norm", lambda x: F.layer_norm(x, (D,), eps=1e-3), dims=1, eps=1e-3),
        (
            [node("layer_norm", "obs", "t0_x", "t1_x", dims=1, eps=1e-5)],
            [VECTOR, VECTOR],
            lambda x, w, b: F.layer_norm(x, (D,), w, b),
        ),
        (
            [CUBE_NODE, node("layer_norm", "v0", "t0_x", out="v1", dims=2, eps=1e-5)],
            [CUBE],
            lambda x, w: F.layer_norm(cube(x), CUBE, w),
        ),
    ],
    "sum": reductions("sum", torch.sum),
    "mean": reductions("mean", torch.mean),
    "max": reductions("max", torch.amax),
    "min": reductions("min", torch.amin),
    "concat": [
        (
            [node("tanh", "obs"), node("concat", "obs", "v0", "obs", out="v1", axis=1)],
            [],
            lambda x: torch.cat((x, x.tanh(), x), -1),
        )
    ],
    "slice": [
        unary("slice", lambda x: x[:, 2:9:3], axis=1, start=2, stop=9, step=3),
        ([CUBE_NODE, node("slice", "v0", out="v1", axis=3, start=1, stop=3, step=1)], [], lambda x: cube(x)[..., 1:]),
    ],
    "take": [unary("take", lambda x: x[:, [3, 0, 3]], axis=1, indices=(3, 0, 3))],
    "reshape": [unary("reshape", lambda x: x.view(-1, 3, 4), shape=(3, 4))],
    "permute": [
        ([CUBE_NODE, node("permute", "v0", out="v1", axes=(3, 1, 2))], [], lambda x: cube(x).permute(0, 3, 1, 2))
    ],
    "expand": [
        ([node("expand", "t0_x", "obs", shape=(3, D))], [VECTOR], lambda x, w: w.expand(len(x), 3, D)),
        (
            [node("reshape", "obs", shape=(1, D)), node("expand", "v0", out="v1", shape=(3, D))],
            [],
            lambda x: x.unsqueeze(1).expand(-1, 3, -1),
        ),
    ],
}
