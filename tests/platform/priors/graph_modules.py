"""Policies as others write them in torch, for the importers of TorchScript, ONNX and functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.priors.imported import ImportOptions

D, A, K = 6, 3, 4
OBSERVATIONS = gym.spaces.Box(-np.inf, np.inf, (D,), np.float64)
ACTIONS = gym.spaces.Box(np.array([-1.0, -2.0, 0.0], np.float32), np.array([1.0, 0.5, 3.0], np.float32))
CONTINUOUS = ImportOptions(observation_space=OBSERVATIONS, action_space=ACTIONS)
DISCRETE = ImportOptions(observation_space=OBSERVATIONS, action_space=gym.spaces.Discrete(K))


def mlp(sizes: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers)


class Free(nn.Module):
    """A perceptron for the mean, a free log standard deviation."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.body, self.mean = mlp([D, 16, 8], activation), nn.Linear(8, A)
        self.log_std = nn.Parameter(torch.tensor([-0.5, 0.25, 0.1]))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(self.body(obs))
        return mean, self.log_std.expand_as(mean)


class Repeated(Free):
    """The same, with other idioms for the free parameter."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(self.body(obs))
        return mean, torch.clamp(self.log_std, -2.0, 0.2) + torch.zeros_like(mean)


class Unbatched(Free):
    """The same; the log standard deviation is returned as the parameter that it is."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(self.body(obs)), self.log_std


class TwoHeads(nn.Module):
    """Two heads on one body, as SAC has them: the log standard deviation is clamped."""

    def __init__(
        self, activation: Callable[[], nn.Module] = nn.ReLU, bounds: tuple[float, float] | None = (-20, 2)
    ) -> None:
        super().__init__()
        self.body, self.mean, self.log_std = mlp([D, 16, 8], activation), nn.Linear(8, A), nn.Linear(8, A)
        self.low, self.high = bounds or (0.0, 0.0)
        self.bounded = bounds is not None

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(obs)
        log_std = self.log_std(hidden)
        if self.bounded:
            log_std = torch.clamp(log_std, self.low, self.high)
        return self.mean(hidden), log_std


class OneTensor(nn.Module):
    """Mean and log standard deviation in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp([D, 16], nn.ELU), nn.Linear(16, 2 * A))

    def forward(self, obs: Tensor) -> Tensor:
        return self.body(obs)


class Chunked(OneTensor):
    """The same in two parts, the second scaled by a tanh as CleanRL's SAC has it."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = torch.chunk(self.body(obs), 2, dim=-1)
        return mean, -5.0 + 3.5 * (torch.tanh(log_std) + 1.0)


class Normalised(nn.Module):
    """A normaliser inside, held as buffers."""

    def __init__(self, clip: float | None = 5.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(D, dtype=torch.float64))
        self.register_buffer("var", torch.rand(D, dtype=torch.float64) + 0.1)
        self.clip = clip or 0.0
        self.inner = TwoHeads(nn.SiLU)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        obs = (obs - self.mean.to(torch.float32)) / torch.sqrt(self.var + 1e-8).to(torch.float32)
        if self.clip > 0.0:
            obs = torch.clamp(obs, -self.clip, self.clip)
        return self.inner(obs)


class Residual(nn.Module):
    """Layer norm and silu, residual connections, means over a list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(D, 16), nn.LayerNorm(16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.last = nn.Linear(16, 2 * A)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = functional.silu(self.norm(self.first(obs)))
        for block in self.blocks:
            hidden = hidden + functional.gelu(block(hidden))
        mean, log_std = self.last(hidden).split(3, dim=-1)
        return mean, log_std.clamp(min=-5.0) + 2.5  # beyond the bounds that a perceptron has by default


class Many(nn.Module):
    """Every activation there is, in evaluation mode, in place or not."""

    def __init__(self) -> None:
        super().__init__()
        activations = [
            nn.ReLU(True),
            nn.Tanh(),
            nn.ELU(0.7),
            nn.SiLU(),
            nn.GELU(),
            nn.GELU("tanh"),
            nn.Softplus(2.0),
            nn.SELU(),
        ]
        activations += [
            nn.LeakyReLU(0.2),
            nn.Hardtanh(-2.0, 2.0),
            nn.Mish(),
            nn.PReLU(),
            nn.PReLU(8),
            nn.Sigmoid(),
            nn.ReLU6(),
        ]
        activations += [
            nn.Hardswish(),
            nn.Hardsigmoid(),
            nn.LogSigmoid(),
            nn.CELU(1.5),
            nn.Dropout(0.5),
            nn.BatchNorm1d(8),
        ]
        self.layers = nn.Sequential(nn.Linear(D, 8), *(nn.Sequential(each, nn.Linear(8, 8)) for each in activations))
        self.last = nn.Linear(8, 2 * A)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.orthogonal_(parameter, 1.2)

    def forward(self, obs: Tensor) -> Tensor:
        return self.last(self.layers(obs))


class Attention(nn.Module):
    """Three parts of the observation attend to each other: views, transposed products, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(2, 4), nn.Linear(4, A)
        self.log_std = nn.Parameter(torch.full((1, A), -0.3))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        parts = torch.tanh(self.embed(obs.view(obs.shape[0], 3, 2)))
        weights = torch.softmax(parts @ parts.transpose(1, 2) / 2.0, dim=-1)
        mean = self.last((weights @ parts).mean(dim=1))
        return mean, self.log_std.repeat(obs.shape[0], 1)


class Sliced(nn.Module):
    """Parts of the observation, constants beside it, a product of a matrix in torch's older spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.tensor([4, 0]))
        self.matrix = nn.Parameter(torch.randn(8, 2 * A))
        self.bias = nn.Parameter(torch.randn(2 * A))

    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        parts = [obs[:, 1:4] ** 2, obs[:, self.features], obs[..., -1:].abs().sqrt(), torch.ones_like(obs[:, :2])]
        out = torch.addmm(self.bias, torch.tanh(torch.cat(parts, dim=1)), self.matrix)
        return {"mean": out[:, :3], "log_std": out[:, 3:], "norm": out.cumsum(dim=1)}


class Logits(nn.Module):
    """Discrete actions."""

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp([D, 16], nn.Tanh), nn.Linear(16, K))
        self.probabilities = probabilities

    def forward(self, obs: Tensor) -> Tensor:
        logits = self.body(obs)
        return torch.softmax(logits, dim=-1) if self.probabilities else logits


class Deterministic(nn.Module):
    """TD3's actor: a tanh scaled to the bounds; or an action as it is."""

    def __init__(self, tanh: bool = True) -> None:
        super().__init__()
        self.body, self.tanh = nn.Sequential(mlp([D, 16], nn.ReLU), nn.Linear(16, A)), tanh
        self.register_buffer("low", torch.from_numpy(ACTIONS.low))
        self.register_buffer("high", torch.from_numpy(ACTIONS.high))

    def forward(self, obs: Tensor) -> Tensor:
        action = self.body(obs)
        return self.low + 0.5 * (torch.tanh(action) + 1.0) * (self.high - self.low) if self.tanh else action


@dataclass(frozen=True)
class Case:
    """A module, and whether it is a plain perceptron to us.

    Attributes:
        make: makes the module.
        plain: fields of the specification that it becomes; None where it stays a graph.
        options: what the user says.
    """

    make: Callable[[], nn.Module]
    plain: dict[str, Any] | None
    options: ImportOptions = field(default=CONTINUOUS)

    def module(self, seed: int = 0) -> nn.Module:
        """The module, in evaluation mode."""
        torch.manual_seed(seed)
        module = self.make().eval()
        with torch.no_grad():
            for name, buffer in module.named_buffers():  # as after training
                if name.endswith("running_mean"):
                    buffer.normal_()
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2.0)
        return module


CASES: dict[str, Case] = {
    "free": Case(Free, {"hidden": (16, 8), "activation": "tanh", "state_dependent_std": False}),
    "free, repeated": Case(Repeated, {"hidden": (16, 8), "activation": "tanh", "state_dependent_std": False}),
    "free, unbatched": Case(Unbatched, {"hidden": (16, 8), "state_dependent_std": False}),
    "two heads": Case(TwoHeads, {"hidden": (16, 8), "activation": "relu", "log_std_bounds": (-20.0, 2.0)}),
    "two heads, unclamped": Case(
        lambda: TwoHeads(nn.Tanh, None), {"hidden": (16, 8), "activation": "tanh", "log_std_bounds": (-1e30, 1e30)}
    ),
    "one tensor": Case(OneTensor, {"hidden": (16,), "activation": "elu", "state_dependent_std": True}),
    "normalised": Case(
        Normalised, {"hidden": (16, 8), "activation": "silu", "normalize_observations": True, "observation_clip": 5.0}
    ),
    "normalised, unclipped": Case(lambda: Normalised(None), {"observation_clip": None, "normalize_observations": True}),
    "logits": Case(Logits, {"hidden": (16,), "distribution": "categorical"}, DISCRETE),
    "gelu": Case(lambda: Free(nn.GELU), None),
    "chunked": Case(Chunked, None),
    "residual": Case(Residual, None),
    "many": Case(Many, None),
    "attention": Case(Attention, None),
    "sliced": Case(Sliced, None),
}


def states(n: int = 1_000, seed: int = 1) -> Tensor:
    """Observations of several magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.1, 1.0, 4.0]).repeat(n)[:n, None]
    return scale * torch.randn(n, D, generator=generator)


def expected_inputs(module: Any, obs: Tensor) -> Tensor:
    """Distribution inputs that the module itself gives."""
    with torch.no_grad():
        result = module(obs)
    if isinstance(result, dict):
        result = (result["mean"], result["log_std"])
    if isinstance(result, Tensor):
        return result
    mean, log_std = result
    return torch.cat((mean, log_std.expand_as(mean)), dim=-1)


def assert_same_policy(network: PolicyNetwork, expected: Tensor, obs: Tensor, tolerance: float = 1e-5) -> None:
    """Distribution inputs, and the log-probabilities of sampled actions, on every state."""
    with torch.no_grad():
        found = network(obs)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        own = network.distribution(obs)
        actions = own.sample()
        theirs = type(own).from_inputs(expected)
        torch.testing.assert_close(own.log_prob(actions), theirs.log_prob(actions), atol=10 * tolerance, rtol=tolerance)
