"""Residual policy gradient as an RLlib algorithm (arXiv 2503.11019): a small difference over SPG."""

from __future__ import annotations

import logging
from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import NotProvided

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_algorithms.maths.schedules import Weight, check_weight, scale_weight
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.discount import other_discount
from rpg_algorithms.rllib.learner import RPGLearner
from rpg_algorithms.rllib.spg import SPG, SPGConfig

logger = logging.getLogger(__name__)


class RPGConfig(SPGConfig):
    """Configures RPG: PPO on ``r_R + omega_prime * log pi_prior - alpha_hat * log pi_theta``.

    The weights are given in exactly one way: ``omega_prime`` and ``alpha_hat``; ``omega`` and ``alpha_hat``, with the
    alpha that the prior's card records; or ``kl_coefficient`` (beta), which is ``omega_prime = alpha_hat = beta``.
    Greedy customization is ``omega_prime=0``.

    Example:
        >>> config = (
        ...     RPGConfig()
        ...     .environment("HalfCheetah-v5")
        ...     .training(prior="priors/halfcheetah", addon_reward=my_addon, omega_prime=0.1, alpha_hat=0.02)
        ... )
    """

    _CAN_BE_TOLD = ("omega_prime", "omega", "alpha_hat", "kl_coefficient")

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or RPG)
        self.omega_prime: Weight | Conditioned | None = None
        self.alpha_hat: Weight | Conditioned | None = None
        self.omega: Weight | Conditioned | None = None
        self.kl_coefficient: Weight | Conditioned | None = None
        self.prior_logp_floor: float | None = 20.0
        self.addon_weight = 1.0

    def get_default_learner_class(self) -> type[RPGLearner]:
        """RPG's learner."""
        return RPGLearner

    def training(
        self,
        *,
        omega_prime: Weight | Conditioned | None = NotProvided,
        alpha_hat: Weight | Conditioned | None = NotProvided,
        omega: Weight | Conditioned | None = NotProvided,
        kl_coefficient: Weight | Conditioned | None = NotProvided,
        prior_logp_floor: float | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training settings. A weight is a number, a schedule, or a range (``Conditioned``).

        Args:
            omega_prime: weight of the prior, omega * alpha, reward per nat.
            alpha_hat: entropy temperature of the customised policy, reward per nat.
            omega: weight of the prior's unknown reward; needs a prior whose card records its alpha.
            kl_coefficient: beta, the one weight of the KL-regularised objective, reward per nat.
            prior_logp_floor: how far below its batch's median log pi counts in the reward, nats (see
                ``maths.rewards.floored``); None for any distance.
            **kwargs: see ``SPGConfig.training``. ``alpha`` and ``basic_weight`` do not apply.

        Returns:
            This configuration.

        Raises:
            ValueError: ``alpha`` or ``basic_weight`` was given.
        """
        for name, instead in (("alpha", "alpha_hat"), ("basic_weight", "omega_prime or omega")):
            if name in kwargs:
                raise ValueError(f"{name}={kwargs[name]!r} is SPG's; RPG never sees the basic reward: use {instead}")
        super().training(**kwargs)
        for name, value in (
            ("omega_prime", omega_prime),
            ("alpha_hat", alpha_hat),
            ("omega", omega),
            ("kl_coefficient", kl_coefficient),
            ("prior_logp_floor", prior_logp_floor),
        ):
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def reward_weights(self) -> dict[str, Weight | Conditioned]:
        """Returns ``omega_prime``, ``alpha_hat`` and ``addon_weight``, in whichever way they were given.

        Raises:
            ValueError: the weights were given in no way or in more than one, or the prior records no alpha.
        """
        given = {
            name: getattr(self, name)
            for name in ("omega_prime", "alpha_hat", "omega", "kl_coefficient")
            if getattr(self, name) is not None
        }
        for name, value in given.items():
            if isinstance(value, Conditioned):
                given[name] = value.named(name)
            else:
                check_weight(name, value)
        names = frozenset(given)
        if names == {"kl_coefficient"}:
            omega_prime = alpha_hat = given["kl_coefficient"]
        elif names == {"omega_prime", "alpha_hat"}:
            omega_prime, alpha_hat = given["omega_prime"], given["alpha_hat"]
        elif names == {"omega", "alpha_hat"}:
            omega, alpha = given["omega"], self._prior_alpha()
            omega_prime = omega.scaled(alpha) if isinstance(omega, Conditioned) else scale_weight(omega, alpha)
            alpha_hat = given["alpha_hat"]
        else:
            raise ValueError(_explain(names))
        return {"omega_prime": omega_prime, "alpha_hat": alpha_hat, "addon_weight": self.addon_weight}

    def _prior_alpha(self) -> float:
        assert isinstance(self.prior, PriorBundle)
        alpha = self.prior.card.alpha
        if alpha is None:
            raise ValueError(
                f"omega={self.omega!r}: prior {self.prior.card.name!r} records no alpha, so "
                "omega_prime = omega * alpha is unknown; give omega_prime and alpha_hat"
            )
        return alpha

    def validate(self) -> None:
        """Checks all settings; RPG needs a prior and an add-on reward.

        A discount other than the prior's is a warning: checkpoints that were trained at one can be restored.

        Raises:
            ValueError: names the setting, its value and what was expected.
        """
        if self.prior is None:
            self._value_error("prior=None: RPG customises a prior; give training(prior=<bundle>)")
        if self.addon_reward is None:
            self._value_error("addon_reward=None: RPG needs the reward of the added requirement")
        if self.prior_logp_floor is not None and not self.prior_logp_floor > 0:
            self._value_error(f"prior_logp_floor={self.prior_logp_floor!r}: expected a positive number or None")
        super().validate()
        assert isinstance(self.prior, PriorBundle)
        card = self.prior.card
        if self._reads_the_soft_advantage() and (message := other_discount(self.gamma, card.name, card.made_by)):
            logger.warning("gamma %s", message)

    def _reads_the_soft_advantage(self) -> bool:
        """Whether log pi stands for the prior's reward; at ``kl_coefficient`` it is a penalty, at 0 it is not used."""
        return self.kl_coefficient is None and not self._is_zero(self.reward_weights()["omega_prime"])


def _explain(names: frozenset[str]) -> str:
    ways = "omega_prime and alpha_hat, omega and alpha_hat, or kl_coefficient"
    if not names:
        return f"RPG's weights are missing: give {ways}"
    listed = ", ".join(sorted(names))
    if names == {"alpha_hat"}:
        return f"omega_prime (or omega) is missing beside alpha_hat: give {ways}"
    if names in ({"omega_prime"}, {"omega"}):
        return f"alpha_hat is missing beside {listed}: give {ways}"
    return f"RPG's weights were given in more than one way ({listed}): give exactly one of {ways}"


class RPG(SPG):
    """Residual policy gradient on RLlib's new API stack."""

    @classmethod
    def get_default_config(cls) -> RPGConfig:
        """RPG's default configuration."""
        return RPGConfig()
