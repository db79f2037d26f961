"""Reads the observation normaliser that Stable-Baselines3 keeps in a file of its own, beside the policy."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpg_platform.priors.files.archive import read_file
from rpg_platform.priors.files.inert import Instance, load
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.network.assemble import Moments

MAX_BYTES = 64 << 20
_CLASS = re.compile(r"stable_baselines3?\.common\.vec_env\.vec_normalize\.VecNormalize")
_MOMENTS_CLASS = re.compile(r"stable_baselines3?\.common\.running_mean_std\.RunningMeanStd")
_NAME = re.compile(r".*vec_?normalize.*\.pkl", re.IGNORECASE)
_CHECKPOINT = re.compile(r"(.*)_(\d+_steps)")


def read_vecnormalize(path: Path) -> Moments | None:
    """Reads the observation moments of a file that ``VecNormalize.save`` wrote, without unpickling it.

    Returns:
        The moments ``[D]`` of flattened observations; None where the file normalises rewards alone.

    Raises:
        PriorImportError: not such a file, damaged, or of dictionary observations.
    """
    value = load(read_file(path, MAX_BYTES), what=str(path))
    if not isinstance(value, Instance) or not _CLASS.fullmatch(value.qualified_name):
        found = value.qualified_name[:200] if isinstance(value, Instance) else type(value).__name__
        raise PriorImportError(f"{path}: holds {found}, expected a VecNormalize of Stable-Baselines3")
    attributes = value.attributes
    if attributes.get("norm_obs") is False:
        return None
    moments = attributes.get("obs_rms")
    if isinstance(moments, dict):
        raise PriorImportError(f"{path}: normalises dictionary observations, which are not read")
    if not isinstance(moments, Instance) or not _MOMENTS_CLASS.fullmatch(moments.qualified_name):
        raise PriorImportError(f"{path}: a VecNormalize without its running mean and variance (obs_rms)")
    mean, var = (_array(moments.attributes.get(name), f"obs_rms.{name}", path) for name in ("mean", "var"))
    if mean.shape != var.shape:
        raise PriorImportError(f"{path}: obs_rms.mean has the shape {mean.shape}, obs_rms.var {var.shape}")
    if (var < 0).any():
        raise PriorImportError(f"{path}: obs_rms.var has negative values")
    count = _number(moments.attributes.get("count"), "obs_rms.count", path)
    clip = _number(attributes.get("clip_obs", 10.0), "clip_obs", path, finite=False)
    epsilon = _number(attributes.get("epsilon", 1e-8), "epsilon", path)
    if clip == 0 or (var + epsilon == 0).any():
        raise PriorImportError(f"{path}: divides by a variance of 0, or clips to 0")
    return Moments(mean.reshape(-1), var.reshape(-1), count, epsilon, None if math.isinf(clip) else clip)


def beside(archive: Path) -> tuple[Path | None, str | None]:
    """Finds the VecNormalize file that obviously belongs to a model's zip.

    That is the file that ``CheckpointCallback`` saves with it (``x_vecnormalize_100_steps.pkl`` for
    ``x_100_steps.zip``); else the one that RL Zoo keeps in the folder of the same name; else the only file
    ``*vecnormalize*.pkl`` or ``*vec_normalize*.pkl`` beside the zip.

    Returns:
        The file or None, and what the user should know of the others.
    """
    if match := _CHECKPOINT.fullmatch(archive.stem):
        own = archive.with_name(f"{match[1]}_vecnormalize_{match[2]}.pkl")
        if own.is_file():
            return own, None
    for folder in (archive.with_suffix(""), archive.parent):
        try:
            found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file())
        except OSError:
            continue
        if len(found) == 1:
            return found[0], None
        if found:
            names = ", ".join(path.name for path in found[:3]) + (", …" if len(found) > 3 else "")
            return None, f"several VecNormalize files beside it ({names}): none is used; name one with --normalizer"
    return None, None


def _array(value: Any, name: str, path: Path) -> NDArray[np.float64]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size == 0:
        raise PriorImportError(f"{path}: {name} is {type(value).__name__}, expected an array of numbers")
    array = value.astype(np.float64)
    if not np.isfinite(array).all():
        raise PriorImportError(f"{path}: {name} has values that are not finite")
    return array


def _number(value: Any, name: str, path: Path, finite: bool = True) -> float:
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu":
        value = value.reshape(-1)[0]
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if type(value) not in (int, float):
        raise PriorImportError(f"{path}: {name} is {type(value).__name__}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number) or number < 0 or (finite and math.isinf(number)):
        raise PriorImportError(f"{path}: {name} is {number}, expected a number of at least 0")
    return number
