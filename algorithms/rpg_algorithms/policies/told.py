"""What a policy is told in numpy: draws of it, and the layer and features of ``maths.conditioned``.

Dimension letters: D observation size, K conditioned weights, I inputs, F features, H outputs of the layer,
A action dimensions, N environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.addons import Array


@cache
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(count)  # slow beside a small policy's step


def np_features(u: Array) -> Array:
    """``[..., F]`` of ``u`` ``[..., K]``, as ``maths.conditioned.features``."""
    rows, columns = _pairs(u.shape[-1])
    return np.concatenate((u, u[..., rows] * u[..., columns]), axis=-1)


class FoldedRows:
    """A first layer that is told weights, folded for each row: its environment is told the same for an episode.

    Args:
        weight: ``[I, H]`` of ``maths.conditioned.inputs``.
        bias: ``[H]``.
        observation_size: D.
        which: the weights that multiply the observation, see ``maths.conditioned.inputs``.
        log_std: ``[A]`` and its coefficients ``[A, F]``; None where the log standard deviation is not told.
    """

    def __init__(
        self,
        weight: Array,
        bias: Array,
        observation_size: int,
        which: Sequence[int],
        log_std: tuple[Array, Array] | None,
    ) -> None:
        size, self._which = observation_size, list(which)
        products = size * len(which)
        self._plain, self._bias, self._log_std = weight[:size], bias, log_std
        self._slopes = weight[len(weight) - products :].reshape(len(which), size, -1)
        self._shifts = weight[size : len(weight) - products]
        self._u = np.empty(0, np.float32)
        self._weights = self._biases = self._u
        self._log_stds: Array | None = None

    def _fold(self, u: Array) -> None:
        """Folds the layer anew where ``u`` has changed: for the environments that began an episode."""
        if u.shape != self._u.shape:
            self._u = np.full_like(u, np.nan)
            self._weights = np.empty((*u.shape[:-1], *self._plain.shape), np.float32)
            self._biases = np.empty((*u.shape[:-1], len(self._bias)), np.float32)
            if self._log_std is not None:
                self._log_stds = np.empty((*u.shape[:-1], len(self._log_std[0])), np.float32)
        new = (u != self._u).any(-1)
        told = self._u[new] = u[new]
        self._weights[new] = self._plain + np.tensordot(told[:, self._which], self._slopes, axes=1)
        self._biases[new] = self._bias + told @ self._shifts
        if self._log_std is not None:
            free, coefficients = self._log_std
            assert self._log_stds is not None
            self._log_stds[new] = free + np_features(told) @ coefficients.T

    def __call__(self, obs: Array, u: Array) -> tuple[Array, Array | None]:
        """The layer's outputs ``[N, H]`` and the log standard deviations ``[N, A]`` at ``obs`` ``[N, D]``.

        Args:
            obs: normalised, if there is a normaliser.
            u: ``[N, K]``; where it is what it was in the call before, nothing is folded anew.
        """
        if not np.array_equal(u, self._u):
            self._fold(u)
        hidden: Array = np.matmul(obs[..., None, :], self._weights)[..., 0, :]
        hidden += self._biases
        return hidden, self._log_stds


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
