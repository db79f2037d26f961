"""The methods that a sweep can compare, and the weights that each takes.

Every method is a case of SPG or RPG (docs/mathematics.md):

    r_SPG = omega * r + w * r_R - alpha * log pi_theta
    r_RPG = w * r_R + omega_prime * log pi_prior - alpha_hat * log pi_theta

This module alone knows which case a method is. It knows the names of weights, not their values: `space` decides
whether a value is a number, a schedule or a search space.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from rpg_platform.spec.space import ConditionedRange, WeightValue
from rpg_platform.wording import suggestion

MethodName: TypeAlias = str
"""A key of `METHODS`."""
PriorUse: TypeAlias = Literal["required", "optional", "unused"]
Argument: TypeAlias = float | list[list[float]] | ConditionedRange
Arguments: TypeAlias = dict[str, Argument]

WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "omega_prime": "weight of the prior's log-probability: how much of its unknown reward is kept",
        "omega": "weight of the basic reward; for RPG omega_prime = omega * the alpha that the prior records",
        "alpha_hat": "entropy temperature of the customised policy, nats to reward",
        "alpha": "entropy temperature of soft policy gradient, nats to reward",
        "kl_coefficient": "beta of KL-regularised PPO: omega_prime = alpha_hat = beta",
        "entropy_coeff": "weight of the entropy term in the loss, on top of the reward's",
        "addon_weight": "weight of the add-on reward",
    }
)
"""Every weight and what it is, in the order in which trial names and tables give them."""


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: As `algorithm:` and `baselines:` name it.
        config: `module:Class` of the RLlib configuration that trains it; None when it trains nothing.
        prior: Whether it needs a prior, can start from one, or makes no use of one.
        summary: One line for listings.
        ways: The ways to give its weights: each a set of names of which all are needed.
        optional: Further weights, each with a default.
        arguments: Turns its weights into the keyword arguments of the configuration's `training()`: exactly those
            that set every weight of reward and entropy.
    """

    name: MethodName
    config: str | None
    prior: PriorUse
    summary: str
    ways: tuple[tuple[str, ...], ...] = ((),)
    optional: tuple[str, ...] = ()
    arguments: Callable[[Arguments], Arguments] = dict

    @property
    def takes(self) -> tuple[str, ...]:
        """All weights that it accepts in one way or another, in the order of `WEIGHTS`."""
        accepted = {name for way in self.ways for name in way} | set(self.optional)
        return tuple(name for name in WEIGHTS if name in accepted)

    @property
    def algorithm(self) -> str | None:
        """What MLflow calls the algorithm that trains it: `rpg` or `spg`; None when it trains nothing."""
        return None if self.config is None else self.config.rpartition(":")[2].removesuffix("Config").lower()

    @property
    def trains(self) -> bool:
        """Whether it trains a policy; the method `prior` only evaluates one."""
        return self.config is not None

    @property
    def is_upper_bound(self) -> bool:
        """Whether it customises by the basic reward, which no user of a prior knows: it is compared, never chosen."""
        return self.name == "full"

    @property
    def sees_reward(self) -> bool:
        """Whether it trains on the basic reward."""
        return self.algorithm == "spg"

    @property
    def uses_prior(self) -> bool:
        """Whether its trials are given the sweep's prior, where the sweep has one."""
        return self.prior != "unused"

    @property
    def can_be_told(self) -> frozenset[str]:
        """The weights that may be `conditioned`: those of the reward, which its policy can be told."""
        told = {"rpg": ("omega_prime", "omega", "alpha_hat", "kl_coefficient"), "spg": ("alpha",)}
        in_loss = "entropy_coeff" in self.takes  # whose default may be the reward's weight
        return frozenset() if in_loss else frozenset(self.takes) & {*told.get(self.algorithm or "", ())}

    def make_config(self) -> Any:
        """A new RLlib configuration of this method; imports RLlib.

        Raises:
            ValueError: If the method trains nothing.
        """
        if self.config is None:
            raise ValueError(f"method={self.name!r} trains nothing")
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(module), name)()


def _rpg(given: Arguments) -> Arguments:
    return {"addon_weight": 1.0, **given}


def _greedy(given: Arguments) -> Arguments:
    return {"omega_prime": 0.0, "alpha_hat": 0.0, "addon_weight": 1.0, **given}


def _full(given: Arguments) -> Arguments:
    return {
        "alpha": given["alpha"],
        "basic_weight": given.get("omega", 1.0),
        "addon_weight": given.get("addon_weight", 1.0),
    }


def _basic_only(given: Arguments) -> Arguments:
    return {**given, "basic_weight": 1.0, "addon_weight": 0.0}


def _ppo(given: Arguments) -> Arguments:
    return _basic_only({"alpha": 0.0, "entropy_coeff": 0.0, **given})


def _repeat_entropy(given: Arguments) -> Arguments:
    return _basic_only({"entropy_coeff": given["alpha"], **given})


_RPG, _SPG = "rpg_algorithms:RPGConfig", "rpg_algorithms:SPGConfig"
_ROWS = (
    Method(
        "rpg",
        _RPG,
        "required",
        "residual policy gradient: customise the prior without its reward",
        ways=(("omega_prime", "alpha_hat"), ("omega", "alpha_hat")),
        optional=("addon_weight",),
        arguments=_rpg,
    ),
    Method(
        "kl",
        _RPG,
        "required",
        "KL-regularised PPO: RPG with omega_prime = alpha_hat = beta",
        ways=(("kl_coefficient",),),
        optional=("addon_weight",),
        arguments=_rpg,
    ),
    Method(
        "greedy",
        _RPG,
        "required",
        "the add-on reward alone, started from the prior: RPG with omega_prime = 0",
        optional=("alpha_hat", "addon_weight"),
        arguments=_greedy,
    ),
    Method(
        "full",
        _SPG,
        "optional",
        "upper bound that sees the basic reward: SPG on omega * r + r_R",
        ways=(("alpha",),),
        optional=("omega", "addon_weight"),
        arguments=_full,
    ),
    Method(
        "spg",
        _SPG,
        "unused",
        "soft policy gradient on the basic reward",
        ways=(("alpha",),),
        arguments=_basic_only,
    ),
    Method(
        "ppo",
        _SPG,
        "unused",
        "PPO on the basic reward: SPG at alpha = 0",
        optional=("entropy_coeff",),
        arguments=_ppo,
    ),
    Method(
        "repeat-entropy",
        _SPG,
        "unused",
        "PPO with entropy in the reward (alpha) and in the loss (entropy_coeff, by default alpha)",
        ways=(("alpha",),),
        optional=("entropy_coeff",),
        arguments=_repeat_entropy,
    ),
    Method("prior", None, "required", "the prior untouched: no training, the same evaluation"),
)
METHODS: Mapping[MethodName, Method] = MappingProxyType({method.name: method for method in _ROWS})


def deployable(methods: Iterable[MethodName]) -> frozenset[MethodName]:
    """Those of a sweep's methods whose policy a user could have, where the basic reward is hidden.

    The upper bound never is. Where a method customises the prior without its reward, nothing that trains on that reward
    is; in a sweep that only trains on it (to make a prior) it is no secret.
    """
    found = {METHODS[name] for name in methods}
    is_hidden = any(method.prior == "required" and method.trains for method in found)
    return frozenset(m.name for m in found if not m.is_upper_bound and not (is_hidden and m.sees_reward))


PRIOR: MethodName = "prior"
"""The method that trains nothing: the prior, evaluated as all others are."""


def weight_faults(method: MethodName, given: Collection[str]) -> list[tuple[str | None, str]]:
    """What is wrong with the names of the weights given for `method`.

    Args:
        method: A key of `METHODS`.
        given: Names of the weights that are set.

    Returns:
        (the weight at fault, or None when weights are missing; what is wrong), empty when all is well.
    """
    row = METHODS[method]
    unknown = [name for name in given if name not in WEIGHTS]
    if unknown:
        return [(name, "unknown key" + suggestion(name, row.takes)) for name in unknown]
    foreign = [name for name in given if name not in row.takes]
    if foreign:
        return [(name, f"method {method!r} does not take it{_home_of(name, row)}") for name in foreign]
    if any(set(way) <= set(given) and not _surplus(row, way, given) for way in row.ways):
        return []
    complete = [way for way in row.ways if set(way) <= set(given)]
    if complete:
        extra = _surplus(row, complete[0], given)[0]
        rival = next(name for way in row.ways if extra in way for name in complete[0] if name not in way)
        return [(extra, f"cannot be given together with {rival}: method {method!r} takes {_ways(row.ways)}")]
    return [(None, _missing(row, given))]


def _missing(row: Method, given: Collection[str]) -> str:
    got = ", ".join(given) or "none"
    return f"method {row.name!r} takes {_ways(row.ways)}; given: {got}"


def _surplus(row: Method, way: Iterable[str], given: Collection[str]) -> list[str]:
    return [name for name in given if name not in way and name not in row.optional]


def _ways(ways: tuple[tuple[str, ...], ...]) -> str:
    spelled = [" with ".join(way) for way in ways]
    return spelled[0] if len(spelled) == 1 else "either " + ", or ".join(spelled)


def _home_of(name: str, row: Method) -> str:
    takes = f"; it takes {', '.join(row.takes)}" if row.takes else "; it takes no weights"
    homes = [method.name for method in METHODS.values() if name in method.takes]
    return f"{takes} ({name} belongs to {', '.join(homes)})"


def training_arguments(method: MethodName, weights: Mapping[str, WeightValue]) -> Arguments:
    """The keyword arguments of the configuration's `training()` that set `method`'s weights.

    Args:
        method: A key of `METHODS`.
        weights: Values or schedules by name, as the specification gives them.

    Raises:
        ValueError: If the method does not take these weights.
    """
    faults = weight_faults(method, weights)
    if faults:
        raise ValueError(
            "; ".join(f"weights.{name}: {fault}" if name else f"weights: {fault}" for name, fault in faults)
        )
    return METHODS[method].arguments({name: _argument(value) for name, value in weights.items()})


def _argument(value: WeightValue) -> Argument:
    if isinstance(value, ConditionedRange):
        return value
    return [[step, amount] for step, amount in value] if isinstance(value, tuple) else float(value)
