"""Soft and residual policy gradient as RLlib algorithms (arXiv 2503.11019)."""

from rpg_algorithms.addons import AddonReward
from rpg_algorithms.policies.bundle import (
    BundleError,
    PriorBundle,
    PriorCard,
    load_bundle,
    load_card,
    save_bundle,
)
from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork
from rpg_algorithms.rllib.module import ActorCriticModule, NetworkConfig
from rpg_algorithms.rllib.rollout import NonFiniteError, Rollout
from rpg_algorithms.rllib.rpg import RPG, RPGConfig
from rpg_algorithms.rllib.spg import SPG, SPGConfig

__version__ = "0.1.0"

__all__ = [
    "RPG",
    "SPG",
    "ActorCriticModule",
    "AddonReward",
    "BundleError",
    "NetworkConfig",
    "NetworkSpec",
    "NonFiniteError",
    "PolicyNetwork",
    "PriorBundle",
    "PriorCard",
    "RPGConfig",
    "Rollout",
    "SPGConfig",
    "load_bundle",
    "load_card",
    "save_bundle",
]
