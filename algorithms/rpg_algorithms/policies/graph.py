"""A policy as a graph of whitelisted operations, for networks that are not perceptrons.

A graph is data and a part of the network's specification. ``Graph.check`` checks the whole graph before anything is
computed with it: every operation is one of ``graph_ops.OPS``, every input is defined before it is used, every shape can
be inferred, and sizes, nodes and arithmetic are bounded. The values of its tensors are kept elsewhere: in the state of
``GraphNetwork``, and so in a bundle's safetensors.

    {"tensors": [{"name": "t0_weight", "shape": [2, 4], "trainable": true}],
     "nodes": [{"op": "linear", "inputs": ["obs", "t0_weight"], "output": "v0", "attributes": {}},
               {"op": "tanh", "inputs": ["v0"], "output": "v1", "attributes": {}}],
     "outputs": ["v1"]}

The input ``obs`` is ``[B, D]``, float32. An operation may take a number as input. The outputs are (mean, log_std), both
``[B, A]``; or the mean alone, with a free log standard deviation beside it; or logits ``[B, K]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rpg_algorithms.addons import Array
from rpg_algorithms.policies.graph_ops import OPS, GraphError, Shape, elements, is_number

INPUT = "obs"
MAX_NODES, MAX_TENSORS, MAX_RANK = 2_000, 1_000, 6
MAX_TENSOR_ELEMENTS = 2**27  # of all tensors together: as many as a bundle's weights can hold
MAX_ROW_ELEMENTS = 2**16  # of one value, per observation
MAX_WORK = 2**28  # arithmetic operations per observation
# No attribute of a torch module has such a name, so a module can hold the tensors under their own names.
_TENSOR_NAME, _VALUE_NAME = re.compile(r"t\d{1,4}_\w{1,60}", re.ASCII), re.compile(r"v\d{1,5}", re.ASCII)

AttributeValue = bool | int | float | None | tuple[int, ...]


@dataclass(frozen=True)
class GraphTensor:
    """A tensor of a graph without its values. A ``trainable`` tensor is a parameter, any other a buffer."""

    name: str
    shape: tuple[int, ...]
    trainable: bool


@dataclass(frozen=True)
class Node:
    """One operation: a key of ``OPS``, names or numbers as inputs, the name of the result, sorted attributes."""

    op: str
    inputs: tuple[str | float, ...]
    output: str
    attributes: tuple[tuple[str, AttributeValue], ...] = ()


@dataclass(frozen=True)
class Graph:
    """Operations in the order in which they run.

    Attributes:
        tensors: weights and constants.
        nodes: operations; each uses the input, tensors and results of earlier ones.
        outputs: names of the results that the policy returns.
    """

    tensors: tuple[GraphTensor, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def check(self, observation_size: int) -> dict[str, Shape]:
        """Checks the graph and returns the shape of each value, with None for the batch axis.

        Raises:
            GraphError: the message names the node, the operation and the fault.
        """
        for what, limit in (("tensors", MAX_TENSORS), ("nodes", MAX_NODES), ("outputs", 2)):
            if len(getattr(self, what)) > limit:
                raise GraphError(f"graph: {len(getattr(self, what))} {what}, more than {limit}")
        shapes: dict[str, Shape] = {INPUT: (None, observation_size)}
        self._check_tensors(shapes)
        work = 0
        for position, node in enumerate(self.nodes):
            where = f"graph node {position} ({node.op})"
            try:
                shape, cost = _infer(node, shapes)
            except GraphError as error:
                raise GraphError(f"{where}: {error}") from None
            work += cost
            if elements(shape) > MAX_ROW_ELEMENTS or len(shape) > MAX_RANK or work > MAX_WORK:
                raise GraphError(f"{where}: too large: a result of {list(shape)}, {work:.3g} operations so far")
            shapes[node.output] = shape
        for name in self.outputs:
            if name not in shapes or shapes[name][:1] != (None,):
                raise GraphError(f"graph output {name!r}: expected the name of a result")
        return shapes

    def _check_tensors(self, shapes: dict[str, Shape]) -> None:
        total = 0
        for tensor in self.tensors:
            if not _TENSOR_NAME.fullmatch(tensor.name) or tensor.name in shapes:
                raise GraphError(f"graph tensor {tensor.name[:80]!r}: expected names like t0_weight, each once")
            if len(tensor.shape) > MAX_RANK or any(not 1 <= size <= MAX_TENSOR_ELEMENTS for size in tensor.shape):
                raise GraphError(f"graph tensor {tensor.name}: shape {list(tensor.shape)}")
            total += math.prod(tensor.shape)
            shapes[tensor.name] = tensor.shape
        if total > MAX_TENSOR_ELEMENTS:
            raise GraphError(f"graph: tensors of {total} elements, more than {MAX_TENSOR_ELEMENTS}")

    def to_json(self) -> dict[str, Any]:
        """Returns the graph as nested lists and dictionaries."""
        return {
            "tensors": [{"name": t.name, "shape": list(t.shape), "trainable": t.trainable} for t in self.tensors],
            "nodes": [
                {
                    "op": node.op,
                    "inputs": list(node.inputs),
                    "output": node.output,
                    "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in node.attributes},
                }
                for node in self.nodes
            ],
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, data: Any) -> Graph:
        """Reads a graph from anything that JSON can hold.

        Raises:
            GraphError: the data do not have the form of a graph. (``check`` says whether the graph makes sense.)
        """
        tensors, nodes, outputs = (_list(each) for each in _fields(data, ("tensors", "nodes", "outputs"), "graph"))
        for what, items, limit in (("tensors", tensors, MAX_TENSORS), ("nodes", nodes, MAX_NODES)):
            if len(items) > limit:
                raise GraphError(f"graph: {len(items)} {what}, more than {limit}")
        return cls(
            tuple(_tensor(each) for each in tensors),
            tuple(_node(each) for each in nodes),
            tuple(_typed(each, str, "graph output") for each in outputs),
        )


def _infer(node: Node, shapes: Mapping[str, Shape]) -> tuple[Shape, int]:
    """Returns the shape of a node's result, and its arithmetic operations per row. Raises GraphError."""
    if node.op not in OPS:
        raise GraphError(f"unknown operation; known are {', '.join(sorted(OPS))}")
    op, attributes = OPS[node.op], dict(node.attributes)
    if not op.inputs[0] <= len(node.inputs) <= op.inputs[1]:
        raise GraphError(f"{len(node.inputs)} inputs, expected {op.inputs[0]} to {op.inputs[1]}")
    if set(attributes) != set(op.attributes) or len(attributes) != len(node.attributes):
        raise GraphError(f"attributes {sorted(attributes)}, expected {sorted(op.attributes)}")
    for name, allowed in op.attributes.items():
        if not allowed(attributes[name]):
            raise GraphError(f"{name}={attributes[name]!r} is not allowed")
    inputs: list[Shape] = []
    for each in node.inputs:
        if isinstance(each, str):
            if each not in shapes:
                raise GraphError(f"input {each[:80]!r} is not defined before it is used")
            inputs.append(shapes[each])
        elif node.op in BINARY and is_number(each):
            inputs.append(())
        else:
            raise GraphError(f"input {each!r}: expected the name of a value")
    if not _VALUE_NAME.fullmatch(node.output) or node.output in shapes:
        raise GraphError(f"output {node.output[:80]!r}: expected names like v0, each once")
    shape = op.shape(inputs, attributes)
    if shape[:1] != (None,):
        raise GraphError("its result has no batch axis: expected a tensor of the graph in its place")
    return shape, op.work(inputs, shape)


BINARY = frozenset(("add", "sub", "mul", "div", "minimum", "maximum"))  # may take a number as an input


# --- reading JSON


def _fields(data: Any, names: Sequence[str], what: str) -> list[Any]:
    if not isinstance(data, Mapping) or set(data) != set(names):
        keys = sorted(map(str, data))[:10] if isinstance(data, Mapping) else type(data).__name__
        raise GraphError(f"{what}: expected the keys {sorted(names)}, got {keys}")
    return [data[name] for name in names]


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise GraphError(f"graph: expected a list, got {type(value).__name__}")
    return value


def _typed(value: Any, kind: type[Any], what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GraphError(f"{what}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _tensor(data: Any) -> GraphTensor:
    name, shape, trainable = _fields(data, ("name", "shape", "trainable"), "graph tensor")
    sizes = tuple(_typed(size, int, "graph tensor's shape") for size in _list(shape))
    return GraphTensor(_typed(name, str, "graph tensor"), sizes, _typed(trainable, bool, "graph tensor"))


def _node(data: Any) -> Node:
    op, inputs, output, attributes = _fields(data, ("op", "inputs", "output", "attributes"), "graph node")
    for each in _list(inputs):
        if not isinstance(each, str) and not is_number(each):
            raise GraphError(f"graph node's input: expected a name or a number, got {type(each).__name__}")
    items: list[tuple[str, AttributeValue]] = []
    for name, value in _typed(attributes, dict, "graph node's attributes").items():
        if isinstance(value, list | tuple):
            value = tuple(_typed(each, int, f"graph node's {name!r}") for each in value)
        elif not (value is None or isinstance(value, bool | int | float)):
            raise GraphError(f"graph node's {name!r}: expected a number or a list, got {type(value).__name__}")
        items.append((_typed(name, str, "graph node's attribute"), value))
    names = _typed(op, str, "graph node"), _typed(output, str, "graph node")
    return Node(names[0], tuple(inputs), names[1], tuple(sorted(items)))


# --- evaluation


class GraphNetwork(nn.Module):
    """Runs a graph in torch: ``obs [B, D]`` → its outputs side by side ``[B, P']``. Its state holds the tensors."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.definition = graph
        for tensor in graph.tensors:
            empty = torch.zeros(tensor.shape)
            if tensor.trainable:
                self.register_parameter(tensor.name, nn.Parameter(empty))
            else:
                self.register_buffer(tensor.name, empty)

    def forward(self, obs: Tensor) -> Tensor:
        values: dict[str, Any] = {INPUT: obs, **self._parameters, **self._buffers}
        for node in self.definition.nodes:
            inputs = [values[each] if isinstance(each, str) else each for each in node.inputs]
            values[node.output] = OPS[node.op].torch(*inputs, **dict(node.attributes))
        outputs = [values[name] for name in self.definition.outputs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class NumpyGraph:
    """Runs a graph in numpy, with a snapshot of its tensors: ``obs [N, D]`` → outputs side by side ``[N, P']``."""

    def __init__(self, network: GraphNetwork) -> None:
        graph = network.definition
        self._start: dict[str | float, Any] = {
            name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()
        }
        self._start |= {x: np.float32(x) for node in graph.nodes for x in node.inputs if not isinstance(x, str)}
        self._steps = [(OPS[node.op].numpy, node.inputs, node.output, dict(node.attributes)) for node in graph.nodes]
        self._outputs = graph.outputs

    def __call__(self, obs: Array) -> Array:
        values = {INPUT: obs, **self._start}
        with np.errstate(all="ignore"):  # infinities are found where they matter, as torch's are
            for function, inputs, output, attributes in self._steps:
                values[output] = function(*[values[each] for each in inputs], **attributes)
        outputs: list[Array] = [values[name] for name in self._outputs]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
