"""A bundle of a policy that is told its weights, made into the plain bundle that it is at one setting."""

from __future__ import annotations

from collections.abc import Mapping

from rpg_algorithms.policies.bundle import PriorBundle, PriorCard
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_algorithms.policies.temperature import temperature_of


def fold(bundle: PriorBundle, weights: Mapping[str, float]) -> tuple[PolicyNetwork, PriorCard]:
    """The plain policy at ``weights``, and its card; ``save_bundle`` writes them.

    Args:
        bundle: of a policy that is told its weights.
        weights: a value within its range of each.

    Returns:
        The network, and the bundle's card with the weights that were chosen, the ranges that were trained
        (``made_by.conditioned``), the temperature of these weights, and without returns, which were of the whole range.

    Raises:
        ValueError: the policy is a plain one, or a weight is missing, unknown or outside its range.
    """
    context = bundle.network_spec.context
    if not context:
        raise ValueError(f"{bundle.card.name!r} is a policy at one setting: it takes no weights")
    network = bundle.build().folded(weights)
    chosen = {**(bundle.card.made_by.get("weights") or {}), **weights}
    made_by = {
        **bundle.card.made_by,
        "weights": chosen,
        "conditioned": {each.name: [each.low, each.high] for each in context},
    }
    alpha = temperature_of(chosen) if bundle.card.alpha is None else bundle.card.alpha
    return network, bundle.card.model_copy(update={"made_by": made_by, "alpha": alpha, "returns": {}})
