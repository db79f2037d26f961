"""Small policy networks of every family and normaliser, for tests of what acts, imports and exports."""

from __future__ import annotations

import torch

from rpg_algorithms import NetworkSpec, PolicyNetwork

D = 5
LOW, HIGH = (-1.0, -0.5, 0.0), (1.0, 0.5, 4.0)
FAMILIES = {
    "gaussian": {"distribution": "gaussian", "action_size": 3, "action_low": LOW, "action_high": HIGH},
    "state-dependent": {
        "distribution": "gaussian",
        "action_size": 3,
        "state_dependent_std": True,
        "log_std_bounds": (-1.0, 0.2),
        "action_low": LOW,
        "action_high": HIGH,
    },
    "squashed": {"distribution": "squashed_gaussian", "action_size": 3, "action_low": LOW, "action_high": HIGH},
    "categorical": {"distribution": "categorical", "action_size": 4, "action_start": 2},
}
NORMALISERS = {
    "none": {"normalize_observations": False},
    "clipped": {"observation_clip": 0.7},
    "unclipped": {"observation_clip": None, "observation_epsilon": 1e-2},
}


def make_network(family: str, normaliser: str = "clipped", **options: object) -> PolicyNetwork:
    torch.manual_seed(0)
    spec = NetworkSpec(
        observation_size=D, **(FAMILIES[family] | NORMALISERS[normaliser] | {"hidden": (16, 8)} | options)
    )
    network = PolicyNetwork(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if network.normalizer is not None:
        network.normalizer.update(2.0 * torch.randn(100, D) + torch.arange(D))
    return network
