"""The operations of a policy graph: for each its rule of shapes and its evaluation in torch and in numpy.

A graph can hold only the operations in ``OPS``. None of them mixes rows of the batch or lets the data decide what is
computed, and each is differentiable almost everywhere, so a policy can be trained through any graph.

A shape is a tuple whose first entry is None where the value has a batch axis; a tensor of the graph has none. A number
has the shape (). Axes are counted from the batch axis, 0, which no operation may name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rpg_algorithms.addons import Array

Shape = tuple[int | None, ...]
Attributes = Mapping[str, Any]
SQRT_HALF, TANH_GELU = math.sqrt(0.5), math.sqrt(2.0 / math.pi)


class GraphError(ValueError):
    """A graph is malformed, too large, or does not fit its policy; the message names the node and the fault."""


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        inputs: the least and the greatest number of inputs.
        shape: infers the result's shape from the inputs' shapes and the attributes; raises GraphError if it cannot.
        torch, numpy: evaluate it; called with the inputs, then the attributes by name. Inputs are left alone.
        attributes: names of the attributes, each with a check that returns whether a value is allowed.
        work: arithmetic operations per row of the batch, given the inputs' shapes and the result's.
    """

    inputs: tuple[int, int]
    shape: Callable[[Sequence[Shape], Attributes], Shape]
    torch: Callable[..., Tensor]
    numpy: Callable[..., Array]
    attributes: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    work: Callable[[Sequence[Shape], Shape], int] = lambda inputs, result: elements(result)


def elements(shape: Shape) -> int:
    """Returns the number of elements in one row of the batch."""
    return math.prod(size for size in shape if size is not None)


# --- attributes


def is_number(value: Any) -> bool:
    """Says whether a value is a finite number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38


def _is_bound(value: Any) -> bool:
    return value is None or is_number(value)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_indices(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_index(each) for each in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


# --- shapes


def broadcast(*shapes: Shape) -> Shape:
    """Broadcasts shapes as numpy and torch do. Raises GraphError if they do not fit or the batch axis would move."""
    rank = max(len(shape) for shape in shapes)
    result: list[int | None] = []
    for position in range(rank):
        sizes = {shape[position - rank + len(shape)] for shape in shapes if position - rank + len(shape) >= 0} - {1}
        if len(sizes) > 1 or (None in sizes and position > 0):
            raise GraphError(f"shapes {', '.join(map(_text, shapes))} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _text(shape: Shape) -> str:
    return f"[{', '.join('B' if size is None else str(size) for size in shape)}]"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def _batched(shape: Shape) -> Shape:
    _require(bool(shape) and shape[0] is None, f"needs a batch of observations, got {_text(shape)}")
    return shape


def _axis(shape: Shape, axis: int) -> int:
    """Returns the size of an axis other than the batch axis."""
    _require(1 <= axis < len(_batched(shape)), f"axis {axis} of {_text(shape)}: expected 1 to {len(shape) - 1}")
    size = shape[axis]
    assert size is not None
    return size


def _same(shapes: Sequence[Shape], _: Attributes) -> Shape:
    return shapes[0]


def _broadcast_op(shapes: Sequence[Shape], _: Attributes) -> Shape:
    return broadcast(*shapes)


def _linear_shape(shapes: Sequence[Shape], _: Attributes) -> Shape:
    x, weight, *bias = shapes
    fits = len(x) >= 2 and len(weight) == 2 and weight[0] is not None and weight[1] == x[-1]
    fits = fits and all(b == weight[:1] for b in bias)
    _require(fits, f"input {_text(x)}, weight and bias {', '.join(map(_text, shapes[1:]))} do not fit")
    return (*x[:-1], weight[0])


def _matmul_shape(shapes: Sequence[Shape], _: Attributes) -> Shape:
    a, b = shapes
    fits = len(a) >= 2 and len(b) >= 2 and a[-1] is not None and a[-1] == b[-2]
    _require(fits, f"matrices {_text(a)} and {_text(b)} do not fit")
    result = (*broadcast(a[:-2], b[:-2]), a[-2], b[-1]) if len(a) > 2 or len(b) > 2 else (a[-2], b[-1])
    _require(None not in result[1:], f"matrices {_text(a)} and {_text(b)} mix the rows of the batch")
    return result


def _layer_norm_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, n = shapes[0], attributes["dims"]
    _require(1 <= n < len(_batched(x)), f"normalises {n} axes of {_text(x)}")
    _require(all(each == x[-n:] for each in shapes[1:]), f"weights {', '.join(map(_text, shapes[1:]))} for {_text(x)}")
    return x


def _axis_op(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    _axis(shapes[0], attributes["axis"])
    return shapes[0]


def _reduced(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, axes = shapes[0], attributes["axes"]
    _require(len(set(axes)) == len(axes) > 0, f"axes {list(axes)}")
    for axis in axes:
        _axis(x, axis)
    if attributes["keepdims"]:
        return tuple(1 if i in axes else size for i, size in enumerate(x))
    return tuple(size for i, size in enumerate(x) if i not in axes)


def _concat_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    axis = attributes["axis"]
    total = sum(_axis(shape, axis) for shape in shapes)
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    _require(len(rests) == 1, f"shapes {', '.join(map(_text, shapes))} do not join along axis {axis}")
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


def _slice_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    axis, start, stop, step = (attributes[name] for name in ("axis", "start", "stop", "step"))
    size = _axis(shapes[0], axis)
    _require(0 <= start < stop <= size and step >= 1, f"slice {start}:{stop}:{step} of {size}")
    return (*shapes[0][:axis], len(range(start, stop, step)), *shapes[0][axis + 1 :])


def _take_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    axis, indices = attributes["axis"], attributes["indices"]
    size = _axis(shapes[0], axis)
    _require(len(indices) > 0 and max(indices) < size, f"indices {list(indices)[:20]} of {size}")
    return (*shapes[0][:axis], len(indices), *shapes[0][axis + 1 :])


def _reshape_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    shape = (None, *attributes["shape"])
    same = elements(_batched(shapes[0])) == elements(shape)
    _require(same, f"{_text(shapes[0])} cannot become {_text(shape)}")
    return shape


def _permute_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    x, axes = _batched(shapes[0]), attributes["axes"]
    _require(sorted(axes) == list(range(1, len(x))), f"axes {list(axes)} of {_text(x)}")
    return (None, *(x[axis] for axis in axes))


def _expand_shape(shapes: Sequence[Shape], attributes: Attributes) -> Shape:
    shape = (None, *attributes["shape"])
    _batched(shapes[-1])
    _require(0 not in shape, f"cannot be expanded to {_text(shape)}")
    _require(broadcast(shapes[0], shape) == shape, f"{_text(shapes[0])} cannot be expanded to {_text(shape)}")
    return shape


# --- evaluation

# numpy's functions below are written so that no intermediate overflows and float32 stays float32.


def np_softplus(x: Array) -> Array:
    """``log(1 + exp(x))``."""
    return np.asarray(np.logaddexp(x, np.float32(0.0)))


def _np_sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np_softplus(-x)))


def np_elu(x: Array, alpha: float = 1.0) -> Array:
    """``x`` where it is positive, ``alpha * (exp(x) - 1)`` elsewhere."""
    below = np.expm1(np.minimum(x, np.float32(0.0)))
    return np.where(x > 0, x, below if alpha == 1.0 else np.float32(alpha) * below)


def _np_erf(x: Array) -> Array:
    return np.asarray(torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy())


def _np_gelu(x: Array, tanh: bool) -> Array:
    if tanh:
        inner = np.float32(TANH_GELU) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
    return np.asarray(np.float32(0.5) * x * (1 + _np_erf(x * np.float32(SQRT_HALF))))


def np_log_softmax(x: Array, axis: int = -1) -> Array:
    """Logits as log-probabilities, which are normalised along ``axis``."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _np_softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _np_layer_norm(x: Array, *weights: Array, dims: int, eps: float) -> Array:
    axes = tuple(range(-dims, 0))
    centred = x - x.mean(axis=axes, keepdims=True)
    result = centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + np.float32(eps))
    if weights:
        result = result * weights[0]
    return np.asarray(result + weights[1] if len(weights) > 1 else result)


def _layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, dims: int, eps: float
) -> Tensor:
    return functional.layer_norm(x, x.shape[-dims:], weight, bias, eps)


def _np_linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    result = x @ weight.T
    return np.asarray(result if bias is None else result + bias)


def _np_clamp(x: Array, min: float | None, max: float | None) -> Array:  # noqa: A002
    if min is not None:
        x = np.maximum(x, np.float32(min))
    return x if max is None else np.asarray(np.minimum(x, np.float32(max)))


def _np_pow(x: Array, exponent: float) -> Array:
    return np.asarray(np.power(x, np.float32(exponent)))


def _np_selu(x: Array) -> Array:
    return np.asarray(np.float32(1.0507009873554805) * np_elu(x, 1.6732632423543772))


def _slice(x: Any, axis: int, start: int, stop: int, step: int) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _reshape(x: Any, shape: tuple[int, ...]) -> Any:
    return x.reshape(x.shape[0], *shape)


def _expand(x: Tensor, *like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand((like or (x,))[0].shape[0], *shape)


def _np_expand(x: Array, *like: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x, ((like or (x,))[0].shape[0], *shape))


def _take(x: Tensor, axis: int, indices: tuple[int, ...]) -> Tensor:
    return x.index_select(axis, torch.tensor(indices, device=x.device))


def _extreme(name: str, a: Any, b: Any) -> Tensor:
    """Calls a function of torch that takes only tensors; turns numbers into tensors first."""
    tensor = next(each for each in (a, b) if isinstance(each, Tensor))
    return getattr(torch, name)(*(torch.as_tensor(each, dtype=tensor.dtype, device=tensor.device) for each in (a, b)))  # type: ignore[no-any-return]


def _reduction(name: str, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return getattr(torch, name)(x, axes, keepdim=keepdims)  # type: ignore[no-any-return]


def _np_reduction(name: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(getattr(np, name)(x, axis=axes, keepdims=keepdims))


# --- the table


def _unary(torch_function: Callable[..., Tensor], numpy_function: Callable[..., Any], **attributes: Any) -> Op:
    return Op((1, 1), _same, torch_function, numpy_function, attributes)


def _binary(torch_function: Callable[..., Tensor], numpy_function: Callable[..., Any]) -> Op:
    return Op((2, 2), _broadcast_op, torch_function, numpy_function)


def _product_work(inputs: Sequence[Shape], result: Shape) -> int:
    return elements(result) * (inputs[0][-1] or 1)


OPS: Mapping[str, Op] = {
    "linear": Op((2, 3), _linear_shape, functional.linear, _np_linear, work=_product_work),
    "matmul": Op((2, 2), _matmul_shape, torch.matmul, np.matmul, work=_product_work),
    "add": _binary(operator.add, np.add),
    "sub": _binary(operator.sub, np.subtract),
    "mul": _binary(operator.mul, np.multiply),
    "div": _binary(operator.truediv, np.divide),
    "minimum": _binary(partial(_extreme, "minimum"), np.minimum),
    "maximum": _binary(partial(_extreme, "maximum"), np.maximum),
    "neg": _unary(torch.neg, np.negative),
    "abs": _unary(torch.abs, np.abs),
    "exp": _unary(torch.exp, np.exp),
    "expm1": _unary(torch.expm1, np.expm1),
    "log": _unary(torch.log, np.log),
    "log1p": _unary(torch.log1p, np.log1p),
    "sqrt": _unary(torch.sqrt, np.sqrt),
    "sin": _unary(torch.sin, np.sin),
    "cos": _unary(torch.cos, np.cos),
    "erf": _unary(torch.erf, _np_erf),
    "pow": _unary(torch.pow, _np_pow, exponent=is_number),
    "tanh": _unary(torch.tanh, np.tanh),
    "sigmoid": _unary(torch.sigmoid, _np_sigmoid),
    "relu": _unary(torch.relu, lambda x: np.maximum(x, np.float32(0.0))),
    "leaky_relu": _unary(
        lambda x, slope: functional.leaky_relu(x, slope),
        lambda x, slope: np.where(x > 0, x, np.float32(slope) * x),
        slope=is_number,
    ),
    "elu": _unary(functional.elu, np_elu, alpha=is_number),
    "selu": _unary(functional.selu, _np_selu),
    "silu": _unary(functional.silu, lambda x: x * _np_sigmoid(x)),
    "gelu": _unary(lambda x, tanh: functional.gelu(x, approximate="tanh" if tanh else "none"), _np_gelu, tanh=_is_flag),
    "softplus": _unary(functional.softplus, np_softplus),
    "mish": _unary(functional.mish, lambda x: x * np.tanh(np_softplus(x))),
    "clamp": _unary(torch.clamp, _np_clamp, min=_is_bound, max=_is_bound),
    "softmax": Op((1, 1), _axis_op, lambda x, axis: torch.softmax(x, axis), _np_softmax, {"axis": _is_index}),
    "log_softmax": Op(
        (1, 1), _axis_op, lambda x, axis: torch.log_softmax(x, axis), np_log_softmax, {"axis": _is_index}
    ),
    "layer_norm": Op((1, 3), _layer_norm_shape, _layer_norm, _np_layer_norm, {"dims": _is_index, "eps": is_number}),
    **{
        name: Op(
            (1, 1),
            _reduced,
            partial(_reduction, {"max": "amax", "min": "amin"}.get(name, name)),
            partial(_np_reduction, name),
            {"axes": _are_indices, "keepdims": _is_flag},
            work=lambda inputs, result: elements(inputs[0]),
        )
        for name in ("sum", "mean", "max", "min")
    },
    "concat": Op(
        (1, 256),
        _concat_shape,
        lambda *x, axis: torch.cat(x, axis),
        lambda *x, axis: np.concatenate(x, axis),
        {"axis": _is_index},
    ),
    "slice": Op((1, 1), _slice_shape, _slice, _slice, dict.fromkeys(("axis", "start", "stop", "step"), _is_index)),
    "take": Op(
        (1, 1),
        _take_shape,
        _take,
        lambda x, axis, indices: np.take(x, indices, axis),
        {"axis": _is_index, "indices": _are_indices},
    ),
    "reshape": Op((1, 1), _reshape_shape, _reshape, _reshape, {"shape": _are_indices}),
    "permute": Op(
        (1, 1),
        _permute_shape,
        lambda x, axes: x.permute(0, *axes),
        lambda x, axes: np.transpose(x, (0, *axes)),
        {"axes": _are_indices},
    ),
    # The second input, needed where the first has no batch axis, gives the size of the batch.
    "expand": Op((1, 2), _expand_shape, _expand, _np_expand, {"shape": _are_indices}),
}
