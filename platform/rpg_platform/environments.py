"""Making a task's environments, in whatever process they are needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from ray.tune import register_env

from rpg_platform.tasks import Task

logger = logging.getLogger(__name__)


def make_env(task: Task) -> gym.Env[Any, Any]:
    """One environment of the task."""
    quiet_mujoco()
    return gym.make(task.env_id, disable_env_checker=True, **task.env_kwargs)


def register(task: Task) -> str:
    """Registers the task's environment with Tune, on all of the cluster, and returns the name that RLlib takes."""
    name = f"rpg:{task.name}"
    register_env(name, TaskEnv(task))
    return name


@dataclass(frozen=True)
class TaskEnv:
    """Makes a task's environment for RLlib, and says which gymnasium environment that is."""

    task: Task

    def __call__(self, context: Mapping[str, Any]) -> gym.Env[Any, Any]:
        """One environment; the context is not used."""
        return make_env(self.task)

    @property
    def env_id(self) -> str:
        """Its gymnasium id."""
        return self.task.env_id

    @property
    def env_kwargs(self) -> Mapping[str, Any]:
        """Its keyword arguments."""
        return self.task.env_kwargs


def quiet_mujoco() -> None:
    """Sends MuJoCo's warnings to ``logging`` instead of standard error and a MUJOCO_LOG.TXT in the working directory.

    MuJoCo 4 warns of a deprecated attribute in the models that gymnasium ships, for every environment that is made.
    """
    try:
        import mujoco  # type: ignore[import-untyped]
    except ImportError:
        return
    mujoco.set_mju_user_warning(_log_warning)


def _log_warning(message: str | bytes) -> None:
    text = message.decode(errors="replace") if isinstance(message, bytes) else message
    logger.log(logging.DEBUG if "settotalmass" in text else logging.WARNING, "MuJoCo: %s", text)
