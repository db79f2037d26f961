"""The arrays that an env runner hands to the learner: one sampling round, time-major, without objects per step.

Dimension letters: T time steps, N environments, D observation size, A action dimensions, K truncated steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
_TIME_MAJOR = ("obs", "actions", "logp", "basic", "addon", "terminated", "truncated")  # the fields [T, N, ...]


class NonFiniteError(RuntimeError):
    """A reward, observation, action or loss became NaN or infinite; the message names what, when and where."""


@dataclass(frozen=True)
class NonFinite:
    """Where a quantity first became NaN or infinite in a rollout.

    Attributes:
        quantity: observation, reward, add-on reward or action distribution.
        env_step: env steps that had been sampled when it happened (after a restore: by all runners together).
        env: environment's name, with the runner's and the sub-environment's index.
        count: how many values of this quantity are non-finite in the rollout.
    """

    quantity: str
    env_step: int
    env: str
    count: int

    def __str__(self) -> str:
        return (
            f"{self.quantity} is NaN or infinite at env step {self.env_step} of {self.env} "
            f"({self.count} value(s) in this rollout)"
        )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampling round of one env runner.

    Attributes:
        obs: ``[T, N, D]`` observations, not normalised; what the policy was told follows in the last columns.
        actions: ``[T, N, A]`` float32 actions as sampled, or ``[T, N]`` int64.
        logp: ``[T, N]`` log-probability of ``actions`` under the policy that acted, nats.
        basic: ``[T, N]`` the environment's reward.
        addon: ``[T, N]`` add-on reward, unweighted (0 without one).
        terminated, truncated: ``[T, N]`` bool.
        last_obs: ``[N, D]`` observation after the last step (already reset where an episode ended there).
        final_index: ``[K, 2]`` (t, n) of truncated steps.
        final_obs: ``[K, D]`` their final observations, for bootstrapping.
        nonfinite: the quantities that were not finite; empty if all were.
    """

    obs: FloatArray
    actions: NDArray[Any]
    logp: FloatArray
    basic: FloatArray
    addon: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    last_obs: FloatArray
    final_index: NDArray[np.int64]
    final_obs: FloatArray
    nonfinite: tuple[NonFinite, ...] = field(default=())

    def __len__(self) -> int:
        return int(self.basic.size)

    def env_steps(self) -> int:
        """Env steps in this rollout, T * N."""
        return len(self)

    def agent_steps(self) -> int:
        """The same as ``env_steps``: one agent."""
        return len(self)


@dataclass(eq=False)
class RolloutBatch:
    """Several rollouts side by side, as RLlib's LearnerGroup passes training data to its learners."""

    rollouts: Sequence[Rollout]

    def validate(self) -> None:
        """Raises ValueError when there is nothing to learn from or the rollouts differ in length."""
        if not self.rollouts:
            raise ValueError("rollouts=[]: nothing to learn from")
        lengths = {r.basic.shape[0] for r in self.rollouts}
        if len(lengths) > 1:
            raise ValueError(f"rollouts have different numbers of time steps {sorted(lengths)}")

    def solve_refs(self) -> None:
        """Does nothing: the batch holds no references to Ray objects."""

    def env_steps(self) -> int:
        """Env steps of all rollouts."""
        return sum(r.env_steps() for r in self.rollouts)

    def shard(
        self, num_shards: int, minibatch_size: int | None = None, **_: Any
    ) -> list[tuple[RolloutBatch, dict[str, Any]]]:
        """Splits along the environment axis, so that no trajectory is cut.

        Every learner gets the same number of minibatches, that of the smallest shard.
        """
        merged = merge_rollouts(self.rollouts)
        columns = np.array_split(np.arange(merged.basic.shape[1]), num_shards)
        time_steps = merged.basic.shape[0]
        smallest = min(len(c) for c in columns) * time_steps
        if smallest == 0:
            raise ValueError(f"{merged.basic.shape[1]} environments cannot be split between {num_shards} learners")
        limit = smallest // (minibatch_size or smallest)
        return [(RolloutBatch([_columns(merged, c)]), {"num_total_minibatches": limit}) for c in columns]


def merge_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """Puts rollouts of the same length side by side along the environment axis."""
    if len(rollouts) == 1:
        return rollouts[0]
    offsets = np.cumsum([0] + [r.basic.shape[1] for r in rollouts[:-1]])
    return Rollout(
        **{name: np.concatenate([getattr(r, name) for r in rollouts], axis=1) for name in _TIME_MAJOR},
        last_obs=np.concatenate([r.last_obs for r in rollouts]),
        final_index=np.concatenate(
            [r.final_index + np.array([0, offset]) for r, offset in zip(rollouts, offsets, strict=True)]
        ),
        final_obs=np.concatenate([r.final_obs for r in rollouts]),
        nonfinite=tuple(x for r in rollouts for x in r.nonfinite),
    )


def _columns(rollout: Rollout, columns: NDArray[np.int64]) -> Rollout:
    """The rollout of the environments ``columns`` alone."""
    chosen = np.isin(rollout.final_index[:, 1], columns)
    final_index = rollout.final_index[chosen] - np.array([0, columns[0]])
    return Rollout(
        **{name: np.ascontiguousarray(getattr(rollout, name)[:, columns]) for name in _TIME_MAJOR},
        last_obs=rollout.last_obs[columns],
        final_index=final_index,
        final_obs=rollout.final_obs[chosen],
        nonfinite=rollout.nonfinite,
    )


@dataclass(frozen=True, eq=False)
class TensorRollout:
    """A rollout's arrays as tensors on the learner's device (same names and shapes as ``Rollout``)."""

    obs: Tensor
    actions: Tensor
    logp: Tensor
    basic: Tensor
    addon: Tensor
    terminated: Tensor
    truncated: Tensor
    last_obs: Tensor
    final_index: Tensor
    final_obs: Tensor

    @classmethod
    def from_rollout(cls, rollout: Rollout, device: torch.device | str | None) -> TensorRollout:
        """Makes tensors; on the CPU without copying, unless Ray owns the arrays, which are then read-only."""

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)

        return cls(**{name: tensor(getattr(rollout, name)) for name in cls.__dataclass_fields__})

    @property
    def done(self) -> Tensor:
        """``[T, N]`` bool, terminated or truncated."""
        return self.terminated | self.truncated
