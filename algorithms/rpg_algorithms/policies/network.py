"""The policy network and its specification.

One network class serves the policy in training, the frozen prior and the policy in a bundle on disk.

Dimension letters: B batch, D observation size, K conditioned weights, A action dimensions, P size of ``dist_inputs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rpg_algorithms.maths.conditioned import (
    Conditioned,
    features,
    features_size,
    inputs,
    inputs_size,
    multiplying,
    told,
)
from rpg_algorithms.maths.distributions import Categorical, DiagonalGaussian, DistributionName, make_distribution
from rpg_algorithms.policies.graph import Graph, GraphNetwork
from rpg_algorithms.policies.running import RunningMoments
from rpg_algorithms.policies.spaces import number_to_json

ActivationName = Literal["relu", "tanh", "elu", "silu"]
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}
OBSERVATION_EPSILON = 1e-8
_BOUNDS = ("action_low", "action_high")


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that fixes a policy network's shape and meaning, apart from its weights.

    Attributes:
        observation_size: D, the size of the flattened (Box) or one-hot (Discrete) observation.
        action_size: A for Box, the number of actions for Discrete.
        distribution: family of the action distribution.
        hidden: widths of the hidden layers. (With a graph they are the critic's, unless the critic has its own.)
        activation: activation after each hidden layer.
        state_dependent_std: the network gives the log standard deviation too (clamped to ``log_std_bounds``, unless it
            comes from a graph, which holds its own clamp); otherwise it is a free parameter.
        log_std_init: initial log standard deviation of a free parameter, nats.
        log_std_bounds: clamp of a state-dependent log standard deviation, nats.
        normalize_observations: the network holds running moments and normalises observations with them.
        observation_clip: bound on a normalised observation's absolute value; None for no bound.
        observation_epsilon: added to the observation's variance.
        action_low, action_high: the environment's bounds per action dimension (Box only).
        action_start: first action of a Discrete space.
        graph: the network, if it is not a perceptron of these layers; it takes normalised observations.
        context: the customization weights that the network is told, in K columns after the observation's; see
            ``maths.conditioned``.
    """

    observation_size: int
    action_size: int
    distribution: DistributionName
    hidden: tuple[int, ...] = (128, 128)
    activation: ActivationName = "relu"
    state_dependent_std: bool = False
    log_std_init: float = -2.0
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)
    normalize_observations: bool = True
    observation_clip: float | None = 10.0
    observation_epsilon: float = OBSERVATION_EPSILON
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    action_start: int = 0
    graph: Graph | None = None
    context: tuple[Conditioned, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            ValueError: names the field and its value.
        """
        for name in ("hidden", "log_std_bounds", "action_low", "action_high"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.distribution not in get_args(DistributionName):
            raise ValueError(f"distribution={self.distribution!r}: expected one of {get_args(DistributionName)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: expected one of {tuple(ACTIVATIONS)}")
        for name in ("observation_size", "action_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden={self.hidden}: expected positive widths")
        if self.distribution == "squashed_gaussian" and not (
            self.action_low and self.action_high and np.all(np.isfinite(self.action_low + self.action_high))
        ):
            raise ValueError(
                f"distribution='squashed_gaussian' with action_low={self.action_low}, action_high={self.action_high}: "
                "expected finite bounds, to which it rescales the tanh of its samples (a gaussian needs none)"
            )
        if self.graph is not None:
            self._check_graph(self.graph)
        self._check_context()

    def _check_context(self) -> None:
        names = [each.name for each in self.context]
        if len(set(names)) < len(names):
            raise ValueError(f"context: weights {', '.join(names)}: expected different names")
        if self.graph is not None and names:
            raise ValueError(
                f"{', '.join(names)} conditioned: the network is a graph, which has no first layer to add inputs to; "
                "train at fixed weights, start from a prior that is a perceptron, or set start_from_prior=False"
            )

    def _check_graph(self, graph: Graph) -> None:
        shapes, wanted = graph.check(self.observation_size), (None, self.action_size)
        count = 2 if self.state_dependent_std and self.distribution != "categorical" else 1
        found = [shapes[name] for name in graph.outputs]
        if found != [wanted] * count:
            raise ValueError(
                f"graph: outputs of shapes {found}, expected {count} of {wanted} (distribution={self.distribution!r}, "
                f"state_dependent_std={self.state_dependent_std})"
            )

    @property
    def row_size(self) -> int:
        """D + K: columns of what the network is given."""
        return self.observation_size + len(self.context)

    @property
    def input_size(self) -> int:
        """Columns of what its first layer is given: D, or the inputs of ``maths.conditioned``."""
        return inputs_size(self.observation_size, len(self.context), len(self.multiplying))

    @property
    def multiplying(self) -> tuple[int, ...]:
        """Which of the weights in ``context`` multiply the observation in the first layer's inputs."""
        return multiplying(self.context, self.distribution != "categorical" and not self.state_dependent_std)

    @property
    def dist_inputs_size(self) -> int:
        """P: logits for a categorical, mean and log standard deviation otherwise."""
        return self.action_size if self.distribution == "categorical" else 2 * self.action_size

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, as older bundles have it where there is neither a ``graph`` nor a ``context``.

        Infinite bounds of actions are the strings ``inf`` and ``-inf``.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        graph: Graph | None = values.pop("graph")
        context: tuple[Conditioned, ...] = values.pop("context")
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        for name in _BOUNDS:
            data[name] = None if data[name] is None else [number_to_json(x) for x in data[name]]
        data |= {} if graph is None else {"graph": graph.to_json()}
        return data | ({"context": [each.to_dict() for each in context]} if context else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSpec:
        """Reads the dictionary of ``to_dict``. Raises ValueError for unknown or missing keys."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"network specification has unknown keys {unknown}")
        try:
            graph = None if data.get("graph") is None else Graph.from_json(data["graph"])
            bounds = {k: [float(x) for x in data[k]] for k in _BOUNDS if data.get(k) is not None}
            context = tuple(Conditioned(**each) for each in data.get("context") or ())
            for each in context:
                each.check(each.name)
            return cls(**{**data, **bounds, "graph": graph, "context": context})
        except TypeError as error:
            raise ValueError(f"network specification is incomplete: {error}") from error

    def check_compatible(self, other: NetworkSpec, what: str) -> None:
        """Raises ValueError unless ``other`` observes and acts in the same spaces.

        One may be ``gaussian`` and the other ``squashed_gaussian`` (see ``comparison``).
        """
        names = ["observation_size", "action_size", "action_start"]
        if "categorical" in (self.distribution, other.distribution):
            names.append("distribution")
        for name in names:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"{what}: {name} is {getattr(other, name)!r}, expected {getattr(self, name)!r}")


def spec_for_spaces(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    distribution: DistributionName | None = None,
    **options: Any,
) -> NetworkSpec:
    """Returns the network specification that fits two gymnasium spaces.

    Args:
        observation_space: Box (flattened) or Discrete (one-hot).
        action_space: Box of one dimension, or Discrete.
        distribution: family; default ``gaussian`` for Box and ``categorical`` for Discrete.
        **options: further fields of ``NetworkSpec``.

    Raises:
        ValueError: the space is of another kind, or the family does not fit it.
    """
    size = observation_size(observation_space)
    if isinstance(action_space, gym.spaces.Discrete):
        if distribution not in (None, "categorical"):
            raise ValueError(f"distribution={distribution!r} does not fit the action space {action_space}")
        return NetworkSpec(size, int(action_space.n), "categorical", action_start=int(action_space.start), **options)
    if isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
        if distribution == "categorical":
            raise ValueError(f"distribution={distribution!r} does not fit the action space {action_space}")
        return NetworkSpec(
            size,
            int(action_space.shape[0]),
            distribution or "gaussian",
            action_low=tuple(float(x) for x in action_space.low),
            action_high=tuple(float(x) for x in action_space.high),
            **options,
        )
    raise ValueError(f"action space {action_space}: expected Box of one dimension or Discrete")


def observation_size(space: gym.Space[Any]) -> int:
    """Returns the size of an observation as the network sees it. Raises ValueError for unsupported spaces."""
    if isinstance(space, gym.spaces.Box):
        return int(np.prod(space.shape, dtype=int))
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    raise ValueError(
        f"observation space {space}: expected Box or Discrete; flatten it with gymnasium's FlattenObservation"
    )


class PolicyNetwork(nn.Module):
    """Observation normaliser, network and head: observations ``[B, D]`` → ``dist_inputs`` ``[B, P]``.

    One that is told weights takes ``[B, D + K]``: the observation, then ``u`` of each weight. The first layer's weights
    and bias are linear functions of it and the log standard deviation a quadratic one, so at fixed weights it is a
    plain network (``folded``).

    Attributes:
        mlp: the multilayer perceptron; missing if the specification has a graph.
        graph: the graph; None if the network is a perceptron.
    """

    mlp: nn.Sequential

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalizer = RunningMoments((spec.observation_size,)) if spec.normalize_observations else None
        head = spec.dist_inputs_size
        self.log_std: nn.Parameter | None = None
        if spec.distribution != "categorical" and not spec.state_dependent_std:
            head = spec.action_size
            self.log_std = nn.Parameter(torch.full((spec.action_size,), spec.log_std_init))
        self.log_std_context: nn.Parameter | None = None
        if self.log_std is not None and spec.context:
            self.log_std_context = nn.Parameter(torch.zeros(spec.action_size, features_size(len(spec.context))))
        self.graph = None if spec.graph is None else GraphNetwork(spec.graph)
        if self.graph is None:
            self.mlp = make_mlp(spec.input_size, spec.hidden, head, spec.activation)

    def normalize(self, obs: Tensor) -> Tensor:
        """What the first layer is given: ``[B, D]`` normalised and clipped, if there is a normaliser.

        Of a network that is told weights ``[B, I]``, the inputs of ``maths.conditioned``.
        """
        size = self.spec.observation_size
        x = obs[..., :size]
        if self.normalizer is not None:
            x = self._normalized(self.normalizer, x)
        return inputs(x, obs[..., size:], self.spec.multiplying) if self.spec.context else x

    def _normalized(self, normalizer: RunningMoments, obs: Tensor) -> Tensor:
        # In float64: an observation that hardly varies leaves few digits of float32 after its mean is taken off.
        std = (normalizer.var + self.spec.observation_epsilon).sqrt()
        x = (obs.to(std.dtype) - normalizer.mean) / std
        clip = self.spec.observation_clip
        return (x if clip is None else x.clamp(-clip, clip)).to(obs.dtype)

    def head(self, normalized_obs: Tensor) -> Tensor:
        """``dist_inputs`` ``[B, P]`` of what ``normalize`` returns."""
        out: Tensor = self.mlp(normalized_obs) if self.graph is None else self.graph(normalized_obs)
        if self.log_std is not None and self.log_std_context is not None:
            u = normalized_obs[..., self.spec.observation_size : self.spec.row_size]
            shift = features(u) @ self.log_std_context.T
            return torch.cat((out, self.log_std + shift), dim=-1)
        if self.log_std is not None:
            return torch.cat((out, self.log_std.expand_as(out)), dim=-1)
        if self.spec.distribution == "categorical" or self.graph is not None:
            return out
        mean, log_std = out.chunk(2, dim=-1)
        return torch.cat((mean, log_std.clamp(*self.spec.log_std_bounds)), dim=-1)

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.normalize(obs))

    @torch.no_grad()
    def start_from(self, other: PolicyNetwork) -> None:
        """Takes a plain network's weights: at every weight that it is told it then acts as ``other`` does."""
        state = other.state_dict()
        if self.spec.context:
            first = state["mlp.0.weight"]
            added = first.new_zeros(len(first), self.spec.input_size - self.spec.observation_size)
            state["mlp.0.weight"] = torch.cat((first, added), dim=1)
            if self.log_std_context is not None:
                state["log_std_context"] = torch.zeros_like(self.log_std_context)
        self.load_state_dict(state)

    @torch.no_grad()
    def folded(self, weights: Mapping[str, float]) -> PolicyNetwork:
        """The plain network that this one is at fixed weights: what it is told is constant, so it joins the parameters.

        Args:
            weights: a value within its range of each weight in ``spec.context``.

        Raises:
            ValueError: a weight is missing, unknown or outside its range.
        """
        constants = told(self.spec.context, weights)
        if not self.spec.context:
            return self
        state, size, row = dict(self.state_dict()), self.spec.observation_size, self.spec.row_size
        first = state["mlp.0.weight"].double()
        u = constants.to(first.device)
        which = list(self.spec.multiplying)
        slopes = first[:, row:].unflatten(1, (len(which), size))
        state["mlp.0.weight"] = (first[:, :size] + torch.einsum("hkd,k->hd", slopes, u[which])).float()
        state["mlp.0.bias"] = (state["mlp.0.bias"].double() + first[:, size:row] @ u).float()
        shift = state.pop("log_std_context", None)
        if shift is not None:
            state["log_std"] = (state["log_std"].double() + shift.double() @ features(u)).float()
        plain = PolicyNetwork(replace(self.spec, context=())).to(first.device)
        plain.load_state_dict(state)
        return plain.requires_grad_(False).eval()

    def distribution(self, obs: Tensor) -> DiagonalGaussian | Categorical:
        """The action distribution at raw observations ``[B, D]``."""
        return make_distribution(self.spec.distribution, self.forward(obs))


def make_mlp(size_in: int, hidden: tuple[int, ...], size_out: int, activation: str) -> nn.Sequential:
    """Makes linear layers with the activation between them, in torch's default initialisation."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(size_in, width), ACTIVATIONS[activation]()]
        size_in = width
    return nn.Sequential(*layers, nn.Linear(size_in, size_out))
