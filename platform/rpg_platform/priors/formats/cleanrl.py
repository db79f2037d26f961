"""State dictionaries of CleanRL's single-file agents: PPO (continuous and discrete), SAC, TD3 and DDPG.

A file is what ``torch.save(agent.state_dict(), …)`` wrote, or the tuple of state dictionaries that CleanRL's TD3 and
DDPG save (the actor is among them). It names no activation (CleanRL's PPO has tanh, the others relu; ``--activation``
says otherwise), no spaces (``--env`` or ``--task``) and no observation statistics (``--normalizer``).

- ``ppo_continuous_action``: u ~ N(actor_mean(x), exp(actor_logstd)), clipped for the environment.
- ``ppo``: logits ``actor(x)``.
- ``sac_continuous_action``: tanh of N(fc_mean(x), exp(-5 + 7 (tanh(fc_logstd(x)) + 1) / 2)), scaled to the bounds.
  CleanRL's density is that of the scaled action, here it is that of tanh(u):
  ``log pi = log pi_CleanRL + sum(log action_scale)``.
- ``td3_continuous_action``, ``ddpg_continuous_action``: deterministic, so refused without ``--std``.

Source: github.com/vwxyzjn/cleanrl, cleanrl/*.py of release 1.0.0 and later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_platform.priors.files.torch_files import read_tensors
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import FreeLogStd, Linear, NetworkLogStd, Policy, Step, assemble
from rpg_platform.priors.network.layers import (
    as_array,
    known_activation,
    linear,
    linear_layers,
    moments_from_npz,
    named_spaces,
    some_names,
    with_activations,
)

_EXPECTED = (
    "expected CleanRL's actor_mean.* and actor_logstd (ppo_continuous_action), actor.* (ppo), fc1, fc2, fc_mean and "
    "fc_logstd (sac_continuous_action) or fc_mu (td3, ddpg)"
)


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads the policy of a CleanRL state dictionary.

    Raises:
        PriorImportError: another kind of file or network, or the environment is not named.
    """
    where = str(path)
    if options.std is not None and not 0 < options.std < float("inf"):
        raise PriorImportError(f"std={options.std}: expected a positive number")
    state = _state_dict(read_tensors(path), where)
    moments = None if options.normalizer is None else moments_from_npz(options.normalizer)
    spaces = named_spaces(options, "a CleanRL state dictionary", where)
    notes: list[str] = []
    if "actor_logstd" in state:
        kind, policy = "ppo", _ppo_continuous(state, spaces, options, where)
        if moments is None:
            notes.append(
                "CleanRL's ppo_continuous_action normalises observations and the file does not hold the statistics: "
                "give them with --normalizer stats.npz (arrays mean and var), unless this agent was trained without"
            )
    elif any(name.startswith("actor.") for name in state):
        kind, policy = "ppo", _ppo_discrete(state, spaces, options, where)
    elif "fc_mean.weight" in state:
        kind, policy = "sac", _sac(state, spaces, options, where)
    elif "fc_mu.weight" in state:
        kind, policy = "td3-or-ddpg", _deterministic(state, spaces, options, where)
    else:
        raise PriorImportError(f"{where}: a state dictionary of {some_names(state)}; {_EXPECTED}")
    if options.std is not None and "fc_mu.weight" not in state:
        raise PriorImportError(f"{where}: --std is for deterministic policies; this one has its own standard deviation")
    return Imported(
        network=assemble(replace(policy, moments=moments)),
        format=f"cleanrl/{kind}",
        observation_space=None,
        action_space=_stored_action_space(state, where),
        facts={"activation": _activation(options, "tanh" if kind == "ppo" else "relu", where) or "identity"},
        notes=tuple(notes),
    )


def _state_dict(content: Any, where: str) -> dict[str, Any]:
    """Finds the actor's state dictionary: the content itself, or one of a tuple of them."""
    candidates = content if isinstance(content, tuple | list) else (content,)
    for each in candidates:
        if isinstance(each, dict) and each and all(isinstance(name, str) for name in each):
            state = {name.removeprefix("module."): value for name, value in each.items()}
            if any(name.startswith(("actor", "fc_mean", "fc_mu")) for name in state):
                return state
    if isinstance(content, dict):
        raise PriorImportError(f"{where}: holds {some_names(content)}; {_EXPECTED}")
    raise PriorImportError(
        f"{where}: holds {str(content)[:120]}, not a state dictionary. A whole pickled module cannot be read without "
        "executing code from the file: save agent.state_dict()"
    )


def _activation(options: ImportOptions, default: str, where: str) -> str | None:
    return known_activation(options.activation or default, where)


def _ppo_continuous(
    state: Mapping[str, Any], spaces: tuple[gym.Space[Any], gym.Space[Any]], options: ImportOptions, where: str
) -> Policy:
    layers = linear_layers(state, "actor_mean.", where)
    steps = with_activations(layers, _activation(options, "tanh", where), after_last=False)
    log_std = as_array(state["actor_logstd"], "actor_logstd", where).reshape(-1)
    return Policy(where, steps, "gaussian", *spaces, FreeLogStd(log_std))


def _ppo_discrete(
    state: Mapping[str, Any], spaces: tuple[gym.Space[Any], gym.Space[Any]], options: ImportOptions, where: str
) -> Policy:
    layers = linear_layers(state, "actor.", where)
    return Policy(where, with_activations(layers, _activation(options, "tanh", where), False), "categorical", *spaces)


def _named_layer(state: Mapping[str, Any], name: str, where: str) -> Linear:
    parts = []
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in state:
            raise PriorImportError(f"{where}: has no {name}.{part}; it holds {some_names(state)}")
        parts.append(as_array(state[f"{name}.{part}"], f"{name}.{part}", where))
    return linear(parts[0], parts[1], name, where)


def _trunk(state: Mapping[str, Any], where: str) -> list[Linear]:
    """Collects the layers ``fc1``, ``fc2``, … in order."""
    numbered = (re.fullmatch(r"fc([0-9]{1,4})\.weight", name) for name in state)
    numbers = sorted(int(match[1]) for match in numbered if match)
    if not numbers:
        raise PriorImportError(f"{where}: has no layers fc1, fc2; it holds {some_names(state)}")
    return [_named_layer(state, f"fc{number}", where) for number in numbers]


def _sac(
    state: Mapping[str, Any], spaces: tuple[gym.Space[Any], gym.Space[Any]], options: ImportOptions, where: str
) -> Policy:
    mean, log_std = (_named_layer(state, name, where) for name in ("fc_mean", "fc_logstd"))
    if mean.weight.shape != log_std.weight.shape:
        raise PriorImportError(
            f"{where}: fc_mean {list(mean.weight.shape)} and fc_logstd {list(log_std.weight.shape)}: expected one shape"
        )
    head = Linear(np.concatenate((mean.weight, log_std.weight)), np.concatenate((mean.bias, log_std.bias)))
    steps = _hidden_steps(state, options, where)
    bounds = NetworkLogStd(-5.0, 2.0, by="tanh")  # LOG_STD_MIN and LOG_STD_MAX
    return Policy(where, [*steps, head], "squashed_gaussian", *spaces, bounds)


def _hidden_steps(state: Mapping[str, Any], options: ImportOptions, where: str) -> list[Step]:
    return with_activations(_trunk(state, where), _activation(options, "relu", where), after_last=True)


def _deterministic(
    state: Mapping[str, Any], spaces: tuple[gym.Space[Any], gym.Space[Any]], options: ImportOptions, where: str
) -> Policy:
    if options.std is None:
        raise PriorImportError(
            f"{where}: a deterministic policy (fc_mu: TD3 or DDPG) has no density, and RPG needs that of a prior; give "
            "it a standard deviation before tanh with --std, such as --std 0.1"
        )
    head = _named_layer(state, "fc_mu", where)
    log_std = np.full(len(head.bias), np.log(options.std), dtype=np.float32)
    return Policy(
        where, [*_hidden_steps(state, options, where), head], "squashed_gaussian", *spaces, FreeLogStd(log_std)
    )


def _stored_action_space(state: Mapping[str, Any], where: str) -> gym.Space[Any] | None:
    """Returns the bounds that ``action_scale`` and ``action_bias`` hold; None without them."""
    if "action_scale" not in state or "action_bias" not in state:
        return None
    scale, bias = (as_array(state[name], name, where).reshape(-1) for name in ("action_scale", "action_bias"))
    if scale.shape != bias.shape or scale.size == 0 or not (scale > 0).all():
        raise PriorImportError(
            f"{where}: action_scale {list(scale.shape)} and action_bias {list(bias.shape)} fit no bounds"
        )
    return gym.spaces.Box(bias - scale, bias + scale, scale.shape, np.float32)
