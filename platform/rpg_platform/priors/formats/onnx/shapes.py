"""Translates ONNX's operators on shapes into ``GraphBuilder``'s; see ``ops``."""

from __future__ import annotations

from collections.abc import Mapping

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.formats.onnx.call import Call, Item, Operator, Sizes
from rpg_platform.priors.network import composites
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Size, axis_of, shape_of


def _shape(_: GraphBuilder, call: Call) -> Item:
    x = call.inputs[0]
    if isinstance(x, Sizes):
        return Sizes(() if x.scalar else (len(x.values),))
    sizes = shape_of(call.tensor(0))
    start, end = call.flag("start", 0), call.attributes.get("end")
    return Sizes(tuple(sizes[start:end]))


def _reshape(b: GraphBuilder, call: Call) -> Item:
    wanted = call.integers(1, "shape") if "shape" in call.attributes else call.sizes(1)
    if isinstance(call.inputs[0], Sizes):
        if wanted not in ([-1], [], [len(call.inputs[0].values)]):
            raise GraphError("sizes in several axes")
        return Sizes(call.inputs[0].values, scalar=not wanted)
    x = call.tensor(0)
    own = shape_of(x)
    sizes: list[Size] = []
    for place, size in enumerate(wanted or []):
        copied = size == 0 and not call.flag("allowzero", 0)
        if copied and place >= len(own):
            raise GraphError(f"sizes {wanted} of {own}")
        sizes.append(own[place] if copied else size)
    return b.reshape(x, sizes)


def _flatten(b: GraphBuilder, call: Call) -> Item:
    x = call.tensor(0)
    axis = call.flag("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    if axis != 1:
        raise GraphError(f"flattens around axis {axis}, which does not keep the batch")
    return b.reshape(x, [shape_of(x)[0], -1])


def _axes(call: Call) -> list[int]:
    axes = call.integers(1, "axes")
    if axes is None:
        raise GraphError("has no axes")
    return axes


def _unsqueeze(b: GraphBuilder, call: Call) -> Item:
    if isinstance(call.inputs[0], Sizes):
        if not call.inputs[0].scalar:
            raise GraphError("sizes in several axes")
        return Sizes(call.inputs[0].values)
    return b.unsqueeze(call.tensor(0), _axes(call))


def _squeeze(b: GraphBuilder, call: Call) -> Item:
    if isinstance(call.inputs[0], Sizes):
        if len(call.inputs[0].values) != 1:
            raise GraphError("several sizes for one")
        return Sizes(call.inputs[0].values, scalar=True)
    return b.squeeze(call.tensor(0), call.integers(1, "axes"))


def _transpose(b: GraphBuilder, call: Call) -> Item:
    x = call.tensor(0)
    return b.permute(x, call.attributes.get("perm") or list(range(len(x.shape)))[::-1])


def _concat(b: GraphBuilder, call: Call) -> Item:
    if any(isinstance(each, Sizes) for each in call.inputs):
        return Sizes(tuple(size for place in range(len(call.inputs)) for size in call.sizes(place)))
    return b.concat([call.tensor(place) for place in range(len(call.inputs))], call.flag("axis", 1))


def _split(b: GraphBuilder, call: Call) -> list[Item]:
    x = call.tensor(0)
    axis = axis_of(x, call.flag("axis", 0))
    parts = call.integers(1, "split")
    if parts is None:
        whole = composites.length_to_split(x, axis)
        step = -(-whole // max(call.outputs, 1))
        parts = [min(step, whole - step * i) for i in range(call.outputs)]
    if len(parts) != call.outputs:
        raise GraphError(f"{len(parts)} parts for {call.outputs} outputs")
    return [*composites.split(b, x, axis, parts)]


def _slice(b: GraphBuilder, call: Call) -> Item:
    starts, ends = (
        call.integers(1, "starts"),
        call.sizes(2) if "ends" not in call.attributes else call.attributes["ends"],
    )
    if starts is None or len(starts) != len(ends):
        raise GraphError("starts and ends that do not fit")
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4, "steps") or [1] * len(starts)
    if not len(axes) == len(steps) == len(starts) <= 8:
        raise GraphError("axes and steps that do not fit")
    stops = [2**31 if isinstance(end, Batch) else int(end) for end in ends]
    if isinstance(call.inputs[0], Sizes):
        return Sizes(call.inputs[0].values[slice(starts[0], stops[0], steps[0])])
    x = call.tensor(0)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        x = b.slice(x, axis, start, stop, step)
    return x


def _gather(b: GraphBuilder, call: Call) -> Item:
    indices = call.sizes(1)
    if any(isinstance(each, Batch) for each in indices):
        raise GraphError("an index by the size of the batch")
    known = [each for each in indices if isinstance(each, int)]
    index = call.inputs[1]
    scalar = index.scalar if isinstance(index, Sizes) else isinstance(index, Constant) and index.value.dim() == 0
    if isinstance(call.inputs[0], Sizes):
        values = call.inputs[0].values
        if any(not -len(values) <= each < len(values) for each in known):
            raise GraphError(f"indices {known[:20]} of {len(values)}")
        return Sizes(tuple(values[each] for each in known), scalar=scalar)
    if isinstance(index, Constant) and index.value.dim() > 1:
        raise GraphError("indices in several axes")
    axis = call.flag("axis", 0)
    return b.select(call.tensor(0), axis, known[0]) if scalar else b.take(call.tensor(0), axis, known)


def _expand(b: GraphBuilder, call: Call) -> Item:
    """Expands; axes of size 1 on either side take the other side's size."""
    x, wanted = call.tensor(0), call.sizes(1)
    own = shape_of(x)
    rank = max(len(own), len(wanted))
    own, wanted = [*[1] * (rank - len(own)), *own], [*[1] * (rank - len(wanted)), *wanted]
    return b.expand(x, [mine if size == 1 else size for mine, size in zip(own, wanted, strict=True)])


def _equal(_: GraphBuilder, call: Call) -> Item:
    """Compares sizes alone, as exporters do with -1."""
    if not any(isinstance(each, Sizes) for each in call.inputs):
        raise GraphError("a comparison: a decision that depends on the data")
    first, second = call.sizes(0), call.sizes(1)
    if len(second) == 1:
        second = second * len(first)
    if len(first) != len(second):
        raise GraphError("sizes of different numbers")
    pairs = list(zip(first, second, strict=True))
    if any(
        isinstance(x, Batch) != isinstance(y, Batch)
        and max(x if isinstance(x, int) else 0, y if isinstance(y, int) else 0) > 0
        for x, y in pairs
    ):
        raise GraphError("a decision by the size of the batch")
    return Sizes(tuple(int(x == y) for x, y in pairs))


def _where(_: GraphBuilder, call: Call) -> Item:
    if not isinstance(call.inputs[0], Sizes):
        raise GraphError("a choice between values: a decision that depends on the data")
    chosen, first, second = (call.sizes(place) for place in range(3))
    if not len(chosen) == len(first) == len(second):
        raise GraphError("sizes of different numbers")
    return Sizes(tuple(x if which else y for which, x, y in zip(chosen, first, second, strict=True)))


SHAPE_OPERATORS: Mapping[str, Operator] = {
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": lambda b, call: composites.repeat(b, call.tensor(0), call.sizes(1)),
    "Equal": _equal,
    "Where": _where,
}
