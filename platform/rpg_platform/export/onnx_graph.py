"""Translates a policy graph (``rpg_algorithms.policies.graph``) into ONNX, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rpg_algorithms.policies.graph import INPUT, Graph
from rpg_algorithms.policies.graph_ops import Shape
from rpg_platform.export.onnx_nodes import Nodes

# Nodes, names of the inputs, their shapes (None for the batch axis, () for a number), attributes → name of the result.
Translation = Callable[[Nodes, Sequence[str], Sequence[Shape], Mapping[str, Any]], str]
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_GELU_SCALE, _GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715


def graph_outputs(nodes: Nodes, graph: Graph, obs: str, observation_size: int, weight: Callable[[str], str]) -> str:
    """Adds a graph and returns its outputs side by side ``[B, P']``.

    Args:
        nodes: the ONNX graph to add to.
        graph: the policy's graph.
        obs: name of the normalised observation ``[B, D]`` in the network's precision.
        observation_size: D.
        weight: a tensor's name in the graph → its name in ONNX.

    Raises:
        ValueError: an operation has no ONNX form.
    """
    shapes = graph.check(observation_size)
    names = {INPUT: obs}
    tensors = {tensor.name for tensor in graph.tensors}
    for node in graph.nodes:
        if node.op not in TRANSLATIONS:
            raise ValueError(f"operation {node.op!r} of the policy's graph has no ONNX form")
        inputs = [
            nodes.constant(each) if not isinstance(each, str) else weight(each) if each in tensors else names[each]
            for each in node.inputs
        ]
        sizes = [shapes[each] if isinstance(each, str) else () for each in node.inputs]
        names[node.output] = TRANSLATIONS[node.op](nodes, inputs, sizes, dict(node.attributes))
    outputs = [names[each] for each in graph.outputs]
    return outputs[0] if len(outputs) == 1 else nodes.node("Concat", *outputs, axis=-1)


def _plain(operator: str) -> Translation:
    return lambda nodes, inputs, _, __: nodes.node(operator, *inputs)


def _function(name: str) -> Translation:
    """Translates by a function of ``Nodes``; the attributes become its arguments of the same name."""
    return lambda nodes, inputs, _, attributes: getattr(nodes, name)(inputs[0], **attributes)


def _linear(nodes: Nodes, inputs: Sequence[str], shapes: Sequence[Shape], _: Mapping[str, Any]) -> str:
    if len(shapes[0]) == 2:
        return nodes.node("Gemm", *inputs, transB=1)
    product = nodes.node("MatMul", inputs[0], nodes.node("Transpose", inputs[1], perm=[1, 0]))
    return nodes.node("Add", product, inputs[2]) if len(inputs) > 2 else product


def _leaky_relu(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    return nodes.below_and_above(inputs[0], lambda below: nodes.times(below, attributes["slope"]))


def _selu(nodes: Nodes, inputs: Sequence[str], _: Any, __: Any) -> str:
    return nodes.times(nodes.elu(inputs[0], _SELU_ALPHA), _SELU_SCALE)


def _gelu(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    x = inputs[0]
    if attributes["tanh"]:
        cube = nodes.node("Mul", nodes.node("Mul", x, x), x)
        inner = nodes.times(nodes.node("Add", x, nodes.times(cube, _GELU_CUBE)), _GELU_SCALE)
        bounded = nodes.node("Tanh", inner)
    else:
        bounded = nodes.erf(nodes.times(x, math.sqrt(0.5)))
    return nodes.node("Mul", nodes.times(x, 0.5), nodes.plus(bounded, 1.0))


def _mish(nodes: Nodes, inputs: Sequence[str], _: Any, __: Any) -> str:
    return nodes.node("Mul", inputs[0], nodes.node("Tanh", nodes.softplus(inputs[0])))


def _layer_norm(nodes: Nodes, inputs: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> str:
    """Avoids ONNX's LayerNormalization, which computes its statistics in float32."""
    axes = list(range(-attributes["dims"], 0))
    centred = nodes.node("Sub", inputs[0], nodes.node("ReduceMean", inputs[0], axes=axes))
    variance = nodes.node("ReduceMean", nodes.node("Mul", centred, centred), axes=axes)
    result = nodes.node("Div", centred, nodes.node("Sqrt", nodes.plus(variance, attributes["eps"])))
    for operator, weight in zip(("Mul", "Add"), inputs[1:], strict=False):
        result = nodes.node(operator, result, weight)
    return result


def _along_axis(operator: str) -> Translation:
    return lambda nodes, inputs, _, attributes: nodes.node(operator, *inputs, axis=attributes["axis"])


def _reduction(operator: str) -> Translation:
    def translate(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
        axes, keepdims = attributes["axes"], int(attributes["keepdims"])
        if operator == "ReduceSum":  # the one whose axes are an input in opset 17
            return nodes.node(operator, inputs[0], nodes.indices(*axes), keepdims=keepdims)
        return nodes.node(operator, inputs[0], axes=list(axes), keepdims=keepdims)

    return translate


def _slice(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    numbers = [nodes.indices(attributes[name]) for name in ("start", "stop", "axis", "step")]
    return nodes.node("Slice", inputs[0], *numbers)


def _take(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    return nodes.node("Gather", inputs[0], nodes.indices(*attributes["indices"]), axis=attributes["axis"])


def _reshape(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    return nodes.node("Reshape", inputs[0], nodes.indices(0, *attributes["shape"]))  # 0: the input's own size


def _permute(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    return nodes.node("Transpose", inputs[0], perm=[0, *attributes["axes"]])


def _expand(nodes: Nodes, inputs: Sequence[str], _: Any, attributes: Mapping[str, Any]) -> str:
    shape = nodes.indices(1, *attributes["shape"])
    if len(inputs) > 1:
        batch = nodes.node("Slice", nodes.node("Shape", inputs[1]), nodes.indices(0), nodes.indices(1))
        shape = nodes.node("Concat", batch, nodes.indices(*attributes["shape"]), axis=0)
    return nodes.node("Expand", inputs[0], shape)


TRANSLATIONS: Mapping[str, Translation] = {
    "linear": _linear,
    "matmul": _plain("MatMul"),
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "minimum": _plain("Min"),
    "maximum": _plain("Max"),
    "neg": _plain("Neg"),
    "abs": _plain("Abs"),
    "exp": _plain("Exp"),
    "expm1": _function("expm1"),
    "log": _plain("Log"),
    "log1p": lambda nodes, inputs, _, __: nodes.node("Log", nodes.plus(inputs[0], 1.0)),
    "sqrt": _plain("Sqrt"),
    "sin": _plain("Sin"),
    "cos": lambda nodes, inputs, _, __: nodes.node("Sin", nodes.plus(inputs[0], math.pi / 2)),  # Cos: only float32
    "erf": _function("erf"),
    "pow": lambda nodes, inputs, _, attributes: nodes.node("Pow", *inputs, nodes.constant(attributes["exponent"])),
    "tanh": _plain("Tanh"),
    "sigmoid": _function("sigmoid"),
    "relu": _plain("Relu"),
    "leaky_relu": _leaky_relu,
    "elu": _function("elu"),
    "selu": _selu,
    "silu": _function("silu"),
    "gelu": _gelu,
    "softplus": _function("softplus"),
    "mish": _mish,
    "clamp": lambda nodes, inputs, _, attributes: nodes.between(inputs[0], attributes["min"], attributes["max"]),
    "softmax": _along_axis("Softmax"),
    "log_softmax": _along_axis("LogSoftmax"),
    "layer_norm": _layer_norm,
    "sum": _reduction("ReduceSum"),
    "mean": _reduction("ReduceMean"),
    "max": _reduction("ReduceMax"),
    "min": _reduction("ReduceMin"),
    "concat": _along_axis("Concat"),
    "slice": _slice,
    "take": _take,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
}
"""Operation of a policy graph → its translation into ONNX."""
