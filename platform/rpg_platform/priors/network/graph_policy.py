"""Makes a policy of a file's graph: finds its normaliser and the plainest network that equals it.

A plain perceptron (with a normaliser before it, and a log standard deviation that is free or a second head on its last
hidden layer) becomes one of ours, which the fused engine trains. Anything else stays the graph that it is.

Dimension letters: B batch, D observation size, A action dimensions, K actions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rpg_algorithms.policies.graph import INPUT, GraphNetwork
from rpg_algorithms.policies.graph_ops import GraphError
from rpg_algorithms.policies.network import ACTIVATIONS, NetworkSpec, PolicyNetwork
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.network.assemble import (
    NO_CLAMP,
    Activation,
    FreeLogStd,
    Linear,
    Moments,
    NetworkLogStd,
    Policy,
    Step,
    assemble,
    network_of,
)
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, Symbol, Value, sorted_symbols, to_graph
from rpg_platform.priors.network.layers import moments_from_npz
from rpg_platform.priors.network.outputs import GraphFile, Meaning, Output, meaning_of
from rpg_platform.priors.network.simplify import affine, constant_of, replaced, simplified

TOLERANCE = 1e-5
_SIMPLIFIED = 0.5 * TOLERANCE  # what simplification may take of it
_NORMALIZER_COUNT = 1e6  # a graph does not say how many observations its statistics are of


def policy_of_outputs(
    outputs: Sequence[Output], builder: GraphBuilder, source: GraphFile
) -> tuple[PolicyNetwork, Meaning]:
    """Returns the policy among a network's outputs, and what they mean, with lines that the user should read.

    Args:
        outputs: all of the network's, see ``outputs.meaning_of`` for what is read.
        builder: made them.
        source: where they come from.

    Raises:
        PriorImportError: the outputs are something else, or larger than a graph may be.
    """
    try:
        meaning = meaning_of(outputs, builder, source)
        outer = _given_moments(meaning.spec, source)
        network = _network(simplified(meaning.parts, builder), meaning.spec, outer, builder, source)
        if not _equal(meaning.parts, network, outer is not None):
            network = _graph_network(meaning.parts, meaning.spec, outer, source)
    except GraphError as error:
        raise PriorImportError(f"{source.where}: {error}") from error
    bad = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise PriorImportError(f"{source.where}: values that are not finite in {', '.join(bad[:5])}")
    if network.graph is not None:
        note = "its network is no plain perceptron: kept as a graph, which autograd trains"
        meaning = replace(meaning, notes=(*meaning.notes, note))
    return network, meaning


# --- the network


def _given_moments(spec: NetworkSpec, source: GraphFile) -> Moments | None:
    """Reads the normaliser that the user gives; None without one."""
    if source.options.normalizer is None:
        return None
    moments = moments_from_npz(source.options.normalizer)
    if moments.mean.shape != (spec.observation_size,):
        raise PriorImportError(
            f"{source.options.normalizer}: {moments.mean.size} means for observations of {spec.observation_size}"
        )
    return moments


def _network(
    parts: Sequence[Value], spec: NetworkSpec, outer: Moments | None, builder: GraphBuilder, source: GraphFile
) -> PolicyNetwork:
    """Builds the plainest network for these outputs; ``outer`` is a normaliser that is not among them."""
    if constant_of(parts[0]) is not None:
        raise PriorImportError(f"{source.where}: what it returns does not depend on the observation")
    moments, inner = _normalizer(parts, builder)
    if moments is not None and outer is not None:
        raise PriorImportError(
            f"{source.where}: holds a normaliser of its own; {source.options.normalizer} would be a second one"
        )
    moments = moments or outer
    policy = _perceptron(inner, spec, moments, source)
    return _graph_network(inner, spec, moments, source) if policy is None else assemble(policy)


def _normalizer(parts: Sequence[Value], builder: GraphBuilder) -> tuple[Moments | None, Sequence[Value]]:
    """Finds the normaliser that the whole observation goes through, and the outputs of the rest behind it."""
    obs, clip = builder.obs, None
    symbols = sorted_symbols(each for each in parts if isinstance(each, Symbol))
    at = before_clip = obs
    while not any(each is at for each in parts):
        users = [
            symbol
            for symbol in symbols
            for place, each in enumerate(symbol.inputs)
            if each is at and (symbol.op != "expand" or place == 0)
        ]
        if len(users) != 1:
            break
        if users[0].op == "clamp":
            high = users[0].attributes["max"]
            if high is not None and high > 0 and users[0].attributes["min"] == -high:
                at, clip = users[0], float(high)
            break
        if affine(users[0], lambda x: x is obs) is None:
            break
        at = before_clip = users[0]
    found = affine(before_clip, lambda x: x is obs)
    if at is obs or found is None:
        return None, parts
    _, scale, shift = found
    mean, var = -shift / scale, scale.square().reciprocal()
    if not all(bool(torch.isfinite(x.to(torch.float32)).all()) for x in (mean, var)):
        return None, parts
    if not bool((scale > 0).all()) or not bool((var.to(torch.float32) > 0).all()):
        return None, parts
    return Moments(mean.numpy(), var.numpy(), _NORMALIZER_COUNT, 0.0, clip), replaced(parts, at, obs)


def _graph_network(
    parts: Sequence[Value], spec: NetworkSpec, moments: Moments | None, source: GraphFile
) -> PolicyNetwork:
    """Builds the policy as a graph; a free log standard deviation is a parameter beside it."""
    free = constant_of(parts[1]) if len(parts) == 2 else None
    symbols = [each for each in (parts[:1] if free is not None else parts) if isinstance(each, Symbol)]
    graph, tensors = to_graph(symbols)
    state = {f"graph.{name}": value for name, value in tensors.items()}
    if free is not None:
        state["log_std"] = _row(free, spec.action_size, source)
    options = {"graph": graph, "state_dependent_std": len(symbols) == 2}
    return network_of(partial(replace, spec), options, state, moments, source.where)


def _row(constant: Constant, size: int, source: GraphFile) -> Tensor:
    """Returns a free log standard deviation as ``[A]``."""
    value = constant.value.to(torch.float32)
    if value.dim() > 2 or value.numel() not in (1, size):
        raise PriorImportError(f"{source.where}: log_std has shape {list(value.shape)}, expected [{size}]")
    row = value.reshape(-1).expand(size).clone()
    if not bool(torch.isfinite(row).all()):
        raise PriorImportError(f"{source.where}: log_std is {row.tolist()[:8]}, expected finite numbers")
    return row


def _perceptron(parts: Sequence[Value], spec: NetworkSpec, moments: Moments | None, source: GraphFile) -> Policy | None:
    """Returns the policy as the layers of a plain perceptron; None where it is none."""
    head: Value | None = parts[0]
    log_std: FreeLogStd | NetworkLogStd | None = None
    if len(parts) == 2:
        free = constant_of(parts[1])
        if free is not None:
            log_std = FreeLogStd(_row(free, spec.action_size, source).numpy())
        else:
            head, log_std = _joined_heads(parts[0], parts[1], spec.action_size)
    steps = None if head is None else _layers(head)
    if steps is None:
        return None
    return Policy(source.where, steps, spec.distribution, *source.spaces(), log_std, moments)


def _joined_heads(mean: Value, log_std: Value, size: int) -> tuple[Symbol | None, NetworkLogStd | None]:
    """Joins mean and log standard deviation into one linear layer, and returns the bounds of the latter."""
    low, high = -NO_CLAMP, NO_CLAMP
    if isinstance(log_std, Symbol) and log_std.op == "clamp" and isinstance(log_std.inputs[0], Symbol):
        low = low if log_std.attributes["min"] is None else float(log_std.attributes["min"])
        high = high if log_std.attributes["max"] is None else float(log_std.attributes["max"])
        log_std = log_std.inputs[0]
    if low >= high or not isinstance(mean, Symbol) or not isinstance(log_std, Symbol):
        return None, None
    bounds, nothing = NetworkLogStd(low, high), (None, None)
    if mean.inputs[0] is not log_std.inputs[0] or mean.op != log_std.op:
        return nothing
    if mean.op == "linear":
        both = [_weights(each) for each in (mean, log_std)]
        weight, bias = (Constant(torch.cat(pair)) for pair in zip(*both, strict=True))
        return Symbol((None, 2 * size), "linear", (mean.inputs[0], weight, bias)), bounds
    whole = mean.inputs[0]
    if mean.op != "slice" or not isinstance(whole, Symbol) or whole.op != "linear" or whole.shape != (None, 2 * size):
        return nothing
    starts = [(each.attributes["start"], each.attributes["step"]) for each in (mean, log_std)]
    return (whole, bounds) if starts == [(0, 1), (size, 1)] else nothing


def _weights(linear: Symbol) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a linear layer; zeros where it has no bias."""
    values = [each.value.to(torch.float32) for each in linear.inputs[1:] if isinstance(each, Constant)]
    return values[0], values[1] if len(values) == 2 else torch.zeros(len(values[0]))


def _layers(value: Value) -> list[Step] | None:
    """Returns linear layers with one activation between them, from the observation on; None for anything else."""
    steps: list[Step] = []
    activations: set[str] = set()
    while isinstance(value, Symbol) and value.op == "linear":
        weight, bias = _weights(value)
        steps.append(Linear(weight.numpy(), bias.numpy()))
        x = value.inputs[0]
        if not isinstance(x, Symbol) or x.op == INPUT:
            return steps[::-1] if isinstance(x, Symbol) and len(x.shape) == 2 else None
        activations.add(x.op)
        plain = x.op in ACTIVATIONS and dict(x.attributes) in ({}, {"alpha": 1.0})
        if not plain or len(activations) > 1 or not isinstance(x.inputs[0], Symbol):
            return None
        steps.append(Activation(x.op))
        value = x.inputs[0]
    return None


def _equal(parts: Sequence[Value], network: PolicyNetwork, normalized: bool) -> bool:
    """Tests on random observations whether the network computes what the outputs did before simplification.

    In float64, so that a difference is one of the networks and not of their rounding.

    Args:
        parts: logits, or mean and log standard deviation.
        network: what was made of them.
        normalized: the network has a normaliser that the outputs have not.
    """
    symbols = [each for each in parts if isinstance(each, Symbol)]
    graph, tensors = to_graph(symbols)
    size = network.spec.observation_size
    try:
        graph.check(size)
    except GraphError:  # larger than a graph may be: only its simplified form is within the bounds
        return True
    direct, double = GraphNetwork(graph), copy.deepcopy(network).double()
    direct.load_state_dict(tensors)
    direct.double()
    generator = torch.Generator().manual_seed(0)
    for magnitude in (0.1, 1.0, 10.0):
        obs = magnitude * torch.randn(64, size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            expected, found = direct(obs), double.head(obs) if normalized else double(obs)
        if float(differences(expected, found[:, : expected.shape[1]]).max()) > _SIMPLIFIED:
            return False
    return True


def differences(expected: Tensor, found: Tensor) -> Tensor:
    """Returns the differences ``[B, P]`` of outputs, where they are finite, relative to the largest of their column.

    Rounding in a network is relative to its largest terms, which an output near zero is the difference of. Outputs
    within 1 are compared absolutely.
    """
    finite = torch.isfinite(expected)
    expected = expected.where(finite, 0.0)
    difference = (expected - found.where(finite, 0.0)).abs() / expected.abs().amax(0).clamp_min(1.0)
    return difference.nan_to_num(float("inf"))
