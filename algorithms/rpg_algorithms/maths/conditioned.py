"""Customization weights as an input: the range that one training covers, and the numbers that the policy is told.

Dimension letters: B batch, D observation size, K conditioned weights, I inputs, F features, T time steps,
N environments.

Sources: universal value functions (Schaul et al. 2015), dynamic weights in multi-objective RL (Abels et al. 2019).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rpg_algorithms.maths.advantages import spread

_FROM_ZERO = 100.0  # a range from 0 is logarithmic above a hundredth of its upper end, about linear below
TEMPERATURES = ("alpha", "alpha_hat")
"""Weights of the entropy."""
SHORTEST_PART = 32
"""Steps whose returns' spread is taken to say something, where each episode has weights of its own."""


@dataclass(frozen=True)
class Conditioned:
    """A weight that is an input of the policy: one training serves every value of a range.

    The policy is told ``u`` in [-1, 1], which is logarithmic in the weight.

    Attributes:
        low: least value, at least 0.
        high: largest value.
        name: the weight that is told; empty: the one that this is given for.
        factor: what the told weight is multiplied by to give the reward's.
    """

    low: float
    high: float
    name: str = ""
    factor: float = 1.0

    def check(self, name: str) -> None:
        """Checks the range.

        Raises:
            ValueError: names the setting, its value and what was expected.
        """
        for bound in (self.low, self.high):
            if type(bound) not in (int, float) or not math.isfinite(bound):
                raise ValueError(f"{name}={self!r}: expected two finite numbers")
        if not 0 <= self.low < self.high:
            raise ValueError(f"{name}={self!r}: expected 0 <= low < high")

    def named(self, name: str) -> Conditioned:
        """This range, as that of the weight ``name``. Raises ValueError if it has another's name."""
        if self.name not in ("", name):
            raise ValueError(f"{name}={self!r}: its name is {self.name!r}, expected {name!r} or none")
        return replace(self, name=name)

    def scaled(self, factor: float) -> Conditioned:
        """This range for a reward's weight that is ``factor`` times the told one."""
        return replace(self, factor=self.factor * factor)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def _curve(self) -> tuple[float, float, float]:
        """a, b, c of ``weight = a * exp(b * (u + 1) / 2) - c``."""
        if self.low > 0:
            return self.low, math.log(self.high / self.low), 0.0
        start = self.high / (_FROM_ZERO - 1)
        return start, math.log(_FROM_ZERO), start

    def told(self, weight: float) -> float:
        """``u`` of a weight within the range.

        Raises:
            ValueError: the weight is outside.
        """
        slack = 1e-9 * self.high
        if not self.low - slack <= weight <= self.high + slack:
            raise ValueError(f"{self.name}={weight:g}: the policy was trained from {self.low:g} to {self.high:g}")
        a, b, c = self._curve
        return min(1.0, max(-1.0, 2 * math.log((weight + c) / a) / b - 1))

    def weight(self, u: float) -> float:
        """The told weight at ``u``; at -1 and 1 the range's ends to the bit."""
        if abs(u) == 1:
            return self.high if u > 0 else self.low
        a, b, c = self._curve
        return min(self.high, max(self.low, a * math.exp(b * (u + 1) / 2) - c))

    def reward_weight(self, u: Tensor) -> Tensor:
        """The reward's weight at each ``u`` ``[...]``: the told weight times ``factor``."""
        a, b, c = self._curve
        return (a * torch.exp(b * (u + 1) / 2) - c).clamp(self.low, self.high) * self.factor


def told(ranges: Sequence[Conditioned], weights: Mapping[str, float]) -> Tensor:
    """``[K]`` float64, what a policy is told at these weights.

    Raises:
        ValueError: a weight is missing, unknown or outside its range.
    """
    names = [each.name for each in ranges]
    if weights and not names:
        raise ValueError(f"weights: {', '.join(weights)} given; the policy is of one setting and is told none")
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"weights: {', '.join(missing)} missing; the policy needs {', '.join(names)}")
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(f"weights: {', '.join(unknown)} unknown; the policy needs {', '.join(names)}")
    return torch.tensor([each.told(float(weights[each.name])) for each in ranges], dtype=torch.float64)


def grid(ranges: Sequence[Conditioned], each: int) -> list[dict[str, float]]:
    """Settings that cover the ranges evenly in ``u``: ``each`` values of every weight, its ends among them.

    Values between the ends are rounded to four digits.
    """
    axis = torch.linspace(-1.0, 1.0, each, dtype=torch.float64).tolist()

    def rounded(r: Conditioned, u: float) -> float:
        value = r.weight(u)  # the ends stay: rounded, they may lie outside
        return value if abs(u) == 1 else min(r.high, max(r.low, float(f"{value:.4g}")))

    points = itertools.product(*([rounded(r, u) for u in axis] for r in ranges))
    return [dict(zip((r.name for r in ranges), point, strict=True)) for point in points]


def multiplying(ranges: Sequence[Conditioned], has_free_std: bool) -> tuple[int, ...]:
    """Which of the weights multiply the observation in the first layer's inputs; the others move its bias alone.

    A temperature beside other weights is not among them where there is a free log standard deviation, which is its
    function, too: what its products add there is within the noise of seeds (docs/conditioned.md).

    Args:
        ranges: all that the policy is told.
        has_free_std: whether the policy's log standard deviation is a parameter, not the network's output.
    """
    found = tuple(k for k, each in enumerate(ranges) if not has_free_std or each.name not in TEMPERATURES)
    return found or tuple(range(len(ranges)))


def inputs(obs: Tensor, u: Tensor, which: Sequence[int]) -> Tensor:
    """``[..., I]``: ``obs`` ``[..., D]``, ``u`` ``[..., K]``, and ``u_k obs`` for each ``k`` of ``which``.

    A layer that is given them has a bias that is a linear function of ``u``, and weights that are one of those ``u_k``.
    """
    products = u[..., list(which), None] * obs[..., None, :]
    return torch.cat((obs, u, products.flatten(-2)), dim=-1)


def inputs_size(observation_size: int, count: int, products: int) -> int:
    """I of D observed numbers and ``count`` conditioned weights, of which ``products`` multiply them."""
    return observation_size + count + products * observation_size


def features(u: Tensor) -> Tensor:
    """``[..., F]`` of ``u`` ``[..., K]``: its entries and their products of two; F = K (K + 3) / 2."""
    rows, columns = torch.triu_indices(u.shape[-1], u.shape[-1])
    return torch.cat((u, u[..., rows] * u[..., columns]), dim=-1)


def features_size(count: int) -> int:
    """F of ``count`` conditioned weights."""
    return count * (count + 3) // 2


def spreads(returns: Tensor, done: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spreads of the returns of a rollout's episodes, each with its weights.

    An episode's part of fewer than ``SHORTEST_PART`` steps says little and is left out; where most of the rollout is
    such parts, those that were told about the same are put together.

    Args:
        returns: ``[T, N]`` discounted returns.
        done: ``[T, N]``.
        u: ``[T, N, K]`` what the policy was told, constant within an episode.

    Returns:
        Of each part ``u`` ``[M, K]``, the spread of its returns ``[M]`` and its length ``[M]``.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for n in range(returns.shape[1]):
        ends = [-1, *done[:-1, n].nonzero().flatten().tolist(), len(done) - 1]
        parts += [(u[end, n], returns[before + 1 : end + 1, n]) for before, end in itertools.pairwise(ends)]
    long = [(told, part) for told, part in parts if len(part) >= SHORTEST_PART]
    if 2 * sum(len(part) for _, part in long) < returns.numel():
        long += _together([(told, part) for told, part in parts if len(part) < SHORTEST_PART])
    told, found = zip(*long, strict=True)
    lengths = torch.tensor([len(x) for x in found], device=u.device)
    return torch.stack(told), torch.stack([spread(x) for x in found]), lengths


def _together(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Joins neighbours in what was told, until each has ``SHORTEST_PART`` steps, at the mean of what they were told."""
    groups: list[list[tuple[Tensor, Tensor]]] = [[]]
    left = sum(len(part) for _, part in parts)
    for told, part in sorted(parts, key=lambda each: each[0].tolist()):
        if left >= SHORTEST_PART <= sum(len(x) for _, x in groups[-1]):  # and enough is left for another one
            groups.append([])
        groups[-1].append((told, part))
        left -= len(part)
    return [
        (torch.stack([told for told, _ in group]).mean(0), torch.cat([part for _, part in group])) for group in groups
    ]
