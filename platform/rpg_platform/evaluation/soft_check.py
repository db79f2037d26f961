"""Does a prior's log-probability stand for its reward: what a nat of it costs in return, whatever it is lost by.

If the prior is the maximum-entropy optimum of its reward at temperature alpha, ``alpha * log pi`` is its soft
advantage. By the performance difference lemma every other policy then loses ``alpha`` times as much return as it loses
log pi, both discounted and from the same states: each nat has one price, alpha. RPG relies on that and on nothing else,
so this measures the price for several ways to act otherwise (``interventions``). docs/priors.md has the mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.policies.bundle import PriorBundle, PriorCard
from rpg_algorithms.policies.discount import recorded_gamma
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.evaluation.interventions import (
    Change,
    Costs,
    Features,
    Interventions,
    Recording,
    gradient,
    middle_of_actions,
)
from rpg_platform.results.report import as_json
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.tasks.task import Task

Verdict: TypeAlias = Literal["good", "weak", "not informative"]
DEFAULT_GAMMA = 0.99
FITS_WITHIN = 2.0
"""Prices that differ from alpha by no more than this factor count as one price."""
FAILS_BEYOND = 4.0
"""A price that differs by more, for sure, says that log pi does not stand for the reward."""
TOO_WIDE = 4.0
"""An interval wider than this many alphas says nothing."""
GAINS_FROM = 0.005
"""Share of the return that one step of policy gradient gains where a prior counts as unfinished."""
_STEADIER, _NOISIER, _STEP = "half the noise", "1.5 times the noise", "policy gradient"
_RESAMPLES = 2000
_STEP_NATS = 0.1
_WEAKER_NATS = 4.0


@dataclass(frozen=True)
class Measured:
    """A mean over states with its 95 % bootstrap interval; NaN where there is none."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"value": as_json(self.value), "interval": [as_json(self.low), as_json(self.high)]}


@dataclass(frozen=True)
class Price:
    """What a change cost.

    Attributes:
        change: in words.
        price: return lost per nat of log pi lost, reward per nat; alpha for a maximum-entropy optimum.
        gained: discounted return less the prior's, mean over states.
        nats: discounted sum of log pi less the prior's.
    """

    change: str
    price: Measured
    gained: float
    nats: float

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"change": self.change, **self.price.as_json(), "return": self.gained, "log_prob": self.nats}


@dataclass(frozen=True)
class SoftCheck:
    """What the check of a prior's log-probability found.

    Attributes:
        card: the prior's.
        gamma: the discount, from the card or else ``DEFAULT_GAMMA``.
        env_steps, states: played, and from how many states changes were tried.
        base: discounted return of the prior from these states.
        prices: of every change.
        alpha: the temperature that the prior's noise is balanced at, reward per nat.
        step: what one step of policy gradient (0.1 nats) gains of the soft objective, as a share of ``base``.
    """

    card: PriorCard
    gamma: float
    env_steps: int
    states: int
    base: float
    prices: tuple[Price, ...]
    alpha: Measured
    step: Measured

    @property
    def reference(self) -> float:
        """The alpha that prices are held to: the card's, else the estimate."""
        return self.alpha.value if self.card.alpha is None else self.card.alpha

    @property
    def reasons(self) -> tuple[tuple[Verdict, str], ...]:
        """What speaks against the prior, and how much."""
        return tuple(self._faults())

    @property
    def verdict(self) -> Verdict:
        """``good`` where nothing speaks against it."""
        found = {verdict for verdict, _ in self.reasons}
        return "not informative" if "not informative" in found else "weak" if found else "good"

    @property
    def omega_prime(self) -> tuple[float, float] | None:
        """The range of what a nat costs, within which omega_prime is sensible; None where it tells nothing."""
        prices = [each.price.value for each in self.prices]
        return None if self.verdict == "not informative" else (min(prices), max(prices))

    def _faults(self) -> Iterator[tuple[Verdict, str]]:
        alpha = self.reference
        if not (alpha > 0 and (self.card.alpha is not None or self.alpha.low > 0)):
            yield "not informative", "its return does not fall with log π where its noise changes"
            return
        for each in self.prices:
            price, low, high = each.price.value, each.price.low, each.price.high
            if not math.isfinite(price):
                yield "not informative", f"{each.change}: log π does not change"
            elif high - low > TOO_WIDE * alpha:
                yield "weak", f"{each.change}: too few env steps to tell ({low:.3g} to {high:.3g}); raise --steps"
            elif high < 0:
                yield "not informative", f"{each.change}: log π rises while return falls"
            elif high < alpha / FAILS_BEYOND or low > alpha * FAILS_BEYOND:
                yield "not informative", f"{each.change}: a nat costs {price:.3g}, {_times(price, alpha)}"
            elif high < alpha / FITS_WITHIN or low > alpha * FITS_WITHIN:
                yield "weak", f"{each.change}: a nat costs {price:.3g}, {_times(price, alpha)}"
        if self.step.low > 0 and self.step.value > GAINS_FROM:
            yield "weak", f"it is not trained to the end: one small step gains {100 * self.step.value:.1f} %"

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "verdict": self.verdict,
            "reasons": [text for _, text in self.reasons],
            "gamma": self.gamma,
            "gamma_of_card": recorded_gamma(self.card.made_by),
            "env_steps": self.env_steps,
            "states": self.states,
            "discounted_return": self.base,
            "alpha_of_card": self.card.alpha,
            "alpha_estimate": self.alpha.as_json(),
            "omega_prime": None if self.omega_prime is None else list(self.omega_prime),
            "prices": [each.as_json() for each in self.prices],
            "policy_gradient_gain": self.step.as_json(),
        }


def soft_check(bundle: PriorBundle, task: Task, steps: int, seed: int = 50_000_000) -> SoftCheck:
    """Measures what a nat of a prior's log-probability costs in the return that it was trained for.

    Args:
        bundle: the prior.
        task: its environment, whose own reward counts.
        steps: env steps to spend.
        seed: first seed, apart from those of evaluations and trainings.

    Raises:
        BundleError: the prior does not act in the task's spaces.
        ValueError: the environment cannot be made, or does not repeat itself from a seed.
    """
    bundle.check_spaces(*spaces_of(task), task.env_id)
    gamma = recorded_gamma(bundle.card.made_by) or DEFAULT_GAMMA
    acting = NumpyPolicy(bundle.build())
    playing = Interventions(acting, task, gamma, seed)
    played = playing.record(steps // 6)
    features = Features(played.obs)
    changes = _changes(acting, played)
    costs = playing.costs(changes, features, played.episode_length, steps * 7 // 12)
    resampled = _resampled(len(costs.base))
    alpha = _alpha(costs, changes, resampled)
    temperature = max(alpha.value, 0.0) if bundle.card.alpha is None else bundle.card.alpha
    along = gradient(acting.spec, played, features, temperature, gamma)
    step = Change(_STEP, nats=_STEP_NATS, along=along)
    gains = playing.costs([step], features, played.episode_length, steps // 4)
    return SoftCheck(
        bundle.card,
        gamma,
        playing.played,
        len(costs.base),
        float(costs.base.mean()),
        tuple(_prices(costs, changes, resampled)),
        alpha,
        _step_gain(gains, temperature),
    )


def _changes(acting: NumpyPolicy, played: Recording) -> list[Change]:
    """The ways to act otherwise: less and more noise, weaker actions, and other ones in random directions."""
    found = [Change(_STEADIER, noise=0.5), Change(_NOISIER, noise=1.5), Change("3 times the noise", noise=3.0)]
    if acting.spec.distribution != "categorical":
        mean, log_std = np.split(played.inputs.astype(np.float64), 2, axis=-1)
        distance = np.square((mean - middle_of_actions(acting.spec)) * np.exp(-log_std)).sum(-1).mean()
        share = min(1.0, math.sqrt(2.0 * _WEAKER_NATS / max(float(distance), 1e-12)))
        found.append(Change(f"actions {100 * share:.0f} % weaker", weaker=share))
    return found + [Change(f"other actions, {nats:g} nats away", nats=nats) for nats in (2.0, 8.0) for _ in range(2)]


def _resampled(states: int) -> NDArray[np.float64]:
    """``[R, S]`` weights of bootstrap samples of states."""
    return np.random.default_rng(0).multinomial(states, np.full(states, 1.0 / states), _RESAMPLES) / states


def _measured(value: float, samples: NDArray[np.float64]) -> Measured:
    low, high = np.quantile(samples, (0.025, 0.975)) if np.isfinite(samples).all() else (math.nan, math.nan)
    return Measured(float(value), float(low), float(high))


def _alpha(costs: Costs, changes: Sequence[Change], resampled: NDArray[np.float64]) -> Measured:
    """The price that small changes of the noise have in common, by least squares: training balanced these two."""
    columns = [c for c, change in enumerate(changes) if change.name in (_STEADIER, _NOISIER)]
    gained, nats = costs.gained[:, columns], costs.nats[:, columns]

    def price(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((x * y).sum(-1) / np.square(x).sum(-1))

    value = price(gained.mean(0), nats.mean(0))
    return _measured(float(value), price(resampled @ gained, resampled @ nats))


def _prices(costs: Costs, changes: Sequence[Change], resampled: NDArray[np.float64]) -> Iterator[Price]:
    names = [change.name for change in changes]
    for name in dict.fromkeys(names):
        columns = [c for c, each in enumerate(names) if each == name]
        gained, nats = costs.gained[:, columns].mean(1), costs.nats[:, columns].mean(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            price = _measured(gained.mean() / nats.mean(), (resampled @ gained) / (resampled @ nats))
        yield Price(name, price, float(gained.mean()), float(nats.mean()))


def _step_gain(gains: Costs, alpha: float) -> Measured:
    soft = (gains.gained - alpha * gains.own_nats)[:, 0]
    size = max(abs(float(gains.base.mean())), 1e-12)
    return _measured(soft.mean() / size, _resampled(len(soft)) @ soft / size)


def _times(price: float, alpha: float) -> str:
    return f"{price / alpha:.2g} times alpha ({alpha:.3g})"
