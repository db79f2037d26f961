"""Writes gymnasium spaces as JSON, and flattens observations to the float arrays that networks read."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Describes a Box or Discrete space as JSON; infinite bounds are the strings ``inf`` and ``-inf``.

    Raises:
        ValueError: the space is of another kind.
    """
    if isinstance(space, gym.spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
        }
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    raise ValueError(f"space {space}: expected Box or Discrete")


def space_from_json(data: dict[str, Any]) -> gym.Space[Any]:
    """Reads the JSON of ``space_to_json``. Raises ValueError for anything that it does not write."""
    try:
        kind = data["type"]
        if kind == "Discrete":
            return gym.spaces.Discrete(int(data["n"]), start=int(data["start"]))
        if kind == "Box":
            shape, dtype = tuple(int(n) for n in data["shape"]), np.dtype(data["dtype"])
            if dtype.kind not in "fiu":
                raise ValueError(f"dtype {dtype} is not a number")
            low, high = (_bounds_from_json(data[k], shape, dtype) for k in ("low", "high"))
            return gym.spaces.Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"malformed space {data!r:.200}: {error}") from error
    raise ValueError(f"space of type {kind!r}: expected Box or Discrete")


def same_space(a: gym.Space[Any], b: gym.Space[Any]) -> bool:
    """Says whether two spaces have the same kind, shape and bounds (the float width of a Box does not matter)."""
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return (
            a.shape == b.shape
            and np.allclose(a.low.astype(float), b.low.astype(float))
            and np.allclose(a.high.astype(float), b.high.astype(float))
        )
    return a == b


def same_observations(a: gym.Space[Any], b: gym.Space[Any]) -> bool:
    """Says whether a policy that observes one space can observe the other: the bounds of a Box only describe it."""
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return a.shape == b.shape
    return same_space(a, b)


def flatten_observations(space: gym.Space[Any], obs: Any) -> NDArray[np.float32]:
    """Flattens observations ``[N, ...]`` of a vector environment to float32 ``[N, D]`` (one-hot for Discrete)."""
    if isinstance(space, gym.spaces.Discrete):
        index = np.asarray(obs, dtype=np.int64).reshape(-1) - int(space.start)
        return np.eye(int(space.n), dtype=np.float32)[index]
    array = np.asarray(obs, dtype=np.float32)
    return array.reshape(array.shape[0], -1)


def _bounds_to_json(bounds: NDArray[Any]) -> Any:
    if bounds.size and np.all(bounds == bounds.flat[0]):
        return number_to_json(bounds.flat[0])
    return [number_to_json(x) for x in bounds.flat]


def number_to_json(x: Any) -> float | str:
    """Writes a bound as JSON, which holds no infinity: ``inf`` and ``-inf`` as strings, which ``float`` reads."""
    return float(x) if np.isfinite(x) else ("inf" if x > 0 else "-inf")


def _bounds_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    numbers = [float(x) for x in value] if isinstance(value, list) else [float(value)]
    array = np.array(numbers, dtype=dtype)
    return np.broadcast_to(array, shape).copy() if array.size == 1 else array.reshape(shape)
