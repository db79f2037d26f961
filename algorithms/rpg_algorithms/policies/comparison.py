"""Compares a policy with a prior of another family, on the action that the environment receives.

A gaussian has a log-probability of an unbounded sample, and a squashed gaussian one of ``tanh(u)``: two different
variables, whose densities cannot be compared. Both have an action that the environment receives: a gaussian's is
clipped to the bounds, a squashed gaussian's is rescaled to them. In coordinates y in [-1, 1] per dimension,

- inside, ``|y| < 1 - BOUND_STRIP``, both have a density of y;
- the strip of width ``BOUND_STRIP`` at each bound counts as one action. A clipped gaussian puts a positive probability
  on the bound itself, which no density can express; a squashed gaussian comes arbitrarily close and never reaches it.
  Each gives the strip a probability, and the mean density, probability / width, stands for the strip.

Both are then probability distributions over the same set and finite everywhere, so their log-ratios and their KL are
well defined. The KL compares the received actions as if the environment could not tell actions in one strip apart.

All arithmetic is float64 and starts from the samples before clipping or tanh, so no precision is lost near the bounds.
Derivation: docs/mathematics.md. Dimension letters: ``...`` any batch, A action dimensions, Q nodes of a quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rpg_algorithms.maths.distributions import (
    HALF_LOG_2PI,
    Categorical,
    DiagonalGaussian,
    DistributionName,
    SquashedGaussian,
    log_tanh_slope,
    make_distribution,
)
from rpg_algorithms.policies.network import NetworkSpec

BOUND_STRIP = 0.01
"""Width of the strip at each bound that counts as one action, in half-ranges of the action."""
STRIP_START = math.atanh(1.0 - BOUND_STRIP)  # |u| from which tanh(u) is in a strip
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_REACH = 8.0  # standard deviations, outside of which a gaussian has 1e-15 of its probability
_ROWS = 4096  # states at a time, to bound the quadrature's memory


def closed_form_kl(policy: DistributionName, prior: DistributionName) -> bool:
    """Says whether KL(policy || prior) has a closed form, which it has within one family."""
    return policy == prior


@dataclass(frozen=True)
class ActionBox:
    """The finite bounds of an action space, as the middle and half of its range, each ``[A]`` float64."""

    middle: Tensor
    half: Tensor

    @classmethod
    def of(cls, *specs: NetworkSpec) -> ActionBox:
        """The bounds that one of the networks of the same action space records.

        Raises:
            ValueError: none records finite bounds with room between them.
        """
        for spec in specs:
            if spec.action_low is not None and spec.action_high is not None:
                low, high = (torch.tensor(x, dtype=torch.float64) for x in (spec.action_low, spec.action_high))
                if bool(torch.isfinite(high - low).all()) and bool((high > low).all()):
                    return cls((high + low) / 2.0, (high - low) / 2.0)
        found = [(spec.action_low, spec.action_high) for spec in specs]
        raise ValueError(f"action bounds (low, high) {found}: expected finite ones, low < high, to compare families in")

    def to(self, device: torch.device) -> ActionBox:
        """The same on another device."""
        return ActionBox(self.middle.to(device), self.half.to(device))


def received_coordinates(distribution: DiagonalGaussian, actions: Tensor, box: ActionBox) -> tuple[Tensor, Tensor]:
    """Returns atanh(y) of the actions y in [-1, 1] that the environment receives, and the strips in which they lie.

    Args:
        distribution: the distribution of the sampled actions.
        actions: ``[..., A]`` as sampled: unbounded, or before tanh.
        box: the environment's bounds.

    Returns:
        ``[..., A]`` atanh(y), bounded by ``STRIP_START``, and ``[..., A]`` 1 or -1 for the strip at the upper or
        lower bound and 0 inside.
    """
    if isinstance(distribution, SquashedGaussian):
        side = (actions >= STRIP_START).to(actions.dtype) - (actions <= -STRIP_START).to(actions.dtype)
        return actions.clamp(-STRIP_START, STRIP_START), side
    y = (actions - box.middle) / box.half
    edge = 1.0 - BOUND_STRIP
    side = (y >= edge).to(y.dtype) - (y <= -edge).to(y.dtype)
    inside = y.clamp(-edge, edge)
    return 0.5 * (torch.log1p(inside) - torch.log1p(-inside)), side


def received_log_prob(distribution: DiagonalGaussian, unsquashed: Tensor, side: Tensor, box: ActionBox) -> Tensor:
    """Log-probability of received actions, per dimension and in nats, as a density of y in [-1, 1].

    ``log p(y)`` inside; ``log (P(strip) / BOUND_STRIP)`` in a strip. Gradient flows through the distribution's
    parameters. Sum over the last dimension for an action's log-probability.

    Args:
        distribution: a diagonal gaussian, clipped to the box, or a squashed one, rescaled to it; ``[..., A]``.
        unsquashed: ``[..., A]`` from ``received_coordinates``.
        side: ``[..., A]`` likewise.
        box: the environment's bounds.
    """
    centre, edge = _span(distribution, box)
    if isinstance(distribution, SquashedGaussian):
        point, log_jacobian = unsquashed, -log_tanh_slope(unsquashed.abs())  # log(1 - y^2)
    else:
        point, log_jacobian = box.middle + box.half * torch.tanh(unsquashed), torch.log(box.half)
    inside = distribution.log_density(point) + log_jacobian
    # P(x >= centre + edge) and P(x <= centre - edge), by the normal's log-distribution function.
    distance = (side * (distribution.mean - centre) - edge) * torch.exp(-distribution.log_std)
    beyond = torch.special.log_ndtr(distance) - math.log(BOUND_STRIP)
    return torch.where(side == 0, inside, beyond)


def _span(distribution: DiagonalGaussian, box: ActionBox) -> tuple[Tensor, Tensor]:
    """The middle of a distribution's samples and the distance from it at which the strips start, each ``[A]``."""
    if isinstance(distribution, SquashedGaussian):
        return torch.zeros_like(box.middle), torch.full_like(box.half, STRIP_START)
    return box.middle, box.half * (1.0 - BOUND_STRIP)


@dataclass(frozen=True)
class Comparison:
    """A policy beside its prior at the same states.

    Attributes:
        policy, prior: their action distributions.
        box: the environment's bounds; None within one family, which needs none.
    """

    policy: DiagonalGaussian | Categorical
    prior: DiagonalGaussian | Categorical
    box: ActionBox | None

    @property
    def estimated(self) -> bool:
        """Whether ``kl`` is an estimate, having no closed form."""
        return self.box is not None

    def log_probs(self, actions: Tensor) -> tuple[Tensor | None, Tensor]:
        """Log-probabilities of the policy's sampled actions, nats, ``[...]``.

        Args:
            actions: ``[..., A]`` or ``[...]`` as the policy sampled them.

        Returns:
            The policy's and the prior's. Within one family the policy's is None, as it is what the policy acted by,
            and the prior's is its ``log_prob``. Between families both are of the action that the environment receives,
            in the coordinates of the policy's own density: the environment's units for a gaussian, (-1, 1)^A for a
            squashed one.
        """
        if self.box is None:
            return None, self.prior.log_prob(actions)
        policy, prior, box = self._exact()
        unsquashed, side = received_coordinates(policy, actions.double(), box)
        own, its = (received_log_prob(each, unsquashed, side, box).sum(-1) for each in (policy, prior))
        units = 0.0 if isinstance(policy, SquashedGaussian) else torch.log(box.half).sum()
        return (own - units).to(actions.dtype), (its - units).to(actions.dtype)

    def kl(self) -> Tensor:
        """Returns ``[...]`` KL(policy || prior) in nats: in closed form, or else as an estimate of its integral.

        The dimensions are independent given the state, so the integral over actions is a sum of one integral per
        dimension: Gauss-Legendre quadrature inside, and one term for each strip. It equals the expectation of
        ``objectives.kl_estimate`` over the policy's actions, without the noise of sampling them, so it holds for
        deterministic and sampled evaluations alike.
        """
        if self.box is None:
            return self.policy.kl(self.prior)
        policy, prior, box = self._exact()
        shape = policy.mean.shape[:-1]
        columns = [
            x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1])
            for x in (policy.mean, policy.log_std, prior.mean, prior.log_std)
        ]
        parts = [
            _integrated_kl(type(policy)(mean, log_std), type(prior)(prior_mean, prior_log_std), box)
            for mean, log_std, prior_mean, prior_log_std in zip(*(torch.split(x, _ROWS) for x in columns), strict=True)
        ]
        return torch.cat(parts).view(shape).to(self.policy.mean.dtype)  # type: ignore[union-attr]

    def _exact(self) -> tuple[DiagonalGaussian, DiagonalGaussian, ActionBox]:
        """Returns both distributions and the bounds in float64, on one device."""
        assert self.box is not None
        policy, prior = cast(DiagonalGaussian, self.policy), cast(DiagonalGaussian, self.prior)
        policy, prior = (type(each)(each.mean.double(), each.log_std.double()) for each in (policy, prior))
        return policy, prior, self.box.to(policy.mean.device)


def compare(policy: NetworkSpec, policy_inputs: Tensor, prior: NetworkSpec, prior_inputs: Tensor) -> Comparison:
    """Puts a policy's and its prior's distributions at the same states side by side.

    Args:
        policy: the policy's specification.
        policy_inputs: its ``dist_inputs`` ``[..., P]``.
        prior: the prior's specification.
        prior_inputs: its ``dist_inputs`` ``[..., P]``.

    Raises:
        ValueError: the families differ, and no finite action bounds are known.
    """
    closed = closed_form_kl(policy.distribution, prior.distribution)
    return Comparison(
        make_distribution(policy.distribution, policy_inputs),
        make_distribution(prior.distribution, prior_inputs),
        None if closed else ActionBox.of(policy, prior),
    )


def _integrated_kl(policy: DiagonalGaussian, prior: DiagonalGaussian, box: ActionBox) -> Tensor:
    """Returns ``[B]`` the KL between the received actions of two distributions ``[B, A]``."""
    policy, prior = (type(each)(each.mean[..., None], each.log_std[..., None]) for each in (policy, prior))
    box = ActionBox(box.middle[:, None], box.half[:, None])
    centre, edge = _span(policy, box)
    std = torch.exp(policy.log_std)
    low, high = ((centre + sign * edge - policy.mean) / std for sign in (-1.0, 1.0))  # the strips' starts, in stds
    stop = high.clamp(max=_REACH)
    start = torch.minimum(low.clamp(min=-_REACH), stop)
    width = (stop - start).clamp(min=0.0)
    nodes, weights = (torch.as_tensor(x, dtype=std.dtype, device=std.device) for x in (_NODES, _WEIGHTS))
    z = start + width * (nodes + 1.0) / 2.0  # [B, A, Q]
    unsquashed, _ = received_coordinates(policy, policy.mean + std * z, box)
    inside = torch.zeros_like(unsquashed)
    log_ratio = received_log_prob(policy, unsquashed, inside, box) - received_log_prob(prior, unsquashed, inside, box)
    density = torch.exp(-0.5 * z.square() - HALF_LOG_2PI)
    result = (weights * density * log_ratio).sum(-1) * width[..., 0] / 2.0
    for side in (-1.0, 1.0):
        strip, at = torch.full_like(std, side), torch.full_like(std, side * STRIP_START)
        own, its = (received_log_prob(each, at, strip, box)[..., 0] for each in (policy, prior))
        result = result + torch.exp(own) * BOUND_STRIP * (own - its)
    return result.sum(-1)
