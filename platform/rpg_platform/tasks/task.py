"""Tasks: an environment, an add-on reward for what the prior was never asked to do, and a readable metric of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from rpg_algorithms.addons import AddonReward, Array
from rpg_platform.wording import Path, dotted

StepFunction: TypeAlias = AddonReward
"""A vectorised function of transitions, an add-on reward or a metric of them."""


class TaskError(ValueError):
    """What is wrong with a task, found when it is made or tried.

    Attributes:
        path: which part of the task: ``("env",)``, ``("addons", "foot")``, ...
        message: what is wrong, what was expected.
        at_key: the key there is at fault, not its value.
        offset: characters of the text there that stand before the fault.
    """

    def __init__(self, path: Path, message: str, at_key: bool = False, offset: int | None = None) -> None:
        super().__init__(path, message, at_key, offset)
        self.path, self.message, self.at_key, self.offset = path, message, at_key, offset

    def __str__(self) -> str:
        return f"{dotted(('task', *self.path))}: {self.message}"


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
class Part:
    """One add-on reward of a task.

    Attributes:
        function: the reward.
        weight: its factor in the task's add-on reward.
    """

    function: StepFunction
    weight: float = 1.0


@dataclass(frozen=True)
class WeightedSum:
    """Several add-on rewards as one: the sum of weight * value. Env runners and evaluation report each apart.

    Attributes:
        terms: the add-on rewards by name, in their order.
    """

    terms: Mapping[str, Part]

    @property
    def info_keys(self) -> tuple[str, ...]:
        """Entries of the environment's info that any of them reads."""
        return tuple(sorted({key for term in self.terms.values() for key in term.function.info_keys}))

    @property
    def part_names(self) -> tuple[str, ...]:
        """Their names; none where there is only one, which is the sum itself."""
        return tuple(self.terms) if len(self.terms) > 1 else ()

    def parts(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> list[Array]:
        """The weighted value of each, every one ``[B]``.

        Raises:
            ValueError: one has another shape.
        """
        values = []
        for name, term in self.terms.items():
            value = np.asarray(
                term.function(obs, actions, next_obs, {key: infos[key] for key in term.function.info_keys})
            )
            if value.shape != (len(obs),):
                raise ValueError(
                    f"add-on {name!r} gave shape {value.shape} for {len(obs)} steps: expected ({len(obs)},)"
                )
            values.append(term.weight * value)
        return values

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        return np.sum(self.parts(obs, actions, next_obs, infos), axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Nothing:
    """0 in every step: the add-on reward of a task that has none, as when a prior is trained."""

    info_keys: tuple[str, ...] = ()

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        return np.zeros(len(obs))


@dataclass(frozen=True)
class Task:
    """One customization task.

    Attributes:
        name: registered name, or what tables call it.
        env_id: gymnasium id, or ``module:Class`` or ``module:function`` that makes the environment.
        addon: add-on reward per step.
        metric_name: heading of the metric, with its unit.
        metric: the metric per step; its mean over an episode's steps is reported.
        description: one line.
        env_kwargs: keyword arguments of ``gymnasium.make``, the class or the function.
        wrappers: ``module:Class`` of each wrapper with its keyword arguments, innermost first.
        max_episode_steps: time limit of an environment that is not made by its gymnasium id.
        folder: where own modules are looked for besides the Python path.
    """

    name: str
    env_id: str
    addon: StepFunction
    metric_name: str
    metric: StepFunction
    description: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    max_episode_steps: int | None = None
    folder: str | None = None

    @property
    def addons(self) -> Mapping[str, Part]:
        """Each of its add-on rewards by name; that of a registered task by the end of its name."""
        if isinstance(self.addon, WeightedSum):
            return self.addon.terms
        if isinstance(self.addon, Nothing):
            return {}
        return {self.name.partition("-")[2] or self.name: Part(self.addon)}
