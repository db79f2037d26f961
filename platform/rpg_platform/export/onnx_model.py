"""Writes a policy as ONNX, node by node from the network's specification and weights.

It uses ``onnx.helper``, not ``torch.onnx.export``, which needs onnxscript, chooses operators by torch's version and
cannot be told in which precision to compute which part. The file holds the weights in float32; the graph casts them,
which runtimes do once. Runtimes since 2022 read its opset, 17. ``metadata_props`` holds the bundle's card as JSON, its
content hash, the mode and the precision.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import rpg_platform
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import NetworkSpec
from rpg_platform.export.onnx_graph import TRANSLATIONS, graph_outputs
from rpg_platform.export.onnx_nodes import Nodes
from rpg_platform.export.policy import INPUT, Mode, Outputs, Precision, check, output_names

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 17, 8
BATCH = "batch"


def build(bundle: PriorBundle, mode: Mode = "distribution", precision: Precision = "float64") -> onnx.ModelProto:
    """Builds and checks the ONNX model of a policy.

    Args:
        bundle: the policy.
        mode: ``deterministic`` leaves the distribution's parameters out.
        precision: see ``policy``.

    Raises:
        ValueError: the package ``onnx`` is missing.
    """
    onnx = _onnx()
    from onnx import TensorProto, helper

    spec = bundle.network_spec
    nodes = Nodes(bundle.weights, double=precision == "float64")
    _outputs(nodes, spec, _network(nodes, spec, _normalized(nodes, spec)), mode)
    names = output_names(spec, mode)
    discrete = spec.distribution == "categorical"
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH])
        if discrete and name == "action"
        else helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, spec.action_size])
        for name in names
    ]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, spec.observation_size])]
    model = helper.make_model(
        helper.make_graph(nodes.nodes, "policy", inputs, outputs, nodes.constants, doc_string=bundle.card.name),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="residual-policy-gradient",
        producer_version=rpg_platform.__version__,
    )
    card = json.dumps(bundle.card.model_dump(), sort_keys=True)
    helper.set_model_props(
        model, {"card": card, "content_hash": bundle.card.content_hash, "mode": mode, "precision": precision}
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def save(bundle: PriorBundle, file: Path, mode: Mode = "distribution", precision: Precision = "float64") -> float:
    """Writes ``file`` and returns its deviation from the bundle (see ``check_file``).

    Raises:
        ValueError: the package ``onnx`` is missing.
        RuntimeError: the file does not compute what the bundle does.
    """
    model = build(bundle, mode, precision)
    file.write_bytes(model.SerializeToString())
    return check_file(bundle, file, mode, precision)


def check_file(bundle: PriorBundle, file: Path, mode: Mode, precision: Precision) -> float:
    """Returns the deviation of an ONNX file from the bundle (see ``policy.check``), by ONNX's own evaluator."""
    return check(partial(_run, file), bundle, mode, precision)


def _run(file: Path, obs: NDArray[np.float32]) -> Outputs:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(file))
    return dict(zip(evaluator.output_names, evaluator.run(None, {INPUT: obs}), strict=True))


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
    except ImportError as error:
        raise ValueError(
            "format 'onnx' (and 'mlflow', which holds it) needs the package onnx: "
            "pip install 'residual-policy-gradient[onnx]'"
        ) from error
    return onnx


def _normalized(nodes: Nodes, spec: NetworkSpec) -> str:
    """Adds the normalised observation; in double precision it equals ``PolicyNetwork.normalize`` to the bit.

    In single precision it subtracts the mean in two parts: an observation that hardly varies needs its low digits.
    """
    if not spec.normalize_observations:
        return INPUT
    mean, variance = (nodes.weights[f"normalizer.{name}"] for name in ("mean", "var"))
    high = mean if nodes.double else mean.astype(np.float32)
    x = nodes.node("Sub", nodes.cast(INPUT), nodes.constant(high))
    if not nodes.double:
        x = nodes.node("Sub", x, nodes.constant(mean - high))
    x = nodes.node("Div", x, nodes.constant(np.sqrt(variance + spec.observation_epsilon)))
    if (clip := spec.observation_clip) is not None:
        x = nodes.between(x, -clip, clip)
    if not nodes.double:
        return x
    from onnx import TensorProto

    return nodes.node("Cast", x, to=TensorProto.FLOAT)


def _network(nodes: Nodes, spec: NetworkSpec, x: str) -> str:
    """Adds the network, a graph or a perceptron, and returns its outputs at the normalised observation ``x``."""
    x = nodes.cast(x)
    if spec.graph is not None:
        return graph_outputs(nodes, spec.graph, x, spec.observation_size, lambda name: nodes.weight(f"graph.{name}"))
    layers = sorted({int(key.split(".")[1]) for key in nodes.weights if key.startswith("mlp.")})
    for i in layers:
        x = nodes.node("Gemm", x, nodes.weight(f"mlp.{i}.weight"), nodes.weight(f"mlp.{i}.bias"), transB=1)
        if i != layers[-1]:
            x = TRANSLATIONS[spec.activation](nodes, [x], [(None, 1)], {})
    return x


def _outputs(nodes: Nodes, spec: NetworkSpec, out: str, mode: Mode) -> None:
    """Adds the named outputs, computed from the network's own outputs."""
    if spec.distribution == "categorical":
        nodes.output("logits", out)
        best = nodes.node("ArgMax", "logits", axis=-1, keepdims=0)
        nodes.node("Add", best, nodes.constant(spec.action_start, np.int64), name="action")
        return
    mean = out
    if spec.state_dependent_std:
        starts = [nodes.indices(start) for start in (0, spec.action_size, 2 * spec.action_size)]
        mean, log_std = (nodes.node("Slice", out, *pair, nodes.indices(-1)) for pair in itertools.pairwise(starts))
        if spec.graph is None:  # a graph holds its own clamp
            log_std = nodes.between(log_std, *spec.log_std_bounds)
    elif mode == "distribution":
        log_std = nodes.node("Expand", nodes.weight("log_std"), nodes.node("Shape", mean))
    action = mean
    if spec.action_low is not None and spec.action_high is not None:
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        if spec.distribution == "squashed_gaussian":
            unit = nodes.plus(nodes.node("Tanh", mean), 1.0)
            action = nodes.node("Add", nodes.node("Mul", unit, nodes.constant(0.5 * (high - low))), nodes.constant(low))
        else:
            action = nodes.between(mean, low, high)
    nodes.output("action", action)
    if mode == "distribution":
        nodes.output("mean", mean)
        nodes.output("log_std", log_std)
