"""A policy that is told its weights, as the plain policies that it is at settings which cover their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rpg_algorithms.maths.conditioned import Conditioned, grid
from rpg_algorithms.maths.schedules import Weight, weight_at
from rpg_algorithms.policies.bundle import load_bundle, load_card, save_bundle
from rpg_algorithms.policies.folding import fold
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.spec.sections import Evaluation

Reward: TypeAlias = Mapping[str, Weight | Conditioned]
"""The weights of the reward that a policy is trained on, as ``reward_weights`` of its configuration gives them."""


def at_points(policy: PolicyNetwork, settings: Evaluation) -> list[tuple[Mapping[str, float], PolicyNetwork]]:
    """The policy at each setting at which it is evaluated; a plain one as it is, at no weights."""
    told = policy.spec.context
    if not told:
        return [({}, policy)]
    return [(weights, policy.folded(weights)) for weights in grid(told, settings.values_of_each(len(told)))]


def weights_at(reward: Reward, env_steps: float, told: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a reward's weights are.

    Args:
        reward: its weights: numbers, schedules and ranges.
        env_steps: of training, for schedules.
        told: what the policy is told, for ranges.
    """
    return {
        name: value.factor * told[value.name] if isinstance(value, Conditioned) else weight_at(value, env_steps)
        for name, value in reward.items()
    }


def plain_bundle(folder: Path, place: Path, given: Mapping[str, float], at: Mapping[str, Any]) -> Path:
    """The bundle of a policy at one setting: the folder's own, or what it is at these weights, written to ``place``.

    Args:
        folder: of a bundle.
        place: a folder for the new one.
        given: the weights that a user asked for; of a plain policy none.
        at: those that the setting has; what is asked for goes before.

    Raises:
        ValueError: the policy is told other weights, or within other ranges.
    """
    card = load_card(folder)
    ranges = {each["name"]: each for each in card.network.get("context") or ()}
    if not ranges and given:
        asked = ", ".join(given)
        raise ValueError(f"--weights {asked}: {card.name!r} is a policy at one setting, and is told no weights")
    if not ranges:
        return folder
    weights = {name: value for name, value in at.items() if name in ranges and isinstance(value, float)} | {**given}
    if missing := [name for name in ranges if name not in weights]:
        spans = ", ".join(f"{name} ({each['low']:g} to {each['high']:g})" for name, each in ranges.items())
        asked = ",".join(f"{name}=…" for name in missing)
        raise ValueError(f"{card.name!r} is a policy for a range of weights, {spans}: choose them by --weights {asked}")
    save_bundle(place, *fold(load_bundle(folder), weights))
    return place
