"""Reads models of Stable-Baselines3, sb3-contrib and SBX (what ``model.save`` wrote) without any of them.

A model is a zip archive: ``data`` is JSON whose values that JSON cannot hold are pickles in base64; ``policy.pth`` and
``pytorch_variables.pth`` are files of ``torch.save``. Pickles are read by ``inert``, so nothing in them runs. What the
policy computes follows from its class, the names and shapes of its weights, and ``policy_kwargs``; whatever would
change that (another class, a features extractor) is refused by name.

Generalised state-dependent exploration (gSDE) is read as the distribution of one step's action, which is what its
log-probabilities are; that its noise is held for several steps is not.

Dimension letters: A action dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.priors.files.inert import Global, Instance
from rpg_platform.priors.files.spaces import is_image, read_space
from rpg_platform.priors.formats import sb3_networks, sbx
from rpg_platform.priors.formats.sb3_archive import (
    Kwargs,
    Model,
    Spaces,
    facts_of,
    kind_of,
    open_model,
    temperature,
    version_notes,
)
from rpg_platform.priors.formats.sb3_networks import EXPECTED, Noise, Settings
from rpg_platform.priors.formats.sb3_normaliser import moments_of, of_own_reward
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import GRAPH_ACTIVATIONS, Policy, assemble


@dataclass(frozen=True)
class _Kind:
    """A kind of policy.

    Attributes:
        build: builds its network.
        activation: of the hidden layers, where the model stores none.
        algorithm: its name; None where several algorithms share the class, see ``_algorithm``.
        soft: it was trained at an entropy temperature.
        deterministic: it has no standard deviation of its own.
        on_policy: it collects as PPO does, not into a replay buffer.
        in_jax: it is SBX's.
    """

    build: Callable[[Model, Spaces, Settings], Policy]
    activation: str = "relu"
    algorithm: str | None = None
    soft: bool = False
    deterministic: bool = False
    on_policy: bool = False
    in_jax: bool = False


_ON_POLICY = _Kind(sb3_networks.on_policy, "tanh", on_policy=True)
_ARS = _Kind(sb3_networks.ars, algorithm="ars", deterministic=True, on_policy=True)
_KINDS: dict[str, _Kind] = {
    "stable_baselines3.common.policies.ActorCriticPolicy": _ON_POLICY,
    "stable_baselines3.ppo.policies.PPOPolicy": _ON_POLICY,  # before 0.7
    "stable_baselines3.sac.policies.SACPolicy": _Kind(sb3_networks.sac, algorithm="sac", soft=True),
    "stable_baselines3.td3.policies.TD3Policy": _Kind(sb3_networks.td3, deterministic=True),
    "sb3_contrib.tqc.policies.TQCPolicy": _Kind(sb3_networks.sac, algorithm="tqc", soft=True),
    "sb3_contrib.crossq.policies.CrossQPolicy": _Kind(sb3_networks.crossq, algorithm="crossq", soft=True),
    "sb3_contrib.common.maskable.policies.MaskableActorCriticPolicy": _Kind(
        sb3_networks.on_policy, "tanh", "maskableppo", on_policy=True
    ),
    "sb3_contrib.ars.policies.ARSPolicy": _ARS,
    "sb3_contrib.ars.policies.ARSLinearPolicy": _ARS,
    "sbx.ppo.policies.PPOPolicy": _Kind(sbx.on_policy, "tanh", "sbx-ppo", on_policy=True, in_jax=True),
    "sbx.sac.policies.SACPolicy": _Kind(sbx.soft, algorithm="sbx-sac", soft=True, in_jax=True),
    "sbx.tqc.policies.TQCPolicy": _Kind(sbx.soft, algorithm="sbx-tqc", soft=True, in_jax=True),
    "sbx.crossq.policies.CrossQPolicy": _Kind(sbx.soft, algorithm="sbx-crossq", soft=True, in_jax=True),
    "sbx.td3.policies.TD3Policy": _Kind(sbx.td3, deterministic=True, in_jax=True),
}
_RECURRENT = (
    "a policy with memory (LSTM): its action depends on earlier observations, and RPG needs a prior that acts by the "
    "present one; frames in a stack (--wrapper gymnasium.wrappers:FrameStackObservation) can stand in for memory"
)
_GREEDY = "learns action values and acts greedily: it is no stochastic policy"
_REFUSED_CLASSES = {
    r"sb3_contrib\..*[Rr]ecurrent.*": _RECURRENT,
    r"(stable_baselines3|sb3_contrib|sbx)\..*Cnn.*": "a convolutional policy (images)",
    r"(stable_baselines3|sb3_contrib|sbx)\..*MultiInput.*": "a policy of dictionary observations",
    r"(stable_baselines3|sbx)\.dqn\..*": f"DQN {_GREEDY}",
    r"sb3_contrib\.qrdqn\..*": f"QR-DQN {_GREEDY}",
    r"sbx\..*Simba.*": "a network of residual blocks (SimBa), which is not read",
}
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"
_TORCH_MODULE = re.compile(r"torch\.nn(?:\.modules\.activation)?\.(\w+)")
_ACTIVATION_NAMES = {"LeakyReLU": "leaky_relu"} | {
    name: name.lower() for name in ("ReLU", "Tanh", "ELU", "SiLU", "GELU", "SELU", "Sigmoid", "Softplus", "Mish")
}
_NORMAL_NOISE = "stable_baselines3.common.noise.NormalActionNoise"


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads a model's zip archive, with the VecNormalize file that is named or obviously belongs to it.

    Args:
        path: the archive.
        options: ``std`` for TD3, DDPG and ARS, which are deterministic; ``normalizer`` for a VecNormalize file or an
            ``.npz``; ``activation`` where the stored one cannot be told; the target environment, for notes.

    Raises:
        PriorImportError: names the file, what is wrong with it and what was expected.
    """
    model = open_model(path)
    kind, kwargs = _kind(model)
    spaces = _spaces(model)
    algorithm = kind.algorithm or _algorithm(model)
    std, std_note = _std(model, kind, algorithm, spaces, options)
    moments, notes = moments_of(path, model, options, spaces[0], kind.on_policy)
    alpha = (sbx.temperature if kind.in_jax else temperature)(model) if kind.soft else None
    alpha, alpha_notes = of_own_reward(alpha, path, options, spaces[0])
    noise = None if kind.in_jax else _noise(model, kwargs)
    settings = Settings(kwargs, _activation(model, kwargs, kind, options), noise, std, moments)
    network = assemble(kind.build(model, spaces, settings))
    if std_note is not None:
        notes.append(std_note)
    if noise is not None:
        notes.append("explores by gSDE: its noise is read as that of one step, independent of the step before")
    if algorithm == "maskableppo":
        notes.append("its masks come from the environment, not from the file: here it acts without them")
    return Imported(
        network=network,
        format=f"sb3/{algorithm}",
        observation_space=spaces[0],
        action_space=spaces[1],
        alpha=alpha,
        facts=facts_of(model),
        notes=(*notes, *alpha_notes, *version_notes(model, spaces, options)),
    )


# ---- what the policy is ---------------------------------------------------------------------------------------------


def _kind(model: Model) -> tuple[_Kind, Kwargs]:
    """Tells the kind of policy by its class, and returns its ``policy_kwargs``."""
    policy_class, name = model.value("policy_class"), model.policy_name
    if not isinstance(policy_class, Global):
        name = kind_of(policy_class)
        if isinstance(policy_class, Instance) and len(policy_class.args) > 1 and isinstance(policy_class.args[1], str):
            name = policy_class.args[1][:100]  # cloudpickle's (type, name, bases, …)
        raise PriorImportError(f"{model.where}: policy class {name} of the user's own; {EXPECTED}")
    if name not in _KINDS:
        for pattern, reason in _REFUSED_CLASSES.items():
            if re.fullmatch(pattern, name):
                raise PriorImportError(f"{model.where}: policy class {name[:200]}: {reason}; {EXPECTED}")
        raise PriorImportError(f"{model.where}: policy class {name[:200]} is not known; {EXPECTED}")
    kind = _KINDS[name]
    kwargs = model.value("policy_kwargs")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, dict):
        raise PriorImportError(f"{model.where}: policy_kwargs: {kind_of(kwargs)}, expected a dictionary")
    extractor = kwargs.get("features_extractor_class")
    if extractor is not None and not (isinstance(extractor, Global) and extractor.qualified_name == _FLATTEN):
        raise PriorImportError(f"{model.where}: features extractor {kind_of(extractor)}; {EXPECTED}")
    if found := [name for name in model.state if "features_extractor." in name]:
        raise PriorImportError(f"{model.where}: its features extractor has weights ({found[0][:100]}); {EXPECTED}")
    if kind.in_jax == bool(model.state):
        held = "with" if model.state else "without"
        raise PriorImportError(f"{model.where}: policy class {name} {held} weights in policy.pth; {EXPECTED}")
    return kind, kwargs


def _algorithm(model: Model) -> str:
    """Tells the algorithm by stored settings: PPO, A2C and TRPO share one policy class, TD3 and DDPG another."""
    if _KINDS[model.policy_name] is _ON_POLICY:
        return "ppo" if "clip_range" in model.data else "trpo" if "cg_max_steps" in model.data else "a2c"
    if _KINDS[model.policy_name].in_jax:
        return "sbx-ddpg" if model.data.get("policy_delay") == 1 else "sbx-td3"
    one_critic = not any(name.startswith("critic.qf1.") for name in model.state)
    return "ddpg" if one_critic and model.data.get("policy_delay") == 1 else "td3"


def _std(
    model: Model, kind: _Kind, algorithm: str, spaces: Spaces, options: ImportOptions
) -> tuple[Array | None, str | None]:
    """Chooses a deterministic policy's standard deviation ``[A]``: the user's, else that of its action noise.

    Returns:
        The standard deviation, None for a stochastic policy; and a note.
    """
    if not kind.deterministic:
        if options.std is not None:
            raise PriorImportError(
                f"{model.where}: --std is for deterministic policies; this one has its own standard deviation"
            )
        return None, None
    if isinstance(spaces[1], gym.spaces.Discrete):
        raise PriorImportError(
            f"{model.where}: {algorithm} of discrete actions takes the best of its outputs: these are no logits, and "
            f"it is no stochastic policy; {EXPECTED}"
        )
    size = math.prod(spaces[1].shape or ())
    if options.std is not None:
        return sb3_networks.checked_std(options.std, "", size), None
    noise = model.value("action_noise")
    if isinstance(noise, Instance) and noise.qualified_name.endswith(".VectorizedActionNoise"):
        noise = noise.attributes.get("_base_noise")
    if isinstance(noise, Instance) and noise.qualified_name == _NORMAL_NOISE:
        sigma = noise.attributes.get("_sigma")
        if isinstance(sigma, np.ndarray | float) and np.all(np.asarray(sigma) > 0):
            std = sb3_networks.checked_std(sigma, f"{model.where}: action_noise: ", size)
            listed = ", ".join(f"{each:g}" for each in np.unique(std)[:5])
            return std, f"its standard deviation before tanh, {listed}, is that of its action noise; --std says another"
    unit = "(before tanh, for actions in -1 to 1) " if algorithm != "ars" else ""
    raise PriorImportError(
        f"{model.where}: {algorithm} is deterministic: it has no action probabilities to learn from; give the standard "
        f"deviation {unit}to act with: --std 0.1"
    )


def _spaces(model: Model) -> Spaces:
    observations, actions = (
        read_space(model.value(f"{kind}_space"), f"{model.where}: data: {kind}_space")
        for kind in ("observation", "action")
    )
    if is_image(observations):
        raise PriorImportError(f"{model.where}: observes images {observations}; {EXPECTED}")
    for space in (observations, actions):
        if isinstance(space, gym.spaces.Discrete) and space.start != 0:
            raise PriorImportError(f"{model.where}: {space}: Stable-Baselines3 counts from 0")
    return observations, actions


def _noise(model: Model, kwargs: Kwargs) -> Noise | None:
    """Reads the settings of gSDE; None without it."""
    flags = {name: kwargs.get(name, False) for name in ("use_sde", "squash_output", "use_expln")}
    flags["model"] = model.data.get("use_sde", False)
    bound = kwargs.get("clip_mean", 2.0)
    if not all(isinstance(flag, bool) for flag in flags.values()) or type(bound) not in (int, float):
        raise PriorImportError(f"{model.where}: policy_kwargs: damaged: use_sde, squash_output and use_expln are flags")
    if not (flags["use_sde"] or flags["model"]):
        return None
    mean_bound = float(bound) if 0 < bound < 1e6 else None
    return Noise(flags["squash_output"], flags["use_expln"], mean_bound)


def _activation(model: Model, kwargs: Kwargs, kind: _Kind, options: ImportOptions) -> str:
    """Tells the hidden layers' activation: the stored one, else that of the class."""
    if kind.in_jax:
        name, stored = sbx.activation_of(model)
    else:
        stored = kwargs.get("activation_fn")
        match = _TORCH_MODULE.fullmatch(stored.qualified_name) if isinstance(stored, Global) else None
        name = _ACTIVATION_NAMES.get(match[1]) if match else None
    if stored is None:
        return options.activation or kind.activation
    if options.activation is not None and name not in (None, options.activation):
        raise PriorImportError(f"{model.where}: its activation is {name}, not {options.activation}")
    if name is None and options.activation is None:
        raise PriorImportError(
            f"{model.where}: activation {kind_of(stored)} is not read; expected one of torch.nn: "
            f"{', '.join(GRAPH_ACTIVATIONS)}; if it is one of them, name it with --activation"
        )
    return name or str(options.activation)
