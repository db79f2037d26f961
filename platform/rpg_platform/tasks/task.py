"""Tasks: an environment, an add-on reward for what the prior was never asked to do, and a readable metric of it.

The add-on rewards of HalfCheetah, Hopper, Ant and Swimmer are those of the paper's authors (Residual Policy Gradient,
arXiv 2503.11019; Residual-MPPI). Those of CartPole and MountainCarContinuous are of residual Q-learning (arXiv
2306.09526), which adds a term of the pole's angle to CartPole's basic reward; here that is gymnasium's own. Walker2d's
and Humanoid's are ours. All are evaluated on the state that a step reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rpg_platform.tasks.expressions import Expression
from rpg_platform.wording import Path, dotted, suggestion

if TYPE_CHECKING:
    from rpg_platform.spec.task import TaskSpec

Array = NDArray[np.floating[Any]]


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
            Task(
                "cartpole-center",
                "CartPole-v1",
                Linear(0, -1.0 / 2.4, absolute=True),
                "|position| m",
                Linear(0, 1.0, absolute=True),
                "balance, but in the middle of the track: r_R = -|cart position| / 2.4 m",
            ),
            Task(
                "mountain_car-less-left",
                "MountainCarContinuous-v0",
                Expression("-0.1 * (action[0] < 0)"),
                "pushed left",
                Expression("action[0] < 0"),
                "reach the flag, but seldom push to the left: r_R = -0.1 in each step with a negative action",
            ),
            Task(
                "walker2d-upright",
                "Walker2d-v5",
                Linear(1, -10.0, absolute=True),
                "|torso angle| rad",
                Linear(1, 1.0, absolute=True),
                "walk, but with the torso upright: r_R = -10 |torso angle|",
            ),
            Task(
                "humanoid-sideways",
                "Humanoid-v5",
                Linear(23, -1.0),
                "sideways m/s",
                Linear(23, -1.0),
                "walk forward and to the right: r_R = -(lateral velocity)",
            ),
        )
    }
)


def get_task(task: str | TaskSpec | Mapping[str, Any]) -> Task:
    """The task registered under a name, or the one that a specification's mapping describes.

    Raises:
        ValueError: there is none of that name (names the nearest), or the mapping is not a task's.
    """
    if not isinstance(task, str):
        from rpg_platform.spec.task import as_task_spec, build_task  # they need the tasks above

        return build_task(as_task_spec(task))
    if task not in TASKS:
        raise ValueError(f"task={task!r}: no such task{suggestion(task, TASKS)}")
    return TASKS[task]
