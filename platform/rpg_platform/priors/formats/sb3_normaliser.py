"""Decides how a Stable-Baselines3 policy's observations are normalised: by what file, or by none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml

from rpg_platform.priors.files.archive import read_file
from rpg_platform.priors.formats.sb3_archive import Model
from rpg_platform.priors.formats.vecnormalize import ASK, MAX_FILES, above, beside, read_vecnormalize, reward_deviation
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import Moments
from rpg_platform.priors.network.layers import moments_from_npz

_MAX_CONFIG_BYTES = 100_000


def moments_of(
    path: Path, model: Model, options: ImportOptions, space: gym.Space[Any], on_policy: bool
) -> tuple[Moments | None, list[str]]:
    """Reads the named file of statistics; else the one that obviously belongs to the model.

    Args:
        path: the model's archive.
        model: what is in it.
        options: ``normalizer`` names a file, ``unnormalized`` says that there is none.
        space: what the policy observes.
        on_policy: whether the algorithm collects as PPO does, or as SAC.

    Returns:
        The moments, None for none; and notes.

    Raises:
        PriorImportError: a file that does not fit, or it is not clear which belongs to the model, or the policy was
            trained with normalised observations and there is none.
    """
    size = math.prod(space.shape or ())
    moments: Moments | None
    if options.normalizer is not None:
        if options.normalizer.suffix == ".npz":
            moments, note = moments_from_npz(options.normalizer), None
        else:
            moments, note = read_vecnormalize(options.normalizer, size)
        _check(moments, size, space, str(options.normalizer))
        return moments, _notes(f"observations are normalised as in {options.normalizer.name}", note)
    if options.unnormalized:
        return None, ["observations are taken as they are, as --normalizer none says"]
    if not isinstance(space, gym.spaces.Box):  # VecNormalize normalises no others
        return None, []
    found = beside(path)
    if found is None:
        if reason := trained_normalised(path, model, on_policy):
            raise PriorImportError(
                f"{path}: {reason}, so the policy was trained with normalised observations, and no VecNormalize file "
                f"is beside it{above(path)}: {ASK}"
            )
        return None, ["no VecNormalize file beside it: observations are taken as they are"]
    name = found.relative_to(path.parent).as_posix()
    try:
        moments, note = read_vecnormalize(found, size)
        _check(moments, size, space, str(found))
    except PriorImportError as error:
        raise PriorImportError(f"{error}; it stands beside {path.name}: {ASK}") from error
    if moments is None:
        return None, [f"{name}, found beside it, normalises rewards alone: observations are taken as they are"]
    return moments, _notes(f"observations are normalised as in {name}, found beside it", note)


def of_own_reward(
    alpha: float | None, path: Path, options: ImportOptions, space: gym.Space[Any]
) -> tuple[float | None, list[str]]:
    """An entropy temperature per unit of the environment's own reward, which VecNormalize may have divided.

    Args:
        alpha: per unit of the reward that the algorithm was given.
        path: the model's archive.
        options: as for ``moments_of``, which has chosen the file.
        space: what the policy observes.

    Returns:
        The temperature, None where it is unknown; and notes.
    """
    file = options.normalizer
    if file is None and not options.unnormalized and isinstance(space, gym.spaces.Box):
        file = beside(path)
    divisor = None if alpha is None or file is None or file.suffix == ".npz" else reward_deviation(file)
    if alpha is None or file is None or divisor is None:
        return alpha, []
    said = f"its alpha {alpha:.4g} is of rewards that {file.name} divides"
    if math.isnan(divisor):
        return None, [f"{said} by a number that it does not hold: alpha is unknown"]
    return alpha * divisor, [f"{said} by {divisor:.4g}: of the environment's own it is {alpha * divisor:.4g}"]


def trained_normalised(path: Path, model: Model, on_policy: bool) -> str | None:
    """Says what shows that the policy was trained with normalised observations; None where nothing does.

    That are RL Zoo's ``config.yml``, and the last observations that a model stores: as the policy saw them, and (with
    VecNormalize) as the environment gave them.
    """
    config = _config_of(path)
    if config is not None and _says_normalize(config):
        return f"{config.relative_to(path.parent).as_posix()} beside it says `normalize`"
    seen, given = (_observations(model, key) for key in ("_last_obs", "_last_original_obs"))
    if seen is None or given is None:
        return None
    if seen.dtype == np.float32 and given.dtype == np.float64:
        return "it stores its last observations both as the environment gave them and as VecNormalize made them"
    if on_policy:  # SAC and its kin keep the last observation but one there, without VecNormalize too
        return "it stores observations as they were before VecNormalize"
    space = model.value("observation_space").attributes
    low, high = space.get("low"), space.get("high")
    if isinstance(low, np.ndarray) and isinstance(high, np.ndarray) and low.shape == high.shape == seen.shape[1:]:
        slack = 1e-3 * (1.0 + np.abs(seen))
        inside = [bool(((low <= each + slack) & (each - slack <= high)).all()) for each in (given, seen)]
        if inside == [True, False]:
            return "it stores last observations that are outside of its observation space"
    return None


def _observations(model: Model, key: str) -> np.ndarray[Any, Any] | None:
    try:
        value = model.value(key)
    except PriorImportError:  # it is no part of the policy
        return None
    return value if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1 else None


def _config_of(path: Path) -> Path | None:
    """Finds RL Zoo's settings of a run: in the folder of the model's name, beside it, or the only ones in a folder."""
    for config in (path.with_suffix("") / "config.yml", path.with_name("config.yml")):
        if config.is_file():
            return config
    try:
        found = [each for each in islice(path.parent.iterdir(), MAX_FILES) if (each / "config.yml").is_file()]
    except OSError:
        return None
    return found[0] / "config.yml" if len(found) == 1 else None


def _says_normalize(config: Path) -> bool:
    """Whether RL Zoo's ``config.yml`` sets ``normalize`` for observations. Nothing in it is constructed."""
    try:
        tree = yaml.compose(read_file(config, _MAX_CONFIG_BYTES).decode(), Loader=yaml.SafeLoader)
        for key, value in _pairs(tree):
            if isinstance(key, yaml.ScalarNode) and key.value == "normalize" and isinstance(value, yaml.ScalarNode):
                text = value.value.replace(" ", "").replace('"', "'").lower()
                return text not in ("false", "", "none", "null") and not any(
                    off in text for off in ("norm_obs=false", "'norm_obs':false")
                )
    except (PriorImportError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        pass
    return False


def _pairs(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yields what stands together: the items of mappings, and lists of two, as RL Zoo writes ordered dictionaries."""
    nodes, seen = [tree], set()
    for node in nodes:  # which grows while it is walked; nodes may be shared
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        children = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
        if isinstance(node, yaml.MappingNode):
            yield from node.value
        elif len(children) == 2:
            yield children[0], children[1]
        nodes += children


def _notes(*notes: str | None) -> list[str]:
    return [note for note in notes if note is not None]


def _check(moments: Moments | None, size: int, space: gym.Space[Any], where: str) -> None:
    if moments is None:
        return
    if not isinstance(space, gym.spaces.Box):
        raise PriorImportError(f"{where}: normalises observations, which are {space}")
    if len(moments.mean) != size:
        raise PriorImportError(f"{where}: normalises {len(moments.mean)} numbers; the policy observes {size}")
