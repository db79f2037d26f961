"""Composes operations that a graph lacks from those that it has, for the readers of TorchScript and ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, Size, Symbol, Value, axis_of, shape_of

_LARGEST = 3.4e38  # of float32: a bound beyond it is none
SMALLEST = 1.2e-38  # positive number of float32 without loss of digits


def clamp(b: GraphBuilder, x: Value, low: float | Value | None, high: float | Value | None) -> Value:
    """Keeps ``x`` within bounds: numbers, tensors, or None for no bound."""
    if not any(isinstance(each, Symbol | Constant) for each in (low, high)):
        low, high = (None if isinstance(each, float) and abs(each) > _LARGEST else each for each in (low, high))
        return x if low is None and high is None else b.unary("clamp", x, min=low, max=high)
    for op, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            x = b.binary(op, x, bound)
    return x


def celu(b: GraphBuilder, x: Value, alpha: float) -> Value:
    """``max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)``."""
    return b.binary("mul", b.unary("elu", b.binary("div", x, alpha), alpha=1.0), alpha)


def hard_sigmoid(b: GraphBuilder, x: Value) -> Value:
    """``clamp(x + 3, 0, 6) / 6``."""
    return b.binary("div", b.unary("clamp", b.binary("add", x, 3.0), min=0.0, max=6.0), 6.0)


def prelu(b: GraphBuilder, x: Value, slope: Value) -> Value:
    """``max(x, 0) + slope min(x, 0)``."""
    return b.binary("add", b.unary("relu", x), b.binary("mul", slope, b.unary("clamp", x, min=None, max=0.0)))


def batch_norm(
    b: GraphBuilder, x: Value, mean: Value, var: Value, weight: Value | None, bias: Value | None, epsilon: float
) -> Value:
    """Batch normalisation in evaluation mode: ``(x - mean) / sqrt(var + epsilon) * weight + bias`` per channel."""
    trailing = [1] * (len(x.shape) - 2)
    std = b.unary("sqrt", b.binary("add", var, epsilon))
    for op, statistic in (("sub", mean), ("div", std), ("mul", weight), ("add", bias)):
        if statistic is not None:
            x = b.binary(op, x, b.reshape(statistic, [*shape_of(statistic), *trailing]))
    return x


def norm(b: GraphBuilder, x: Value, order: float, axes: Sequence[int], keepdims: bool, root: bool = True) -> Value:
    """Returns ``(sum |x|^order)^(1/order)`` over axes, and the largest or least for an infinite order.

    Its gradient at zero is zero, as torch's is.

    Args:
        b: makes it.
        x: what is measured.
        order: 1, 2, or another positive number; infinity; or minus infinity.
        axes: over which; over all axes of a constant where none are given.
        keepdims: leave axes of size 1.
        root: whether the root of the sum is taken.

    Raises:
        GraphError: another order, or the batch is among the axes.
    """
    if math.isinf(order):
        return b.reduce("max" if order > 0 else "min", b.unary("abs", x), axes, keepdims)
    if not order > 0:
        raise GraphError(f"a norm of order {order:g}")
    powers = b.unary("abs", x) if order != 2.0 else x
    powers = powers if order == 1.0 else b.unary("pow", powers, exponent=float(order))
    total = b.reduce("sum", powers, axes, keepdims)
    if not root or order == 1.0:
        return total
    total = b.binary("maximum", total, SMALLEST)
    return b.unary("sqrt", total) if order == 2.0 else b.unary("pow", total, exponent=1.0 / order)


def split(b: GraphBuilder, x: Value, axis: int, parts: Sequence[int]) -> list[Value]:
    """Takes an axis apart into pieces of these sizes. Raises GraphError where they are not the whole axis."""
    whole = length_to_split(x, axis)
    if any(part < 1 for part in parts) or sum(parts) != whole:
        raise GraphError(f"parts {list(parts)[:20]} of {whole}")
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [b.slice(x, axis, end - part, end) for part, end in zip(parts, ends, strict=True)]


def length_to_split(x: Value, axis: int) -> int:
    """Returns the length of an axis. Raises GraphError for the batch's."""
    whole = x.shape[axis_of(x, axis)]
    if whole is None:
        raise GraphError("splits the batch")
    return whole


def repeat(b: GraphBuilder, x: Value, times: Sequence[Size]) -> Value:
    """Repeats along axes of size 1, or once: all that is needed to give a vector to the whole batch."""
    own = [1] * (len(times) - len(x.shape)) + shape_of(x)
    if len(own) != len(times) or any(size != 1 and time != 1 for size, time in zip(own, times, strict=True)):
        raise GraphError(f"repeats {list(times)} of {shape_of(x)}")
    return b.expand(x, [time if size == 1 else size for size, time in zip(own, times, strict=True)])


def cast(b: GraphBuilder, x: Value, dtype: torch.dtype) -> Value:
    """Casts a constant. Symbols stay float32 whatever floating type a file asks for; GraphError for other types."""
    if isinstance(x, Constant):
        return b.constant(lambda value: value.to(dtype), x)
    if dtype not in (torch.float32, torch.float64):
        raise GraphError(f"a cast of what depends on the observation to {dtype}")
    return x
