"""Reads policies of this package: bundles, checkpoints of trials, and RLlib checkpoints of SPG and RPG.

A policy keeps its ancestors: the bundle that comes out names its parent, which is the bundle that went in or the prior
that an RPG checkpoint carries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.policies.bundle import BundleError, PriorCard, load_bundle
from rpg_algorithms.policies.discount import recorded_gamma
from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork, spec_for_spaces
from rpg_algorithms.policies.temperature import temperature_of
from rpg_algorithms.rllib.module import NetworkConfig
from rpg_platform.bundles import bundle_in
from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.rllib_checkpoint import CHECKPOINT_FILE, Checkpoint, read_constructed, read_state
from rpg_platform.priors.files.spaces import read_space
from rpg_platform.priors.formats.exported_card import described_by
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.tasks.registry import TASKS

# Checkpoints name their classes by module; up to version 0.1.0 the modules had no folders.
ALGORITHMS = {
    f"rpg_algorithms.{folder}{name}.{name.upper()}": name for folder in ("rllib.", "") for name in ("spg", "rpg")
}
_MODULE = "rpg_algorithms.rllib.module.ActorCriticModule"
_MODULES = (_MODULE, "rpg_algorithms.module.ActorCriticModule")
_WEIGHTS = ("omega_prime", "alpha_hat", "omega", "kl_coefficient", "alpha", "entropy_coeff")
_BUNDLES = ("rpg_algorithms.policies.bundle.PriorBundle", "rpg_algorithms.prior.PriorBundle")


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads the policy of a bundle's folder, of a trial or its checkpoint, or of an SPG or RPG checkpoint.

    Raises:
        PriorImportError: none of these, or damaged.
    """
    found = bundle_in(path)
    if found is not None:
        return _bundle(found, "bundle" if found == path else "trial")
    if (path / "algorithm" / CHECKPOINT_FILE).is_file():
        path = path / "algorithm"
    return _algorithm(path, options)


def _bundle(folder: Path, kind: str) -> Imported:
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        raise PriorImportError(str(error)) from error
    card = bundle.card
    facts = {"name": card.name, "content_hash": card.content_hash, "created": card.created}
    return described_by(card, Imported(bundle.build(), kind, None, None, facts=facts))


def _algorithm(path: Path, options: ImportOptions) -> Imported:
    checkpoint = Checkpoint(path)
    if checkpoint.algorithm not in ALGORITHMS:
        raise PriorImportError(f"{path}: a checkpoint of {checkpoint.algorithm}, expected SPG or RPG")
    folder = checkpoint.module(options.module)
    made, where = read_constructed(folder), str(folder)
    if made.class_name not in _MODULES:
        raise PriorImportError(f"{where}: its RLModule is {made.class_name}, expected {_MODULE}")
    spaces = [read_space(made.kwargs.get(key), where) for key in ("observation_space", "action_space")]
    spec = _spec(made.kwargs.get("model_config"), spaces[0], spaces[1], where)
    env = checkpoint.config.get("env")
    prior = _prior_card(checkpoint.config)
    descent: Mapping[str, Any] = {"parents": [], "lineage": []} if prior is None else prior.descent()
    facts = {
        "ray": checkpoint.ray_version,
        "algorithm": ALGORITHMS[checkpoint.algorithm],
        "env": env[:200] if isinstance(env, str) else None,
        "env_steps": checkpoint.metric("env_runners--num_env_steps_sampled_lifetime"),
        "gamma": recorded_gamma({"training": checkpoint.config}),
        **{
            key: checkpoint.config.get(key)
            for key in ("omega_prime", "alpha_hat", "omega", "kl_coefficient", "alpha", "entropy_coeff")
        },
    }
    facts = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    env_id, env_kwargs = _environment(env)
    return Imported(
        network=_network(spec, read_state(folder, "module_state"), where),
        format=f"rllib/{ALGORITHMS[checkpoint.algorithm]}",
        observation_space=spaces[0],
        action_space=spaces[1],
        env_id=env_id,
        env_kwargs=env_kwargs,
        alpha=temperature_of(checkpoint.config),
        facts=facts,
        parents=tuple(descent["parents"]),
        lineage=tuple(descent["lineage"]),
    )


def _spec(
    model_config: Any, observation_space: gym.Space[Any], action_space: gym.Space[Any], where: str
) -> NetworkSpec:
    if not isinstance(model_config, dict):
        raise PriorImportError(f"{where}: stores no model_config")
    prior = model_config.get("prior_network")
    try:
        if isinstance(prior, dict) and model_config.get("start_from_prior"):
            return NetworkSpec.from_dict(prior)
        names = set(NetworkConfig.__dataclass_fields__) - {"critic_hidden", "critic_activation"}
        return spec_for_spaces(observation_space, action_space, **{k: v for k, v in model_config.items() if k in names})
    except (ValueError, TypeError) as error:
        raise PriorImportError(f"{where}: {error}") from error


def _network(spec: NetworkSpec, state: Any, where: str) -> PolicyNetwork:
    if not isinstance(state, dict):
        raise PriorImportError(f"{where}: its module_state is {type(state).__name__}, expected named arrays")
    with torch.device("meta"):  # shapes alone: the specification may claim a network larger than the memory
        expected = PolicyNetwork(spec).state_dict()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in expected.items():
        value = state.get(f"policy.{name}")
        if not isinstance(value, np.ndarray | np.generic) or np.asarray(value).dtype.kind != "f":
            raise PriorImportError(f"{where}: holds no array policy.{name}")
        array = np.asarray(value)
        if array.shape != tuple(tensor.shape) or not np.isfinite(array).all():
            raise PriorImportError(
                f"{where}: policy.{name} has shape {list(array.shape)}, expected finite values of {list(tensor.shape)}"
            )
        weights[name] = torch.from_numpy(np.array(array)).to(tensor.dtype)
    network = PolicyNetwork(spec)
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def _prior_card(config: Mapping[str, Any]) -> PriorCard | None:
    """Reads the card of the prior that the configuration carries; None without one that can be read."""
    prior = config.get("prior")
    card = prior.attributes.get("card") if isinstance(prior, Instance) and prior.qualified_name in _BUNDLES else None
    if not isinstance(card, Instance):
        return None
    try:
        values = _Unpickled().fields(card)
        return PriorCard.model_validate({k: v for k, v in values.items() if k in PriorCard.model_fields})
    except (ValueError, RecursionError):  # a ValidationError is one
        return None


class _Unpickled:
    """Turns pickled models into dictionaries of their fields; counts instances, which may be shared without end."""

    def __init__(self, limit: int = 100_000) -> None:
        self.left = limit

    def fields(self, model: Instance) -> dict[str, Any]:
        """Returns the fields of a pydantic model. Raises ValueError where there are none, or too many."""
        inner = model.attributes.get("__dict__", model.attributes)
        if not isinstance(inner, dict):
            raise ValueError("not a model")
        return {key: self.value(each) for key, each in inner.items() if isinstance(key, str)}

    def value(self, value: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("too large")
        if isinstance(value, Instance):
            return self.fields(value)
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        return [self.value(each) for each in value] if isinstance(value, list) else value


def _environment(env: Any) -> tuple[str | None, dict[str, Any]]:
    """Reads id and arguments of RLlib's ``env``: a registered id, or a sweep's ``rpg:<task>:<hash>``."""
    if not isinstance(env, str):
        return None, {}
    match = re.fullmatch(r"rpg:(.+?)(?::[0-9a-f]{8})?", env)
    task = TASKS.get(match[1]) if match else None
    if task is not None:
        return task.env_id, dict(task.env_kwargs)
    return (env if env in gym.registry else None), {}
