"""Tasks: an environment, an add-on reward for what the prior was never asked to do, and a readable metric of it.

The add-on rewards are those of the paper's authors (Residual Policy Gradient, arXiv 2503.11019; Residual-MPPI). They
are evaluated on the state that a step reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rpg_platform.spec_errors import suggestion

Array = NDArray[np.floating[Any]]


class StepFunction(Protocol):
    """A vectorised function of transitions: ``[B, D]``, ``[B, A]``, ``[B, D]``, infos ``[B]`` → ``[B]``."""

    @property
    def info_keys(self) -> tuple[str, ...]:
        """Entries of the environment's info that it reads."""

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        """The value of each transition."""


@dataclass(frozen=True)
class Linear:
    """``weight * (x - center)``, or ``weight * |x - center|``, of one entry x of the next observation.

    Attributes:
        index: which entry of the flat observation.
        weight: factor.
        center: value at which the result is 0.
        absolute: take the distance from ``center`` instead of the difference.
    """

    index: int
    weight: float
    center: float = 0.0
    absolute: bool = False
    info_keys: tuple[str, ...] = ()

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        x = next_obs[:, self.index] - self.center
        return self.weight * (np.abs(x) if self.absolute else x)


@dataclass(frozen=True)
class Task:
    """One customization task.

    Attributes:
        name: registered name.
        env_id: gymnasium id.
        addon: add-on reward per step.
        metric_name: heading of the metric, with its unit.
        metric: the metric per step; its mean over an episode's steps is reported.
        description: one line.
        env_kwargs: keyword arguments of ``gymnasium.make``.
    """

    name: str
    env_id: str
    addon: StepFunction
    metric_name: str
    metric: StepFunction
    description: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                "halfcheetah-foot-angle",
                "HalfCheetah-v5",
                Linear(7, -10.0, absolute=True),
                "|foot angle| rad",
                Linear(7, 1.0, absolute=True),
                "run, but keep the front foot's joint near its neutral angle: r_R = -10 |front foot angle|",
            ),
            Task(
                "hopper-height",
                "Hopper-v5",
                Linear(0, 10.0, center=1.0),
                "height m",
                Linear(0, 1.0),
                "hop, but higher: r_R = 10 (torso height - 1 m)",
            ),
            Task(
                "ant-sideways",
                "Ant-v5",
                Linear(14, -1.0),
                "sideways m/s",
                Linear(14, -1.0),
                "walk forward and to the right: r_R = -(lateral velocity)",
                {"include_cfrc_ext_in_observation": False},
            ),
            Task(
                "swimmer-first-joint",
                "Swimmer-v5",
                Linear(1, -1.0, absolute=True),
                "|joint angle| rad",
                Linear(1, 1.0, absolute=True),
                "swim, but keep the first joint straight: r_R = -|first joint angle|",
            ),
        )
    }
)


def get_task(name: str) -> Task:
    """The task registered as ``name``.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r}: no such task{suggestion(name, TASKS)}")
    return TASKS[name]
