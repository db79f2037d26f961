"""Builds the networks of Stable-Baselines3's policies and of sb3-contrib's from their weights in ``policy.pth``.

Dimension letters: D observation size, A action dimensions, H size of the last hidden layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import DistributionName
from rpg_platform.priors.formats.sb3_archive import Kwargs, Model, Spaces, kind_of
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.network.assemble import (
    Activation,
    FeaturesLogStd,
    FreeLogStd,
    Linear,
    Moments,
    NetworkLogStd,
    Policy,
    Step,
)
from rpg_platform.priors.network.layers import linear

EXPECTED = (
    "expected a model of PPO, A2C, TRPO, SAC, TQC, CrossQ, MaskablePPO, ARS, TD3 or DDPG with MlpPolicy; bring others "
    "as module:function"
)
LOG_STD_BOUNDS = (-20.0, 2.0)  # LOG_STD_MIN and LOG_STD_MAX of the policies of SAC, TQC and CrossQ
_SDE_EPSILON = 1e-6  # stable_baselines3.common.distributions.StateDependentNoiseDistribution
_RENORM_EPSILON = 0.001  # sb3_contrib.common.torch_layers.BatchRenorm


@dataclass(frozen=True)
class Noise:
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
class Settings:
    """What fixes a policy beside its weights.

    Attributes:
        kwargs: the stored ``policy_kwargs``.
        activation: of the hidden layers.
        noise: the settings of gSDE; None without it.
        std: ``[A]``, or one number for all: the standard deviation of a deterministic policy; None for others.
        moments: the normaliser that stands outside of the model; None without one.
    """

    kwargs: Kwargs
    activation: str
    noise: Noise | None
    std: Array | None
    moments: Moments | None


def on_policy(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """``mlp_extractor.shared_net`` (before 1.8), ``mlp_extractor.policy_net`` and ``action_net``."""
    _check_names(model, ("mlp_extractor.", "action_net.", "value_net."), ("log_std",))
    steps = _hidden(model, "mlp_extractor.shared_net.", settings.activation)
    steps += _hidden(model, "mlp_extractor.policy_net.", settings.activation)
    head, noise, moments = _linear(model, "action_net"), settings.noise, settings.moments
    steps.append(head)
    if isinstance(spaces[1], gym.spaces.Discrete):
        return Policy(model.where, steps, "categorical", *spaces, moments=moments)
    if noise is not None:
        family: DistributionName = "squashed_gaussian" if noise.squash else "gaussian"
        log_std = noise.log_std(_tensor(model, "log_std"), head)
        return Policy(model.where, steps, family, *spaces, log_std, moments)
    return Policy(model.where, steps, "gaussian", *spaces, FreeLogStd(_tensor(model, "log_std")), moments)


def sac(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """``actor.latent_pi``, then ``actor.mu`` and ``actor.log_std`` beside each other; TQC's actor is the same."""
    _check_actor(model, spaces)
    steps = _hidden(model, "actor.latent_pi.", settings.activation)
    head, log_std = _heads(model, settings)
    return Policy(model.where, [*steps, head], "squashed_gaussian", *spaces, log_std, settings.moments)


def crossq(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """As SAC, with a batch renormalisation before each layer of ``actor.latent_pi`` and behind the last."""
    if not any(name.endswith(".ra_mean") for name in model.state):  # batch_norm=False, or no hidden layers
        return sac(model, spaces, settings)
    _check_actor(model, spaces)
    prefix = "actor.latent_pi."
    norms = [name for name in _parts(model, prefix) if f"{prefix}{name}.ra_mean" in model.state]
    layers = [name for name in _parts(model, prefix) if name not in norms]
    if norms != list(range(0, 3 * len(layers) + 1, 3)) or layers != list(range(1, 3 * len(layers), 3)):
        raise PriorImportError(
            f"{model.where}: policy.pth: {prefix} has normalisations {norms[:9]} and layers {layers[:9]}, expected "
            "0, 3, 6, … and 1, 4, …"
        )
    epsilon = settings.kwargs.get("batch_norm_eps", _RENORM_EPSILON)
    if type(epsilon) not in (int, float) or not epsilon >= 0:
        raise PriorImportError(f"{model.where}: policy_kwargs: batch_norm_eps is {kind_of(epsilon)}")
    head, log_std = _heads(model, settings)
    steps, moments = renormalised(
        [
            Renorm(*(_tensor(model, f"{prefix}{name}.{part}") for part in ("ra_mean", "ra_var", "scale", "bias")))
            for name in norms
        ],
        [*(_linear(model, f"{prefix}{name}") for name in layers), head],
        float(epsilon),
        settings,
        model.where,
    )
    return Policy(model.where, steps, "squashed_gaussian", *spaces, log_std, moments)


def td3(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """``actor.mu``: a perceptron whose output tanh squashes."""
    _check_names(model, ("actor.mu.", "actor_target.", "critic.", "critic_target."))
    _check_box(model, spaces[1])
    steps = _hidden(model, "actor.mu.", settings.activation)[:-1]
    return deterministic(model.where, steps, "squashed_gaussian", spaces, settings, "actor.mu")


def ars(model: Model, spaces: Spaces, settings: Settings) -> Policy:
    """``action_net``: a perceptron, or one linear layer; its output is squashed by tanh or clipped."""
    _check_names(model, ("action_net.",))
    is_linear = model.policy_name.endswith(".ARSLinearPolicy")
    squash = settings.kwargs.get("squash_output", not is_linear)
    if not isinstance(squash, bool):
        raise PriorImportError(f"{model.where}: policy_kwargs: damaged: squash_output is a flag")
    steps = _hidden(model, "action_net.", settings.activation, bias=False)[:-1]
    family: DistributionName = "squashed_gaussian" if squash else "gaussian"
    return deterministic(model.where, steps, family, spaces, settings, "action_net")


def deterministic(
    where: str, steps: Sequence[Step], family: DistributionName, spaces: Spaces, settings: Settings, name: str
) -> Policy:
    """Makes a policy that acts by the output of ``steps`` alone a stochastic one, by the standard deviation given."""
    assert settings.std is not None
    if not steps:
        raise PriorImportError(f"{where}: policy.pth: has no {name}")
    log_std = np.log(np.broadcast_to(settings.std, spaces[1].shape or ())).astype(np.float32)
    return Policy(where, steps, family, *spaces, FreeLogStd(log_std), settings.moments)


class Renorm(NamedTuple):
    """Batch renormalisation as it acts: ``scale (x - mean) / sqrt(var + epsilon) + bias``, each ``[n]``."""

    mean: Array
    var: Array
    scale: Array
    bias: Array


def renormalised(
    norms: Sequence[Renorm], layers: Sequence[Linear], epsilon: float, settings: Settings, where: str
) -> tuple[list[Step], Moments | None]:
    """Makes a plain perceptron of layers with a renormalisation before each.

    The first becomes the observation normaliser, unless there is one, so that large observations keep their digits;
    the others go into the layers behind them. gSDE's noise is linear in the features in front of the last layer, so
    there the last normalisation stays, as a diagonal layer.

    Args:
        norms: as many as ``layers``.
        layers: the last is the head, the others are followed by ``settings.activation``.
        epsilon: added to the variances.
        settings: the policy's.
        where: the source, for messages.
    """
    for norm, layer in zip(norms, layers, strict=True):
        if any(part.shape != layer.weight.shape[1:] for part in norm) or (norm.var < 0).any():
            raise PriorImportError(f"{where}: a batch normalisation does not fit the layer behind it")
    steps: list[Step] = []
    moments = settings.moments
    for index, (norm, layer) in enumerate(zip(norms, layers, strict=True)):
        mean, var, scale, shift = (part.astype(np.float64) for part in norm)
        if moments is None:
            moments = Moments(mean, var, 1.0, epsilon, None)
        else:
            scale = scale / np.sqrt(var + epsilon)
            shift = shift - mean * scale
        weight, last = layer.weight.astype(np.float64), index + 1 == len(layers)
        if last and settings.noise is not None:
            steps += [Linear(np.diag(scale).astype(np.float32), shift.astype(np.float32)), layer]
        else:
            bias = layer.bias + weight @ shift
            steps.append(Linear((weight * scale).astype(np.float32), bias.astype(np.float32)))
        if not last:
            steps.append(Activation(settings.activation))
    return steps, moments


# ---- parts of policy.pth --------------------------------------------------------------------------------------------


def _check_actor(model: Model, spaces: Spaces) -> None:
    prefixes = ("actor.latent_pi.", "actor.mu.", "actor.log_std.", "critic.", "critic_target.")
    _check_names(model, prefixes, ("actor.log_std",))
    _check_box(model, spaces[1])


def _heads(model: Model, settings: Settings) -> tuple[Linear, NetworkLogStd | FeaturesLogStd]:
    """Reads ``actor.mu`` and ``actor.log_std``: one layer of both, or with gSDE the mean's layer and the noise."""
    if settings.noise is not None:
        bound = settings.noise.mean_bound
        head = _linear(model, "actor.mu" if bound is None else "actor.mu.0")
        return head, settings.noise.log_std(_tensor(model, "actor.log_std"), head, bound)
    heads = [_linear(model, f"actor.{name}") for name in ("mu", "log_std")]
    if heads[0].weight.shape != heads[1].weight.shape:
        raise PriorImportError(
            f"{model.where}: policy.pth: actor.mu has the shape {list(heads[0].weight.shape)}, actor.log_std "
            f"{list(heads[1].weight.shape)}"
        )
    both = Linear(*(np.concatenate(parts) for parts in zip(*heads, strict=True)))
    return both, NetworkLogStd(*LOG_STD_BOUNDS)


def _check_box(model: Model, space: gym.Space[Any]) -> None:
    if not isinstance(space, gym.spaces.Box):
        raise PriorImportError(f"{model.where}: actions in {space}, expected a Box for this algorithm")


def _check_names(model: Model, prefixes: tuple[str, ...], names: tuple[str, ...] = ()) -> None:
    """Refuses weights of other names: a policy that has them computes something else."""
    for name in model.state:
        if not name.startswith(prefixes) and name not in names:
            raise PriorImportError(
                f"{model.where}: policy.pth: has {name[:100]!r}, which no such policy has; {EXPECTED}"
            )


def _parts(model: Model, prefix: str) -> list[int]:
    """Lists the indices of the parts ``<prefix>0``, … that have weights, in order."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in model.state if name.startswith(prefix)}
    if not all(index.isascii() and index.isdigit() and len(index) < 5 for index in found):
        raise PriorImportError(f"{model.where}: policy.pth: {prefix}{min(found)[:50]} is no layer of a perceptron")
    return sorted(map(int, found))


def _hidden(model: Model, prefix: str, activation: str, bias: bool = True) -> list[Step]:
    """Reads the linear layers ``<prefix>0``, ``<prefix>2``, …, each followed by its activation.

    ``bias`` says whether each must have one.
    """
    indices = _parts(model, prefix)
    if indices != list(range(0, 2 * len(indices), 2)):
        raise PriorImportError(
            f"{model.where}: policy.pth: {prefix} has layers {indices[:20]}, expected 0, 2, 4, … and activations"
        )
    steps: list[Step] = []
    for index in indices:
        steps += [_linear(model, f"{prefix}{index}", bias), Activation(activation)]
    return steps


def _linear(model: Model, name: str, needs_bias: bool = True) -> Linear:
    weight = _tensor(model, f"{name}.weight")
    if needs_bias or f"{name}.bias" in model.state:
        bias = _tensor(model, f"{name}.bias")
    else:
        bias = np.zeros(weight.shape[:1], np.float32)
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


def checked_std(value: Any, where: str, size: int) -> Array:
    """Makes an array ``[A]``, or of one number, of a standard deviation. Raises PriorImportError for any other."""
    array = np.asarray(value, np.float64).reshape(-1)
    if array.size not in (1, size) or not all(math.isfinite(each) and each > 0 for each in array):
        raise PriorImportError(f"{where}std={value}: expected a positive number")
    return array
