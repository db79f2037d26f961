"""Action distributions over plain tensors.

A distribution is built from the ``dist_inputs`` a policy network returns and works on *sampled* actions:

- ``gaussian``: the unbounded sample u; the environment gets it clipped to its bounds, the log-probability is that of u.
- ``squashed_gaussian``: the sample u before tanh; its log-probability is the density of tanh(u) in (-1, 1)^A, which
  stays finite and exact however close tanh(u) comes to a bound. The environment gets tanh(u) rescaled to its bounds.
- ``categorical``: the index of the action.

Dimension letters: ``...`` any batch, A action dimensions, K actions. Log-probabilities, entropies and divergences
are in nats. Gradient flows through the parameters everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

DistributionName = Literal["gaussian", "squashed_gaussian", "categorical"]
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
LOG_2 = math.log(2.0)


def log_tanh_slope(u: Tensor) -> Tensor:
    """Logarithm of tanh's slope, ``log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))``, exact for large ``|u|``."""
    return 2.0 * (LOG_2 - u - functional.softplus(-2.0 * u))


class Distribution(Protocol):
    """What every action distribution offers."""

    def log_prob(self, action: Tensor) -> Tensor:
        """``[...]`` log-probability of sampled actions (see the module's docstring), nats."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One sampled action per batch element, without gradient."""

    def mode(self) -> Tensor:
        """The deterministic action, in the same space as samples."""

    def entropy(self) -> Tensor | None:
        """``[...]`` entropy in nats, or None where it has no closed form."""

    def kl(self, other: Distribution) -> Tensor:
        """``[...]`` closed-form KL(self || other), nats. Raises TypeError for another family."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """Diagonal Gaussian with ``mean`` and ``log_std``, both ``[..., A]``."""

    mean: Tensor
    log_std: Tensor

    @classmethod
    def from_inputs(cls, dist_inputs: Tensor) -> DiagonalGaussian:
        """Splits ``[..., 2A]`` into mean and log standard deviation."""
        mean, log_std = dist_inputs.chunk(2, dim=-1)
        return cls(mean, log_std)

    def log_density(self, x: Tensor) -> Tensor:
        """``[..., A]`` log-density of the Gaussian in each dimension at ``x`` ``[..., A]``, nats."""
        z = (x - self.mean) * torch.exp(-self.log_std)
        return -0.5 * z.square() - self.log_std - HALF_LOG_2PI

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_density(action).sum(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            noise = torch.empty_like(self.mean).normal_(generator=generator)
            return self.mean + torch.exp(self.log_std) * noise

    def mode(self) -> Tensor:
        return self.mean

    def entropy(self) -> Tensor | None:
        return (self.log_std + 0.5 + HALF_LOG_2PI).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        if type(other) is not type(self):
            raise TypeError(f"no closed form of KL({type(self).__name__} || {type(other).__name__})")
        assert isinstance(other, DiagonalGaussian)
        log_ratio = other.log_std - self.log_std
        z = (self.mean - other.mean) * torch.exp(-other.log_std)
        return (log_ratio + 0.5 * (torch.exp(-2.0 * log_ratio) + z.square() - 1.0)).sum(-1)


@dataclass(frozen=True)
class SquashedGaussian(DiagonalGaussian):
    """tanh of a diagonal Gaussian. Actions are held before tanh; KL is that of the Gaussians (tanh is a bijection)."""

    def log_prob(self, action: Tensor) -> Tensor:
        return super().log_prob(action) - log_tanh_slope(action).sum(-1)

    def entropy(self) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Categorical:
    """Categorical over K actions with normalised ``log_probs`` ``[..., K]``; actions are int64 indices ``[...]``."""

    log_probs: Tensor

    @classmethod
    def from_inputs(cls, dist_inputs: Tensor) -> Categorical:
        """From unnormalised logits ``[..., K]``."""
        return cls(torch.log_softmax(dist_inputs, dim=-1))

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            uniform = torch.rand(self.log_probs.shape, generator=generator, device=self.log_probs.device)
            gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)))
            return (self.log_probs + gumbel).argmax(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def entropy(self) -> Tensor | None:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        if not isinstance(other, Categorical):
            raise TypeError(f"no closed form of KL(Categorical || {type(other).__name__})")
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)


_CLASSES: dict[str, type[DiagonalGaussian] | type[Categorical]] = {
    "gaussian": DiagonalGaussian,
    "squashed_gaussian": SquashedGaussian,
    "categorical": Categorical,
}


def make_distribution(name: DistributionName, dist_inputs: Tensor) -> DiagonalGaussian | Categorical:
    """Builds the named distribution from a policy network's output.

    Args:
        name: ``gaussian``, ``squashed_gaussian`` (inputs ``[..., 2A]``) or ``categorical`` (logits ``[..., K]``).
        dist_inputs: the network's output.
    """
    return _CLASSES[name].from_inputs(dist_inputs)
