"""Takes layers and normalisers out of state dictionaries and ``.npz`` files, for several readers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.addons import Array
from rpg_platform.priors.files.archive import read_npz
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import GRAPH_ACTIVATIONS, Activation, Linear, Moments, Norm, Step


def linear_layers(state: Mapping[Any, Any], prefix: str, where: str) -> list[Linear]:
    """Collects the linear layers ``<prefix><index>.weight`` and ``.bias``, in the order of their index.

    Args:
        state: name → array or tensor; names that do not start with ``prefix`` are left alone.
        prefix: such as ``actor_mean.``.
        where: the source, for messages.

    Raises:
        PriorImportError: there are none, or another kind of layer is among them.
    """
    layers = []
    for step in stack(state, prefix, where):
        if not isinstance(step, Linear):
            raise PriorImportError(f"{where}: {prefix}* holds a layer normalisation, which is not read here")
        layers.append(step)
    return layers


def stack(state: Mapping[Any, Any], prefix: str, where: str, epsilon: float = 1e-5) -> list[Linear | Norm]:
    """Collects as ``linear_layers`` does, with the layer normalisations among them (their weight is a vector)."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.(weight|bias)")
    found: dict[int, dict[str, Array]] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.startswith(prefix):
            continue
        match = pattern.fullmatch(name)
        if match is None:
            raise PriorImportError(f"{where}: {name[:100]!r} is no part of a perceptron (such as {prefix}0.weight)")
        found.setdefault(int(match[1]), {})[match[2]] = as_array(value, name, where)
    if not found:
        raise PriorImportError(f"{where}: no layers {prefix}0.weight, …; it holds {some_names(state)}")
    steps: list[Linear | Norm] = []
    for index in sorted(found):
        if set(found[index]) != {"weight", "bias"}:
            raise PriorImportError(
                f"{where}: {prefix}{index} has only {sorted(found[index])}, expected weight and bias"
            )
        weight, bias = found[index]["weight"], found[index]["bias"]
        if weight.ndim == 1 and weight.shape == bias.shape and steps:
            if len(steps[-1].bias) != len(bias):
                raise PriorImportError(f"{where}: {prefix}{index} normalises {len(bias)} of {len(steps[-1].bias)}")
            steps.append(Norm(weight, bias, epsilon))
        else:
            steps.append(linear(weight, bias, f"{prefix}{index}", where))
    return steps


def linear(weight: Array, bias: Array, name: str, where: str) -> Linear:
    """Makes a linear layer of two arrays. Raises PriorImportError for shapes that do not fit."""
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.size == 0:
        raise PriorImportError(
            f"{where}: {name} has a weight of shape {list(weight.shape)} and a bias of shape {list(bias.shape)}, "
            "expected a linear layer: only perceptrons are read"
        )
    return Linear(weight, bias)


def with_activations(layers: Sequence[Linear | Norm], activation: str | None, after_last: bool) -> list[Step]:
    """Puts an activation behind each linear layer and its normalisation; None puts none.

    Args:
        layers: linear layers, each perhaps followed by a normalisation.
        activation: one of ``GRAPH_ACTIVATIONS``.
        after_last: whether one stands behind the last layer too.
    """
    steps: list[Step] = []
    for index, layer in enumerate(layers):
        steps.append(layer)
        ends = index + 1 == len(layers)
        if activation is not None and (after_last if ends else isinstance(layers[index + 1], Linear)):
            steps.append(Activation(activation))
    return steps


def as_array(value: Any, name: str, where: str) -> Array:
    """Makes a float32 array of a tensor or array. Raises PriorImportError for anything else or non-finite numbers."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        value = value.detach().to(torch.float32).numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise PriorImportError(f"{where}: {name[:100]!r} is {type(value).__name__}, expected an array of floats")
    array = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise PriorImportError(f"{where}: {name[:100]!r} has values that are not finite")
    return array


def known_activation(name: Any, where: str) -> str | None:
    """Returns our name for an activation as torch or RLlib call it; None for the identity.

    Raises:
        PriorImportError: there is none.
    """
    if name is None:
        return None
    key = name.lower() if isinstance(name, str) else ""
    key = {"swish": "silu", "leakyrelu": "leaky_relu"}.get(key, key)
    if key in ("linear", "identity"):
        return None
    if key not in GRAPH_ACTIVATIONS:
        raise PriorImportError(
            f"{where}: activation {name!r} is not read; expected one of {', '.join(GRAPH_ACTIVATIONS)}"
        )
    return key


def named_spaces(options: ImportOptions, what: str, where: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Returns the spaces of the environment that the user named.

    Raises:
        PriorImportError: none was named, and the format (``what``) stores no spaces.
    """
    observations, actions = options.spaces
    if observations is None or actions is None:
        raise PriorImportError(
            f"{where}: {what} holds no observation and action spaces; say which environment it acts in: --env ID or "
            "--task NAME"
        )
    return observations, actions


def moments_from_npz(path: Path) -> Moments:
    """Reads a normaliser from an ``.npz`` file.

    Arrays: ``mean`` and ``var``, ``[D]``; and, where they differ from those of gymnasium's NormalizeObservation and
    CleanRL's clipping, ``count`` (1), ``epsilon`` (1e-8) and ``clip`` (10; zero for none).

    Raises:
        PriorImportError: not such a file.
    """
    arrays = read_npz(path)
    if not {"mean", "var"} <= set(arrays) <= {"mean", "var", "count", "epsilon", "clip"}:
        expected = "expected mean and var, and perhaps count, epsilon and clip"
        raise PriorImportError(f"{path}: holds {some_names(arrays)}; {expected}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise PriorImportError(f"{path}: {name} is {array.dtype} {list(array.shape)}, expected finite numbers")
        if name not in ("mean", "var") and array.size != 1:
            raise PriorImportError(f"{path}: {name} has {array.size} values, expected one")
    numbers = {name: float(arrays[name].reshape(-1)[0]) for name in arrays if name not in ("mean", "var")}
    mean, var = (arrays[name].astype(np.float64).reshape(-1) for name in ("mean", "var"))
    epsilon, clip, count = (numbers.get(k, d) for k, d in (("epsilon", 1e-8), ("clip", 10.0), ("count", 1.0)))
    if mean.shape != var.shape or var.size == 0 or (var < 0).any() or epsilon < 0 or not (var + epsilon > 0).all():
        raise PriorImportError(
            f"{path}: mean {list(mean.shape)} and var {list(var.shape)}: expected one shape, var > 0"
        )
    return Moments(mean, var, count, epsilon, clip if clip > 0 else None)


def some_names(state: Mapping[Any, Any]) -> str:
    """Lists the first names of a mapping, for messages."""
    names = [str(name)[:60] for name in list(state)[:6]]
    return ", ".join(names) + (", …" if len(state) > 6 else "") or "nothing"
