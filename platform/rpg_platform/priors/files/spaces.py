"""Observation and action spaces out of pickles of gym (any version) and gymnasium, read by ``inert``."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.inert_values import in_words
from rpg_platform.priors.imported import PriorImportError

MAX_ACTIONS = 100_000
_CLASS = re.compile(r"(?:gym|gymnasium)\.spaces(?:\.\w+)?\.(\w+)")
_REFUSED = {
    "Dict": "flatten the observations in the environment (gymnasium.wrappers.FlattenObservation)",
    "Tuple": "flatten the observations in the environment (gymnasium.wrappers.FlattenObservation)",
    "MultiDiscrete": "several discrete actions or observations at once have no counterpart here",
    "MultiBinary": "several binary actions or observations at once have no counterpart here",
}


def read_space(value: Any, where: str) -> gym.Space[Any]:
    """The gymnasium space that an inert pickle of one describes.

    Args:
        value: what ``inert.load`` gave.
        where: what it is, for messages, such as ``model.zip: action_space``.

    Returns:
        A Box (with the bounds and the type of the pickle) or a Discrete.

    Raises:
        PriorImportError: another kind of space, or none.
    """
    match = _CLASS.fullmatch(value.qualified_name) if isinstance(value, Instance) else None
    if match is None:
        raise PriorImportError(
            f"{where}: holds {in_words(value)}, expected a Box or Discrete space of gym or gymnasium"
        )
    kind, attributes = match[1], value.attributes
    try:
        if kind == "Box":
            return _box(attributes, where)
        if kind == "Discrete":
            return _discrete(attributes, where)
    except (ValueError, TypeError, AssertionError, OverflowError) as error:
        if isinstance(error, PriorImportError):
            raise
        raise PriorImportError(f"{where}: a malformed {kind} space: {str(error)[:200]}") from error
    reason = _REFUSED.get(kind, "there is no counterpart here")
    raise PriorImportError(f"{where}: a {kind} space, expected Box or Discrete: {reason}")


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations are images of bytes, which libraries scale and transpose on their own."""
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _box(attributes: dict[str, Any], where: str) -> gym.spaces.Box:
    low, high = attributes.get("low"), attributes.get("high")
    if not isinstance(low, np.ndarray) or not isinstance(high, np.ndarray):
        raise PriorImportError(f"{where}: a Box space without its bounds")
    if low.shape != high.shape or low.size == 0 or low.dtype.kind not in "fiu" or high.dtype.kind not in "fiu":
        raise PriorImportError(f"{where}: a Box space with bounds of shapes {low.shape} and {high.shape}")
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise PriorImportError(f"{where}: a Box space whose bounds are no bounds")
    dtype = attributes.get("dtype")
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiu":
        dtype = low.dtype
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _discrete(attributes: dict[str, Any], where: str) -> gym.spaces.Discrete[Any]:
    n, start = (_integer(attributes.get(name, default)) for name, default in (("n", None), ("start", 0)))
    if n is None or start is None or not 1 <= n <= MAX_ACTIONS or abs(start) > 1 << 31:
        raise PriorImportError(f"{where}: a malformed Discrete space; expected 1 to {MAX_ACTIONS} values")
    return gym.spaces.Discrete(n, start=start)


def _integer(value: Any) -> int | None:
    return int(value) if type(value) is int or isinstance(value, np.integer) else None
