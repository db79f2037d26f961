"""What any task must pass, whoever wrote it: its environment's manners and those of its add-on rewards and metric.

`probe` is the quick part, before a sweep starts; `check_task` is all of it, for `rpg tasks check` and for tests.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.rllib.vector_env import time_limit
from rpg_platform.tasks.environments import make_env, sizes_of
from rpg_platform.tasks.expressions import Expression, ExpressionError, Sizes
from rpg_platform.tasks.task import StepFunction, Task, TaskError
from rpg_platform.tasks.transitions import (
    MisbehaviourError,
    Step,
    Transitions,
    call,
    numeric,
    random_action,
    reset,
    said,
    steps,
    take,
    transitions,
)
from rpg_platform.tasks.user_code import UserCodeError, UserFunction
from rpg_platform.wording import Path, suggestion

PROBE_STEPS = 4
PATIENCE_S = 10.0
STEPS = 200
LONGEST_EPISODE = 5_000
UNBOUNDED = 1e6  # a bound beyond this is none
EXTREME = 1e3  # what stands for a missing bound of an observation or info, in its own unit
RELATIVE, ABSOLUTE = 1e-5, 1e-6  # vectorised arithmetic may round otherwise than one by one
ENVIRONMENT = "environment"


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        where: ``environment``, ``add-on NAME`` or ``metric``.
        what: what must hold.
        fault: what does not; None where all is well.
    """

    where: str
    what: str
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.fault or 'ok'}"


class ConformanceError(ValueError):
    """A task that must not be used; ``str()`` lists every fault, one a line."""

    def __init__(self, task: str, checks: Iterable[Check]) -> None:
        self.task, self.checks = task, [check for check in checks if check.fault is not None]
        super().__init__(task, self.checks)

    def __str__(self) -> str:
        return "\n".join(f"task {self.task}: {check}" for check in self.checks)


def functions_of(task: Task) -> dict[Path, tuple[str, StepFunction]]:
    """The add-on rewards and the metric by their place in a specification, each with the name that messages use."""
    named: list[tuple[Path, str, StepFunction]] = [
        (("addons", name), f"add-on {name}", part.function) for name, part in task.addons.items()
    ]
    if task.metric is not task.addon:
        named.append((("metric",), "metric", task.metric))
    return {
        ((*path, "function") if isinstance(function, UserFunction) else path): (name, function)
        for path, name, function in named
    }


# ---- before a sweep starts --------------------------------------------------------------------------
def probe(task: Task, *, may_go_on: bool = False) -> list[TaskError]:
    """Finds what only the environment can tell: makes it, takes a few steps and tries every function on them.

    Args:
        task: the task.
        may_go_on: episodes need not end.

    Returns:
        The faults in its spaces, indices, info keys, functions and shapes; that its episodes do not end.
    """
    try:
        with closing(make_env(task)) as env:
            return faults_in(task, env, may_go_on=may_go_on)
    except TaskError as error:
        return [error]


def faults_in(task: Task, env: gym.Env[Any, Any], *, may_go_on: bool = False) -> list[TaskError]:
    """Finds what ``probe`` does, in an environment of the task that is made already; leaves it open."""
    try:
        sizes = sizes_of(env)
        going = steps(env, 0, np.random.default_rng(0))
        played = list(itertools.islice(going, PROBE_STEPS))
        batch = transitions(played)
        found = (_tried(path, function, batch, sizes) for path, (_, function) in functions_of(task).items())
        errors = [error for error in found if error is not None]
        if errors or may_go_on or time_limit(env) is not None:
            return errors
        return _goes_on(played, going)
    except TaskError as error:
        return [error]
    except MisbehaviourError as fault:
        return [TaskError(("env",), f"{task.env_id} {fault}")]


def _goes_on(played: Iterable[Step], going: Iterator[Step]) -> list[TaskError]:
    """Plays until an episode ends; a slow environment is given up on, as its evaluation is bounded anyway."""
    started = time.monotonic()
    for step in itertools.chain(played, itertools.islice(going, LONGEST_EPISODE - PROBE_STEPS)):
        if step.ended or time.monotonic() - started > PATIENCE_S:
            return []
    message = f"no episode ended in {LONGEST_EPISODE:,} random steps, and there is no time limit"
    remedy = "give max_episode_steps, or evaluation.max_steps, where it is meant to go on for ever"
    return [TaskError(("env",), f"{message}: {remedy}")]


def _tried(path: Path, function: StepFunction, batch: Transitions, sizes: Sizes) -> TaskError | None:
    try:
        if isinstance(function, Expression):
            function.check(replace(sizes, info_keys=batch.infos.keys()))
        missing = [key for key in function.info_keys if key not in batch.infos]
    except ExpressionError as error:
        return TaskError(path, error.message, offset=error.offset)
    except UserCodeError as error:
        return TaskError(path, str(error))
    if missing:
        hint = suggestion(missing[0], sorted(batch.infos)) or "; it gives none at all"
        return TaskError(path, f"the environment's info has no number {missing[0]!r} in every step{hint}")
    _, fault = call(function, batch)
    return None if fault is None else TaskError(path, fault)


# ---- all of it ---------------------------------------------------------------------------------------
def require(task: Task, *, seed: int = 0) -> None:
    """Raises ConformanceError unless ``task`` passes every check."""
    checks = check_task(task, seed=seed)
    if any(check.fault is not None for check in checks):
        raise ConformanceError(task.name, checks)


def check_task(task: Task, *, seed: int = 0) -> list[Check]:
    """Every check of a task, in order; those that an earlier fault makes pointless are left out.

    gymnasium's ``check_env`` is no substitute: it only warns of a reward that is not finite, compares resets only where
    ``gymnasium.make`` made the environment, and refuses one that has a random number generator of its own.

    Args:
        task: the task; its environment is made several times and played with random actions.
        seed: of the environments and the actions.
    """
    what = "it can be made and its spaces are supported"
    try:
        with closing(make_env(task)) as env:
            sizes_of(env)
            checks, played = _environment(task, env, seed)
    except TaskError as error:
        return [Check(ENVIRONMENT, what, error.message)]
    checks.insert(0, Check(ENVIRONMENT, what))
    if played:
        for where, function in functions_of(task).values():
            checks += _function(where, function, played, env)
    return checks


def _environment(task: Task, env: gym.Env[Any, Any], seed: int) -> tuple[list[Check], list[Step]]:
    checks = []
    what = "resets again and again"
    try:
        for each in (seed, None, seed + 1, seed):
            reset(env, each)
        checks.append(Check(ENVIRONMENT, what))
        what = "steps give finite numbers of the right kinds and shapes"
        played = _episode_and_more(env, seed)
        checks.append(Check(ENVIRONMENT, what))
    except MisbehaviourError as fault:
        return [*checks, Check(ENVIRONMENT, what, str(fault))], []
    return [
        *checks,
        Check(ENVIRONMENT, "episodes end", _never_ends(env, played)),
        Check(ENVIRONMENT, "the same seed repeats", _repeats(task, env, seed)),
        Check(ENVIRONMENT, "side by side as alone", _side_by_side(task, seed)),
    ], played


def _episode_and_more(env: gym.Env[Any, Any], seed: int) -> list[Step]:
    """At least STEPS steps, and until an episode has ended, or for as long as one may take."""
    played: list[Step] = []
    ended = False
    for step in itertools.islice(steps(env, seed, np.random.default_rng(seed)), LONGEST_EPISODE):
        played.append(step)
        ended = ended or step.ended
        if ended and len(played) >= STEPS:
            break
    return played


def _never_ends(env: gym.Env[Any, Any], played: list[Step]) -> str | None:
    if time_limit(env) is not None or any(step.ended for step in played):
        return None
    return f"none did in {len(played)} random steps, and there is no time limit: give max_episode_steps"


def _repeats(task: Task, env: gym.Env[Any, Any], seed: int) -> str | None:
    """The same environment again, and another one, from the same seed by the same actions."""
    try:
        with closing(make_env(task)) as other:
            first, again, anew = (
                list(itertools.islice(steps(each, seed, np.random.default_rng(seed)), STEPS // 4))
                for each in (env, env, other)
            )
    except MisbehaviourError as fault:
        return str(fault)
    for run, which in ((again, "reset with the same seed"), (anew, "made anew and reset with the same seed")):
        for index, (one, two) in enumerate(zip(first, run, strict=True)):
            if different := one.difference(two):
                return f"{which}, its {different} differs from step {index} on"
    return None


def _side_by_side(task: Task, seed: int) -> str | None:
    """Two environments stepped together by the env runners' own loop, against each by itself."""
    from rpg_algorithms.policies.spaces import flatten_observations
    from rpg_algorithms.rllib.vector_env import make_vector_env

    make = partial(make_env, task)
    with (
        closing(make()) as one,
        closing(make()) as other,
        closing(make_vector_env(make, 2, "sync", frozenset())) as both,
    ):
        try:
            both.reset(seed=[seed, seed + 1])
            alone = {0: one, 1: other}
            last = [reset(env, seed + index) for index, env in alone.items()]
            rng = np.random.default_rng(seed)
            for count in range(STEPS // 4):
                actions = np.stack([random_action(both.single_action_space, rng) for _ in alone])
                obs, rewards, terminated, truncated, _ = both.step(actions)
                rows = flatten_observations(both.single_observation_space, obs)
                for index, env in alone.items():
                    step = take(env, last[index], actions[index])
                    last[index] = reset(env) if step.ended else step.next_obs
                    same = np.array_equal(rows[index], last[index]) and np.isclose(rewards[index], step.reward)
                    if not same or (terminated[index], truncated[index]) != (step.terminated, step.truncated):
                        message = "beside another one it goes otherwise than alone"
                        return f"{message}, from step {count} on: they share something"
        except Exception as error:  # whatever an environment may raise
            return f"stepped together they raised {said(error)}"
    return None


def _function(where: str, function: StepFunction, played: list[Step], env: gym.Env[Any, Any]) -> Iterator[Check]:
    fault = _reads(function, played)
    yield Check(where, "the infos that it reads are there in every step", fault)
    if fault is not None:
        return
    batch = transitions(played[:STEPS])
    values, fault = call(function, batch)
    yield Check(where, "one number per step", fault)
    if values is None:
        return
    bad = np.flatnonzero(~_finite(values))
    fault = f"{values[bad[0]]} at step {bad[0]} of {len(values)}" if len(bad) else None
    yield Check(where, "finite in real steps", fault)
    yield Check(where, "leaves its inputs as they are", _mutation(function, batch))
    again, _ = call(function, batch)
    same = np.array_equal(again, values, equal_nan=True)  # type: ignore[arg-type]
    fault = None if same else "the same steps gave other values the second time"
    yield Check(where, "the same steps, the same values", fault)
    yield Check(where, "all at once as one by one", _coupling(function, batch, values))
    yield Check(where, "finite at extreme observations", _extremes(function, batch, env))
    yield Check(where, "travels to workers", _travel(function, batch, values))


def _finite(values: Any) -> Any:
    """In float32 too, which rewards are kept in."""
    return np.abs(values) <= np.finfo(np.float32).max


def _reads(function: StepFunction, played: list[Step]) -> str | None:
    try:
        keys = tuple(function.info_keys)
    except UserCodeError as error:
        return str(error)
    for index, step in enumerate(played):
        ended = ", the last of an episode" if step.ended else ""
        for key in keys:
            if key not in step.info:
                return f"info has no {key!r} at step {index}{ended}{suggestion(key, list(step.info))}"
            if not numeric(step.info[key]):
                return f"info {key!r} is a {type(step.info[key]).__name__} at step {index}{ended}, expected one number"
    return None


def _mutation(function: StepFunction, batch: Transitions) -> str | None:
    before, given, locked = (batch.of(function) for _ in range(3))
    for array in _arrays(locked).values():
        array.flags.writeable = False
    try:
        function(*given)
        after = _arrays(given)
        for name, array in _arrays(before).items():
            if name not in after or not np.array_equal(array, after[name], equal_nan=True):
                return f"it wrote into {name}: the policy would learn from what it left there"
        function(*locked)
    except Exception as error:  # a second call may raise where the first did not
        return "it writes into its inputs" if "read-only" in str(error) else f"raised {said(error)}"
    return None


def _arrays(arguments: tuple[Any, Any, Any, Mapping[str, Any]]) -> dict[str, Any]:
    obs, actions, next_obs, infos = arguments
    return {"obs": obs, "actions": actions, "next_obs": next_obs, **{f"info {key!r}": infos[key] for key in infos}}


def _coupling(function: StepFunction, batch: Transitions, values: Any) -> str | None:
    for index in range(0, len(batch), max(1, len(batch) // 25)):
        alone, fault = call(function, batch.row(index))
        if alone is None:
            return f"by itself step {index} {fault}"
        if not np.allclose(alone, values[index], rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            message = f"step {index} gives {alone[0]:g} by itself and {values[index]:g} among {len(batch)}"
            return f"{message}: it must not depend on the steps beside it"
    return None


def _extremes(function: StepFunction, batch: Transitions, env: gym.Env[Any, Any]) -> str | None:
    width = batch.obs.shape[1]
    low, high = np.full(width, -EXTREME), np.full(width, EXTREME)
    space = env.observation_space
    if isinstance(space, gym.spaces.Box):
        lowest, highest = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
        low = np.where(np.abs(lowest) < UNBOUNDED, lowest, low)
        high = np.where(np.abs(highest) < UNBOUNDED, highest, high)
    zero = np.clip(np.zeros(width), low, high)
    named = {"lowest": low, "highest": high, "nearest to 0": zero}
    pairs = list(itertools.product(named, named, (-EXTREME, 0.0, EXTREME)))
    rng = np.random.default_rng(0)
    rows = Transitions(
        np.stack([named[one] for one, _, _ in pairs]).astype(np.float32),
        np.stack([random_action(env.action_space, rng) for _ in pairs]),
        np.stack([named[two] for _, two, _ in pairs]).astype(np.float32),
        {key: np.array([level for _, _, level in pairs]) for key in function.info_keys},
    )
    values, fault = call(function, rows)
    if values is None:
        return fault
    bad = np.flatnonzero(~_finite(values))
    if not len(bad):
        return None
    one, two, level = pairs[bad[0]]
    infos = f" and infos of {level:g}" if function.info_keys else ""
    where = f"obs {one}, next_obs {two} (bounds, or ±{EXTREME:g} where there are none){infos}"
    return f"{values[bad[0]]} at {where}: clip it, one such step ends a training"


def _travel(function: StepFunction, batch: Transitions, values: Any) -> str | None:
    try:
        again = pickle.loads(pickle.dumps(function))  # noqa: S301 - of what was dumped in the same line
    except Exception as error:  # whatever their class may raise
        return f"it cannot be pickled: {said(error)}"
    found, fault = call(again, batch)
    if found is None or np.array_equal(found, values, equal_nan=True):
        return fault
    return "pickled and back it differs"
