"""Translates TorchScript's operations into ``GraphBuilder``'s; a file may use no others.

``OPERATIONS`` maps the name in the code (``linear`` of ``torch.linear``) to a function of the builder and the call's
arguments. Arguments are symbols and constants, or plain Python values: numbers, strings, lists, None, and ``BATCH`` for
the size of the batch. What a function does not accept it refuses with GraphError.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.formats.torchscript.arguments import (
    Operation,
    cast,
    integer,
    is_tensor,
    kind_of,
    number,
    sizes,
    tensor,
)
from rpg_platform.priors.formats.torchscript.shapes import SHAPE_OPERATIONS
from rpg_platform.priors.network import composites
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Symbol, Value, shape_of


def _arithmetic(op: str, function: Callable[[Any, Any], Any]) -> Operation:
    def apply(b: GraphBuilder, x: Any, y: Any, alpha: Any = 1) -> Any:
        if isinstance(x, list) and isinstance(y, list) and op == "add":
            if len(x) + len(y) > 10_000:
                raise GraphError("a list of more than 10,000 entries")
            return x + y
        if not is_tensor(x) and not is_tensor(y):
            return _of_numbers(function, x, y)
        if number(alpha) != 1:
            y = OPERATIONS["mul"](b, y, alpha)
        return b.binary(op, *(each if is_tensor(each) else float(number(each)) for each in (x, y)))

    return apply


def _of_numbers(function: Any, *values: Any) -> Any:
    if any(isinstance(each, Batch) for each in values):
        if function in (operator.eq, operator.ne) and all(isinstance(each, Batch) for each in values):
            return function is operator.eq
        raise GraphError("arithmetic with the size of the batch, or a decision by it")
    if any(isinstance(each, float | int) and abs(each) > 2**63 for each in values if not isinstance(each, bool)):
        raise GraphError("numbers beyond 64 bits")
    try:
        return function(*values)
    except (TypeError, ZeroDivisionError, OverflowError, ValueError) as error:
        raise GraphError(str(error)[:200]) from error


def _plain(function: Any) -> Operation:
    """Makes an operation on plain values only, such as a comparison of sizes."""

    def apply(_: GraphBuilder, *values: Any) -> Any:
        plain = [
            each.value.item() if isinstance(each, Constant) and each.value.numel() == 1 else each for each in values
        ]
        if any(is_tensor(each) for each in plain):
            raise GraphError("a comparison of tensors: a decision that depends on the data")
        return _of_numbers(function, *plain)

    return apply


def _contains(_: GraphBuilder, items: Any, item: Any) -> bool:
    if not isinstance(items, list | dict) or not isinstance(item, bool | int | float | str):
        raise GraphError(f"a search for {kind_of(item)} in {kind_of(items)}")
    return item in items


def _div(b: GraphBuilder, x: Any, y: Any, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        raise GraphError(f"rounding_mode={rounding_mode!r}")
    return _arithmetic("div", operator.truediv)(b, x, y)


def _pow(b: GraphBuilder, x: Any, exponent: Any) -> Any:
    if not is_tensor(x) and not is_tensor(exponent):
        if abs(number(exponent)) > 64:
            raise GraphError(f"a power of {exponent}")
        return _of_numbers(operator.pow, x, exponent)
    return b.unary("pow", tensor(x), exponent=float(number(exponent)))


def _unary(op: str, **attributes: Any) -> Operation:
    def apply(b: GraphBuilder, x: Any) -> Any:
        if not is_tensor(x) and op in ("neg", "abs"):
            return _of_numbers({"neg": operator.neg, "abs": operator.abs}[op], x)
        if not is_tensor(x) and op in ("sqrt", "exp", "log"):
            return _of_numbers(getattr(math, op), x)
        return b.unary(op, tensor(x), **attributes)

    return apply


def _power(exponent: float) -> Operation:
    return lambda b, x: b.unary("pow", tensor(x), exponent=exponent)


def _clamp(b: GraphBuilder, x: Any, min: Any = None, max: Any = None) -> Value:  # noqa: A002 - torch's names
    return composites.clamp(b, tensor(x), _bound(min), _bound(max))


def _bound(value: Any) -> float | Value | None:
    """Returns a bound as a number where it is one, else as the tensor that it is."""
    several = isinstance(value, Symbol) or (isinstance(value, Constant) and value.value.numel() != 1)
    return value if value is None or several else float(number(value))


def _softplus(b: GraphBuilder, x: Any, beta: Any = 1, threshold: Any = 20) -> Value:
    if number(threshold) < 20:
        raise GraphError(f"a threshold of {threshold}, below which softplus is not itself")
    if number(beta) == 1:
        return b.unary("softplus", tensor(x))
    return b.binary("div", b.unary("softplus", b.binary("mul", tensor(x), float(number(beta)))), float(number(beta)))


def _elu(b: GraphBuilder, x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
    if number(scale) != 1 or number(input_scale) != 1:
        raise GraphError("an elu with scales")
    return b.unary("elu", tensor(x), alpha=float(number(alpha)))


def _prelu(b: GraphBuilder, x: Any, weight: Any) -> Value:
    value, slope = tensor(x), tensor(weight)
    if slope.shape not in ((), (1,)):
        if len(value.shape) < 2:
            raise GraphError("a slope per channel without channels")
        slope = b.reshape(slope, [*shape_of(slope), *([1] * (len(value.shape) - 2))])
    return composites.prelu(b, value, slope)


def _gelu(b: GraphBuilder, x: Any, approximate: Any = "none") -> Value:
    return b.unary("gelu", tensor(x), tanh=approximate == "tanh")


def _batch_norm(
    b: GraphBuilder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *rest: Any
) -> Value:
    """In evaluation mode: an affine map per channel."""
    if training is not False or not is_tensor(mean) or not is_tensor(var):
        raise GraphError("batch normalisation in training mode mixes the rows of the batch: call .eval() first")
    weight, bias = (None if each is None else tensor(each) for each in (weight, bias))
    epsilon = float(number(rest[1] if len(rest) > 1 else 1e-5))
    return composites.batch_norm(b, tensor(x), mean, var, weight, bias, epsilon)


def _addmm(b: GraphBuilder, bias: Any, x: Any, weight: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    if number(beta) != 1 or number(alpha) != 1:
        raise GraphError("scales in a matrix product")
    return b.binary("add", b.matmul(tensor(x), tensor(weight)), tensor(bias))


def _layer_norm(
    b: GraphBuilder, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5, *_: Any
) -> Value:
    value = tensor(x)
    if tuple(sizes(shape)) != tuple(value.shape[-len(shape) :]) or not shape:
        raise GraphError(f"normalises {shape} of {shape_of(value)}")
    weight, bias = (None if each is None else tensor(each) for each in (weight, bias))
    return b.layer_norm(value, len(shape), weight, bias, float(number(eps)))


def _softmax(op: str) -> Operation:
    return lambda b, x, dim, dtype=None: b.softmax(op, tensor(cast(b, x, dtype)), integer(dim))


def _reduction(op: str) -> Operation:
    def apply(b: GraphBuilder, x: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Value:
        axes = [] if dim is None else [integer(dim)] if not isinstance(dim, list) else [integer(each) for each in dim]
        return b.reduce(op, tensor(cast(b, x, dtype)), axes, bool(keepdim))

    return apply


def _norm(b: GraphBuilder, x: Any, p: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Value:
    order = 2.0 if p is None or p == "fro" else p
    if isinstance(order, str):
        raise GraphError(f"a norm of kind {order[:20]!r}")
    axes = [] if dim is None else [integer(each) for each in (dim if isinstance(dim, list) else [dim])]
    return composites.norm(b, tensor(cast(b, x, dtype)), float(number(order)), axes, bool(keepdim))


def _matrix_or_vector_norm(
    b: GraphBuilder, x: Any, order: Any = None, dim: Any = None, *rest: Any, **named: Any
) -> Any:
    """Computes torch.linalg.norm, which over two axes means that of a matrix unless it is Frobenius'."""
    if order not in (None, "fro") and (not isinstance(dim, list) or len(dim) != 1):
        raise GraphError("the norm of a matrix")
    return _norm(b, x, order, dim, *rest, **named)


def _extreme(op: str) -> Operation:
    """Makes torch.max or torch.min: of two tensors, over all of one, or over an axis, with positions."""

    def apply(b: GraphBuilder, x: Any, second: Any = None, keepdim: Any = False) -> Any:
        if is_tensor(second):
            return b.binary({"max": "maximum", "min": "minimum"}[op], tensor(x), second)
        value = b.reduce(op, tensor(x), [] if second is None else [integer(second)], bool(keepdim))
        return value if second is None else (value, GraphError("positions: a decision that depends on the data"))

    return apply


def _dropout(_: GraphBuilder, x: Any, p: Any, train: Any) -> Any:
    if train is not False:
        raise GraphError("dropout in training mode: call .eval() before saving")
    return tensor(x)


def _append(_: GraphBuilder, items: Any, item: Any) -> Any:
    if not isinstance(items, list) or len(items) > 10_000:
        raise GraphError("appends to what is no list, or a list of more than 10,000 entries")
    items.append(item)
    return items


def _raise(_: GraphBuilder, *message: Any) -> Any:
    raise GraphError(f"the code raises {str(message[0])[:200] if message else 'an error'}")


_SIMPLE = ("expm1", "log1p", "sin", "cos", "erf", "tanh", "sigmoid", "relu", "selu", "silu", "mish")
OPERATIONS: Mapping[str, Operation] = {
    **{name: _unary(name) for name in (*_SIMPLE, "neg", "abs", "sqrt", "exp", "log")},
    "absolute": _unary("abs"),
    "square": _power(2.0),
    "reciprocal": _power(-1.0),
    "rsqrt": _power(-0.5),
    "pow": _pow,
    "add": _arithmetic("add", operator.add),
    "sub": _arithmetic("sub", operator.sub),
    "rsub": lambda b, x, y, alpha=1: _arithmetic("sub", operator.sub)(b, y, x, alpha),
    "mul": _arithmetic("mul", operator.mul),
    **dict.fromkeys(("div", "true_divide", "divide"), _div),
    "minimum": _arithmetic("minimum", min),
    "maximum": _arithmetic("maximum", max),
    "floordiv": _plain(operator.floordiv),
    "remainder": _plain(operator.mod),
    **{name: _plain(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "__contains__": _contains,
    "__and__": _plain(lambda x, y: bool(x) and bool(y)),
    "__or__": _plain(lambda x, y: bool(x) or bool(y)),
    "__not__": _plain(operator.not_),
    "__is__": lambda _, x, y: x is y,
    "__isnot__": lambda _, x, y: x is not y,
    **dict.fromkeys(("clamp", "clip", "hardtanh"), _clamp),
    "clamp_min": lambda b, x, low: _clamp(b, x, low, None),
    "clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "relu6": lambda b, x: _clamp(b, x, 0.0, 6.0),
    "hardsigmoid": lambda b, x: composites.hard_sigmoid(b, tensor(x)),
    "hardswish": lambda b, x: b.binary("mul", tensor(x), composites.hard_sigmoid(b, tensor(x))),
    "leaky_relu": lambda b, x, slope=0.01: b.unary("leaky_relu", tensor(x), slope=float(number(slope))),
    "elu": _elu,
    "celu": lambda b, x, alpha=1: composites.celu(b, tensor(x), float(number(alpha))),
    "prelu": _prelu,
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": lambda b, x: b.unary("neg", b.unary("softplus", b.unary("neg", tensor(x)))),
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "linear": lambda b, x, weight, bias=None: b.linear(
        tensor(x), tensor(weight), None if bias is None else tensor(bias)
    ),
    "addmm": _addmm,
    **dict.fromkeys(("matmul", "mm", "bmm"), lambda b, x, y: b.matmul(tensor(x), tensor(y))),
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "amax": _reduction("max"),
    "amin": _reduction("min"),
    "max": _extreme("max"),
    "min": _extreme("min"),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    "linalg_norm": _matrix_or_vector_norm,
    "frobenius_norm": lambda b, x, dim=None, keepdim=False: _norm(b, x, 2, dim, keepdim),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    "append": _append,
    "format": lambda _, *arguments: str(arguments[0])[:200] if arguments else "",
    "warn": lambda *_: None,
    "prim.min": _plain(min),
    "prim.max": _plain(max),
    "prim.RaiseException": _raise,
    **SHAPE_OPERATIONS,
}
_ARITHMETIC = ("add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square")
_ACTIVATIONS = ("tanh", "sigmoid", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "hardtanh")
_BOUNDED = ("clamp", "clamp_min", "clamp_max", "hardsigmoid", "hardswish", "dropout")
IN_PLACE = frozenset((*_ARITHMETIC, *_ACTIVATIONS, *_BOUNDED))
"""Operations that, with an underscore behind the name, change their first argument and return it."""
