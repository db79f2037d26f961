"""The conformance test: every registered task passes it, and each way of being broken is caught by the right check."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from tests.platform import own_tasks

from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.conformance import ConformanceError, check_task, probe, require
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Linear, Task
from rpg_platform.tasks.transitions import flat

OWN = own_tasks.__name__


def task(env: str = "Slide", function: str | None = None, **changes: object) -> Task:
    addons = {"mine": "next_obs[0]" if function is None else {"function": f"{OWN}:{function}"}}
    return get_task({"env": f"{OWN}:{env}", "addons": addons, **changes})


@pytest.mark.parametrize("name", TASKS)
def test_every_registered_task_passes(name: str) -> None:
    require(TASKS[name])
    assert probe(TASKS[name]) == []


@pytest.mark.parametrize(
    "good",
    [
        task(),
        task("make_slide", "gait", kwargs={"speed": 0.3}, wrappers=[{f"{OWN}:Scaled": {"scale": 3.0}}]),
        task("Slide", "calm", kwargs={"length": 0, "bounded": False}, max_episode_steps=30),
        get_task({"env": "FrozenLake-v1", "addons": {"a": "-0.1 * (action == 0)", "goal": "next_obs[15] * info.prob"}}),
        get_task({"env": "Blackjack-v1", "wrappers": ["gymnasium.wrappers:FlattenObservation"], "addons": {"a": "1"}}),
        get_task({"env": "Pendulum-v1"}),
    ],
    ids=["class", "function, wrapper, info", "time limit", "Discrete", "flattened", "no add-on"],
)
def test_tasks_of_ones_own_pass(good: Task) -> None:
    require(good)
    assert probe(good) == []


@pytest.mark.parametrize(
    ("broken", "what", "fault"),
    [
        (task(function="mutating"), "leaves its inputs", "it wrote into next_obs"),
        (task(function="clipping_in_place"), "leaves its inputs", "it writes into its inputs"),
        (task(function="batch_coupled"), "all at once as one by one", "it must not depend on the steps beside it"),
        (task(function="cumulative"), "all at once as one by one", "it must not depend on the steps beside it"),
        (task(function="column"), "one number per step", "gave shape (200, 1) for 200 steps, expected (200,)"),
        (task(function="raising"), "one number per step", "raised IndexError"),
        (task(function="not_finite"), "finite in real steps", "nan at step"),
        (task(function="fragile"), "finite at extreme observations", "inf at obs"),
        (task(function="random"), "the same steps, the same values", "other values the second time"),
        (task(function="stateful"), "the same steps, the same values", "other values the second time"),
        (task(function="missing_info"), "the infos that it reads", "info has no 'velocity' at step 0"),
        (
            task(function="textual_info"),
            "the infos that it reads",
            "info 'name' is a str at step 0, expected one number",
        ),
        (task("ForgetsAtTheEnd", "gait"), "the infos that it reads", "at step 11, the last of an episode"),
        (
            task("Unseeded"),
            "the same seed repeats",
            "reset with the same seed, its observation before the step differs",
        ),
        (task("Numbered"), "the same seed repeats", "made anew and reset with the same seed, its observation differs"),
        (task("Shared"), "side by side as alone", "they share something"),
        (task("NanReward"), "steps give finite numbers", "gave the reward nan"),
        (task("OldStep"), "steps give finite numbers", "step gave a tuple of 4"),
        (task("WrongShape"), "resets again and again", "an observation of shape (3,), and its space has (2,)"),
        (task("Slide", kwargs={"length": 0, "bounded": False}), "episodes end", "give max_episode_steps"),
        (task("DictObservations"), "its spaces are supported", "gymnasium.wrappers:FlattenObservation"),
        (task("Buttons"), "its spaces are supported", "its actions are MultiDiscrete([2 3])"),
        (task("make_nothing"), "its spaces are supported", "gave None, which is no gymnasium environment"),
        (
            get_task({"env": "Pendulum-v1", "wrappers": ["gymnasium.wrappers:NormalizeObservation"]}),
            "the same seed repeats",
            "reset with the same seed",
        ),
    ],
    ids=lambda value: None if isinstance(value, Task) else str(value)[:30],
)
def test_broken_tasks_are_caught(broken: Task, what: str, fault: str) -> None:
    with pytest.raises(ConformanceError) as refused:
        require(broken)
    [first, *_] = refused.value.checks
    assert what in first.what
    assert fault in str(first.fault)
    where = (
        "environment" if broken.env_id != f"{OWN}:Slide" and broken.env_id != f"{OWN}:ForgetsAtTheEnd" else first.where
    )
    assert str(first).startswith(f"{where}: ")
    assert all(line.startswith(f"task {broken.name}: ") for line in str(refused.value).splitlines())


def test_the_quick_check_finds_an_environment_without_an_end() -> None:
    endless = task("Slide", kwargs={"length": 0, "bounded": False})
    [error] = probe(endless)
    assert error.path == ("env",)
    assert "no episode ended in 5,000 random steps, and there is no time limit: give max_episode_steps" in error.message
    assert probe(endless, may_go_on=True) == probe(replace(endless, max_episode_steps=10**6)) == []


def test_a_function_of_python_must_survive_the_way_to_workers() -> None:
    lost = Task("x", "Pendulum-v1", lambda obs, actions, next_obs, infos: next_obs[:, 0], "m", Linear(0, 1.0), "")  # type: ignore[arg-type]
    lost.addon.info_keys = ()  # type: ignore[misc]
    faults = {check.what: check.fault for check in check_task(lost) if check.fault}
    assert set(faults) == {"travels to workers"}
    assert "cannot be pickled" in str(faults["travels to workers"])


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"env": f"{OWN}:Slidee"}, ("env",), "has no 'Slidee'; did you mean 'Slide'?"),
        (
            {"env": f"{OWN}:Slide", "kwargs": {"sped": 1}},
            ("kwargs", "sped"),
            "takes no argument 'sped'; did you mean 'speed'?",
        ),
        ({"env": "Pendulum-v1", "kwargs": {"gg": 1}}, ("kwargs", "gg"), "Pendulum-v1 takes no argument 'gg'"),
        ({"env": "Pendulum-v9"}, ("env",), "gymnasium has no environment 'Pendulum-v9'; did you mean 'Pendulum-v1'?"),
        ({"env": "no.such.module:Env"}, ("env",), "there is no module 'no"),
        ({"env": f"{OWN}:OWN"}, ("env",), "has no 'OWN'"),
        ({"env": f"{OWN}:gait"}, ("env",), "needs arguments that are not given: 'obs'"),
        (
            {"env": f"{OWN}:Slide", "wrappers": [f"{OWN}:Scaled", {f"{OWN}:Scaled": {"skale": 1}}]},
            ("wrappers", 1, f"{OWN}:Scaled", "skale"),
            "takes no argument 'skale'; did you mean 'scale'?",
        ),
        ({"env": f"{OWN}:Slide", "wrappers": [f"{OWN}:Slide"]}, ("wrappers", 0), "Slide is no wrapper"),
        ({"env": f"{OWN}:Slide", "wrappers": [f"{OWN}:calm"]}, ("wrappers", 0), "needs arguments"),
        (
            {"env": "HalfCheetah-v5", "kwargs": {"xml_file": "no.xml"}},
            ("env",),
            "HalfCheetah-v5 cannot be made: OSError",
        ),
    ],
)
def test_what_cannot_be_made_says_which_part(
    changes: dict[str, object], path: tuple[object, ...], message: str
) -> None:
    [error] = probe(get_task({"addons": {"a": "1"}, **changes}))
    assert error.path == path
    assert message in error.message
    assert str(error).startswith("task.")


def test_observations_are_flattened_as_policies_see_them() -> None:
    rng = np.random.default_rng(0)
    image = gym.spaces.Box(0, 255, (2, 3), np.uint8)
    for space, obs in ((image, rng.integers(0, 255, (2, 3))), (gym.spaces.Discrete(4, start=3), 5)):
        np.testing.assert_array_equal(flat(space, obs), flatten_observations(space, np.asarray(obs)[None])[0])
