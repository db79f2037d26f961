"""Priors that are graphs, for the environment that the registry's priors act in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.algorithms.registry import make_prior

from rpg_algorithms import load_bundle, load_card, save_bundle
from rpg_algorithms.policies.graph import Graph

D, A = 2, 1  # of the environment that the registry's priors act in


def graph(outputs: int, size: int = A) -> Graph:
    """A residual network with a layer norm, a constant and as many heads as asked for."""
    tensors = {"t0_w": [4, D], "t1_b": [4], "t2_gain": [4], "t3_scale": [4], "t4_out": [outputs * size, 4]}
    steps: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("linear", ["obs", "t0_w", "t1_b"], {}),
        ("silu", ["v0"], {}),
        ("mul", ["v1", "t3_scale"], {}),
        ("layer_norm", ["v2", "t2_gain"], {"dims": 1, "eps": 1e-5}),
        ("add", ["v0", "v3"], {}),
        ("linear", ["v4", "t4_out"], {}),
    ]
    if outputs == 2:
        for start in (0, size):
            steps += [("slice", ["v5"], {"axis": 1, "start": start, "stop": start + size, "step": 1})]
        steps.append(("clamp", ["v7"], {"min": -2.0, "max": 0.5}))
    nodes = [
        {"op": op, "inputs": inputs, "output": f"v{i}", "attributes": attributes}
        for i, (op, inputs, attributes) in enumerate(steps)
    ]
    return Graph.from_json(
        {
            "tensors": [{"name": k, "shape": v, "trainable": k != "t3_scale"} for k, v in tensors.items()],
            "nodes": nodes,
            "outputs": ["v6", "v8"] if outputs == 2 else ["v5"],
        }
    )


FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {"graph": graph(1)},
    "state-dependent": {"graph": graph(2), "state_dependent_std": True},
    "squashed": {"graph": graph(2), "state_dependent_std": True},
    "categorical": {"graph": graph(1, 3)},
}


def make_graph_prior(folder: Path, family: str) -> Path:
    """A bundle of a random graph, as the registry makes one of a perceptron."""
    options = dict(FAMILIES[family])
    actions = load_card(make_prior(folder / "plain", family)).network["action_size"]
    if family == "categorical":
        options["graph"] = graph(1, actions)
    path = make_prior(folder / "graph", family, **options)
    bundle = load_bundle(path)
    network = bundle.build()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith("graph."):  # which start at 0
                tensor.copy_(torch.randn(tensor.shape) / 2)
    save_bundle(path, network, bundle.card)
    return path
