"""Turns the layers of somebody else's policy into a ``PolicyNetwork`` that computes the same.

A plain perceptron becomes one of ours, which the fused engine trains. A policy that no perceptron expresses (layer
normalisation, a mixture of activations, a log standard deviation bounded other than by one clamp) becomes a graph.

Dimension letters: D observation size, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import DistributionName
from rpg_algorithms.policies.graph import Graph
from rpg_algorithms.policies.graph_ops import GraphError
from rpg_algorithms.policies.network import ACTIVATIONS, NetworkSpec, PolicyNetwork, observation_size, spec_for_spaces
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, to_graph
from rpg_platform.tasks.observed import difference

NO_CLAMP = 1e30  # a clamp of log standard deviations that is none; JSON holds no infinity

GRAPH_ACTIVATIONS = ("relu", "tanh", "elu", "silu", "gelu", "selu", "sigmoid", "softplus", "mish", "leaky_relu")
_ATTRIBUTES: dict[str, dict[str, float | bool]] = {
    "elu": {"alpha": 1.0},
    "gelu": {"tanh": False},
    "leaky_relu": {"slope": 0.01},
}  # torch's defaults


class Linear(NamedTuple):
    """``weight`` ``[out, in]``, ``bias`` ``[out]``, float32."""

    weight: Array
    bias: Array


class Norm(NamedTuple):
    """Layer normalisation with ``weight`` and ``bias`` ``[n]``."""

    weight: Array
    bias: Array
    epsilon: float


class Activation(NamedTuple):
    """One of ``GRAPH_ACTIVATIONS``, with torch's default parameters."""

    name: str


Step = Linear | Norm | Activation


@dataclass(frozen=True)
class FreeLogStd:
    """A log standard deviation that does not depend on the state: ``values`` ``[A]``."""

    values: Array


@dataclass(frozen=True)
class NetworkLogStd:
    """The second half of the network's output is the log standard deviation, kept within bounds.

    Attributes:
        low, high: bounds, nats.
        by: ``clamp``; ``tanh``: ``low + (high - low) (tanh(x) + 1) / 2``; or ``log``: the output is the standard
            deviation itself, clamped to exp(low) and exp(high).
    """

    low: float
    high: float
    by: Literal["clamp", "tanh", "log"] = "clamp"


@dataclass(frozen=True)
class FeaturesLogStd:
    """Noise that is linear in the last hidden layer's features f: ``log_std = log(f² @ variances + epsilon) / 2``.

    Attributes:
        variances: ``[A, H]``.
        epsilon: added to the variance.
        mean_bound: bound on the mean's absolute value; None for none.
    """

    variances: Array
    epsilon: float
    mean_bound: float | None = None


@dataclass(frozen=True)
class Moments:
    """An observation normaliser: ``clip((x - mean) / sqrt(var + epsilon))``.

    Attributes:
        mean, var: ``[D]``.
        count: observations that they come from.
        epsilon: added to the variance.
        clip: bound on the absolute value; None for none.
    """

    mean: Array
    var: Array
    count: float
    epsilon: float
    clip: float | None


@dataclass(frozen=True)
class Policy:
    """A policy as the other library has it.

    Attributes:
        where: the source, for messages.
        steps: from normalised observation to distribution inputs; the last is linear.
        distribution: its family.
        observation_space, action_space: the environment's.
        log_std: how a (squashed) Gaussian's standard deviation comes about; None for a categorical.
        moments: its observation normaliser.
        scale, shift: ``[A]``; the source samples u and the environment gets ``scale u + shift``, clipped. A Gaussian is
            closed under that map, so it goes into the last layer and the log standard deviation: the policy's density
            is then that of the environment's actions.
    """

    where: str
    steps: Sequence[Step]
    distribution: DistributionName
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    log_std: FreeLogStd | NetworkLogStd | FeaturesLogStd | None = None
    moments: Moments | None = None
    scale: Array | None = None
    shift: Array | None = None


def assemble(policy: Policy) -> PolicyNetwork:
    """Builds the network with its weights, frozen and in evaluation mode.

    Raises:
        PriorImportError: the layers do not fit each other, the spaces or the normaliser.
    """
    try:
        base = spec_for_spaces(policy.observation_space, policy.action_space, policy.distribution)
    except ValueError as error:
        raise PriorImportError(f"{policy.where}: {error}") from error
    _check(policy, base)
    steps, log_std, bounds = _in_env_units(policy, base.action_size)
    options: dict[str, Any] = {
        "hidden": tuple(len(step.bias) for step in steps[:-1] if isinstance(step, Linear)) or (64,),
        "state_dependent_std": isinstance(policy.log_std, NetworkLogStd | FeaturesLogStd),
    }
    state: dict[str, torch.Tensor] = {} if log_std is None else {"log_std": _tensor(log_std)}
    activation = _plain(steps)
    one_clamp = bounds is None or (
        isinstance(policy.log_std, NetworkLogStd)
        and policy.log_std.by == "clamp"
        and all(np.ptp(each) == 0.0 for each in bounds)
    )
    if activation is not None and one_clamp and not isinstance(policy.log_std, FeaturesLogStd):
        options["hidden"] = tuple(len(step.bias) for step in steps[:-1] if isinstance(step, Linear))
        options["activation"] = activation
        if bounds is not None:
            options["log_std_bounds"] = (float(bounds[0][0]), float(bounds[1][0]))
        state |= _mlp_state(steps)
    else:
        try:
            graph, tensors = _graph(policy, steps, bounds, base.action_size)
        except GraphError as error:
            raise PriorImportError(f"{policy.where}: {error}") from error
        options["graph"] = graph
        state |= {f"graph.{name}": value for name, value in tensors.items()}
    make_spec = partial(spec_for_spaces, policy.observation_space, policy.action_space, policy.distribution)
    return network_of(make_spec, options, state, policy.moments, policy.where)


def network_of(
    make_spec: Callable[..., NetworkSpec],
    options: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    moments: Moments | None,
    where: str,
) -> PolicyNetwork:
    """Builds a network from its specification and weights, frozen and in evaluation mode.

    Args:
        make_spec: makes the specification of keyword arguments.
        options: those keyword arguments, without the normaliser's.
        state: the weights by name, without the normaliser's.
        moments: the normaliser; None for none.
        where: the source, for messages.

    Raises:
        PriorImportError: the arguments make no specification.
    """
    options, state = {**options, "normalize_observations": moments is not None}, dict(state)
    if moments is not None:
        options |= {"observation_clip": moments.clip, "observation_epsilon": moments.epsilon}
        for name in ("mean", "var", "count"):
            state[f"normalizer.{name}"] = torch.tensor(np.asarray(getattr(moments, name)), dtype=torch.float64)
    try:
        spec = make_spec(**options)
    except ValueError as error:
        raise PriorImportError(f"{where}: {error}") from error
    network = PolicyNetwork(spec)
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _check(policy: Policy, base: NetworkSpec) -> None:
    where, linear = policy.where, [step for step in policy.steps if isinstance(step, Linear)]
    if not linear or not isinstance(policy.steps[-1], Linear):
        raise PriorImportError(f"{where}: its network has no linear output layer")
    for before, after in pairwise(linear):
        if after.weight.shape[1] != before.weight.shape[0]:
            raise PriorImportError(
                f"{where}: a layer with {before.weight.shape[0]} outputs is followed by one with "
                f"{after.weight.shape[1]} inputs"
            )
    size, taken = observation_size(policy.observation_space), linear[0].weight.shape[1]
    if taken != size:
        raise PriorImportError(f"{where}: in {policy.observation_space} {difference(taken, size)}")
    outputs = base.dist_inputs_size if isinstance(policy.log_std, NetworkLogStd) else base.action_size
    if len(linear[-1].bias) != outputs:
        raise PriorImportError(
            f"{where}: its network gives {len(linear[-1].bias)} numbers; actions in {policy.action_space} need "
            f"{outputs}"
        )
    if policy.moments is not None and not policy.moments.mean.shape == policy.moments.var.shape == (size,):
        raise PriorImportError(
            f"{where}: its normaliser has {policy.moments.mean.size} means and {policy.moments.var.size} variances, "
            f"its network takes {size} numbers"
        )
    if isinstance(policy.log_std, FeaturesLogStd) and policy.log_std.variances.shape != linear[-1].weight.shape:
        raise PriorImportError(
            f"{where}: its noise has the shape {list(policy.log_std.variances.shape)}, its output layer "
            f"{list(linear[-1].weight.shape)}"
        )
    if isinstance(policy.log_std, FreeLogStd) and policy.log_std.values.shape != (base.action_size,):
        raise PriorImportError(
            f"{where}: {policy.log_std.values.size} log standard deviations for {base.action_size} action dimensions"
        )


def _in_env_units(policy: Policy, a: int) -> tuple[list[Step], Array | None, tuple[Array, Array] | None]:
    """Moves scale and shift into the last layer; returns the steps, a free log std, the bounds ``[A]`` of another."""
    scale = np.ones(a) if policy.scale is None else np.asarray(policy.scale, dtype=np.float64)
    shift = np.zeros(a) if policy.shift is None else np.asarray(policy.shift, dtype=np.float64)
    steps, last = list(policy.steps), policy.steps[-1]
    assert isinstance(last, Linear)
    if policy.scale is not None or policy.shift is not None:
        weight, bias = last.weight.astype(np.float64), last.bias.astype(np.float64)
        weight[:a] *= scale[:, None]
        bias[:a] = bias[:a] * scale + shift
        if isinstance(policy.log_std, NetworkLogStd):
            if policy.log_std.by == "log":
                weight[a:] *= scale[:, None]
                bias[a:] *= scale
            else:
                bias[a:] += np.log(scale)
        steps[-1] = Linear(weight.astype(np.float32), bias.astype(np.float32))
    if isinstance(policy.log_std, FreeLogStd):
        return steps, policy.log_std.values + np.log(scale), None
    if isinstance(policy.log_std, NetworkLogStd):
        if policy.log_std.by == "tanh":
            assert policy.scale is None
            assert policy.shift is None
        offset = np.log(scale)
        low, high = (np.clip(each, -NO_CLAMP, NO_CLAMP) for each in (policy.log_std.low, policy.log_std.high))
        return steps, None, (low + offset, high + offset)
    return steps, None, None


def _plain(steps: Sequence[Step]) -> str | None:
    """Returns the one activation of a perceptron such as ``make_mlp`` builds; None for anything else."""
    hidden = steps[:-1]
    kinds = [type(step) for step in hidden]
    if kinds != [Linear, Activation] * (len(hidden) // 2):
        return None
    names = {step.name for step in hidden if isinstance(step, Activation)} or {"relu"}
    return names.pop() if len(names) == 1 and names <= set(ACTIVATIONS) else None


def _mlp_state(steps: Sequence[Step]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for index, step in enumerate(step for step in steps if isinstance(step, Linear)):
        state[f"mlp.{2 * index}.weight"] = _tensor(step.weight)
        state[f"mlp.{2 * index}.bias"] = _tensor(step.bias)
    return state


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _graph(
    policy: Policy, steps: Sequence[Step], bounds: tuple[Array, Array] | None, a: int
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """Writes steps and log standard deviation as a graph; returns it and its tensors by name."""
    b = GraphBuilder(observation_size(policy.observation_space))
    features, out = b.obs, b.obs
    for step in steps:
        features = out
        match step:
            case Linear(weight, bias):
                out = b.symbol("linear", out, _constant("weight", weight), _constant("bias", bias))
            case Norm(weight, bias, epsilon):
                weights = _constant("norm_weight", weight), _constant("norm_bias", bias)
                out = b.symbol("layer_norm", out, *weights, dims=1, eps=epsilon)
            case Activation(name):
                if name not in GRAPH_ACTIVATIONS:
                    expected = ", ".join(GRAPH_ACTIVATIONS)
                    raise PriorImportError(
                        f"{policy.where}: activation {name!r} is not read; expected one of {expected}"
                    )
                out = b.symbol(name, out, **_ATTRIBUTES.get(name, {}))
    noise = policy.log_std
    if isinstance(noise, FeaturesLogStd):
        if noise.mean_bound is not None:
            out = b.symbol("clamp", out, min=-noise.mean_bound, max=noise.mean_bound)
        squares = b.symbol("mul", features, features)
        variance = b.symbol("linear", squares, _constant("variances", noise.variances))
        positive = b.symbol("maximum", variance, 0.0)  # whatever the variances are trained to
        return to_graph([out, b.symbol("mul", b.symbol("log", b.symbol("add", positive, noise.epsilon)), 0.5)])
    if bounds is None:
        return to_graph([out])
    mean, log_std = (b.symbol("slice", out, axis=1, start=start, stop=start + a, step=1) for start in (0, a))
    assert isinstance(noise, NetworkLogStd)
    if noise.by == "tanh":
        shifted = b.symbol("mul", b.symbol("add", b.symbol("tanh", log_std), 1.0), 0.5 * (noise.high - noise.low))
        return to_graph([mean, b.symbol("add", shifted, noise.low)])
    if noise.by == "log":
        bounds = np.exp(bounds[0].clip(-80.0, 80.0)), np.exp(bounds[1].clip(-80.0, 80.0))
    for op, hint, bound in (("maximum", "lowest", bounds[0]), ("minimum", "highest", bounds[1])):
        log_std = b.symbol(op, log_std, Constant(_tensor(bound), hint))
    return to_graph([mean, b.symbol("log", log_std) if noise.by == "log" else log_std])


def _constant(hint: str, array: Array) -> Constant:
    """Makes a trainable weight."""
    return Constant(_tensor(array), hint, trainable=True)
