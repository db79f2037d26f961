"""Reads Stable-Baselines3 models (``model.save`` of PPO, A2C, SAC, TD3, DDPG) without Stable-Baselines3.

A model is a zip archive: ``data`` is JSON whose values that JSON cannot hold are pickles in base64; ``policy.pth`` and
``pytorch_variables.pth`` are files of ``torch.save``. Pickles are read by ``inert``, so nothing in them runs. What the
policy computes follows from its class, the names and shapes of its weights, and ``policy_kwargs``; whatever would
change that (another class, a features extractor) is refused by name.

Generalised state-dependent exploration (gSDE) is read as the distribution of one step's action, which is what its
log-probabilities are; that its noise is held for several steps is not.

Dimension letters: D observation size, A action dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import DistributionName
from rpg_platform.priors.files.inert import Global, Instance
from rpg_platform.priors.files.spaces import is_image, read_space
from rpg_platform.priors.formats.sb3_archive import Model, facts_of, kind_of, open_model, temperature, version_notes
from rpg_platform.priors.formats.vecnormalize import beside, read_vecnormalize
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import (
    GRAPH_ACTIVATIONS,
    Activation,
    FeaturesLogStd,
    FreeLogStd,
    Linear,
    Moments,
    NetworkLogStd,
    Policy,
    Step,
    assemble,
)
from rpg_platform.priors.network.layers import linear

_SDE_EPSILON = 1e-6  # stable_baselines3.common.distributions.StateDependentNoiseDistribution
SAC_LOG_STD_BOUNDS = (-20.0, 2.0)  # stable_baselines3.sac.policies.LOG_STD_MIN and LOG_STD_MAX
_FAMILIES = {
    "stable_baselines3.common.policies.ActorCriticPolicy": "on_policy",
    "stable_baselines3.ppo.policies.PPOPolicy": "on_policy",  # before 0.7
    "stable_baselines3.sac.policies.SACPolicy": "sac",
    "stable_baselines3.td3.policies.TD3Policy": "td3",
}
_DEFAULT_ACTIVATION = {"on_policy": "tanh", "sac": "relu", "td3": "relu"}
_REFUSED_CLASSES = {
    r"stable_baselines3\..*Cnn.*": "a convolutional policy (images)",
    r"stable_baselines3\..*MultiInput.*": "a policy of dictionary observations",
    r"stable_baselines3\.dqn\..*": "DQN learns action values and acts greedily: it is no stochastic policy",
    r"sb3_contrib\..*": "an algorithm of sb3-contrib",
}
_EXPECTED = "expected a model of PPO, A2C, SAC, TD3 or DDPG with MlpPolicy; bring others as module:function"
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"
_TORCH_MODULE = re.compile(r"torch\.nn(?:\.modules\.activation)?\.(\w+)")
_ACTIVATION_NAMES = {"LeakyReLU": "leaky_relu"} | {
    name: name.lower() for name in ("ReLU", "Tanh", "ELU", "SiLU", "GELU", "SELU", "Sigmoid", "Softplus", "Mish")
}
Spaces = tuple[gym.Space[Any], gym.Space[Any]]
Kwargs = Mapping[str, Any]


@dataclass(frozen=True)
class _Noise:
    """The settings of gSDE, whose standard deviation is linear in the features of the last hidden layer.

    Attributes:
        squash: actions are squashed by tanh (always so in SAC).
        expln: the parameter's positive part enters by ``1 + log(1 + x)`` instead of ``exp(x)``.
        mean_bound: SAC's ``clip_mean``; None for none.
    """

    squash: bool
    expln: bool
    mean_bound: float | None

    def log_std(self, parameter: Array, head: Linear, mean_bound: float | None = None) -> FeaturesLogStd:
        """Makes the noise of a parameter ``[H, A]``, or ``[H, 1]`` for all actions (``full_std=False``)."""
        x = parameter.astype(np.float64)
        std = np.exp(np.minimum(x, 0.0 if self.expln else np.inf))
        if self.expln:
            std = np.where(x > 0.0, np.log1p(np.maximum(x, 0.0) + _SDE_EPSILON) + 1.0, std)
        if std.ndim == 2 and std.shape[1] == 1:
            std = np.broadcast_to(std, (len(std), len(head.bias)))
        return FeaturesLogStd(np.square(std).T.astype(np.float32), _SDE_EPSILON, mean_bound)


@dataclass(frozen=True)
class _Settings:
    """Settings that fix a policy beside its weights: activation, gSDE, and a standard deviation that the user gave."""

    activation: str
    noise: _Noise | None
    std: float | None


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads a model's zip archive, with the VecNormalize file that is named or obviously belongs to it.

    Args:
        path: the archive.
        options: ``std`` for TD3 and DDPG, which are deterministic; ``normalizer`` for a VecNormalize file;
            ``activation`` where the stored one cannot be told; spaces of the target environment, for notes.

    Raises:
        PriorImportError: names the file, what is wrong with it and what was expected.
    """
    model = open_model(path)
    family, kwargs = _family(model)
    spaces = _spaces(model)
    if (family == "td3") != (options.std is not None):
        raise PriorImportError(
            f"{model.where}: {_algorithm(model, family)} is deterministic: it has no action probabilities to learn "
            "from; give the standard deviation (before tanh, for actions in -1 to 1) to act with: --std 0.1"
            if family == "td3"
            else f"{model.where}: --std is for deterministic policies; this one has its own standard deviation"
        )
    moments, notes = _moments(path, model, options, spaces[0])
    noise = _noise(model, kwargs)
    settings = _Settings(_activation(model, kwargs, family, options), noise, options.std)
    policy = {"on_policy": _on_policy, "sac": _sac, "td3": _td3}[family](model, spaces, settings)
    network = assemble(replace(policy, moments=moments))
    if noise is not None:
        notes.append("explores by gSDE: its noise is read as that of one step, independent of the step before")
    return Imported(
        network=network,
        format=f"sb3/{_algorithm(model, family)}",
        observation_space=spaces[0],
        action_space=spaces[1],
        alpha=temperature(model) if family == "sac" else None,
        facts=facts_of(model),
        notes=(*notes, *version_notes(model, spaces, options)),
    )


# ---- what the policy is ---------------------------------------------------------------------------------------------


def _family(model: Model) -> tuple[str, Mapping[str, Any]]:
    """Tells which of the three kinds of policy it is, and returns its ``policy_kwargs``."""
    policy_class = model.value("policy_class")
    if not isinstance(policy_class, Global):
        name = kind_of(policy_class)
        if isinstance(policy_class, Instance) and len(policy_class.args) > 1 and isinstance(policy_class.args[1], str):
            name = policy_class.args[1][:100]  # cloudpickle's (type, name, bases, …)
        raise PriorImportError(f"{model.where}: policy class {name} of the user's own; {_EXPECTED}")
    name = policy_class.qualified_name
    if name not in _FAMILIES:
        for pattern, reason in _REFUSED_CLASSES.items():
            if re.fullmatch(pattern, name):
                raise PriorImportError(f"{model.where}: policy class {name[:200]}: {reason}; {_EXPECTED}")
        raise PriorImportError(f"{model.where}: policy class {name[:200]} is not known; {_EXPECTED}")
    kwargs = model.value("policy_kwargs")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, dict):
        raise PriorImportError(f"{model.where}: policy_kwargs: {kind_of(kwargs)}, expected a dictionary")
    extractor = kwargs.get("features_extractor_class")
    if extractor is not None and not (isinstance(extractor, Global) and extractor.qualified_name == _FLATTEN):
        raise PriorImportError(f"{model.where}: features extractor {kind_of(extractor)}; {_EXPECTED}")
    if found := [name for name in model.state if "features_extractor." in name]:
        raise PriorImportError(f"{model.where}: its features extractor has weights ({found[0][:100]}); {_EXPECTED}")
    return _FAMILIES[name], kwargs


def _algorithm(model: Model, family: str) -> str:
    """Tells the algorithm by stored settings: PPO, A2C and TRPO share one policy class, TD3 and DDPG another."""
    if family == "on_policy":
        return "ppo" if "clip_range" in model.data else "trpo" if "cg_max_steps" in model.data else "a2c"
    if family == "td3":
        one_critic = not any(name.startswith("critic.qf1.") for name in model.state)
        return "ddpg" if one_critic and model.data.get("policy_delay") == 1 else "td3"
    return family


def _spaces(model: Model) -> tuple[gym.Space[Any], gym.Space[Any]]:
    observations, actions = (
        read_space(model.value(f"{kind}_space"), f"{model.where}: data: {kind}_space")
        for kind in ("observation", "action")
    )
    if is_image(observations):
        raise PriorImportError(f"{model.where}: observes images {observations}; {_EXPECTED}")
    for space in (observations, actions):
        if isinstance(space, gym.spaces.Discrete) and space.start != 0:
            raise PriorImportError(f"{model.where}: {space}: Stable-Baselines3 counts from 0")
    if isinstance(actions, gym.spaces.Box) and not (np.isfinite(actions.low) & np.isfinite(actions.high)).all():
        raise PriorImportError(f"{model.where}: actions in {actions}; expected finite bounds")
    return observations, actions


def _noise(model: Model, kwargs: Kwargs) -> _Noise | None:
    """Reads the settings of gSDE; None without it."""
    flags = {name: kwargs.get(name, False) for name in ("use_sde", "squash_output", "use_expln")}
    flags["model"] = model.data.get("use_sde", False)
    bound = kwargs.get("clip_mean", 2.0)
    if not all(isinstance(flag, bool) for flag in flags.values()) or type(bound) not in (int, float):
        raise PriorImportError(f"{model.where}: policy_kwargs: damaged: use_sde, squash_output and use_expln are flags")
    if not (flags["use_sde"] or flags["model"]):
        return None
    mean_bound = float(bound) if 0 < bound < 1e6 else None
    return _Noise(flags["squash_output"], flags["use_expln"], mean_bound)


def _activation(model: Model, kwargs: Mapping[str, Any], family: str, options: ImportOptions) -> str:
    stored = kwargs.get("activation_fn")
    if stored is None:
        return options.activation or _DEFAULT_ACTIVATION[family]
    match = _TORCH_MODULE.fullmatch(stored.qualified_name) if isinstance(stored, Global) else None
    name = _ACTIVATION_NAMES.get(match[1]) if match else None
    if options.activation is not None and name not in (None, options.activation):
        raise PriorImportError(f"{model.where}: its activation is {name}, not {options.activation}")
    if name is None and options.activation is None:
        raise PriorImportError(
            f"{model.where}: activation {kind_of(stored)} is not read; expected one of torch.nn: "
            f"{', '.join(GRAPH_ACTIVATIONS)}; if it is one of them, name it with --activation"
        )
    return name or str(options.activation)


# ---- weights --------------------------------------------------------------------------------------------------------


def _on_policy(model: Model, spaces: Spaces, settings: _Settings) -> Policy:
    """``mlp_extractor.shared_net`` (before 1.8), ``mlp_extractor.policy_net`` and ``action_net``."""
    _check_names(model, ("mlp_extractor.", "action_net.", "value_net."), ("log_std",))
    steps = _hidden(model, "mlp_extractor.shared_net.", settings.activation)
    steps += _hidden(model, "mlp_extractor.policy_net.", settings.activation)
    head = _linear(model, "action_net")
    steps.append(head)
    if isinstance(spaces[1], gym.spaces.Discrete):
        return Policy(model.where, steps, "categorical", *spaces)
    if settings.noise is not None:
        family: DistributionName = "squashed_gaussian" if settings.noise.squash else "gaussian"
        return Policy(model.where, steps, family, *spaces, settings.noise.log_std(_tensor(model, "log_std"), head))
    return Policy(model.where, steps, "gaussian", *spaces, FreeLogStd(_tensor(model, "log_std")))


def _sac(model: Model, spaces: Spaces, settings: _Settings) -> Policy:
    """``actor.latent_pi``, then ``actor.mu`` and ``actor.log_std`` beside each other."""
    prefixes = ("actor.latent_pi.", "actor.mu.", "actor.log_std.", "critic.", "critic_target.")
    _check_names(model, prefixes, ("actor.log_std",))
    _check_box(model, spaces[1])
    steps = _hidden(model, "actor.latent_pi.", settings.activation)
    if settings.noise is not None:
        bound = settings.noise.mean_bound
        head = _linear(model, "actor.mu" if bound is None else "actor.mu.0")
        log_std = settings.noise.log_std(_tensor(model, "actor.log_std"), head, bound)
        return Policy(model.where, [*steps, head], "squashed_gaussian", *spaces, log_std)
    heads = [_linear(model, f"actor.{name}") for name in ("mu", "log_std")]
    if heads[0].weight.shape != heads[1].weight.shape:
        raise PriorImportError(
            f"{model.where}: policy.pth: actor.mu has the shape {list(heads[0].weight.shape)}, actor.log_std "
            f"{list(heads[1].weight.shape)}"
        )
    steps.append(Linear(*(np.concatenate(parts) for parts in zip(*heads, strict=True))))
    return Policy(model.where, steps, "squashed_gaussian", *spaces, NetworkLogStd(*SAC_LOG_STD_BOUNDS))


def _td3(model: Model, spaces: Spaces, settings: _Settings) -> Policy:
    """``actor.mu``: a perceptron whose output tanh squashes."""
    _check_names(model, ("actor.mu.", "actor_target.", "critic.", "critic_target."))
    _check_box(model, spaces[1])
    assert settings.std is not None
    if not (math.isfinite(settings.std) and settings.std > 0):
        raise PriorImportError(f"std={settings.std}: expected a positive number")
    steps = _hidden(model, "actor.mu.", settings.activation)[:-1]
    if not steps:
        raise PriorImportError(f"{model.where}: policy.pth: has no actor.mu")
    log_std = np.full(spaces[1].shape or (), math.log(settings.std), dtype=np.float32)
    return Policy(model.where, steps, "squashed_gaussian", *spaces, FreeLogStd(log_std))


def _check_box(model: Model, space: gym.Space[Any]) -> None:
    if not isinstance(space, gym.spaces.Box):
        raise PriorImportError(f"{model.where}: actions in {space}, expected a Box for this algorithm")


def _check_names(model: Model, prefixes: tuple[str, ...], names: tuple[str, ...] = ()) -> None:
    """Refuses weights of other names: a policy that has them computes something else."""
    for name in model.state:
        if not name.startswith(prefixes) and name not in names:
            raise PriorImportError(
                f"{model.where}: policy.pth: has {name[:100]!r}, which no such policy has; {_EXPECTED}"
            )


def _hidden(model: Model, prefix: str, activation: str) -> list[Step]:
    """Reads the linear layers ``<prefix>0``, ``<prefix>2``, …, each followed by its activation."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in model.state if name.startswith(prefix)}
    if not all(index.isascii() and index.isdigit() and len(index) < 5 for index in found):
        raise PriorImportError(f"{model.where}: policy.pth: {prefix}{min(found)[:50]} is no layer of a perceptron")
    indices = sorted(map(int, found))
    if indices != list(range(0, 2 * len(indices), 2)):
        raise PriorImportError(
            f"{model.where}: policy.pth: {prefix} has layers {indices[:20]}, expected 0, 2, 4, … and activations"
        )
    steps: list[Step] = []
    for index in indices:
        steps += [_linear(model, f"{prefix}{index}"), Activation(activation)]
    return steps


def _linear(model: Model, name: str) -> Linear:
    weight, bias = (_tensor(model, f"{name}.{part}") for part in ("weight", "bias"))
    return linear(weight, bias, name, f"{model.where}: policy.pth")


def _tensor(model: Model, name: str) -> Array:
    value = model.state.get(name)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        found = "nothing" if value is None else kind_of(value)
        raise PriorImportError(f"{model.where}: policy.pth: {name} is {found}, expected a tensor of floats")
    array = value.to(torch.float32).numpy()
    if not np.isfinite(array).all():
        raise PriorImportError(f"{model.where}: policy.pth: {name} has values that are not finite")
    return array


# ---- what stands beside ---------------------------------------------------------------------------------------------


def _moments(
    path: Path, model: Model, options: ImportOptions, space: gym.Space[Any]
) -> tuple[Moments | None, list[str]]:
    """Reads the named VecNormalize file; else one that obviously belongs to the model and fits it."""
    size = math.prod(space.shape or ())
    if options.normalizer is not None:
        moments = read_vecnormalize(options.normalizer)
        _check_moments(moments, size, space, str(options.normalizer))
        return moments, [f"observations are normalised as in {options.normalizer.name}"]
    found, note = beside(path)
    if found is None:
        return None, [note or "no VecNormalize file beside it: observations are taken as they are"]
    try:
        moments = read_vecnormalize(found)
    except PriorImportError as error:
        raise PriorImportError(f"{error}; it stands beside {path.name}: move it away, or name another") from error
    try:
        _check_moments(moments, size, space, found.name)
    except PriorImportError as error:
        return None, [f"{error}: it is not used, and observations are taken as they are"]
    if moments is None:
        return None, [f"{found.name}, found beside it, normalises rewards alone: observations are taken as they are"]
    return moments, [f"observations are normalised as in {found.name}, found beside it"]


def _check_moments(moments: Moments | None, size: int, space: gym.Space[Any], where: str) -> None:
    if moments is None:
        return
    if not isinstance(space, gym.spaces.Box):
        raise PriorImportError(f"{where}: normalises observations, which are {space}")
    if len(moments.mean) != size:
        raise PriorImportError(f"{where}: normalises {len(moments.mean)} numbers; the policy observes {size}")
