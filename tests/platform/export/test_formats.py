"""TorchScript and ONNX equal the bundle to 1e-6, wherever they run, and say what they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tests.algorithms.policies.graph_cases import CASES as OPERATIONS
from tests.algorithms.policies.graph_cases import D as GRAPH_D
from tests.algorithms.policies.networks import FAMILIES, NORMALISERS, make_network
from tests.platform.export.bundles import OURS, bundle_of, run_elsewhere

from rpg_algorithms import NetworkSpec, PolicyNetwork
from rpg_algorithms.policies.bundle import PriorBundle, load_bundle
from rpg_algorithms.policies.graph import Graph, GraphTensor, Node
from rpg_algorithms.policies.network import ACTIVATIONS
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.bundles import SHIPPED
from rpg_platform.export import onnx_model, policy, torchscript
from rpg_platform.export.onnx_graph import TRANSLATIONS

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
STATES = 1_000
FORMATS = {"torchscript": (torchscript.save, "policy.pt"), "onnx": (onnx_model.save, "policy.onnx")}
# Each family with each activation, the normalisers in turn; and a linear policy.
NETWORKS = [
    (family, activation, normaliser, (16, 8))
    for (family, activation), normaliser in zip(
        itertools.product(FAMILIES, ACTIVATIONS), itertools.cycle(NORMALISERS), strict=False
    )
] + [("state-dependent", "relu", "none", ())]


def states(bundle: PriorBundle) -> NDArray[np.float32]:
    """1,000 observations: as the normaliser saw them, and up to a million times as large; some beyond all measure."""
    largest = 1 if bundle.card.network.get("graph") else 6  # exp(1e6) would only show that both are infinite
    obs = policy.typical_states(bundle, STATES, seed=1)
    rng = np.random.default_rng(2)
    obs[: STATES // 2] *= 10.0 ** rng.uniform(-3, largest, (STATES // 2, 1)).astype(np.float32)
    obs[0] = 0.0
    if bundle.network_spec.normalize_observations and bundle.network_spec.observation_clip is not None:
        obs[1:5] = np.array([[np.inf], [-np.inf], [3e38], [-3e38]], np.float32)
    return obs


def graph_policies(op: str) -> list[PolicyNetwork]:
    """The operation's cases, each as the logits of a categorical policy."""
    made = []
    for nodes, shapes, _ in OPERATIONS[op]:
        tensors = tuple(GraphTensor(f"t{i}_x", shape, i % 2 == 0) for i, shape in enumerate(shapes))
        last = Graph(tensors, tuple(nodes), (nodes[-1].output,))
        size = int(np.prod([n for n in last.check(GRAPH_D)[nodes[-1].output] if n is not None]))
        flat = Node("reshape", (nodes[-1].output,), "v999", (("shape", (size,)),))
        graph = Graph(tensors, (*nodes, flat), ("v999",))
        spec = NetworkSpec(GRAPH_D, size, "categorical", graph=graph, normalize_observations=False, action_start=-1)
        network = PolicyNetwork(spec)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape))
        made.append(network)
    return made


def graph_with_two_heads() -> PolicyNetwork:
    """A graph that gives mean and log std, as an importer makes it, behind a normaliser."""
    nodes = (
        Node("linear", ("obs", "t0_w", "t1_b"), "v0"),
        Node("gelu", ("v0",), "v1", (("tanh", False),)),
        Node("slice", ("v1",), "v2", (("axis", 1), ("start", 0), ("step", 1), ("stop", 3))),
        Node("slice", ("v1",), "v3", (("axis", 1), ("start", 3), ("step", 1), ("stop", 6))),
        Node("clamp", ("v3",), "v4", (("max", 0.5), ("min", -1.0))),
    )
    graph = Graph((GraphTensor("t0_w", (6, 5), True), GraphTensor("t1_b", (6,), True)), nodes, ("v2", "v4"))
    options = {"state_dependent_std": True, "log_std_bounds": (-0.1, 0.1)}  # not for a graph, which holds its own clamp
    return make_network("squashed", "clipped", graph=graph, **options)


def assert_equal(
    bundle: PriorBundle, obs: NDArray[np.float32], found: dict[str, NDArray[np.generic]], float32: float
) -> None:
    """To 1e-6 the bundle's exact value, and to ``float32`` what acts in the environment."""
    exact = policy.exact(bundle, obs)
    spec = bundle.network_spec
    assert set(found) == set(policy.output_names(spec, "distribution"))
    for name, value in found.items():
        if value.dtype != np.int64:
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, exact[name], rtol=1e-6, atol=1e-6, err_msg=name)
    action = found["action"]
    if spec.distribution == "categorical":
        assert action.dtype == np.int64
        np.testing.assert_array_equal(action, found["logits"].argmax(-1) + spec.action_start)
    else:
        assert (action >= np.array(spec.action_low, np.float32)).all()
        assert (action <= np.array(spec.action_high, np.float32)).all()
    # The environment gets this in training and evaluation, computed in float32.
    acting, ordinary = NumpyPolicy(bundle.build()), slice(STATES // 2, None)
    outputs = acting.outputs(obs[ordinary].copy())
    if spec.distribution == "categorical":
        apart = np.sort(outputs, axis=-1)[:, -1] - np.sort(outputs, axis=-1)[:, -2:][:, 0] > 1e-4
        outputs, ordinary = outputs[apart], np.flatnonzero(apart) + STATES // 2
    np.testing.assert_allclose(acting.to_env(acting.mode(outputs)), action[ordinary], rtol=float32, atol=float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, PriorBundle, Path]]:
    """Policies of every kind, each in every format in a folder of its own."""
    torch.manual_seed(0)
    networks = {}
    for family, activation, normaliser, hidden in NETWORKS:
        name = f"{family}-{activation}-{normaliser}-{len(hidden)}"
        networks[name] = make_network(family, normaliser, activation=activation, hidden=hidden)
    networks["two heads"] = graph_with_two_heads()
    for op in OPERATIONS:
        networks |= {f"{op}-{i}": network for i, network in enumerate(graph_policies(op))}
    made = []
    for i, (name, network) in enumerate(networks.items()):
        folder = tmp_path_factory.mktemp(f"policy{i}-")
        bundle = bundle_of(network, folder / "bundle")
        made.append((name, bundle, folder))
    shipped = tmp_path_factory.mktemp("shipped")
    made.append(("shipped", load_bundle(SHIPPED["halfcheetah-spg"]), shipped))
    for _, bundle, folder in made:
        np.save(folder / "obs.npy", states(bundle))
        for save, file in FORMATS.values():
            save(bundle, folder / file)
    return made


@pytest.mark.parametrize("format_", FORMATS)
def test_equal_to_the_bundle_where_none_of_us_is_installed(
    format_: str, exported: list[tuple[str, PriorBundle, Path]]
) -> None:
    refused = OURS if format_ == "torchscript" else (*OURS, "torch", "onnx")
    for (name, bundle, folder), found in zip(
        exported, run_elsewhere(format_, [folder for _, _, folder in exported], refused), strict=True
    ):
        try:
            assert_equal(bundle, np.load(folder / "obs.npy"), found, float32=1e-6 if name == "shipped" else 1e-5)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_every_operation_of_a_graph_has_its_onnx_form() -> None:
    assert set(TRANSLATIONS) == set(OPERATIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_sensor_is_no_action(family: str, tmp_path: Path) -> None:
    """NaN must not become a bound, as it does where NaN is clipped."""
    bundle = bundle_of(make_network(family), tmp_path / "bundle")
    obs = np.full((1, 5), np.nan, np.float32)
    torchscript.save(bundle, tmp_path / "policy.pt")
    onnx_model.save(bundle, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    name = "logits" if family == "categorical" else "action"
    assert np.isnan(session.run([name], {"obs": obs})[0]).all()
    assert torch.jit.load(tmp_path / "policy.pt")(torch.from_numpy(obs))[name].isnan().all()


def test_onnx_says_what_it_is(tmp_path: Path) -> None:
    bundle = bundle_of(make_network("squashed"), tmp_path)
    model = onnx_model.build(bundle)
    onnx.checker.check_model(model, full_check=True)
    assert [each.version for each in model.opset_import] == [17]
    properties = {each.key: each.value for each in model.metadata_props}
    assert json.loads(properties["card"]) == bundle.card.model_dump()
    assert properties["content_hash"] == bundle.card.content_hash
    shapes = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"obs": ["batch", 5], "action": ["batch", 3], "mean": ["batch", 3], "log_std": ["batch", 3]}


def test_torchscript_holds_the_card(tmp_path: Path) -> None:
    bundle = bundle_of(make_network("gaussian"), tmp_path / "bundle")
    torchscript.save(bundle, tmp_path / "policy.pt")
    extra = {torchscript.CARD: ""}
    torch.jit.load(tmp_path / "policy.pt", _extra_files=extra)
    assert json.loads(extra[torchscript.CARD]) == bundle.card.model_dump()


@pytest.mark.parametrize("family", FAMILIES)
def test_deterministic_mode_and_float32(family: str, tmp_path: Path) -> None:
    bundle = bundle_of(make_network(family, activation="elu"), tmp_path / "bundle")
    obs = policy.typical_states(bundle, 100)
    exact = policy.exact(bundle, obs)["action"]
    onnx_model.save(bundle, tmp_path / "policy.onnx", "deterministic", "float32")
    torchscript.save(bundle, tmp_path / "policy.pt", "deterministic", "float32")
    model = onnx.load(tmp_path / "policy.onnx")
    assert onnx.TensorProto.DOUBLE not in {each.data_type for each in model.graph.initializer}
    assert not [node for node in model.graph.node for a in node.attribute if a.name == "to" and a.i == 11]
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"obs": obs})
    assert found == pytest.approx(exact, abs=1e-5)
    scripted = torch.jit.load(tmp_path / "policy.pt")(torch.from_numpy(obs))
    assert list(scripted) == ["action"]
    assert scripted["action"].numpy() == pytest.approx(exact, abs=1e-5)


def test_an_export_that_deviates_is_no_export(tmp_path: Path) -> None:
    bundle = bundle_of(make_network("gaussian"), tmp_path)
    exact = policy.exact(bundle, policy.typical_states(bundle, 64))
    assert policy.check(lambda obs: exact, bundle, "distribution", "float64") == 0.0
    off = exact | {"log_std": exact["log_std"] + 3e-6}
    with pytest.raises(RuntimeError, match="deviates"):
        policy.check(lambda obs: off, bundle, "distribution", "float64")
    assert policy.check(lambda obs: off, bundle, "deterministic", "float64") == 0.0
