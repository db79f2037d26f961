"""Soft and residual policy gradient as RLlib algorithms (arXiv 2503.11019).

The public names are loaded when they are first used, so that importing one module of this package loads neither Ray nor
torch unless that module needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpg_algorithms.addons import AddonReward
    from rpg_algorithms.maths.conditioned import Conditioned
    from rpg_algorithms.policies.bundle import BundleError, PriorBundle, PriorCard, load_bundle, load_card, save_bundle
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
    "Conditioned",
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

if not TYPE_CHECKING:  # hidden from mypy, which would take any name for one of these
    _NAMES_OF = {
        "addons": "AddonReward",
        "maths.conditioned": "Conditioned",
        "policies.bundle": "BundleError PriorBundle PriorCard load_bundle load_card save_bundle",
        "policies.network": "NetworkSpec PolicyNetwork",
        "rllib.module": "ActorCriticModule NetworkConfig",
        "rllib.rollout": "NonFiniteError Rollout",
        "rllib.rpg": "RPG RPGConfig",
        "rllib.spg": "SPG SPGConfig",
    }
    _MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        """Loads a public name at its first use (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
