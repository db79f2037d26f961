"""The corpus of Stable-Baselines3's family: real models of it and of sb3-contrib, and SBX's archives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.platform.priors.corpus import Entry, Source, before_tanh, gaussian
from tests.platform.priors.sb3_models import RECIPES, Trained, observations, trained
from tests.platform.priors.sbx_zips import NAMES, D, archive, expected
from torch import Tensor

from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.priors.imported import ImportOptions

GRAPHS = ("a2c of an activation that needs a graph",)


def sb3(name: str, folder: Path) -> Source:
    """A model that the library trained and saved."""
    case = trained(name)
    deterministic = case.recipe.std is not None or case.recipe.own_std is not None
    bounded = case.recipe.family == "squashed_gaussian" and not deterministic
    raw = observations(case, 25_000 if bounded else 1_000)
    seen = torch.as_tensor(case.normalize(raw))
    return Source(
        case.path,
        ImportOptions(std=case.recipe.std),
        partial(_around_its_action if deterministic else _own, case, seen),
        torch.from_numpy(flatten_observations(case.model.observation_space, raw)),
        perceptron="gSDE" not in name and name not in GRAPHS,
        exact=_inside if bounded else None,
        form=f"sb3/{type(case.model).__name__.lower()}",
    )


def _inside(actions: Tensor) -> Tensor:
    """Where the 1e-6 that the library adds to 1 - tanh² does not count."""
    return (torch.tanh(actions).abs() < 0.8).all(-1)


def _own(case: Trained, seen: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    policy = case.model.policy
    policy.set_training_mode(False)
    with torch.no_grad():
        if not hasattr(policy, "actor"):
            squashed = case.recipe.family == "squashed_gaussian"
            return policy.evaluate_actions(seen, torch.tanh(actions) if squashed else actions)[1]  # type: ignore[no-any-return]
        mean, log_std, features = policy.actor.get_action_dist_params(seen)
        distribution = policy.actor.action_dist.proba_distribution(mean, log_std, **features)
        given = (torch.tanh(actions),) if case.model.use_sde else (torch.tanh(actions), actions)
        return distribution.log_prob(*given)  # type: ignore[no-any-return]


def _around_its_action(case: Trained, seen: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """With the standard deviation that is told, or that of its action noise, before the tanh that ends its network."""
    policy: Any = getattr(case.model.policy, "actor", case.model.policy)
    net = getattr(policy, "mu", None) or policy.action_net
    squashed = case.recipe.family == "squashed_gaussian"
    with torch.no_grad():
        mean = (net[:-1] if squashed else net)(seen)
    std = torch.tensor(case.recipe.own_std or case.recipe.std).expand(mean.shape[1])
    return (before_tanh if squashed else gaussian)(mean, std.log(), actions)


def sbx(kind: str, folder: Path) -> Source:
    """Its weights' arithmetic."""
    (folder / "model.zip").write_bytes(archive(kind))
    log_prob = partial(_of_weights, kind, gaussian if kind == "ppo" else before_tanh)
    states = 1.5 * torch.randn(1_000, D, generator=torch.Generator().manual_seed(3))
    options = ImportOptions(std=0.5 if kind == "td3" else None)
    return Source(folder / "model.zip", options, log_prob, states, form=f"sb3/sbx-{kind}")


def _of_weights(kind: str, density: Callable[..., Tensor], states: Tensor, actions: Tensor) -> Tensor:
    mean, log_std = torch.from_numpy(expected(kind, states.numpy())).chunk(2, dim=-1)
    return density(mean, log_std, actions)


SB3: dict[str, Entry] = {
    **{f"sb3, {name}": partial(sb3, name) for name in RECIPES},
    **{f"sbx, {kind}": partial(sbx, kind) for kind in NAMES},
}
