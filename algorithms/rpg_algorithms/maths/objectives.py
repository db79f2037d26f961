"""Objectives (maximised) and losses (minimised) of the policy and the critic, and their diagnostics.

Dimension letters: B samples of a minibatch. Gradient flows through what the current policy or critic computed
(``logp``, ``entropy``, ``value``), never through advantages, targets or old log-probabilities.

Sources: PPO, arXiv 1707.06347; KL estimators, http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_gradient_objective(logp: Tensor, advantage: Tensor, weight: Tensor | None = None) -> Tensor:
    """The score-function objective, whose gradient is (soft) policy gradient's (2503.11019, SPG).

    ``E[log pi_theta(a|s) * A]``; with A computed from r_SPG its gradient is that of the entropy-regularised return.

    Args:
        logp: ``[B]`` log pi_theta(a|s), with gradient.
        advantage: ``[B]`` advantages, no gradient.
        weight: ``[B]`` optional weights (a state distribution, a discount); the mean is taken otherwise.

    Returns:
        Scalar objective.
    """
    per_sample = logp * advantage.detach()
    return per_sample.mean() if weight is None else (per_sample * weight).sum()


def clipped_surrogate_objective(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate objective (1707.06347, eq. 7).

    ``min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)`` with ``ratio = pi_theta(a|s) / pi_old(a|s)``.

    Args:
        logp: ``[B]`` log pi_theta(a|s), with gradient.
        logp_old: ``[B]`` log-probability under the policy that acted.
        advantage: ``[B]`` advantages.
        clip: half-width of the ratio's trust region.

    Returns:
        ``[B]`` objective per sample.
    """
    ratio = torch.exp(logp - logp_old)
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def value_loss(value: Tensor, target: Tensor, clip: float | None = None) -> Tensor:
    """Squared error of the critic, per sample ``[B]``; ``clip`` bounds it from above as RLlib's ``vf_clip_param``."""
    squared = (value - target).square()
    return squared if clip is None else squared.clamp(max=clip)


def ppo_loss(
    surrogate: Tensor,
    vf_loss: Tensor,
    entropy: Tensor | None,
    vf_loss_coeff: float,
    entropy_coeff: float,
) -> Tensor:
    """PPO's whole loss (1707.06347, eq. 9): ``mean(-surrogate + vf_loss_coeff * vf_loss - entropy_coeff * entropy)``.

    Args:
        surrogate: ``[B]`` clipped surrogate objective.
        vf_loss: ``[B]`` critic's loss.
        entropy: ``[B]`` policy entropy in nats, or None where ``entropy_coeff`` is 0.
        vf_loss_coeff: weight of the critic's loss.
        entropy_coeff: weight of the entropy bonus in the loss. SPG and RPG leave it at 0: their entropy is in the
            reward; repeat-entropy PPO sets both.

    Returns:
        Scalar loss.
    """
    loss = vf_loss_coeff * vf_loss - surrogate
    if entropy is not None and entropy_coeff != 0.0:
        loss = loss - entropy_coeff * entropy
    return loss.mean()


def approximate_kl(logp: Tensor, logp_old: Tensor) -> Tensor:
    """Estimate of KL(pi_old || pi_theta) from samples of pi_old: the mean of ``ratio - 1 - log ratio`` (k3), nats."""
    log_ratio = logp - logp_old
    return (torch.expm1(log_ratio) - log_ratio).mean()


def kl_estimate(logp: Tensor, prior_logp: Tensor) -> Tensor:
    """Unbiased low-variance estimate of KL(pi_theta || pi) from samples of pi_theta, per sample ``[B]``, nats (k3)."""
    log_ratio = prior_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def clip_fraction(logp: Tensor, logp_old: Tensor, clip: float) -> Tensor:
    """Share of samples whose ratio lies outside ``1 ± clip``."""
    return ((torch.exp(logp - logp_old) - 1.0).abs() > clip).to(logp.dtype).mean()


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """``1 - Var[target - value] / Var[target]``: 1 is perfect, 0 no better than the mean; nan for constant targets."""
    variance = target.var()
    return torch.where(variance > 0, 1.0 - (target - value).var() / variance, torch.full_like(variance, torch.nan))
