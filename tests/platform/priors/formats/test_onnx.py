"""ONNX models: the imported policy is onnxruntime's, exporter by exporter and operator by operator."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tests.platform.priors.graph_modules import (
    ACTIONS,
    CASES,
    CONTINUOUS,
    OBSERVATIONS,
    A,
    D,
    assert_same_policy,
    states,
)
from tests.platform.priors.onnx_files import constant, exported, model_of, node, run

from rpg_algorithms import NetworkSpec, PriorCard
from rpg_platform.priors.formats.onnx import model as onnx_models
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError

NAMES = ["mean", "log_std"]


def imported(model: Any, tmp_path: Path, options: ImportOptions = CONTINUOUS) -> Imported:
    (tmp_path / "policy.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return onnx_models.read(tmp_path / "policy.onnx", options)


@pytest.mark.parametrize("name", [name for name in CASES if name != "many"])
@pytest.mark.parametrize("opset", [11, 18])
def test_the_policy_is_the_runtimes_own(name: str, opset: int, tmp_path: Path) -> None:
    case = CASES[name]
    outputs = ["logits"] if case.options is not CONTINUOUS else ["both"] if name == "one tensor" else NAMES
    model = exported(case.module(), opset, [*outputs, "unused"] if name == "sliced" else outputs)
    result = imported(model, tmp_path, case.options)
    obs = states()
    found = [torch.from_numpy(each) for each in run(model, obs.numpy())]
    if len(found) > 1:
        found = [torch.cat((found[0], found[1].expand_as(found[0])), -1)]
    assert_same_policy(result.network, found[0], obs)
    spec = result.network.spec
    assert (spec.graph is None) == (case.plain is not None)
    for field, value in (case.plain or {}).items():
        assert getattr(spec, field) == value, field
    assert result.facts["opset"] == opset
    assert "pytorch" in result.facts["producer"]


# --- operator by operator: nodes from "obs" to "out", which may have any shape [B, ...]

W, V, S = np.random.default_rng(0).standard_normal((D, 4)), np.linspace(0.5, 2.0, 4), np.array([1.3])
INITIALIZERS = [constant("w", W), constant("wt", W.T), constant("v", V), constant("s", S), constant("two", 2.0)]
HIDDEN = node("MatMul", "obs w", "h")
OPERATORS: dict[str, tuple[int, list[Any], list[Any]]] = {
    **{
        op: (13, [HIDDEN, node(op, "h", "out")], [])
        for op in ("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Tanh", "Sigmoid")
    },
    **{
        op: (13, [HIDDEN, node(op, "h", "out")], [])
        for op in ("Relu", "Softplus", "Softsign", "Identity", "Selu", "Celu")
    },
    **{op: (13, [HIDDEN, node(op, "h v", "out")], []) for op in ("Add", "Sub", "Mul", "Div", "PRelu")},
    **{op: (13, [HIDDEN, node("Exp", "h", "e"), node(op, "e", "out")], []) for op in ("Log", "Sqrt", "Reciprocal")},
    **{op: (13, [HIDDEN, node(op, "h v s", "out")], []) for op in ("Min", "Max", "Sum", "Mean")},
    "number minus": (13, [HIDDEN, node("Sub", "s h", "out")], []),
    "Pow": (13, [HIDDEN, node("Pow", "h two", "out")], []),
    "Gemm": (13, [node("Gemm", "obs w v", "out", alpha=0.5, beta=2.0)], []),
    "Gemm transposed": (7, [node("Gemm", "obs wt v", "out", transB=1)], []),
    "Gemm without bias": (11, [node("Gemm", "obs w", "out")], []),
    "Elu": (7, [HIDDEN, node("Elu", "h", "out", alpha=0.3)], []),
    "LeakyRelu": (7, [HIDDEN, node("LeakyRelu", "h", "out", alpha=0.3)], []),
    "HardSigmoid": (7, [HIDDEN, node("HardSigmoid", "h", "out", alpha=0.3, beta=0.4)], []),
    "HardSwish": (14, [HIDDEN, node("HardSwish", "h", "out")], []),
    "Mish": (18, [HIDDEN, node("Mish", "h", "out")], []),
    "Gelu": (20, [HIDDEN, node("Gelu", "h", "out", approximate="tanh")], []),
    "Clip by attributes": (7, [HIDDEN, node("Clip", "h", "out", min=-0.5, max=0.25)], []),
    "Clip by inputs": (13, [HIDDEN, node("Clip", "h - s", "out")], []),
    "Softmax of old": (11, [HIDDEN, node("Softmax", "h", "out")], []),
    "Softmax": (13, [HIDDEN, node("Softmax", "h", "out")], []),
    "LogSoftmax": (13, [HIDDEN, node("LogSoftmax", "h", "out", axis=1)], []),
    "LayerNormalization": (17, [HIDDEN, node("LayerNormalization", "h v b", "out", epsilon=1e-3)], [constant("b", -V)]),
    "BatchNormalization": (
        15,
        [HIDDEN, node("BatchNormalization", "h v b m v", "out")],
        [constant("b", -V), constant("m", V + 1)],
    ),
    "ReduceSum of old": (11, [HIDDEN, node("ReduceSum", "h", "out", axes=[1], keepdims=0)], []),
    "ReduceSum": (13, [HIDDEN, node("ReduceSum", "h axes", "out")], [constant("axes", [-1], np.int64)]),
    "ReduceMean": (13, [HIDDEN, node("ReduceMean", "h", "out", axes=[-1])], []),
    "ReduceMean of new": (18, [HIDDEN, node("ReduceMean", "h axes", "out")], [constant("axes", [1], np.int64)]),
    "ReduceMax": (13, [HIDDEN, node("ReduceMax", "h", "out", axes=[1])], []),
    "ReduceMin": (13, [HIDDEN, node("ReduceMin", "h", "out", axes=[1])], []),
    "ReduceL1": (13, [HIDDEN, node("ReduceL1", "h", "out", axes=[1], keepdims=0)], []),
    "ReduceSumSquare": (13, [HIDDEN, node("ReduceSumSquare", "h", "out", axes=[1])], []),
    "LpNormalization": (13, [HIDDEN, node("LpNormalization", "h", "out", p=1)], []),
    "ReduceL2": (13, [HIDDEN, node("ReduceL2", "h", "out", axes=[1])], []),
    "Concat": (13, [HIDDEN, node("Concat", "h obs h", "out", axis=-1)], []),
    "Split by attribute": (11, [HIDDEN, node("Split", "h", "x out", axis=1, split=[1, 3])], []),
    "Split by input": (13, [HIDDEN, node("Split", "h parts", "x out", axis=1)], [constant("parts", [3, 1], np.int64)]),
    "Split in equal parts": (18, [HIDDEN, node("Split", "h", "x out", axis=1, num_outputs=2)], []),
    "Slice by attributes": (9, [HIDDEN, node("Slice", "h", "out", axes=[1], starts=[1], ends=[-1])], []),
    "Slice by inputs": (
        13,
        [HIDDEN, node("Slice", "h from to axis step", "out")],
        [constant(name, [x], np.int64) for name, x in (("from", 0), ("to", 99), ("axis", 1), ("step", 2))],
    ),
    "Reshape": (13, [HIDDEN, node("Reshape", "h shape", "out")], [constant("shape", [0, 2, -1], np.int64)]),
    "Flatten": (
        13,
        [HIDDEN, node("Reshape", "h shape", "r"), node("Flatten", "r", "out")],
        [constant("shape", [-1, 2, 2], np.int64)],
    ),
    "Transpose": (
        13,
        [node("Reshape", "obs shape", "r"), node("Transpose", "r", "out", perm=[0, 2, 1])],
        [constant("shape", [-1, 2, 3], np.int64)],
    ),
    "Unsqueeze and Squeeze of old": (
        11,
        [HIDDEN, node("Unsqueeze", "h", "u", axes=[1]), node("Squeeze", "u", "out", axes=[1])],
        [],
    ),
    "Unsqueeze and Squeeze": (
        13,
        [HIDDEN, node("Unsqueeze", "h one", "u"), node("Mul", "u v", "m"), node("Squeeze", "m one", "out")],
        [constant("one", [1], np.int64)],
    ),
    "Gather": (13, [HIDDEN, node("Gather", "h index", "out", axis=1)], [constant("index", [2, -1, 2], np.int64)]),
    "Gather one": (13, [HIDDEN, node("Gather", "h index", "out", axis=1)], [constant("index", 2, np.int64)]),
    "Expand to a shape": (
        13,
        [HIDDEN, node("Shape", "h", "n"), node("Expand", "s n", "e"), node("Add", "h e", "out")],
        [],
    ),
    "Shape, piece by piece": (
        13,
        [
            HIDDEN,
            node("Shape", "h", "n"),
            node("Gather", "n zero", "b", axis=0),
            node("Unsqueeze", "b none", "bs"),
            node("Concat", "bs rest", "shape", axis=0),
            node("Reshape", "h shape", "out"),
        ],
        [constant("zero", 0, np.int64), constant("none", [0], np.int64), constant("rest", [2, 2], np.int64)],
    ),
    "ConstantOfShape": (
        13,
        [
            HIDDEN,
            node("Shape", "h", "n"),
            node("ConstantOfShape", "n", "c", value=helper.make_tensor("x", TensorProto.FLOAT, [1], [1.5])),
            node("Mul", "h c", "out"),
        ],
        [],
    ),
    "Constant": (13, [HIDDEN, node("Constant", "", "c", value_float=0.5), node("Add", "h c", "out")], []),
    "Cast": (
        13,
        [
            node("Cast", "obs", "d", to=TensorProto.DOUBLE),
            node("Cast", "w", "wd", to=TensorProto.DOUBLE),
            node("MatMul", "d wd", "h"),
            node("Cast", "h", "out", to=TensorProto.FLOAT),
        ],
        [],
    ),
    "Dropout": (13, [HIDDEN, node("Dropout", "h", "out")], []),
    "Tile": (13, [HIDDEN, node("Tile", "h times", "out")], [constant("times", [1, 1], np.int64)]),
    "matrix on the left": (
        13,
        [node("Reshape", "obs shape", "r"), node("MatMul", "left r", "out")],
        [constant("shape", [-1, 2, 3], np.int64), constant("left", W[:, :2])],
    ),
    "half precision weights": (
        13,
        [node("Cast", "w16", "wf", to=1), node("MatMul", "obs wf", "out")],
        [constant("w16", W, np.float16)],
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_the_runtimes_own(name: str, tmp_path: Path) -> None:
    opset, nodes, initializers = OPERATORS[name]
    # Whatever the shape, the logits are a sum of it: first by the runtime on the operator alone, then by ours.
    model = model_of(nodes, [*INITIALIZERS, *initializers], ["out"], opset)
    obs = states(200)
    wanted = run(model.SerializeToString(), obs.numpy())[-1].reshape(len(obs), -1)
    weights = np.random.default_rng(1).standard_normal((wanted.shape[1], 2))
    after = [node("Reshape", "out flat", "f"), node("MatMul", "f last", "logits")]
    extra = [constant("flat", [-1, wanted.shape[1]], np.int64), constant("last", weights)]
    whole = model_of([*nodes, *after], [*INITIALIZERS, *initializers, *extra], ["logits"], opset)
    options = ImportOptions(observation_space=OBSERVATIONS, action_space=gym.spaces.Discrete(2))
    network = imported(whole, tmp_path, options).network
    with torch.no_grad():
        found = network(obs).numpy()
    np.testing.assert_allclose(found, wanted @ weights, atol=2e-5 * max(1.0, np.abs(wanted).max()), rtol=1e-4)


def test_our_own_spelling_is_recognised(tmp_path: Path) -> None:
    """Clips as minimum and maximum, silu and elu in their parts, weights cast to double: a plain perceptron still."""
    zero, one = constant("zero", 0.0), constant("one", 1.0)
    silu = [node("Neg", "h", "n"), node("Exp", "n", "e"), node("Add", "e one", "p"), node("Div", "h p", "a")]
    elu = [node("Max", "h zero", "hi"), node("Min", "h zero", "lo"), node("Exp", "lo", "e")]
    elu += [node("Sub", "e one", "m"), node("Add", "hi m", "a")]
    start = [node("Sub", "obs mean0", "c0"), node("Div", "c0 std0", "c1"), node("Max", "c1 low", "c2")]
    start += [node("Min", "c2 high", "c3"), node("Gemm", "c3 w v", "h")]
    end = [node("Gemm", "a wm", "mean"), node("Gemm", "a ws", "log")]
    end += [node("Max", "log low", "log1"), node("Min", "log1 two", "log_std")]
    rng = np.random.default_rng(2)
    weights = [constant(name, rng.standard_normal((4, A))) for name in ("wm", "ws")]
    weights += [constant("mean0", np.arange(D)), constant("std0", np.arange(D) + 1.0), constant("low", -3.0)]
    weights += [constant("high", 3.0), zero, one, *INITIALIZERS]
    for activation, nodes in (("silu", silu), ("elu", elu)):
        model = model_of([*start, *nodes, *end], weights, NAMES)
        network = imported(model, tmp_path).network
        spec = network.spec
        assert (spec.graph, spec.activation, spec.hidden) == (None, activation, (4,))
        assert (spec.observation_clip, spec.log_std_bounds) == (3.0, (-3.0, 2.0))
        obs = states()
        wanted = torch.from_numpy(np.concatenate(run(model.SerializeToString(), obs.numpy()), -1))
        assert_same_policy(network, wanted, obs)


def test_the_card_of_an_export_says_what_the_weights_do_not(tmp_path: Path) -> None:
    spec = NetworkSpec(D, A, "squashed_gaussian", action_low=tuple(ACTIONS.low), action_high=tuple(ACTIONS.high))
    spec = NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict(), default=float)))
    card = PriorCard.describe("source", "Swimmer-v5", OBSERVATIONS, ACTIONS, spec, alpha=0.1, parents=["a" * 64])
    card = card.model_copy(update={"content_hash": "b" * 64})
    nodes = [node("MatMul", "obs w3", "mean"), node("MatMul", "obs w3", "log_std")]
    text = json.dumps(card.model_dump())
    model = model_of(nodes, [constant("w3", W[:, :A])], NAMES, metadata={"card": text})
    result = imported(model, tmp_path, ImportOptions())
    assert result.network.spec.distribution == "squashed_gaussian"
    assert (result.env_id, result.alpha) == ("Swimmer-v5", 0.1)
    assert result.parents == ("b" * 64, "a" * 64)
    assert result.observation_space == OBSERVATIONS
    # What is no card of ours is nothing.
    for bad in ("{", "[" * 100_000, text.replace("squashed_gaussian", "beta"), text.replace("Box", "Dict")):
        model = model_of(nodes, [constant("w3", W[:, :A])], NAMES, metadata={"card": bad})
        assert imported(model, tmp_path).parents == ()


# --- what is refused


def external(path: str = "/etc/passwd") -> Any:
    tensor = constant("w", W)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path), ("offset", "0"), ("length", "96")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def mistyped(change: Any) -> Any:
    tensor = constant("w", W)
    change(tensor)
    return tensor


HEADS = [node("MatMul", "obs w", "h"), node("Slice", "h from to axis", "mean"), node("Identity", "mean", "log_std")]
RANGE = [constant(name, [x], np.int64) for name, x in (("from", 0), ("to", 3), ("axis", 1))]
BODY = helper.make_graph([], "then", [], [helper.make_tensor_value_info("h", TensorProto.FLOAT, None)])


def custom(domain: str) -> Any:
    model = model_of([helper.make_node("Relu", ["obs"], ["mean"], domain=domain)], [], ["mean"])
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def simple(*nodes: Any, outputs: list[str] | None = None, **options: Any) -> Any:
    return model_of(list(nodes), INITIALIZERS, outputs or ["out"], **options)


REFUSED: dict[str, tuple[Any, str]] = {
    "empty": (b"", r"not an ONNX model: it has no graph"),
    "text": (b"hello, this is no model at all", r"not an ONNX model"),
    "truncated": (model_of(HEADS, [*INITIALIZERS, *RANGE], NAMES).SerializeToString()[:-150], r"not an ONNX model"),
    "external data": (model_of(HEADS, [external(), *RANGE], NAMES), r"tensor 'w' keeps its numbers in another file"),
    "external data, elsewhere": (
        model_of(HEADS, [external("../../secret"), *RANGE], NAMES),
        r"keeps its numbers in another file",
    ),
    "external constant": (
        simple(node("Constant", "", "c", value=external()), node("MatMul", "obs c", "out")),
        r"node 0 \(Constant\)|tensor 'value' keeps its numbers in another file",
    ),
    "custom domain": (
        custom("com.microsoft"),
        r"node 0 \(Relu\): an operator of 'com\.microsoft', which is not ONNX's own",
    ),
    "unknown operator": (
        simple(node("Det", "obs", "out")),
        r"node 0 \(Det\): Det is not an operator that a graph can hold",
    ),
    "recurrent": (
        simple(node("Unsqueeze", "obs zero", "u"), node("GRU", "u w w", "out")),
        r"node 1 \(GRU\): a recurrent layer: a policy with a memory, whose actions depend on what it saw before",
    ),
    "random": (simple(node("RandomNormalLike", "obs", "out")), r"RandomNormalLike is not an operator"),
    "control flow": (
        simple(node("If", "c", "out", then_branch=BODY, else_branch=BODY)),
        r"node 0 \(If\)|'c', which is not",
    ),
    "choice": (simple(node("Where", "w obs obs", "out")), r"a decision that depends on the data"),
    "comparison": (simple(node("Equal", "obs obs", "out")), r"node 0 \(Equal\): a comparison"),
    "undefined": (simple(node("Relu", "nothing", "out")), r"uses 'nothing', which is not defined before it"),
    "cycle": (simple(node("Relu", "b", "a"), node("Relu", "a", "b"), outputs=["b"]), r"uses 'b', which is not defined"),
    "no output": (simple(node("Relu", "obs", "x")), r"the model uses 'out', which is not defined"),
    "twice": (simple(node("Relu", "obs", "out"), node("Tanh", "obs", "out")), r"defines 'out' a second time"),
    "batch": (simple(node("ReduceSum", "obs", "out")), r"node 0 \(ReduceSum\): reduces over the batch"),
    "fixed batch": (
        model_of([node("Reshape", "obs n", "out")], [constant("n", [1, D], np.int64)], ["out"]),
        r"a reshape to \[1, 6\] does not keep the batch axis of \[the batch size, 6\]",
    ),
    "whole numbers": (
        simple(node("Cast", "obs", "out", to=TensorProto.INT64)),
        r"a cast of what depends on the observation",
    ),
    "wrong shapes": (simple(node("MatMul", "obs wt", "out")), r"input \[B, 6\], weight and bias \[6, 4\] do not fit"),
    "wrong size": (model_of(HEADS, [*INITIALIZERS, *RANGE], NAMES, size=7), r"takes \['B', 7\]; .* are \[B, 6\]"),
    "old softmax": (
        model_of(
            [node("Reshape", "obs n", "r"), node("Softmax", "r", "out")],
            [constant("n", [-1, 2, 3], np.int64)],
            ["out"],
            opset=11,
        ),
        r"node 1 \(Softmax\): a softmax over several axes",
    ),
    "old opset": (simple(node("Relu", "obs", "out"), opset=6), r"opset \[6\]; expected one from 7 to 25"),
    "shape bomb": (
        model_of([node("Expand", "obs n", "out")], [constant("n", [2**40, 1, D], np.int64)], ["out"]),
        r"node 0 \(Expand\): (moves the batch axis|does not keep the batch axis)",
    ),
    "constant bomb": (
        model_of(
            [node("ConstantOfShape", "n", "c"), node("ReduceSum", "c", "s"), node("Mul", "obs s", "out")],
            [constant("n", [2**20, 2**20], np.int64)],
            ["out"],
        ),
        r"node 0 \(ConstantOfShape\): a constant of 1099511627776 numbers is too large",
    ),
    "too few bytes": (
        model_of(HEADS, [mistyped(lambda t: setattr(t, "raw_data", t.raw_data[:-4])), *RANGE], NAMES),
        r"tensor 'w' of shape \[6, 4\] has 92 bytes",
    ),
    "negative size": (
        model_of(HEADS, [mistyped(lambda t: t.dims.__setitem__(0, -6)), *RANGE], NAMES),
        r"tensor 'w' has shape \[-6, 4\]",
    ),
    "strings": (
        model_of(HEADS, [helper.make_tensor("w", TensorProto.STRING, [1], [b"x"]), *RANGE], NAMES),
        r"tensor 'w' has type 8",
    ),
    "no text": (
        simple(node("Relu", "obs", "out")).SerializeToString().replace(b"out", b"\xff\xfeu"),
        r"an input or output is called b'\\xff\\xfeu', which is no text",
    ),
    "not finite": (
        model_of(HEADS, [constant("w", W * np.inf), *RANGE], NAMES),
        r"values that are not finite",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused(what: str, tmp_path: Path) -> None:
    model, message = REFUSED[what]
    with pytest.raises(PriorImportError, match=rf"policy\.onnx: .*({message})"):
        imported(model, tmp_path)


def test_a_good_model_is_read(tmp_path: Path) -> None:
    """What the refused ones are a change away from."""
    imported(model_of(HEADS, [*INITIALIZERS, *RANGE], NAMES), tmp_path)


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(HEADS, [*INITIALIZERS, *RANGE], NAMES)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'residual-policy-gradient\[onnx\]'"):
        imported(model, tmp_path)


def test_options_are_the_same_as_for_torchscript(tmp_path: Path) -> None:
    squashed = dataclasses.replace(CONTINUOUS, distribution="squashed_gaussian", second_output="std")
    nodes = [node("MatMul", "obs w3", "mean"), node("Softplus", "mean", "std")]
    network = imported(model_of(nodes, [constant("w3", W[:, :A])], ["mean", "std"]), tmp_path, squashed).network
    assert network.spec.distribution == "squashed_gaussian"
    obs = states(50)
    with torch.no_grad():
        mean, log_std = network(obs).chunk(2, -1)
    torch.testing.assert_close(log_std.exp(), torch.nn.functional.softplus(mean), atol=1e-5, rtol=1e-5)
