"""Translates ONNX's operators into ``GraphBuilder``'s; a file of opset 7 to 25 may use no others.

``OPERATORS`` maps an operator to a function of the builder and a ``Call``. Inputs are symbols, constants, None where an
optional one is left out, or ``Sizes``: whole numbers that come from a shape, the batch's size among them, with which
exporters compute to reshape and repeat. What a function does not accept it refuses with GraphError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.formats.onnx.call import DTYPES, Call, Item, Operator, Sizes
from rpg_platform.priors.formats.onnx.shapes import SHAPE_OPERATORS
from rpg_platform.priors.network import composites
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Symbol, axis_of

# --- arithmetic


def _binary(op: str) -> Operator:
    def apply(b: GraphBuilder, call: Call) -> Item:
        known = [isinstance(each, Sizes) for each in call.inputs]
        if any(known) and not any(isinstance(each, Symbol) for each in call.inputs) and _holds_batch(call):
            return _scaled_sizes(op, call)
        values = [call.tensor(0), call.tensor(1)]
        if op == "div" and all(isinstance(x, Constant) and not x.value.is_floating_point() for x in values):
            return b.constant(lambda x, y: torch.div(x, y, rounding_mode="trunc"), *values)
        return b.binary(op, *values)

    return apply


def _holds_batch(call: Call) -> bool:
    return any(isinstance(x, Batch) for each in call.inputs if isinstance(each, Sizes) for x in each.values)


def _scaled_sizes(op: str, call: Call) -> Sizes:
    """Multiplies or divides the batch's size by one, as exporters write it. Refuses all other arithmetic with it."""
    first, second = call.sizes(0), call.sizes(1)
    if op not in ("mul", "div") or (len(first) not in (len(second), 1) and len(second) != 1):
        raise GraphError("arithmetic with the size of the batch")
    pairs = zip(first * max(1, len(second) // len(first)), second * max(1, len(first) // len(second)), strict=True)
    result: list[Any] = []
    for x, y in pairs:
        if isinstance(x, Batch) and y == 1:
            result.append(x)
        elif isinstance(y, Batch) and x == 1 and op == "mul":
            result.append(y)
        elif isinstance(x, int) and isinstance(y, int) and (op == "mul" or y != 0):
            result.append(x * y if op == "mul" else x // y)
        else:
            raise GraphError("arithmetic with the size of the batch")
    return Sizes(tuple(result))


def _variadic(op: str, mean: bool = False) -> Operator:
    def apply(b: GraphBuilder, call: Call) -> Item:
        result = call.tensor(0)
        for place in range(1, len(call.inputs)):
            result = b.binary(op, result, call.tensor(place))
        return b.binary("div", result, float(len(call.inputs))) if mean and len(call.inputs) > 1 else result

    return apply


def _unary(op: str, **attributes: Any) -> Operator:
    return lambda b, call: b.unary(op, call.tensor(0), **attributes)


def _pow(b: GraphBuilder, call: Call) -> Item:
    exponent = call.tensor(1)
    if not isinstance(exponent, Constant) or exponent.value.numel() != 1:
        raise GraphError("a power that is not one known number")
    return b.unary("pow", call.tensor(0), exponent=float(exponent.value.item()))


def _gemm(b: GraphBuilder, call: Call) -> Item:
    x, weight = call.tensor(0), call.tensor(1)
    x = b.permute(x, (1, 0)) if call.flag("transA", 0) else x
    weight = weight if call.flag("transB", 0) else b.permute(weight, (1, 0))
    alpha, beta, bias = call.real("alpha", 1.0), call.real("beta", 1.0), call.optional(2)
    if alpha != 1.0:
        weight = b.binary("mul", weight, alpha)
    result = b.linear(x, weight)
    if bias is None:
        return result
    return b.binary("add", result, b.binary("mul", bias, beta) if beta != 1.0 else bias)


def _selu(b: GraphBuilder, call: Call) -> Item:
    alpha, gamma = call.real("alpha", 1.6732632), call.real("gamma", 1.0507009)
    return b.binary("mul", b.unary("elu", call.tensor(0), alpha=alpha), gamma)


def _hard_sigmoid(b: GraphBuilder, call: Call) -> Item:
    scaled = b.binary("mul", call.tensor(0), call.real("alpha", 0.2))
    return b.unary("clamp", b.binary("add", scaled, call.real("beta", 0.5)), min=0.0, max=1.0)


def _swish(b: GraphBuilder, call: Call) -> Item:
    x = call.tensor(0)
    return b.binary("mul", x, b.unary("sigmoid", b.binary("mul", x, call.real("alpha", 1.0))))


def _softsign(b: GraphBuilder, call: Call) -> Item:
    return b.binary("div", call.tensor(0), b.binary("add", b.unary("abs", call.tensor(0)), 1.0))


def _gelu(b: GraphBuilder, call: Call) -> Item:
    return b.unary("gelu", call.tensor(0), tanh=call.attributes.get("approximate", b"none") == b"tanh")


def _softmax(op: str) -> Operator:
    def apply(b: GraphBuilder, call: Call) -> Item:
        x = call.tensor(0)
        axis = axis_of(x, call.flag("axis", 1 if call.opset < 13 else -1))
        if call.opset < 13 and axis != len(x.shape) - 1:
            raise GraphError("a softmax over several axes")
        return b.softmax(op, x, axis)

    return apply


def _layer_norm(b: GraphBuilder, call: Call) -> Item:
    x = call.tensor(0)
    dims = len(x.shape) - axis_of(x, call.flag("axis", -1))
    return b.layer_norm(x, dims, call.tensor(1), call.optional(2), call.real("epsilon", 1e-5))


def _batch_norm(b: GraphBuilder, call: Call) -> Item:
    if call.flag("training_mode", 0) or call.outputs != 1:
        raise GraphError("batch normalisation in training mode mixes the rows of the batch")
    x, scale, bias, mean, var = (call.tensor(place) for place in range(5))
    return composites.batch_norm(b, x, mean, var, scale, bias, call.real("epsilon", 1e-5))


def _reduction(op: str) -> Operator:
    def apply(b: GraphBuilder, call: Call) -> Item:
        axes = call.integers(1, "axes")
        if not axes and call.flag("noop_with_empty_axes", 0):
            return call.tensor(0)
        return b.reduce(op, call.tensor(0), axes or [], bool(call.flag("keepdims", 1)))

    return apply


def _norm(order: float, root: bool = True) -> Operator:
    def apply(b: GraphBuilder, call: Call) -> Item:
        axes = call.integers(1, "axes") or []
        return composites.norm(b, call.tensor(0), order, axes, bool(call.flag("keepdims", 1)), root)

    return apply


def _normalised(b: GraphBuilder, call: Call) -> Item:
    """Divides by the norm along an axis; where that is 0, so is the result."""
    x = call.tensor(0)
    norm = composites.norm(b, x, float(call.flag("p", 2)), [call.flag("axis", -1)], True)
    return b.binary("div", x, b.binary("maximum", norm, composites.SMALLEST))


# --- types and constants


def _cast(b: GraphBuilder, call: Call) -> Item:
    """Symbols are float32 whatever floating type a file casts them to."""
    x, to = call.inputs[0], call.flag("to", 0)
    if isinstance(x, Sizes) and (_holds_batch(call) or to in (6, 7)):
        if to not in (6, 7):
            raise GraphError("arithmetic with the size of the batch")
        return x
    if to not in DTYPES:
        raise GraphError(f"a cast to type {to}")
    return composites.cast(b, call.tensor(0), torch.from_numpy(np.empty(0, DTYPES[to])).dtype)


def _constant(_: GraphBuilder, call: Call) -> Item:
    for name, value in call.attributes.items():
        if name == "value" and isinstance(value, Constant):
            return value
        if name in ("value_float", "value_floats"):
            return Constant(torch.tensor(value, dtype=torch.float32))
        if name in ("value_int", "value_ints"):
            return Constant(torch.tensor(value, dtype=torch.int64))
    raise GraphError(f"a constant of {sorted(call.attributes)}")


def _constant_of_shape(b: GraphBuilder, call: Call) -> Item:
    fill = call.attributes.get("value")
    number = float(fill.value.item()) if isinstance(fill, Constant) and fill.value.numel() == 1 else 0.0
    if isinstance(fill, Constant) and not fill.value.is_floating_point():
        sizes = call.sizes(0)
        if len(sizes) != 1 or not isinstance(sizes[0], int) or not 0 <= sizes[0] <= 64:
            raise GraphError("a tensor of whole numbers of that shape")
        return Sizes((int(number),) * sizes[0])
    return b.full(call.sizes(0), number)


def _dropout(_: GraphBuilder, call: Call) -> Item:
    if call.outputs != 1 or (call.given(2) and call.number(2, "") != 0.0):
        raise GraphError("dropout in training mode")
    return call.tensor(0)


_SIMPLE = ("Neg", "Abs", "Exp", "Log", "Sqrt", "Sin", "Cos", "Erf", "Tanh", "Sigmoid", "Relu", "Softplus", "Mish")
OPERATORS: Mapping[str, Operator] = {
    **{name: _unary(name.lower()) for name in _SIMPLE},
    "Reciprocal": _unary("pow", exponent=-1.0),
    **{name: _binary(name.lower()) for name in ("Add", "Sub", "Mul", "Div")},
    "Pow": _pow,
    "Min": _variadic("minimum"),
    "Max": _variadic("maximum"),
    "Sum": _variadic("add"),
    "Mean": _variadic("add", mean=True),
    "Gemm": _gemm,
    "MatMul": lambda b, call: b.matmul(call.tensor(0), call.tensor(1)),
    "Clip": lambda b, call: composites.clamp(b, call.tensor(0), call.number(1, "min"), call.number(2, "max")),
    "Elu": lambda b, call: b.unary("elu", call.tensor(0), alpha=call.real("alpha", 1.0)),
    "Celu": lambda b, call: composites.celu(b, call.tensor(0), call.real("alpha", 1.0)),
    "Selu": _selu,
    "LeakyRelu": lambda b, call: b.unary("leaky_relu", call.tensor(0), slope=call.real("alpha", 0.01)),
    "PRelu": lambda b, call: composites.prelu(b, call.tensor(0), call.tensor(1)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda b, call: b.binary("mul", call.tensor(0), composites.hard_sigmoid(b, call.tensor(0))),
    "Swish": _swish,
    "Softsign": _softsign,
    "Gelu": _gelu,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    **{f"Reduce{name}": _reduction(name.lower()) for name in ("Sum", "Mean", "Max", "Min")},
    "ReduceL1": _norm(1.0),
    "ReduceL2": _norm(2.0),
    "ReduceSumSquare": _norm(2.0, root=False),
    "LpNormalization": _normalised,
    "Cast": _cast,
    "CastLike": lambda b, call: call.tensor(0),
    "Identity": lambda b, call: call.inputs[0],
    "Dropout": _dropout,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    **SHAPE_OPERATORS,
}
