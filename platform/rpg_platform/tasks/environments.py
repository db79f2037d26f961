"""Making a task's environments, in whatever process they are needed, and saying what is wrong where that fails."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_platform.tasks.expressions import Sizes
from rpg_platform.tasks.task import Task, TaskError
from rpg_platform.tasks.user_code import UserCodeError, load, load_module
from rpg_platform.wording import Path, show, suggestion

logger = logging.getLogger(__name__)


def make_env(task: Task) -> gym.Env[Any, Any]:
    """One environment of the task, in its wrappers.

    Raises:
        TaskError: it cannot be made; says which part is at fault.
    """
    quiet_mujoco()
    with ExitStack() as on_failure:
        env = on_failure.enter_context(closing(_unwrapped(task)))
        for index, (name, arguments) in enumerate(task.wrappers):
            path: Path = ("wrappers", index)
            wrapped = _made(name, task.folder, (env,), arguments, path, (*path, name))
            if wrapped.unwrapped is not env.unwrapped:
                raise TaskError(path, f"{name} is no wrapper: what it gave is not around the environment that it got")
            env = wrapped
        on_failure.pop_all()
    return env


def spaces_of(task: Task) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space of a task's environment, which is made and closed for this.

    Raises:
        ValueError: the environment cannot be made.
    """
    try:
        with closing(make_env(task)) as env:
            return env.observation_space, env.action_space
    except TaskError as error:
        raise ValueError(f"environment {task.env_id!r}: {error.message}") from error


def _unwrapped(task: Task) -> gym.Env[Any, Any]:
    module, _, name = task.env_id.partition(":")
    arguments = dict(task.env_kwargs)
    if name:
        try:
            loaded = load_module(module, task.folder)
        except UserCodeError as error:
            raise TaskError(("env",), str(error)) from error
        if task.env_id not in gym.registry and name in gym.registry and not hasattr(loaded, name):
            return _registered(name, task, arguments)  # gymnasium's own module:Id, for a module that registers it
        env = _made(task.env_id, task.folder, (), arguments, ("env",), ("kwargs",))
        limit = task.max_episode_steps
        return env if limit is None else gym.wrappers.TimeLimit(env, limit)
    return _registered(task.env_id, task, arguments)


def _registered(env_id: str, task: Task, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    if env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, gym.registry, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; your own is given as module:Class or module:function"
        raise TaskError(("env",), f"gymnasium has no environment {env_id!r}{hint}")
    if task.max_episode_steps is not None:
        arguments["max_episode_steps"] = task.max_episode_steps
    try:
        return gym.make(env_id, disable_env_checker=True, **arguments)
    except Exception as error:  # whatever an environment may raise
        raise _failure(env_id, error, arguments, ("env",), ("kwargs",), _entry_point(env_id)) from error


def _entry_point(env_id: str) -> Callable[..., Any] | None:
    made_by = gym.spec(env_id).entry_point
    if not isinstance(made_by, str):
        return made_by
    try:
        return load(made_by)  # type: ignore[no-any-return]
    except UserCodeError:
        return None


def _made(
    name: str, folder: str | None, first: tuple[Any, ...], arguments: Mapping[str, Any], path: Path, keys: Path
) -> gym.Env[Any, Any]:
    """Imports the user's ``module:attribute`` and calls it with ``first`` and ``arguments``.

    Raises TaskError, about ``path`` or one of ``keys``: the places of the name and the arguments in the specification.
    """
    try:
        creator = load(name, folder)
    except UserCodeError as error:
        raise TaskError(path, str(error)) from error
    if not callable(creator):
        raise TaskError(path, f"{name} is {_kind(creator)}: expected a class or a function")
    try:
        env = creator(*first, **arguments)
    except Exception as error:  # whatever their code may raise
        raise _failure(name, error, arguments, path, keys, creator) from error
    if not isinstance(env, gym.Env):
        old = " (an environment of the old gym? gymnasium has taken its place)" if hasattr(env, "reset") else ""
        raise TaskError(path, f"{name} gave {_kind(env)}, which is no gymnasium environment{old}")
    return env


def _failure(
    name: str,
    error: Exception,
    arguments: Mapping[str, Any],
    path: Path,
    keys: Path,
    creator: Callable[..., Any] | None,
) -> TaskError:
    """What an environment's maker raised, about the argument at fault where that is clear."""
    text = " ".join(str(error).split())
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unexpected and unexpected[1] in arguments:
        key = unexpected[1]
        return TaskError((*keys, key), f"{name} takes no argument {key!r}{_parameters(key, creator)}", at_key=True)
    missing = re.search(r"missing \d+ required [\w-]+ arguments?: (.+)", text)
    if isinstance(error, TypeError) and missing and not text.startswith("reset"):
        return TaskError(path, f"{name} needs arguments that are not given: {missing[1][:200]}")
    return TaskError(path, f"{name} cannot be made: {type(error).__name__}: {text[:300]}")


def _parameters(key: str, creator: Callable[..., Any] | None) -> str:
    try:
        names = [] if creator is None else list(inspect.signature(creator).parameters)
    except (TypeError, ValueError):  # some of C have none
        return ""
    return suggestion(key, names)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def sizes_of(env: gym.Env[Any, Any]) -> Sizes:
    """The widths of an environment's flat observations and of its actions.

    Raises:
        TaskError: its spaces are not supported; says which wrapper helps.
    """
    observed, acted = env.observation_space, env.action_space
    spaces = gym.spaces
    if isinstance(observed, spaces.Discrete):
        width = int(observed.n)
    elif isinstance(observed, spaces.Box) and np.dtype(observed.dtype).kind in "fiub":
        width = int(observed.low.size)
    else:
        flat = isinstance(observed, spaces.Dict | spaces.Tuple | spaces.MultiDiscrete | spaces.MultiBinary)
        hint = "; add the wrapper gymnasium.wrappers:FlattenObservation" if flat else ""
        raise TaskError(("env",), f"its observations are {_space(observed)}: expected Box or Discrete{hint}")
    if isinstance(acted, spaces.Discrete):
        return Sizes(width, 1, discrete=True)
    if isinstance(acted, spaces.Box) and len(acted.shape) == 1 and np.dtype(acted.dtype).kind == "f":
        return Sizes(width, acted.shape[0])
    hint = "; a wrapper of yours (gymnasium.ActionWrapper) has to map one of these onto them"
    raise TaskError(
        ("env",), f"its actions are {_space(acted)}: expected Box of one dimension, of floats, or Discrete{hint}"
    )


def _space(space: object) -> str:
    return " ".join(show(str(space)).strip("'\"").split())


def register(task: Task) -> str:
    """Registers the task's environment with Tune, on all of the cluster, and returns the name that RLlib takes."""
    from ray.tune import register_env

    made_of = repr((task.env_id, sorted(task.env_kwargs.items()), task.wrappers, task.max_episode_steps, task.folder))
    name = f"rpg:{task.name}:{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
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
    def env_id(self) -> str | None:
        """Its gymnasium id; None for what gymnasium's registry does not make."""
        return None if ":" in self.task.env_id else self.task.env_id

    @property
    def env_kwargs(self) -> Mapping[str, Any]:
        """Its keyword arguments of ``gymnasium.make``."""
        limit = self.task.max_episode_steps
        return {**self.task.env_kwargs, **({} if limit is None else {"max_episode_steps": limit})}

    @property
    def wrappers(self) -> tuple[str, ...]:
        """The names of its wrappers."""
        return tuple(name for name, _ in self.task.wrappers)


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
