"""Reads the policies of SBX (Stable-Baselines3 in JAX), whose archives keep the whole policy as a pickle in ``data``.

The actor is ``policy.actor_state.params``: Flax's ``Dense_0``, ``Dense_1``, … with ``kernel`` ``[in, out]`` and
``bias``, CrossQ's ``BatchRenorm_0``, … with their statistics in ``batch_stats``. JAX's arrays are pickled as numpy's
parts, so neither JAX nor Flax is needed, and nothing in the pickle runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.priors.files.inert import Global, Instance
from rpg_platform.priors.files.inert_readers import make_array
from rpg_platform.priors.formats.sb3_archive import Model, Spaces, kind_of
from rpg_platform.priors.formats.sb3_networks import LOG_STD_BOUNDS, Renorm, Settings, deterministic, renormalised
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.network.assemble import Activation, FreeLogStd, Linear, NetworkLogStd, Policy, Step
from rpg_platform.priors.network.layers import linear

ACTORS = {
    "sbx.ppo.policies.Actor",
    "sbx.common.policies.SquashedGaussianActor",
    "sbx.crossq.policies.Actor",
}
_EXPECTED = "expected SBX's PPO, SAC, TQC, CrossQ, TD3 or DDPG with its own perceptron (MlpPolicy)"
_ARRAY = re.compile(r"jax\..*\._?reconstruct(_device)?_array")
_EPSILON = 0.001  # sbx.common.jax_layers.BatchRenorm
# As JAX calls them; its gelu is the approximation by tanh, so it is not torch's.
_ACTIVATIONS = {name: name for name in ("relu", "tanh", "elu", "selu", "sigmoid", "softplus", "mish", "leaky_relu")} | {
    "silu": "silu",
    "swish": "silu",
}


def on_policy(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """PPO: a perceptron that gives a Gaussian's mean, beside a free ``log_std``, or logits."""
    params, _ = _actor(model, spaces, settings)
    layers = _layers(params, model.where)
    steps = _perceptron(layers, settings)
    if isinstance(spaces[1], gym.spaces.Discrete):
        return Policy(model.where, steps, "categorical", *spaces, moments=settings.moments)
    log_std = FreeLogStd(_array(params.get("log_std"), "log_std", model.where))
    return Policy(model.where, steps, "gaussian", *spaces, log_std, settings.moments)


def soft(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """SAC, TQC and CrossQ: a perceptron whose last two layers stand beside each other, the mean and the log std."""
    params, statistics = _actor(model, spaces, settings)
    *hidden, mean, log_std = _layers(params, model.where, at_least=2)
    if mean.weight.shape != log_std.weight.shape:
        raise PriorImportError(
            f"{model.where}: actor_state: mean {list(mean.weight.shape)} and log std {list(log_std.weight.shape)}: "
            "expected one shape"
        )
    head = Linear(*(np.concatenate(parts) for parts in zip(mean, log_std, strict=True)))
    norms = _norms(params, statistics, model.where)
    if len(norms) == 1 and hidden:  # with batch_norm=False SBX keeps one that it does not use
        norms = []
    if not norms:
        steps, moments = _perceptron([*hidden, head], settings), settings.moments
    elif len(norms) != len(hidden) + 1:
        raise PriorImportError(
            f"{model.where}: actor_state: {len(norms)} batch normalisations for {len(hidden)} hidden layers"
        )
    else:
        steps, moments = renormalised(norms, [*hidden, head], _EPSILON, settings, model.where)
    return Policy(model.where, steps, "squashed_gaussian", *spaces, NetworkLogStd(*LOG_STD_BOUNDS), moments)


def td3(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """TD3 and DDPG: a perceptron whose output tanh squashes."""
    params, _ = _actor(model, spaces, settings)
    steps = _perceptron(_layers(params, model.where), settings)
    return deterministic(model.where, steps, "squashed_gaussian", spaces, settings, "actor")


def activation_of(model: Model) -> tuple[str | None, Any]:
    """Returns our name of the hidden layers' activation, None for an unknown one, and what the policy stores of it."""
    stored = _attributes(model).get("activation_fn")
    names: list[Any] = []
    if isinstance(stored, Instance):
        names = [stored.attributes.get(key) for key in ("function_name", "__name__")]
    elif isinstance(stored, Global):
        names = [stored.name]
    return next((_ACTIVATIONS[name] for name in names if isinstance(name, str) and name in _ACTIVATIONS), None), stored


def temperature(model: Model) -> float | None:
    """Returns the entropy temperature of SAC, TQC and CrossQ; None where none is stored."""
    state, fixed = model.value("ent_coef_state"), model.value("ent_coef")
    params = _mapping(state.attributes.get("params")) if isinstance(state, Instance) else None
    if params is not None and "log_ent_coef" in params:
        value = float(_array(params["log_ent_coef"], "log_ent_coef", model.where, finite=False).reshape(-1)[0])
        alpha = math.exp(min(value, 700.0))
    elif isinstance(fixed, Instance) and type(fixed.attributes.get("ent_coef_init")) in (int, float):
        alpha = float(fixed.attributes["ent_coef_init"])
    else:
        return None
    if not math.isfinite(alpha) or alpha < 0:
        raise PriorImportError(f"{model.where}: its entropy temperature is {alpha}")
    return alpha or None


# ---- parts of the pickled policy ------------------------------------------------------------------------------------


def _attributes(model: Model) -> dict[str, Any]:
    policy = model.value("policy")
    if not isinstance(policy, Instance):
        raise PriorImportError(f"{model.where}: data: policy is {kind_of(policy)}, expected SBX's policy")
    return policy.attributes


def _actor(model: Model, spaces: Spaces, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Finds the actor's parameters and its batch statistics."""
    attributes = _attributes(model)
    actor, state = attributes.get("actor_class"), attributes.get("actor_state")
    if actor is not None and not (isinstance(actor, Global) and actor.qualified_name in ACTORS):
        raise PriorImportError(f"{model.where}: actor {kind_of(actor)}; {_EXPECTED}")
    if not isinstance(spaces[0], gym.spaces.Box):
        raise PriorImportError(f"{model.where}: observations in {spaces[0]}, expected a Box for SBX")
    params = _mapping(state.attributes.get("params")) if isinstance(state, Instance) else None
    if params is None or not isinstance(state, Instance):
        raise PriorImportError(f"{model.where}: data: policy has no actor_state with parameters; {_EXPECTED}")
    inner = _mapping(params.get("params"))
    params = params if inner is None else inner
    for name in params:
        if not re.fullmatch(r"Dense_\d{1,4}|BatchRenorm_\d{1,4}|log_std", str(name)):
            raise PriorImportError(f"{model.where}: actor_state: has {str(name)[:100]!r}; {_EXPECTED}")
    return params, _mapping(state.attributes.get("batch_stats")) or {}


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Returns a dictionary, or that in Flax's FrozenDict."""
    if isinstance(value, Instance) and value.qualified_name == "flax.core.frozen_dict.FrozenDict" and value.args:
        value = value.args[0]
    return value if isinstance(value, dict) else None


def _numbered(params: Mapping[str, Any], kind: str, where: str) -> list[Mapping[str, Any]]:
    """Collects ``<kind>_0``, ``<kind>_1``, … in order."""
    parts = {int(name.rpartition("_")[2]): _mapping(part) for name, part in params.items() if name.startswith(kind)}
    found = [parts.get(index) for index in range(len(parts))]
    if None in found:
        raise PriorImportError(f"{where}: actor_state: its {kind} are not numbered from 0")
    return [part for part in found if part is not None]


def _layers(params: Mapping[str, Any], where: str, at_least: int = 1) -> list[Linear]:
    layers = []
    for index, part in enumerate(_numbered(params, "Dense", where)):
        name = f"Dense_{index}"
        kernel, bias = (_array(part.get(key), f"{name}.{key}", where) for key in ("kernel", "bias"))
        layers.append(linear(np.ascontiguousarray(kernel.T), bias, name, f"{where}: actor_state"))
    if len(layers) < at_least:
        raise PriorImportError(f"{where}: actor_state: {len(layers)} layers; {_EXPECTED}")
    return layers


def _norms(params: Mapping[str, Any], statistics: Mapping[str, Any], where: str) -> list[Renorm]:
    parts = [_numbered(each, "BatchRenorm", where) for each in (statistics, params)]
    if len(parts[0]) != len(parts[1]):
        raise PriorImportError(f"{where}: actor_state: {len(parts[0])} batch statistics for {len(parts[1])} layers")
    norms = []
    for index, (measured, learned) in enumerate(zip(*parts, strict=True)):
        named = (measured.get("mean"), measured.get("var"), learned.get("scale"), learned.get("bias"))
        norms.append(Renorm(*(_array(each, f"BatchRenorm_{index}", where) for each in named)))
    return norms


def _perceptron(layers: Sequence[Linear], settings: Settings) -> list[Step]:
    steps: list[Step] = []
    for layer in layers:
        steps += [layer, Activation(settings.activation)]
    return steps[:-1]


def _array(value: Any, name: str, where: str, finite: bool = True) -> Array:
    """Makes a float32 array of a pickled array of JAX's, or of numpy's."""
    if isinstance(value, Instance) and _ARRAY.fullmatch(value.qualified_name) and len(value.args) > 2:
        state = value.args[2]
        if isinstance(state, tuple) and len(state) == 5:
            try:
                value = make_array(state[4], state[2], state[1], "F" if state[3] else "C")
            except (TypeError, ValueError) as error:
                raise PriorImportError(f"{where}: actor_state: {name}: damaged: {str(error)[:200]}") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise PriorImportError(f"{where}: actor_state: {name} is {kind_of(value)}, expected an array of floats")
    array = value.astype(np.float32)
    if finite and not np.isfinite(array).all():
        raise PriorImportError(f"{where}: actor_state: {name} has values that are not finite")
    return array
