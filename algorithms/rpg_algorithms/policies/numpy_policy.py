"""Acts from numpy: the policy's forward pass without torch's cost per call.

For the small networks of this field, a torch call costs several times the arithmetic that it does. ``NumpyPolicy``
runs the same network on the same weights; tests hold the two equal.

Dimension letters: N environments, D observation size, A action dimensions, P size of ``dist_inputs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import HALF_LOG_2PI, LOG_2
from rpg_algorithms.policies.graph import NumpyGraph
from rpg_algorithms.policies.graph_ops import np_elu, np_log_softmax, np_softplus
from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork
from rpg_algorithms.policies.told import FoldedRows

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, np.float32(0.0), out=x),
    "tanh": lambda x: np.tanh(x, out=x),
    "elu": np_elu,
    "silu": lambda x: np.asarray(x / (1.0 + np.exp(-x))),
}
"""The activations of a perceptron by name; each may overwrite its argument and returns the result."""


def log_tanh_slope(u: Array) -> Array:
    """``log(1 - tanh(u)^2)`` of each entry, as ``distributions.log_tanh_slope``."""
    return np.asarray(2.0 * (np.float32(LOG_2) - u - np_softplus(-2.0 * u)))


class NumpyPolicy:
    """A snapshot of a ``PolicyNetwork`` that acts on numpy arrays."""

    def __init__(self, network: PolicyNetwork) -> None:
        self.spec: NetworkSpec = network.spec
        self._activation = ACTIVATIONS[self.spec.activation]
        state = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
        self._layers: list[tuple[Array, Array]] = []
        self._forward: Callable[[Array], Array]
        if network.graph is None:
            indices = sorted({int(k.split(".")[1]) for k in state if k.startswith("mlp.")})
            self._layers = [
                (np.ascontiguousarray(state[f"mlp.{i}.weight"].T), state[f"mlp.{i}.bias"].copy()) for i in indices
            ]
            self._forward = self._perceptron
        else:
            self._forward = NumpyGraph(network.graph)
        self._log_std = state["log_std"].copy() if "log_std" in state else None
        self._told: FoldedRows | None = None
        if self.spec.context:
            told_std = None
            if self._log_std is not None:  # it is an output like another
                told_std, self._log_std = (self._log_std, state["log_std_context"].copy()), None
            self._told = FoldedRows(*self._layers[0], self.spec.observation_size, self.spec.multiplying, told_std)
        self._mean = self._inverse_std = None
        if network.normalizer is not None:
            self._mean = state["normalizer.mean"].copy()  # float64, see PolicyNetwork.normalize
            self._inverse_std = 1.0 / np.sqrt(state["normalizer.var"] + self.spec.observation_epsilon)
        if self.spec.action_low is not None and self.spec.action_high is not None:
            self._low = np.array(self.spec.action_low, dtype=np.float32)
            self._high = np.array(self.spec.action_high, dtype=np.float32)

    def dist_inputs(self, obs: Array) -> Array:
        """``[N, P]`` distribution inputs at raw float32 observations ``[N, D]``."""
        return self.complete(self.outputs(obs))

    def complete(self, outputs: Array) -> Array:
        """Returns distribution inputs ``[..., P]`` from the network's outputs; adds a state-independent log std."""
        if self._log_std is None:
            return outputs
        return np.concatenate((outputs, np.broadcast_to(self._log_std, outputs.shape)), axis=-1)

    @property
    def outputs_size(self) -> int:
        """P': size of the network's own outputs."""
        return self.spec.dist_inputs_size if self._log_std is None else self.spec.action_size

    def outputs(self, obs: Array) -> Array:
        """The network's own outputs ``[N, P']`` at raw float32 observations ``[N, D]``; see ``complete``."""
        x, size = obs, self.spec.observation_size
        if self._mean is not None:
            x = (x[..., :size] - self._mean) * self._inverse_std
            clip = self.spec.observation_clip
            if clip is not None:
                np.minimum(x, clip, out=x)
                np.maximum(x, -clip, out=x)
            x = x.astype(np.float32)
        if self._told is None:
            return self._forward(x)
        hidden, log_std = self._told(x[..., :size], obs[..., size:])
        out = self._after_first(hidden)
        return out if log_std is None else np.concatenate((out, log_std), axis=-1)

    def _perceptron(self, x: Array) -> Array:
        weight, bias = self._layers[0]
        x = x @ weight
        x += bias
        return self._after_first(x)

    def _after_first(self, x: Array) -> Array:
        """The perceptron's outputs from those of its first layer."""
        for weight, bias in self._layers[1:]:
            x = self._activation(x) @ weight
            x += bias
        if self.spec.state_dependent_std and self.spec.distribution != "categorical":
            a = self.spec.action_size
            np.clip(x[..., a:], *self.spec.log_std_bounds, out=x[..., a:])
        return x

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Draws noise for ``shape`` samples at once: Gumbel ``[*shape, K]``, or normal ``[*shape, A]``.

        Normal noise is already multiplied by the standard deviation, if that is state-independent.
        """
        full = (*shape, self.spec.action_size)
        if self.spec.distribution == "categorical":
            return rng.gumbel(size=full).astype(np.float32)
        standard: Array = rng.standard_normal(full, dtype=np.float32)
        if self._log_std is not None:
            standard *= np.exp(self._log_std)
        return standard

    def sample(self, outputs: Array, noise: Array) -> NDArray[Any]:
        """Sampled actions (before clipping or tanh) from the network's outputs ``[N, P']`` and a step's ``noise``."""
        if self.spec.distribution == "categorical":
            return np.asarray(np.argmax(outputs + noise, axis=-1))
        if self._log_std is not None:
            return np.asarray(outputs + noise)
        a = self.spec.action_size
        result: Array = outputs[..., :a] + np.exp(outputs[..., a:]) * noise
        return result

    def mode(self, outputs: Array) -> NDArray[Any]:
        """The deterministic actions, in the same space as samples."""
        if self.spec.distribution == "categorical":
            return np.asarray(np.argmax(outputs, axis=-1))
        return outputs[..., : self.spec.action_size]

    def log_prob(self, dist_inputs: Array, actions: NDArray[Any]) -> Array:
        """``[...]`` log-probability of sampled actions, nats; inputs ``[..., P]``."""
        if self.spec.distribution == "categorical":
            return np.take_along_axis(np_log_softmax(dist_inputs), actions[..., None], axis=-1)[..., 0]
        a = self.spec.action_size
        mean, log_std = dist_inputs[..., :a], dist_inputs[..., a:]
        z = (actions - mean) * np.exp(-log_std)
        logp: Array = (-0.5 * np.square(z) - log_std - np.float32(HALF_LOG_2PI)).sum(-1)
        if self.spec.distribution == "squashed_gaussian":
            logp = logp - log_tanh_slope(actions).sum(-1)
        return logp

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """The actions that the environment receives: clipped, tanh-squashed to its bounds, or shifted to its start."""
        if self.spec.distribution == "categorical":
            return np.asarray(actions + self.spec.action_start)
        if self.spec.distribution == "squashed_gaussian":
            actions = self._low + 0.5 * (np.tanh(actions) + 1.0) * (self._high - self._low)
        # A squashed action may be rounded past its bound.
        return np.asarray(np.minimum(np.maximum(actions, self._low), self._high))
