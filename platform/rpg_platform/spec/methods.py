"""The methods that a sweep can compare, and the weights that each takes.

Every method is a case of SPG or RPG (docs/mathematics.md):

    r_SPG = omega * r + w * r_R - alpha * log pi_theta
    r_RPG = w * r_R + omega_prime * log pi_prior - alpha_hat * log pi_theta

This module is the one place that knows which. It says nothing of values, only of names: whether a value is a
number, a schedule or a search space is `search_space`'s business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from rpg_platform.spec.space import WeightValue
from rpg_platform.wording import suggestion

Algorithm: TypeAlias = Literal["spg", "rpg"]
MethodName: TypeAlias = Literal["rpg", "kl", "greedy", "full", "spg", "ppo", "repeat-entropy", "prior"]
PriorUse: TypeAlias = Literal["required", "optional", "unused"]
Argument: TypeAlias = float | list[list[float]]

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
        algorithm: Which algorithm trains it; None when nothing is trained.
        prior: Whether it needs a prior, can start from one, or makes no use of one.
        summary: One line for listings.
        ways: The ways to give its weights: each a set of names of which all are needed.
        optional: Further weights, each with a default.
    """

    name: MethodName
    algorithm: Algorithm | None
    prior: PriorUse
    summary: str
    ways: tuple[tuple[str, ...], ...] = ((),)
    optional: tuple[str, ...] = ()

    @property
    def takes(self) -> tuple[str, ...]:
        """All weights that it accepts in one way or another, in the order of `WEIGHTS`."""
        accepted = {name for way in self.ways for name in way} | set(self.optional)
        return tuple(name for name in WEIGHTS if name in accepted)


METHODS: Mapping[MethodName, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "rpg",
                "rpg",
                "required",
                "residual policy gradient: customise the prior without its reward",
                ways=(("omega_prime", "alpha_hat"), ("omega", "alpha_hat")),
                optional=("addon_weight",),
            ),
            Method(
                "kl",
                "rpg",
                "required",
                "KL-regularised PPO: RPG with omega_prime = alpha_hat = beta",
                ways=(("kl_coefficient",),),
                optional=("addon_weight",),
            ),
            Method(
                "greedy",
                "rpg",
                "required",
                "the add-on reward alone, started from the prior: RPG with omega_prime = 0",
                optional=("alpha_hat", "addon_weight"),
            ),
            Method(
                "full",
                "spg",
                "optional",
                "upper bound that sees the basic reward: SPG on omega * r + r_R",
                ways=(("alpha",),),
                optional=("omega", "addon_weight"),
            ),
            Method("spg", "spg", "unused", "soft policy gradient on the basic reward", ways=(("alpha",),)),
            Method(
                "ppo",
                "spg",
                "unused",
                "PPO on the basic reward: SPG at alpha = 0",
                optional=("entropy_coeff",),
            ),
            Method(
                "repeat-entropy",
                "spg",
                "unused",
                "PPO with entropy in the reward (alpha) and in the loss (entropy_coeff, by default alpha)",
                ways=(("alpha",),),
                optional=("entropy_coeff",),
            ),
            Method("prior", None, "required", "the prior untouched: no training, the same evaluation"),
        )
    }
)


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


def algorithm_weights(
    method: MethodName, weights: Mapping[str, WeightValue]
) -> tuple[Algorithm | None, dict[str, Argument]]:
    """The algorithm that trains `method` and the weights to hand to its config's `training()`.

    Args:
        method: A key of `METHODS`.
        weights: Values or schedules by name, as the specification gives them.

    Returns:
        `"spg"`, `"rpg"` or None, and exactly the keyword arguments that set every reward and entropy weight.

    Raises:
        ValueError: If the method does not take these weights.
    """
    faults = weight_faults(method, weights)
    if faults:
        raise ValueError(
            "; ".join(f"weights.{name}: {fault}" if name else f"weights: {fault}" for name, fault in faults)
        )
    given = {name: _argument(value) for name, value in weights.items()}
    addon = given.get("addon_weight", 1.0)
    match method:
        case "rpg":
            return "rpg", {"addon_weight": addon, **given}
        case "kl":
            return "rpg", {"kl_coefficient": given["kl_coefficient"], "addon_weight": addon}
        case "greedy":
            return "rpg", {
                "omega_prime": 0.0,
                "alpha_hat": given.get("alpha_hat", 0.0),
                "addon_weight": addon,
            }
        case "full":
            return "spg", {
                "alpha": given["alpha"],
                "basic_weight": given.get("omega", 1.0),
                "addon_weight": addon,
            }
        case "spg":
            return "spg", {"alpha": given["alpha"], "basic_weight": 1.0, "addon_weight": 0.0}
        case "ppo":
            entropy = given.get("entropy_coeff", 0.0)
            return "spg", {"alpha": 0.0, "entropy_coeff": entropy, "basic_weight": 1.0, "addon_weight": 0.0}
        case "repeat-entropy":
            alpha = given["alpha"]
            entropy = given.get("entropy_coeff", alpha)
            return "spg", {"alpha": alpha, "entropy_coeff": entropy, "basic_weight": 1.0, "addon_weight": 0.0}
        case "prior":
            return None, {}


def _argument(value: WeightValue) -> Argument:
    return [[step, amount] for step, amount in value] if isinstance(value, tuple) else float(value)
