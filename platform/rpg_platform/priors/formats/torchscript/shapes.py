"""Translates TorchScript's operations on shapes and types into ``GraphBuilder``'s; see ``ops``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.formats.torchscript.arguments import (
    DTYPES,
    Operation,
    cast,
    integer,
    kind_of,
    number,
    sizes,
    tensor,
    tensors,
)
from rpg_platform.priors.network import composites
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Symbol, Value, axis_of, shape_of


def _dtype(_: GraphBuilder, x: Any) -> int:
    if isinstance(x, Symbol):
        return 6
    known = {dtype: number for number, dtype in DTYPES.items()}
    if not isinstance(x, Constant) or x.value.dtype not in known:
        raise GraphError(f"the type of {kind_of(x)}")
    return known[x.value.dtype]


def _to(b: GraphBuilder, x: Any, *arguments: Any, dtype: Any = None, **_: Any) -> Any:
    given = [each for each in arguments if type(each) is int]
    return cast(b, x, dtype if dtype is not None else given[0] if given else None)


def _size(b: GraphBuilder, x: Any, dim: Any = None) -> Any:
    if dim is None:
        return shape_of(tensor(x))
    return shape_of(tensor(x))[axis_of(tensor(x), integer(dim))]


def _length(_: GraphBuilder, x: Any) -> Any:
    if isinstance(x, list | tuple | str | dict):
        return len(x)
    if not tensor(x).shape:
        raise GraphError("the length of a scalar")
    return shape_of(tensor(x))[0]


def _flatten(b: GraphBuilder, x: Any, start_dim: Any = 0, end_dim: Any = -1) -> Value:
    value = tensor(x)
    if not value.shape:
        return b.reshape(value, [1])
    start, stop = axis_of(value, integer(start_dim)), axis_of(value, integer(end_dim))
    own = shape_of(value)
    if start == stop:
        return value
    if isinstance(value, Symbol) and start == 0:
        raise GraphError("flattens the batch axis")
    return b.reshape(
        value, [*own[:start], math.prod(s for s in own[start : stop + 1] if isinstance(s, int)), *own[stop + 1 :]]
    )


def _transpose(b: GraphBuilder, x: Any, dim0: Any = 0, dim1: Any = 1) -> Value:
    value = tensor(x)
    first, second = axis_of(value, integer(dim0)), axis_of(value, integer(dim1))
    order = list(range(len(value.shape)))
    order[first], order[second] = second, first
    return b.permute(value, order)


def _t(b: GraphBuilder, x: Any) -> Value:
    return tensor(x) if len(tensor(x).shape) < 2 else _transpose(b, x)


def _split(b: GraphBuilder, x: Any, size: Any, dim: Any = 0) -> list[Value]:
    value, axis = tensor(x), axis_of(tensor(x), integer(dim))
    if isinstance(size, list):
        return composites.split(b, value, axis, [integer(each) for each in size])
    whole, step = composites.length_to_split(value, axis), integer(size)
    if step < 1 or whole > 1_000 * step:
        raise GraphError(f"parts of {step} of {whole}")
    return composites.split(b, value, axis, [min(step, whole - start) for start in range(0, whole, step)])


def _chunk(b: GraphBuilder, x: Any, chunks: Any, dim: Any = 0) -> list[Value]:
    whole = composites.length_to_split(tensor(x), integer(dim))
    if not 1 <= integer(chunks) <= 1_000:
        raise GraphError(f"{chunks} parts")
    return _split(b, x, -(-whole // integer(chunks)), dim)


def _slice(b: GraphBuilder, x: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    if isinstance(start, Batch):
        raise GraphError("a part of the batch")
    first = None if start is None else integer(start)
    last = None if end is None or isinstance(end, Batch) else integer(end)  # up to the batch's size: all of it
    if isinstance(x, list):
        return x[slice(first, last, integer(step))]
    return b.slice(tensor(x), integer(dim), first, last, integer(step))


def _unbind(b: GraphBuilder, x: Any, dim: Any = 0) -> list[Value]:
    value, axis = tensor(x), axis_of(tensor(x), integer(dim))
    size = value.shape[axis]
    if size is None or size > 1_000:
        raise GraphError(f"takes {'the batch' if size is None else size} apart")
    return [b.select(value, axis, i) for i in range(size)]


def _stack(b: GraphBuilder, values: Any, dim: Any = 0) -> Value:
    parts = tensors(values)
    rank = len(parts[0].shape) + 1 if parts else 0
    return b.concat([b.unsqueeze(part, [integer(dim) % max(rank, 1)]) for part in parts], integer(dim) % max(rank, 1))


def _index(b: GraphBuilder, x: Any, indices: Any) -> Value:
    """Takes entries of one axis by constants, as in ``x[:, [3, 1]]``."""
    given = [(axis, each) for axis, each in enumerate(indices if isinstance(indices, list) else []) if each is not None]
    if len(given) != 1 or not isinstance(given[0][1], Constant) or len(given[0][1].shape) != 1:
        raise GraphError("an index other than one list of whole numbers")
    return _index_select(b, x, *given[0])


def _index_select(b: GraphBuilder, x: Any, dim: Any, index: Any) -> Value:
    if not isinstance(index, Constant) or index.value.dtype not in (torch.int64, torch.int32) or index.value.dim() > 1:
        raise GraphError("an index that is not a list of whole numbers")
    return b.take(tensor(x), integer(dim), [int(each) for each in index.value.reshape(-1)])


def _like(fill: float | None) -> Operation:
    def apply(b: GraphBuilder, x: Any, *rest: Any, **_: Any) -> Value:
        return b.full(shape_of(tensor(x)), float(number(rest[0])) if fill is None else fill)

    return apply


def _new(fill: float | None, of_tensor: bool = False) -> Operation:
    def apply(b: GraphBuilder, *arguments: Any, **_: Any) -> Value:
        shape, *rest = arguments[1:] if of_tensor else arguments
        return b.full(sizes(shape), float(number(rest[0])) if fill is None else fill)

    return apply


def _make_tensor(_: GraphBuilder, data: Any, dtype: Any = None, **__: Any) -> Constant:
    if not isinstance(data, list | int | float):
        raise GraphError(f"a tensor of {kind_of(data)}")
    try:
        return Constant(torch.tensor(data, dtype=DTYPES.get(dtype) if isinstance(dtype, int) else None))
    except (TypeError, ValueError, RuntimeError) as error:
        raise GraphError(str(error)[:200]) from error


def _same(_: GraphBuilder, x: Any, *__: Any, **___: Any) -> Any:
    return x


SHAPE_OPERATIONS: Mapping[str, Operation] = {
    "to": _to,
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "type_as", "cpu", "requires_grad_"), _same),
    "size": _size,
    **dict.fromkeys(("dim", "ndim"), lambda _, x: len(tensor(x).shape)),
    "len": _length,
    **dict.fromkeys(("view", "reshape"), lambda b, x, shape: b.reshape(tensor(x), sizes(shape))),
    "flatten": _flatten,
    "unsqueeze": lambda b, x, dim: b.unsqueeze(tensor(x), [integer(dim)]),
    "squeeze": lambda b, x, dim=None: b.squeeze(tensor(x), None if dim is None else [integer(dim)]),
    "permute": lambda b, x, dims: b.permute(tensor(x), [integer(each) for each in dims]),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    "t": _t,
    "expand": lambda b, x, shape, implicit=False: b.expand(tensor(x), sizes(shape)),
    "expand_as": lambda b, x, other: b.expand(tensor(x), shape_of(tensor(other))),
    "broadcast_to": lambda b, x, shape: b.expand(tensor(x), sizes(shape)),
    "repeat": lambda b, x, repeats: composites.repeat(b, tensor(x), sizes(repeats)),
    **dict.fromkeys(("cat", "concat", "concatenate"), lambda b, x, dim=0: b.concat(tensors(x), integer(dim))),
    "stack": _stack,
    "chunk": _chunk,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "unbind": _unbind,
    "slice": _slice,
    "select": lambda b, x, dim, index: b.select(tensor(x), integer(dim), integer(index)),
    "index": _index,
    "index_select": _index_select,
    "zeros_like": _like(0.0),
    "ones_like": _like(1.0),
    "full_like": _like(None),
    "zeros": _new(0.0),
    "ones": _new(1.0),
    "full": _new(None),
    "new_zeros": _new(0.0, of_tensor=True),
    "new_ones": _new(1.0, of_tensor=True),
    "new_full": _new(None, of_tensor=True),
    "tensor": _make_tensor,
    "list": lambda _, x: list(x) if isinstance(x, list | tuple) else [tensor(x)],
    "device": lambda *_: "cpu",
    # of ``ops.prim``
    "prim.NumToTensor": _same,
    **dict.fromkeys(("prim.device", "prim.type"), lambda *_: "cpu"),
    "prim.layout": lambda *_: 0,  # strided
    "prim.dtype": _dtype,
    "prim.data": _same,
}
VIEWS = frozenset(("reshape", "permute", "slice", "expand"))
"""Graph operations whose result shares its memory with its input in torch."""
