"""A policy that is told its weights, as the plain policies that it is at settings which cover their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from rpg_algorithms.maths.conditioned import grid
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.spec.sections import Evaluation


def at_points(policy: PolicyNetwork, settings: Evaluation) -> list[tuple[Mapping[str, float], PolicyNetwork]]:
    """The policy at each setting at which it is evaluated; a plain one as it is, at no weights."""
    told = policy.spec.context
    if not told:
        return [({}, policy)]
    return [(weights, policy.folded(weights)) for weights in grid(told, settings.values_of_each(len(told)))]
