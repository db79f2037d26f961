"""Advantages, value targets and discounted returns over time-major arrays.

Dimension letters: T time steps; trailing dimensions (environments N, a population axis) are free.
All functions are pure; no gradient is meant to flow through them.

Sources: Generalized Advantage Estimation, arXiv 1506.02438; time limits, arXiv 1712.00378.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMAL_95 = 1.6448536269514722  # the standard normal distribution's 95 % quantile


def linear_recurrence(decay_t: Tensor, x_t: Tensor) -> Tensor:
    """Solves ``y_t = x_t + decay_t * y_{t+1}`` backwards in time, with ``y_T = 0``.

    Computed by recursive doubling: log2(T) whole-array operations instead of T small ones.

    Args:
        decay_t: ``[T, ...]`` factor on the later value.
        x_t: ``[T, ...]`` inhomogeneous term.

    Returns:
        ``[T, ...]`` the solution y.
    """
    y, a = x_t, decay_t
    step = 1
    while step < x_t.shape[0]:
        y = torch.cat((y[:-step] + a[:-step] * y[step:], y[-step:]))
        a = torch.cat((a[:-step] * a[step:], torch.zeros_like(a[-step:])))
        step *= 2
    return y


def generalized_advantages(
    reward_t: Tensor,
    value_t: Tensor,
    value_tp1: Tensor,
    terminated_t: Tensor,
    done_t: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Generalised advantage estimates (1506.02438, eq. 16), with bootstrapping at time limits.

    ``delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)``;
    ``A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}``.

    A truncated step (done, not terminated) bootstraps from the value of its final observation; a terminated one
    does not (1712.00378). The last row is a cut, not an end: it bootstraps unless it terminated.

    Args:
        reward_t: ``[T, ...]`` reward that the advantage is of (r_SPG or r_RPG).
        value_t: ``[T, ...]`` V(s_t).
        value_tp1: ``[T, ...]`` V(s_{t+1}), where s_{t+1} is the final observation at the end of an episode.
        terminated_t: ``[T, ...]`` bool, the environment ended in s_{t+1}.
        done_t: ``[T, ...]`` bool, terminated or truncated.
        gamma: discount per step.
        lambda_: GAE's lambda.

    Returns:
        ``[T, ...]`` advantages; value targets are ``advantages + value_t``.
    """
    bootstrap = gamma * value_tp1 * (~terminated_t).to(value_tp1.dtype)
    delta_t = reward_t + bootstrap - value_t
    return linear_recurrence(gamma * lambda_ * (~done_t).to(reward_t.dtype), delta_t)


def running_returns(reward_t: Tensor, done_t: Tensor, gamma: float, carry: Tensor) -> tuple[Tensor, Tensor]:
    """Discounted sums of past rewards, whose spread is the scale that rewards are divided by.

    ``G_t = r_t + gamma * (1 - done_{t-1}) * G_{t-1}``, with ``G_{-1}`` given by ``carry``.

    Args:
        reward_t: ``[T, ...]`` reward per step.
        done_t: ``[T, ...]`` bool, the episode ended after this step.
        gamma: discount per step.
        carry: ``[...]`` G of the step before the first, already zero where that step ended an episode.

    Returns:
        ``[T, ...]`` G_t, and the carry for the next call, ``[...]``.
    """
    alive = gamma * (~done_t).to(reward_t.dtype)
    decay = torch.cat((torch.zeros_like(alive[:1]), alive[:-1]))
    x = torch.cat(((reward_t[0] + gamma * carry)[None], reward_t[1:]))
    returns = linear_recurrence(decay.flip(0), x.flip(0)).flip(0)
    return returns, returns[-1] * (~done_t[-1]).to(reward_t.dtype)


def spread(x: Tensor) -> Tensor:
    """How far the elements of ``x`` lie apart, hardly moved by its tails: the scale of discounted returns.

    The standard deviation of the normal distribution that has the 5 % and 95 % quantiles of ``x``, but at least a
    tenth of its own standard deviation. Returns have heavy tails: in a fall log pi is in the thousands, and a bonus may
    come so rarely that no quantile sees it.

    Args:
        x: ``[B]``.

    Returns:
        Scalar, float64, at least 0.
    """
    x = x.double()
    low, high = torch.quantile(x, torch.tensor([0.05, 0.95], dtype=x.dtype, device=x.device))
    return torch.maximum((high - low) / (2 * NORMAL_95), x.std(correction=0) / 10)


def standardize(x: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Zero mean and unit (unbiased) standard deviation over all elements of ``x``."""
    return (x - x.mean()) / (x.std() + epsilon)
