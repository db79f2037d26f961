"""One episode of a policy, drawn: what it does as pictures, and the task's readable metric in every step.

Runs in the process that ``drawing`` starts: what draws may need MUJOCO_GL, and may crash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.rllib.vector_env import make_vector_env
from rpg_platform.evaluation.play import infos_of, play
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import Task, TaskError

Picture: TypeAlias = NDArray[np.uint8]
"""``[height, width, 3]``, red, green and blue."""

SECONDS = 8.0
"""Length of a video where nobody says how many steps: of the environment's own time."""
_MOST_FPS = 30.0
_USUAL_FPS = 30.0  # of an environment that does not say how fast its time goes
_WIDTH, _HEIGHT = 384, 288
_PLANE = 0  # mujoco.mjtGeom.mjGEOM_PLANE
_LARGER = 50


class DrawingError(ValueError):
    """An episode that cannot be drawn; says why."""


class Episode:
    """An episode of a policy's likeliest actions, from a seed; ``close`` it.

    Args:
        bundle: the policy.
        task: where it acts, and the metric.
        seed: of the environment's reset.
        steps: how many at most; None: ``SECONDS`` of the environment's time.
        every: draw each how manieth; None: so that a second has at most 30 pictures.

    Attributes:
        every: as given, or as chosen.
        fps: pictures a second at the environment's own speed.
        trace: the task's metric in every step so far.
        terminated: the episode came to an end of its own: it fell, it reached its goal.

    Raises:
        ValueError: the policy does not act in this environment, or that does not draw.
    """

    def __init__(
        self, bundle: PriorBundle, task: Task, seed: int, steps: int | None = None, every: int | None = None
    ) -> None:
        self._task, self._seed, self._keys = task, seed, infos_of(task)
        try:
            self._envs = make_vector_env(partial(drawing_env, task), 1, "sync", self._keys)
        except TaskError as error:
            raise DrawingError(f"{task.name} cannot be drawn: {error.message}") from error
        [env] = self._envs.envs
        bundle.check_spaces(env.observation_space, env.action_space, task.env_id)
        self._policy = NumpyPolicy(bundle.build())
        speed = float(env.metadata.get("render_fps") or _USUAL_FPS)
        self.every = every or math.ceil(speed / _MOST_FPS)
        self.fps = speed / self.every
        self._steps = steps or math.ceil(SECONDS * speed)
        self.trace: list[float] = []
        self.terminated = False

    def pictures(self) -> Iterator[Picture]:
        """The episode, once: pictures of steps 0, ``every``, 2 ``every``, … after each was taken.

        Raises:
            DrawingError: the environment gives no pictures, or its episode ends in the first step.
        """
        metric: Any = self._task.metric
        steps = play(self._policy, self._envs, self._keys, self._seed, "deterministic")
        for number, step in zip(range(self._steps), steps, strict=False):  # no step more than is wanted
            self.trace.append(float(np.asarray(metric(*step.given_to(metric)))[0]))
            if step.done[0]:  # what could be drawn now is the next episode
                self.terminated = bool(step.terminated[0])
                break
            if number % self.every == 0:
                yield self._picture()
        if len(self.trace) == 1 and self.terminated:
            raise DrawingError(f"{self._task.name}: the episode from seed {self._seed} ends in its first step")

    def _picture(self) -> Picture:
        picture = np.asarray(self._envs.envs[0].render())
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise DrawingError(
                f"{self._task.name} cannot be drawn: its render() gives {picture.dtype} {list(picture.shape)}, "
                "expected uint8 [height, width, 3]"
            )
        return picture.copy()

    def close(self) -> None:
        """Ends the environment."""
        self._envs.close()


def drawing_env(task: Task) -> gym.Env[Any, Any]:
    """An environment of the task that draws itself; MuJoCo's without what takes most of the time.

    Raises:
        TaskError: it cannot be made that way.
    """
    env = make_env(replace(task, env_kwargs={**task.env_kwargs, "render_mode": "rgb_array"}))
    if env.render_mode != "rgb_array":
        raise TaskError(("env",), f"{task.env_id} takes render_mode='rgb_array' and does not heed it")
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        renderer.width, renderer.height = _WIDTH, _HEIGHT
        _simplify(renderer.model)
    return env


def _simplify(model: Any) -> None:
    """Changes how a MuJoCo model looks, and nothing of its physics."""
    model.vis.global_.offwidth, model.vis.global_.offheight = _WIDTH, _HEIGHT
    # Without a GPU shadows and reflections take five times as long as all the rest, and show nothing more.
    model.vis.quality.shadowsize = 0
    model.mat_reflectance[:] = 0.0
    # A plane has no end for what touches it, but is drawn as large as its file says: a good runner leaves it.
    for plane in np.flatnonzero(model.geom_type == _PLANE):
        model.geom_size[plane, :2] *= _LARGER
        if (material := model.geom_matid[plane]) >= 0 and not model.mat_texuniform[material]:
            model.mat_texrepeat[material] *= _LARGER
