"""Makes a policy of a file's graph: finds its outputs' meaning, its normaliser and the plainest network equal to it.

A plain perceptron (with a normaliser before it, and a log standard deviation that is free or a second head on its last
hidden layer) becomes one of ours, which the fused engine trains. Anything else stays the graph that it is.

Dimension letters: B batch, D observation size, A action dimensions, K actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rpg_algorithms.policies.graph import INPUT, GraphNetwork
from rpg_algorithms.policies.graph_ops import GraphError
from rpg_algorithms.policies.network import ACTIVATIONS, NetworkSpec, PolicyNetwork, observation_size, spec_for_spaces
from rpg_platform.priors.imported import ImportOptions, PriorImportError
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
from rpg_platform.priors.network.graph_builder import (
    BATCH,
    Constant,
    GraphBuilder,
    Symbol,
    Value,
    sorted_symbols,
    to_graph,
)
from rpg_platform.priors.network.layers import moments_from_npz, named_spaces
from rpg_platform.priors.network.simplify import affine, constant_of, is_op, replaced, simplified

TOLERANCE = 1e-5
_SIMPLIFIED = 0.5 * TOLERANCE  # what simplification may take of it
_NORMALIZER_COUNT = 1e6  # a graph does not say how many observations its statistics are of


@dataclass(frozen=True)
class GraphFile:
    """A file that describes a graph, and the user's word on it.

    Attributes:
        where: the file's name, for messages.
        what: the kind of file, such as ``a TorchScript file``.
        options: what the user said about it.
    """

    where: str
    what: str
    options: ImportOptions

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Returns the spaces of the environment that the user named. Raises PriorImportError without one."""
        return named_spaces(self.options, self.what, self.where)

    @property
    def observation_size(self) -> int:
        """D of the environment that the user named. Raises PriorImportError without one, or for other spaces."""
        try:
            return observation_size(self.spaces()[0])
        except ValueError as error:
            raise (
                error if isinstance(error, PriorImportError) else PriorImportError(f"{self.where}: {error}")
            ) from error

    def base(self) -> NetworkSpec:
        """Returns the specification as far as spaces and options fix it."""
        try:
            return spec_for_spaces(*self.spaces(), self.options.distribution)
        except ValueError as error:
            raise PriorImportError(f"{self.where}: {error}") from error


def policy_of_outputs(
    outputs: Sequence[Value], builder: GraphBuilder, source: GraphFile
) -> tuple[PolicyNetwork, tuple[str, ...]]:
    """Returns the policy whose outputs these are, and lines that the user should read.

    Args:
        outputs: (mean, log_std), both ``[B, A]``; or both in one ``[B, 2A]``; or logits ``[B, K]``; or actions
            ``[B, A]`` alone, where the user gives a standard deviation.
        builder: made them.
        source: where they come from.

    Raises:
        PriorImportError: the outputs are something else, or larger than a graph may be.
    """
    notes: list[str] = []
    try:
        spec, parts = _meaning(outputs, builder, source, notes)
        outer = _given_moments(spec, source)
        network = _network(simplified(parts, builder), spec, outer, builder, source)
        if not _equal(parts, network, outer is not None):
            network = _graph_network(parts, spec, outer, source)
    except GraphError as error:
        raise PriorImportError(f"{source.where}: {error}") from error
    bad = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise PriorImportError(f"{source.where}: values that are not finite in {', '.join(bad[:5])}")
    if network.graph is not None:
        notes.append("its network is no plain perceptron: kept as a graph, which autograd trains")
    return network, tuple(notes)


def named_outputs(names: Iterable[str]) -> list[str] | None:
    """Picks (mean, log_std), (mean, std) or logits among outputs by their names; None where none are so named."""
    found = set(names)
    if "logits" in found:
        return ["logits"]
    second = next((name for name in ("log_std", "std") if name in found), None)
    return ["mean", second] if "mean" in found and second is not None else None


# --- what the outputs mean


def _shapes(outputs: Sequence[Value]) -> str:
    texts = (["B" if size is None else str(size) for size in each.shape] for each in outputs)
    return " and ".join(f"[{', '.join(text)}]" for text in texts) or "nothing"


def _meaning(
    outputs: Sequence[Value], builder: GraphBuilder, source: GraphFile, notes: list[str]
) -> tuple[NetworkSpec, list[Value]]:
    """Returns the specification, and logits or mean and log standard deviation."""
    spec, options, found = source.base(), source.options, _shapes(outputs)
    size = spec.action_size
    if spec.distribution == "categorical":
        if options.std is not None:
            raise PriorImportError(f"{source.where}: --std is for continuous actions")
        if len(outputs) != 1 or outputs[0].shape != (None, size):
            raise PriorImportError(f"{source.where}: returns {found}; expected logits [B, {size}]")
        logits = outputs[0]
        if is_op(logits, "softmax"):
            notes.append("returns probabilities: their logarithm is taken")
            logits = builder.unary("log", logits)
        return spec, [logits]
    if len(outputs) == 1 and outputs[0].shape == (None, size):
        return _deterministic(outputs[0], spec, builder, source, notes)
    if len(outputs) == 1 and outputs[0].shape == (None, 2 * size):
        second = options.second_output or "log_std"
        notes.append(f"returns one tensor of {2 * size}: its first half is taken for the mean, its second for {second}")
        outputs = [builder.slice(outputs[0], 1, 0, size), builder.slice(outputs[0], 1, size, 2 * size)]
    if options.std is not None:
        raise PriorImportError(f"{source.where}: --std is for deterministic policies; this one returns {found}")
    if len(outputs) != 2 or outputs[0].shape != (None, size):
        raise PriorImportError(
            f"{source.where}: returns {found}; expected mean and log_std, both [B, {size}] or in one [B, {2 * size}]"
        )
    mean, log_std = outputs
    if options.second_output == "std":
        log_std = builder.unary("log", log_std)
    if options.distribution is None:
        notes.append(
            "taken for a gaussian, whose samples are clipped for the environment; if its actions are the tanh of a "
            "Gaussian's samples, say --distribution squashed_gaussian"
        )
    return spec, [mean, builder.expand(log_std, [BATCH, size])]


def _deterministic(
    action: Value, spec: NetworkSpec, builder: GraphBuilder, source: GraphFile, notes: list[str]
) -> tuple[NetworkSpec, list[Value]]:
    """Puts a Gaussian of ``--std`` around a policy that returns its action, before tanh where it ends in one."""
    std, family = source.options.std, source.options.distribution
    if std is None:
        raise PriorImportError(
            f"{source.where}: returns actions alone, {_shapes([action])}: a deterministic policy has no density, and "
            "RPG needs that of a prior; give it a standard deviation (before tanh, where it ends in one) with --std, "
            "such as --std 0.1"
        )
    if not 0.0 < std < math.inf:
        raise PriorImportError(f"std={std}: expected a positive number")
    log_std = Constant(torch.full((spec.action_size,), math.log(std)), "log_std", True)
    before_tanh = None if family == "gaussian" else _before_tanh(action, spec, builder)
    if before_tanh is not None:
        notes.append(f"returns actions alone: a squashed_gaussian with standard deviation {std:g} before tanh")
        return replace(spec, distribution="squashed_gaussian"), [before_tanh, log_std]
    if family == "squashed_gaussian":
        raise PriorImportError(f"{source.where}: its actions are no tanh scaled to the bounds of the action space")
    notes.append(f"returns actions alone: a gaussian around them with standard deviation {std:g}")
    return spec, [action, log_std]


def _before_tanh(action: Value, spec: NetworkSpec, builder: GraphBuilder) -> Value | None:
    """Finds u where the action is tanh(u) scaled to the bounds of the action space; None for other actions."""
    found = affine(simplified([action], builder)[0], lambda x: x.op == "tanh")
    if found is None or spec.action_low is None or spec.action_high is None:
        return None
    tanh, scale, shift = found
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    fits = np.allclose(scale.numpy(), 0.5 * (high - low)) and np.allclose(shift.numpy(), 0.5 * (high + low), atol=1e-6)
    u = tanh.inputs[0]
    return u if fits and isinstance(u, Symbol) else None


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
    direct = GraphNetwork(graph)
    direct.load_state_dict(tensors)
    generator = torch.Generator().manual_seed(0)
    obs = torch.cat([scale * torch.randn(64, size, generator=generator) for scale in (0.1, 1.0, 10.0)])
    with torch.no_grad():
        expected, found = direct(obs), network.head(obs) if normalized else network(obs)
    found = found[:, : expected.shape[1]]
    finite = torch.isfinite(expected)
    return bool(torch.allclose(found[finite], expected[finite], rtol=_SIMPLIFIED, atol=_SIMPLIFIED))
