"""Reads ONNX models as graphs; executes nothing of the file and needs no runtime.

The package ``onnx`` parses the file, which is data; operators are translated one by one by ``ops``. Refused are
external data (a path in the file), operators of other domains, functions and subgraphs. The model takes observations
``[B, D]``; further inputs are left out if no action depends on them. ``network.outputs`` tells which outputs it needs;
nodes that only others need are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.files.archive import read_file
from rpg_platform.priors.formats.exported_card import read_card, with_card, with_origin
from rpg_platform.priors.formats.onnx.call import DTYPES, FLOATS, Call, Item
from rpg_platform.priors.formats.onnx.ops import OPERATORS
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, Symbol, Value
from rpg_platform.priors.network.graph_policy import policy_of_outputs
from rpg_platform.priors.network.outputs import MEMORY, GraphFile, Output, role_of
from rpg_platform.tasks.observed import difference

MAX_BYTES = 512_000_000
MAX_NODES, MAX_INITIALIZERS = 20_000, 20_000
OPSETS = range(7, 26)
RECURRENT = ("LSTM", "GRU", "RNN", "Scan", "Loop")
_EXTERNAL = 1  # TensorProto.EXTERNAL
_FIELDS: Mapping[int, str] = {1: "float_data", 11: "double_data", 7: "int64_data", 6: "int32_data", 9: "int32_data"}


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads the policy of an ONNX model.

    Raises:
        PriorImportError: not such a file, or it does what a graph cannot hold: names the operator and the node.
        ValueError: the package ``onnx`` is missing.
    """
    model = _parse(read_file(path, MAX_BYTES), str(path))
    card = read_card(next((each.value for each in model.metadata_props if each.key == "card"), None))
    source = GraphFile(str(path), "an ONNX model", with_card(options, card))
    builder = GraphBuilder(source.observation_size)
    translation = _Translation(model, builder, str(path))
    network, meaning = policy_of_outputs(translation.outputs, builder, source)
    facts = {
        "producer": f"{model.producer_name} {model.producer_version}".strip()[:200],
        "opset": _opset(model, str(path)),
    }
    return with_origin(
        Imported(network, "onnx", None, None, facts=facts, notes=(*translation.notes, *meaning.notes)), card
    )


def _parse(data: bytes, where: str) -> Any:
    try:
        from onnx import ModelProto
    except ImportError as error:
        raise ValueError("ONNX models need the package onnx: pip install 'residual-policy-gradient[onnx]'") from error
    from google.protobuf.message import DecodeError

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        raise PriorImportError(f"{where}: not an ONNX model, or a truncated one: {str(error)[:200]}") from error
    if not model.HasField("graph") or not model.graph.output:
        raise PriorImportError(f"{where}: not an ONNX model: it has no graph with outputs")
    for what, items, limit in (
        ("nodes", model.graph.node, MAX_NODES),
        ("initializers", model.graph.initializer, MAX_INITIALIZERS),
    ):
        if len(items) > limit:
            raise PriorImportError(f"{where}: {len(items)} {what}, more than the {limit} that are read")
    for each in (*model.graph.input, *model.graph.output):
        if not isinstance(each.name, str):  # the package gives bytes for what is no UTF-8
            raise PriorImportError(f"{where}: an input or output is called {each.name[:50]!r}, which is no text")
    if model.graph.sparse_initializer:
        raise PriorImportError(f"{where}: sparse weights, expected dense ones")
    return model


def _opset(model: Any, where: str) -> int:
    versions = [int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise PriorImportError(
            f"{where}: opset {versions or 'unknown'}; expected one from {OPSETS.start} to {OPSETS.stop - 1}"
        )
    return versions[0]


def tensor_of(proto: Any, where: str, name: str) -> Constant:
    """Reads a dense tensor of numbers that stands in the file itself.

    Raises:
        PriorImportError: it stands elsewhere, is of another type, or its size is not that of its numbers.
    """
    shown = f"{where}: tensor {name[:100]!r}"
    if proto.data_location == _EXTERNAL or len(proto.external_data):
        raise PriorImportError(f"{shown} keeps its numbers in another file; expected a model in one file")
    if proto.HasField("segment") or proto.data_type not in DTYPES:
        raise PriorImportError(f"{shown} has type {proto.data_type}; expected {sorted(DTYPES)}")
    dtype, shape = DTYPES[proto.data_type], tuple(int(each) for each in proto.dims)
    if len(shape) > 8 or any(size < 0 for size in shape):
        raise PriorImportError(f"{shown} has shape {list(shape)[:10]}")
    count = math.prod(shape)
    if proto.HasField("raw_data"):
        if len(proto.raw_data) != count * dtype.itemsize:
            raise PriorImportError(f"{shown} of shape {list(shape)} has {len(proto.raw_data)} bytes")
        array = np.frombuffer(proto.raw_data, np.uint8 if dtype.kind == "b" else dtype)
        array = array != 0 if dtype.kind == "b" else array
    else:
        numbers = getattr(proto, _FIELDS.get(proto.data_type, ""), ())
        if len(numbers) != count:
            raise PriorImportError(f"{shown} of shape {list(shape)} has {len(numbers)} numbers")
        array = np.array(numbers, dtype)
    return Constant(torch.from_numpy(array.reshape(shape).copy()), name)


class _Translation:
    """Walks through those nodes of a model that an output needs, once it is asked for.

    Attributes:
        outputs: the model's.
        notes: lines that the user should read.
    """

    def __init__(self, model: Any, builder: GraphBuilder, where: str) -> None:
        self.builder, self.where = builder, where
        self.graph, self.opset = model.graph, _opset(model, where)
        self.outputs = [Output(each.name, partial(self._output, each.name)) for each in self.graph.output]
        self.notes: tuple[str, ...] = ()
        self._initializers = {each.name: each for each in self.graph.initializer}
        self._done: set[int] = set()
        observation, self._others = self._inputs()
        self._values: dict[str, Item] = {observation: builder.obs}

    def _output(self, name: str) -> Value:
        """Translates an output into a symbol or constant."""
        wanted, _ = self._needed([name])
        recurrent = [node for node in wanted if self.graph.node[node].op_type in RECURRENT]
        if recurrent:
            raise PriorImportError(f"{self.where}: {self._shown(recurrent[0])}: a recurrent layer: {MEMORY}")
        for position in wanted:
            if position not in self._done:
                self._node(position)
                self._done.add(position)
        result = self._value(name, "the model")
        if not isinstance(result, Symbol | Constant):
            raise PriorImportError(f"{self.where}: output {name[:100]!r} is a shape, not an action")
        return result

    def _needed(self, names: Sequence[str]) -> tuple[list[int], set[str]]:
        """Returns the nodes that these values need, in order, and the names of all that they take."""
        needed = set(names)
        wanted: list[int] = []
        for position in range(len(self.graph.node) - 1, -1, -1):
            node = self.graph.node[position]
            if needed.intersection(node.output):
                wanted.append(position)
                needed.update(node.input)
        return wanted[::-1], needed

    def _inputs(self) -> tuple[str, list[str]]:
        """Returns the input that is the observation, and the others, on which no action depends."""
        inputs = {each.name: each for each in self.graph.input if each.name not in self._initializers}
        used = list(inputs)
        policy = [str(each.name) for each in self.outputs if each.role not in ("value", "memory", "other", "log_prob")]
        named = [str(each.name) for each in self.outputs if each.role in ("mean", "action", "logits", "probabilities")]
        if len(inputs) > 1 and policy:
            wanted, needed = self._needed((named or policy)[:1])
            used = [name for name in inputs if name in needed]
            roles = {role_of(name) for name in used}, {each.role for each in self.outputs}
            recurrent = any(self.graph.node[position].op_type in RECURRENT for position in wanted)
            if len(used) > 1:
                reason = f"; {MEMORY}" if recurrent or all("memory" in each for each in roles) else ""
                raise PriorImportError(
                    f"{self.where}: its actions depend on the inputs {[name[:50] for name in used][:10]}; expected "
                    f"one, the observation [B, D]{reason}"
                )
        if not used:
            raise PriorImportError(f"{self.where}: what it returns does not depend on the observation")
        observation = used[0]
        others = [name for name in inputs if name != observation]
        if others:
            self.notes = (f"no action depends on its input {', '.join(repr(name[:50]) for name in others)}: left out",)
        self._check_observation(inputs[observation].type.tensor_type)
        return observation, others

    def _check_observation(self, kind: Any) -> None:
        if kind.elem_type not in (0, *FLOATS):
            raise PriorImportError(f"{self.where}: takes numbers of type {kind.elem_type}, expected float or double")
        if kind.HasField("shape"):
            dims = [int(each.dim_value) if each.HasField("dim_value") else 0 for each in kind.shape.dim]
            size = self.builder.obs.shape[1]
            if len(dims) != 2 or dims[1] not in (0, size):
                shown = [each or "B" for each in dims]
                sizes = f": {difference(dims[1], size)}" if len(dims) == 2 and size is not None else ""
                raise PriorImportError(
                    f"{self.where}: takes {shown}; the environment's observations are [B, {size}]{sizes}"
                )

    def _value(self, name: str, user: str) -> Item:
        if name in self._values:
            return self._values[name]
        if name in self._others:
            raise PriorImportError(
                f"{self.where}: {user} depends on the input {name[:50]!r}, not the observation alone"
            )
        if name not in self._initializers:
            raise PriorImportError(f"{self.where}: {user} uses {name[:100]!r}, which is not defined before it")
        self._values[name] = tensor_of(self._initializers[name], self.where, name)
        return self._values[name]

    def _shown(self, position: int) -> str:
        node = self.graph.node[position]
        return f"node {position} ({node.op_type[:50]}{f' {node.name[:80]!r}' if node.name else ''})"

    def _node(self, position: int) -> None:
        node, shown = self.graph.node[position], self._shown(position)
        operator = OPERATORS.get(node.op_type)
        if node.domain not in ("", "ai.onnx"):
            raise PriorImportError(
                f"{self.where}: {shown}: an operator of {node.domain[:100]!r}, which is not ONNX's own"
            )
        if operator is None:
            raise PriorImportError(
                f"{self.where}: {shown}: {node.op_type[:50]} is not an operator that a graph can hold"
            )
        inputs = [self._value(name, shown) if name else None for name in node.input]
        try:
            attributes = {each.name: self._attribute(each) for each in node.attribute}
            outputs = [name for name in node.output if name]
            result = operator(self.builder, Call(inputs, attributes, self.opset, len(outputs)))
        except GraphError as error:
            raise PriorImportError(f"{self.where}: {shown}: {error}") from error
        except (IndexError, TypeError, OverflowError) as error:
            raise PriorImportError(f"{self.where}: {shown}: inputs or attributes that it is not read with") from error
        results: Sequence[Item] = result if isinstance(result, list) else [result]
        for name, value in zip(outputs, results, strict=False):
            if name in self._values or name in self._initializers:
                raise PriorImportError(f"{self.where}: {shown}: defines {name[:100]!r} a second time")
            self._values[name] = value

    def _attribute(self, attribute: Any) -> Any:
        match attribute.type:  # the numbers are AttributeProto's
            case _ if attribute.ref_attr_name:
                raise GraphError(f"{attribute.name[:50]} refers to a function's argument")
            case 1:
                return float(attribute.f)
            case 2:
                return int(attribute.i)
            case 3:
                return bytes(attribute.s)
            case 4:
                return tensor_of(attribute.t, self.where, attribute.name)
            case 6:
                return [float(each) for each in attribute.floats]
            case 7:
                return [int(each) for each in attribute.ints]
        raise GraphError(f"{attribute.name[:50]} is of a kind (type {attribute.type}) that a graph cannot hold")
