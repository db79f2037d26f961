"""Reads the observation normaliser that Stable-Baselines3 keeps in a file of its own, beside the policy."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
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
_OBSERVED = ("observation", "desired_goal")
_GOALS = (
    "it observes `observation` and then `desired_goal`, as the HER of Stable-Baselines3 before 1.1 does; gymnasium's "
    "FlattenObservation puts desired_goal first, so a wrapper of yours has to give them in this order"
)
MAX_FILES = 1_000
ASK = "name the one that belongs to it with --normalizer FILE, or say --normalizer none if it was trained without"


def read_vecnormalize(path: Path, size: int | None = None) -> tuple[Moments | None, str | None]:
    """Reads the observation moments of a file that ``VecNormalize.save`` wrote, without unpickling it.

    Args:
        path: the file.
        size: how many numbers the policy observes; None where nobody knows.

    Returns:
        The moments ``[D]`` of flattened observations, None where the file normalises rewards alone; and what the user
        should know of them.

    Raises:
        PriorImportError: not such a file, damaged, or of dictionary observations that the policy does not observe.
    """
    attributes = _attributes(path)
    if attributes.get("norm_obs") is False:
        return None, None
    moments = attributes.get("obs_rms")
    if isinstance(moments, dict):
        return _of_goals(moments, attributes, size, path), _GOALS
    return _moments(moments, attributes, "obs_rms", path), None


def reward_deviation(path: Path) -> float | None:
    """What the rewards of a training were divided by at its end; None where they were not, NaN where it is not known.

    Args:
        path: a file that ``VecNormalize.save`` wrote.

    Raises:
        PriorImportError: not such a file, or damaged.
    """
    attributes = _attributes(path)
    if attributes.get("norm_reward") is False:
        return None
    returns = attributes.get("ret_rms")
    if not isinstance(returns, Instance) or not _MOMENTS_CLASS.fullmatch(returns.qualified_name):
        return math.nan
    variance = _number(returns.attributes.get("var"), "ret_rms.var", path)
    epsilon = _number(attributes.get("epsilon", 1e-8), "epsilon", path)
    return math.sqrt(variance + epsilon) if variance + epsilon > 0 else math.nan


def _attributes(path: Path) -> Mapping[str, Any]:
    value = load(read_file(path, MAX_BYTES), what=str(path))
    if not isinstance(value, Instance) or not _CLASS.fullmatch(value.qualified_name):
        found = value.qualified_name[:200] if isinstance(value, Instance) else type(value).__name__
        raise PriorImportError(f"{path}: holds {found}, expected a VecNormalize of Stable-Baselines3")
    return value.attributes


def _of_goals(moments: Mapping[Any, Any], attributes: Mapping[str, Any], size: int | None, path: Path) -> Moments:
    """Reads the statistics of a goal's dictionary for a policy that observes ``observation`` and ``desired_goal``.

    Such is the Hindsight Experience Replay of Stable-Baselines3 before 1.1, which puts the two one after the other.
    """
    parts = {
        str(key)[:50]: _moments(each, attributes, f"obs_rms[{str(key)[:50]!r}]", path) for key, each in moments.items()
    }
    normalised = attributes.get("norm_obs_keys") or list(parts)
    observed = [parts[key] for key in _OBSERVED if key in parts and key in normalised]
    if len(observed) != len(_OBSERVED) or size != sum(part.mean.size for part in observed):
        sizes = ", ".join(f"{key} {part.mean.size}" for key, part in parts.items())
        raise PriorImportError(
            f"{path}: normalises dictionary observations ({sizes}), and the policy observes {size or 'other'} numbers; "
            "give the statistics in the order in which it observes them: --normalizer stats.npz (arrays mean and var)"
        )
    mean, var = (np.concatenate([getattr(part, name) for part in observed]) for name in ("mean", "var"))
    return replace(observed[0], mean=mean, var=var)


def _moments(moments: Any, attributes: Mapping[str, Any], name: str, path: Path) -> Moments:
    if not isinstance(moments, Instance) or not _MOMENTS_CLASS.fullmatch(moments.qualified_name):
        raise PriorImportError(f"{path}: a VecNormalize without its running mean and variance ({name})")
    mean, var = (_array(moments.attributes.get(part), f"{name}.{part}", path) for part in ("mean", "var"))
    if mean.shape != var.shape:
        raise PriorImportError(f"{path}: {name}.mean has the shape {mean.shape}, {name}.var {var.shape}")
    if (var < 0).any():
        raise PriorImportError(f"{path}: {name}.var has negative values")
    count = _number(moments.attributes.get("count"), f"{name}.count", path)
    clip = _number(attributes.get("clip_obs", 10.0), "clip_obs", path, finite=False)
    epsilon = _number(attributes.get("epsilon", 1e-8), "epsilon", path)
    if clip == 0 or (var + epsilon == 0).any():
        raise PriorImportError(f"{path}: divides by a variance of 0, or clips to 0")
    return Moments(mean.reshape(-1), var.reshape(-1), count, epsilon, None if math.isinf(clip) else clip)


def beside(archive: Path) -> Path | None:
    """Finds the VecNormalize file that obviously belongs to a model's zip.

    That is the file that ``CheckpointCallback`` saves with it (``x_vecnormalize_100_steps.pkl`` for
    ``x_100_steps.zip``); else the one that RL Zoo keeps in the folder of the same name; else the only file
    ``*vecnormalize*.pkl`` or ``*vec_normalize*.pkl`` beside the zip or one folder down, if this is the only model that
    it can belong to. RL Zoo's folder ``Env/`` beside ``Env.zip`` is that of all models of the run.

    Raises:
        PriorImportError: there are some, and which one belongs to the model is not clear.
    """
    checkpoint = _CHECKPOINT.fullmatch(archive.stem)
    if checkpoint and (own := archive.with_name(f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}.pkl")).is_file():
        return own
    if found := _normalisers(archive.with_suffix("")):
        return _only(found, archive)
    models = [each for each in _listed(archive.parent) if _is_model(each) or each == archive]
    if found := _normalisers(archive.parent):
        return _only(found, archive, models)
    below = [each for folder in _listed(archive.parent) if folder.is_dir() for each in _normalisers(folder)]
    in_run = bool(checkpoint) or archive.stem == "best_model"
    if len(below) == 1 and in_run and below[0].parent.with_name(f"{below[0].parent.name}.zip") in models:
        return below[0]
    return _only(below, archive, models) if below else None


def _only(found: Sequence[Path], archive: Path, models: Sequence[Path] = ()) -> Path:
    """Returns the only file, if it is that of no other checkpoint and there is no other model. Raises otherwise."""
    names = [each.relative_to(archive.parent).as_posix() for each in found]
    if len(found) > 1:
        raise PriorImportError(f"{archive}: several VecNormalize files beside it ({_listing(names)}): {ASK}")
    if re.search(r"_\d+_steps\.pkl$", names[0]):
        raise PriorImportError(f"{archive}: {names[0]} beside it is named for another checkpoint: {ASK}")
    if len(models) > 1:
        others = _listing([each.name for each in models if each != archive])
        raise PriorImportError(f"{archive}: {names[0]} may belong to it, or to {others} beside it: {ASK}")
    return found[0]


def above(archive: Path) -> str:
    """Names VecNormalize files one folder up, which may belong to a model; nothing where there are none."""
    names = [f"../{each.name}" for each in _normalisers(archive.resolve().parent.parent)]
    return f" ({_listing(names)}?)" if names else ""


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), MAX_FILES))
    except OSError:
        return []


def _normalisers(folder: Path) -> list[Path]:
    return [each for each in _listed(folder) if _NAME.fullmatch(each.name) and each.is_file()]


def _is_model(path: Path) -> bool:
    """Whether a file is a zip of Stable-Baselines3, by the names of its members alone."""
    try:
        if path.suffix != ".zip" or not path.is_file():
            return False
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
        return "data" in names and not names.isdisjoint({"policy.pth", "_stable_baselines3_version"})
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


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
