"""What any task must pass, whoever wrote it: its environment's manners and those of its add-on rewards and metric.

`probe` is the quick part, before a sweep starts; `check_task` is all of it, for `rpg tasks check` and for tests.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

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
        self.checks = [check for check in checks if check.fault is not None]
        super().__init__("\n".join(f"task {task}: {check}" for check in self.checks))


def functions_of(task: Task) -> dict[Path, tuple[str, StepFunction]]:
    """Where a specification gives them → what messages call them, and the add-on rewards and the metric."""
    named: dict[Path, tuple[str, StepFunction]] = {
        _place(("addons", name), part.function): (f"add-on {name}", part.function) for name, part in task.addons.items()
    }
    if task.metric is not task.addon:
        named[_place(("metric",), task.metric)] = ("metric", task.metric)
    return named


def _place(path: Path, function: StepFunction) -> Path:
    return (*path, "function") if isinstance(function, UserFunction) else path


# ---- before a sweep starts --------------------------------------------------------------------------
def probe(task: Task) -> list[TaskError]:
    """What is wrong with a task that only its environment can tell, from a few steps of it.

    The environment is made; its spaces, every index, info key, function and shape are checked against it.
    """
    try:
        env = make_env(task)
    except TaskError as error:
        return [error]
    try:
        sizes = sizes_of(env)
        played = list(itertools.islice(steps(env, 0, np.random.default_rng(0)), PROBE_STEPS))
    except TaskError as error:
        return [error]
    except MisbehaviourError as fault:
        return [TaskError(("env",), f"{task.env_id} {fault}")]
    finally:
        env.close()  # type: ignore[no-untyped-call]
    batch = transitions(played)
    found = (_tried(path, function, batch, sizes) for path, (_, function) in functions_of(task).items())
    return [error for error in found if error is not None]


def _tried(path: Path, function: StepFunction, batch: Transitions, sizes: Sizes) -> TaskError | None:
    if isinstance(function, Expression):
        known = Sizes(sizes.observation, sizes.action, sizes.discrete, batch.infos.keys())
        try:
            function.check(known)
        except ExpressionError as error:
            return TaskError(path, error.message, offset=error.offset)
    try:
        missing = [key for key in function.info_keys if key not in batch.infos]
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

    Args:
        task: the task; its environment is made several times and played with random actions.
        seed: of the environments and the actions.
    """
    try:
        env = make_env(task)
        sizes_of(env)
    except TaskError as error:
        return [Check(ENVIRONMENT, "it can be made and its spaces are supported", error.message)]
    checks = [Check(ENVIRONMENT, "it can be made and its spaces are supported")]
    try:
        env_checks, played = _environment(task, env, seed)
        checks += env_checks
    finally:
        env.close()  # type: ignore[no-untyped-call]
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
        ended = ended or step.terminated or step.truncated
        if ended and len(played) >= STEPS:
            break
    return played


def _never_ends(env: gym.Env[Any, Any], played: list[Step]) -> str | None:
    if any(step.terminated or step.truncated for step in played):
        return None
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.TimeLimit):
            return None
        layer = layer.env
    return f"none did in {len(played)} random steps, and there is no time limit: give max_episode_steps"


def _repeats(task: Task, env: gym.Env[Any, Any], seed: int) -> str | None:
    """The same environment again, and another one, from the same seed by the same actions."""
    other = make_env(task)
    try:
        runs = [_run(each, seed) for each in (env, env, other)]
    except MisbehaviourError as fault:
        return str(fault)
    finally:
        other.close()  # type: ignore[no-untyped-call]
    for run, which in ((runs[1], "reset with the same seed"), (runs[2], "made anew and reset with the same seed")):
        for index, (one, two) in enumerate(zip(runs[0], run, strict=True)):
            different = _difference(one, two)
            if different:
                return f"{which}, its {different} differs from step {index} on"
    return None


def _run(env: gym.Env[Any, Any], seed: int) -> list[Step]:
    return list(itertools.islice(steps(env, seed, np.random.default_rng(seed)), STEPS // 4))


def _difference(one: Step, two: Step) -> str | None:
    if not np.array_equal(one.obs, two.obs):
        return "observation before the step"
    if not np.array_equal(one.next_obs, two.next_obs):
        return "observation"
    if one.reward != two.reward:
        return "reward"
    if (one.terminated, one.truncated) != (two.terminated, two.truncated):
        return "end"
    keys = [key for key, value in one.info.items() if numeric(value) and numeric(two.info.get(key))]
    changed = [key for key in keys if not np.array_equal(float(one.info[key]), float(two.info[key]), equal_nan=True)]
    return f"info {changed[0]!r}" if changed else None


def _side_by_side(task: Task, seed: int) -> str | None:
    """Two environments stepped together by the env runners' own loop, against each by itself."""
    from rpg_algorithms.policies.spaces import flatten_observations
    from rpg_algorithms.rllib.vector_env import make_vector_env

    together = make_vector_env(partial(make_env, task), 2, "sync", frozenset())
    alone = [make_env(task) for _ in range(2)]
    try:
        space = together.single_observation_space
        together.reset(seed=[seed, seed + 1])
        last = [reset(env, seed + index) for index, env in enumerate(alone)]
        rng = np.random.default_rng(seed)
        for count in range(STEPS // 4):
            actions = np.stack([random_action(together.single_action_space, rng) for _ in alone])
            obs, rewards, terminated, truncated, _ = together.step(actions)
            rows = flatten_observations(space, obs)
            for index, env in enumerate(alone):
                step = take(env, last[index], actions[index])
                ended = step.terminated or step.truncated
                last[index] = reset(env) if ended else step.next_obs
                same = np.array_equal(rows[index], last[index]) and np.isclose(rewards[index], step.reward)
                if not same or (terminated[index], truncated[index]) != (step.terminated, step.truncated):
                    return (
                        f"beside another one it goes otherwise than alone, from step {count} on: they share something"
                    )
    except Exception as error:  # whatever an environment may raise
        return f"stepped together they raised {said(error)}"
    finally:
        together.close()
        for env in alone:
            env.close()  # type: ignore[no-untyped-call]
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
    fault = None if _close(again, values, exact=True) else "the same steps gave other values the second time"
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
        ended = ", the last of an episode" if step.terminated or step.truncated else ""
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


def _close(one: Any, two: Any, exact: bool = False) -> bool:
    if one is None or two is None:
        return False
    if exact:
        return bool(np.array_equal(one, two, equal_nan=True))
    return bool(np.allclose(one, two, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True))


def _coupling(function: StepFunction, batch: Transitions, values: Any) -> str | None:
    for index in range(0, len(batch), max(1, len(batch) // 25)):
        alone, fault = call(function, batch.row(index))
        if alone is None:
            return f"by itself step {index} {fault}"
        if not _close(alone, values[index : index + 1]):
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
    return fault if found is None else None if _close(found, values, exact=True) else "pickled and back it differs"
