"""ONNX models for tests: by torch's exporter, and node by node."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.platform.priors.graph_modules import D
from torch import nn

FIRST_IR = 8  # what runtimes of several years read


def exported(module: nn.Module, opset: int, outputs: list[str] | None = None) -> bytes:
    """A module by ``torch.onnx.export``, with a batch of any size."""
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(3, D),),
            buffer,
            opset_version=opset,
            input_names=["obs"],
            output_names=outputs,
            dynamic_axes={"obs": {0: "batch"}},
            dynamo=False,
        )
    return buffer.getvalue()


def run(model: bytes, obs: NDArray[np.float32]) -> list[NDArray[Any]]:
    """What onnxruntime makes of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: obs}))


def constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model_of(
    nodes: list[Any],
    initializers: list[Any],
    outputs: list[str],
    opset: int = 17,
    size: Any = D,
    metadata: dict[str, str] | None = None,
    **details: Any,
) -> onnx.ModelProto:
    """A model of these nodes with the input ``obs`` ``[B, size]``."""
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=FIRST_IR, **details)
    helper.set_model_props(model, metadata or {})
    return model


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; names are separated by spaces, ``-`` leaves an optional input out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)
