"""What a policy is told in numpy: draws of it, and the inputs and features of ``maths.conditioned``.

Dimension letters: D observation size, K conditioned weights, I inputs, F features.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.addons import Array


def np_inputs(obs: Array, u: Array) -> Array:
    """``[..., I]`` of ``obs`` ``[..., D]`` and ``u`` ``[..., K]``, as ``maths.conditioned.inputs``."""
    products = u[..., :, None] * obs[..., None, :]
    return np.concatenate((obs, u, products.reshape(*products.shape[:-2], -1)), axis=-1)


@cache
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count)  # slow beside a small policy's step


def np_features(u: Array) -> Array:
    """``[..., F]`` of ``u`` ``[..., K]``, as ``maths.conditioned.features``."""
    rows, columns = _pairs(u.shape[-1])
    return np.concatenate((u, u[..., rows] * u[..., columns]), axis=-1)


class Draws:
    """An endless sequence of ``u`` that covers the ranges evenly, however many are taken (Roberts' golden ratios).

    It covers the angles of the range evenly: ``u`` is their sine, denser towards the ends, which have neighbours on one
    side only, as Chebyshev's points are.

    Args:
        count: K.
        rng: gives the sequence's start.
    """

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        ratio = 2.0
        for _ in range(64):  # the root of x^(K + 1) = x + 1
            ratio = (1 + ratio) ** (1 / (count + 1))
        self._step = ratio ** -np.arange(1.0, count + 1)
        self._next = rng.random(count)

    def take(self, count: int) -> Array:
        """``[count, K]`` in [-1, 1]."""
        drawn = (self._next + np.arange(count)[:, None] * self._step) % 1.0
        self._next = (self._next + count * self._step) % 1.0
        return np.sin(np.pi / 2 * (2 * drawn - 1)).astype(np.float32)
