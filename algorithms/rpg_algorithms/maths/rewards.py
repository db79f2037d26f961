"""Reward transforms of soft and residual policy gradient.

Both methods change only the reward that the advantage is computed from. Log-probabilities are those of the
action that was sampled under the policy that acted; no gradient flows through any of them.

Dimension letters: T time steps, N environments. Every function takes any common shape, usually ``[T, N]``.
Units: rewards are per step, log-probabilities in nats, ``alpha``-like weights in reward per nat.

Sources: Residual Policy Gradient, arXiv 2503.11019; Residual Q-Learning, arXiv 2306.09526.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def entropy_term(logp_t: Tensor, temperature: float | Tensor) -> Tensor:
    """Per-step entropy reward ``-temperature * log pi_theta(a_t|s_t)``.

    Args:
        logp_t: ``[...]`` log-probability of the sampled action under the acting policy, nats.
        temperature: alpha (SPG) or alpha_hat (RPG), reward per nat.
    """
    return -temperature * logp_t


def prior_term(prior_logp_t: Tensor, omega_prime: float | Tensor) -> Tensor:
    """Per-step prior reward ``omega_prime * log pi(a_t|s_t)``, which stands for ``omega * r`` (2503.11019, RPG).

    Args:
        prior_logp_t: ``[...]`` log-probability of the sampled action under the frozen prior, nats.
        omega_prime: omega * alpha, reward per nat.
    """
    return omega_prime * prior_logp_t


def spg_reward(reward_t: Tensor, logp_t: Tensor, alpha: float | Tensor) -> Tensor:
    """Soft policy gradient's reward ``r(s_t, a_t) - alpha * log pi_theta(a_t|s_t)`` (2503.11019, SPG).

    Args:
        reward_t: ``[...]`` task reward per step.
        logp_t: ``[...]`` log-probability of the sampled action under the acting policy, nats.
        alpha: entropy temperature, reward per nat; 0 gives PPO's reward.

    Returns:
        ``[...]`` the reward that enters the advantage.
    """
    return reward_t + entropy_term(logp_t, alpha)


def floored(prior_logp: Tensor, median: Tensor, floor: float) -> Tensor:
    """Log pi, no lower than ``floor`` nats under its median over the batch.

    The tail of a Gaussian's log-density says no more than "never": in a fall it is hundreds of nats down, in directions
    that the environment clips, and one such state would outweigh thousands of others.

    Args:
        prior_logp: ``[...]`` log pi, nats.
        median: scalar, of the whole batch.
        floor: nats; the prior's own actions lie within 10 of their median.
    """
    return prior_logp.clamp_min(median - floor)


def rpg_reward(
    addon_t: Tensor,
    prior_logp_t: Tensor,
    logp_t: Tensor,
    omega_prime: float | Tensor,
    alpha_hat: float | Tensor,
) -> Tensor:
    """Residual policy gradient's reward (2503.11019, RPG).

    ``r_R(s_t, a_t) + omega_prime * log pi(a_t|s_t) - alpha_hat * log pi_theta(a_t|s_t)``

    With ``omega_prime = alpha_hat = beta`` this is the reward of the KL-regularised objective
    ``E[sum r_R] - beta * KL(pi_theta || pi)``; with ``omega_prime = 0`` it is SPG on the add-on alone (Greedy).

    Args:
        addon_t: ``[...]`` add-on reward r_R per step, already multiplied by its weight.
        prior_logp_t: ``[...]`` log-probability of the sampled action under the prior, nats.
        logp_t: ``[...]`` log-probability of the sampled action under the acting policy, nats.
        omega_prime: weight of the prior, reward per nat.
        alpha_hat: entropy temperature of the customised policy, reward per nat.

    Returns:
        ``[...]`` the reward that enters the advantage.
    """
    return addon_t + prior_term(prior_logp_t, omega_prime) + entropy_term(logp_t, alpha_hat)


def transformed_reward(
    weights: Mapping[str, float | Tensor], basic_t: Tensor, addon_t: Tensor, logp_t: Tensor, prior_logp_t: Tensor | None
) -> Tensor:
    """The reward that a method trains on: r_RPG where the weights have ``omega_prime``, else r_SPG.

    Args:
        weights: ``omega_prime``, ``alpha_hat`` and ``addon_weight``; or ``alpha``, ``basic_weight`` and
            ``addon_weight``: what ``SPGConfig.reward_weights`` and ``RPGConfig.reward_weights`` name.
        basic_t: ``[...]`` the environment's own reward per step; RPG makes no use of it.
        addon_t: ``[...]`` add-on reward per step.
        logp_t: ``[...]`` log-probability of the sampled action under the acting policy, nats.
        prior_logp_t: ``[...]`` the prior's, nats; None where the method has none.

    Returns:
        ``[...]`` the reward that enters the advantage.
    """
    addon = weights["addon_weight"] * addon_t
    if "omega_prime" in weights:
        assert prior_logp_t is not None
        return rpg_reward(addon, prior_logp_t, logp_t, weights["omega_prime"], weights["alpha_hat"])
    return spg_reward(weights["basic_weight"] * basic_t + addon, logp_t, weights["alpha"])
