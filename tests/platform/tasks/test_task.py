"""Each task's add-on reward: its value by hand, the entry of the observation that it reads, and its manners."""

from __future__ import annotations

import pickle
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rpg_algorithms.addons import AddonReward
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Linear, StepFunction

BATCH = 5


def step_functions() -> list[Any]:
    return [
        pytest.param(name, function, id=f"{name}-{role}")
        for name, task in TASKS.items()
        for role, function in (("add-on", task.addon), ("metric", task.metric))
    ]


def transitions(env: gym.Env[Any, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``BATCH`` real transitions; read-only, as an add-on reward must not write into them."""
    env.action_space.seed(0)
    last, _ = env.reset(seed=0)
    rows = []
    for _ in range(BATCH):
        action = env.action_space.sample()
        after, *_ = env.step(action)
        rows.append((last, action, after))
        last = after
    obs, actions, next_obs = (np.stack(column).astype(np.float32) for column in zip(*rows, strict=True))
    for array in (obs, actions, next_obs):
        array.flags.writeable = False
    return obs, actions, next_obs


# Worked by hand from the paper's formulas: index of the next observation, its value, reward, metric.
@pytest.mark.parametrize(
    ("name", "index", "value", "reward", "metric"),
    [
        ("halfcheetah-foot-angle", 7, -0.3, -3.0, 0.3),  # -10 * |-0.3|
        ("halfcheetah-foot-angle", 7, 0.25, -2.5, 0.25),
        ("hopper-height", 0, 1.25, 2.5, 1.25),  # 10 * (1.25 - 1)
        ("hopper-height", 0, 0.8, -2.0, 0.8),
        ("ant-sideways", 14, -0.5, 0.5, 0.5),  # -(-0.5)
        ("ant-sideways", 14, 2.0, -2.0, -2.0),
        ("swimmer-first-joint", 1, 0.2, -0.2, 0.2),
        ("swimmer-first-joint", 1, -0.7, -0.7, 0.7),
        ("cartpole-center", 0, -1.2, -0.5, 1.2),  # -|-1.2| / 2.4
        ("cartpole-center", 0, 0.6, -0.25, 0.6),
        ("walker2d-upright", 1, -0.3, -3.0, 0.3),  # -10 * |-0.3|
        ("humanoid-sideways", 23, -0.5, 0.5, 0.5),  # -(-0.5)
    ],
)
def test_values_by_hand(name: str, index: int, value: float, reward: float, metric: float) -> None:
    task = TASKS[name]
    size = make_env(task).observation_space.shape
    assert size is not None
    # Everything but the one entry is a decoy: the state before, the action, and the other entries.
    obs, next_obs = np.full((1, *size), 3.0, np.float32), np.full((1, *size), -5.0, np.float32)
    next_obs[0, index] = value
    actions = np.full((1, 8), 7.0, np.float32)
    assert task.addon(obs, actions, next_obs, {})[0] == pytest.approx(reward, abs=1e-6)
    assert task.metric(obs, actions, next_obs, {})[0] == pytest.approx(metric, abs=1e-6)


def test_linear_by_hand() -> None:
    x = np.array([[0.0, 4.0], [0.0, -1.0]], np.float32)
    np.testing.assert_allclose(Linear(1, 2.0, center=1.0)(x, x, x, {}), [6.0, -4.0])
    np.testing.assert_allclose(Linear(1, 2.0, center=1.0, absolute=True)(x, x, x, {}), [6.0, 4.0])


# What the entry is, asked of the simulator: the joint's angle or speed by the joint's name.
@pytest.mark.parametrize(
    ("name", "index", "joint", "kind", "offset"),
    [
        ("halfcheetah-foot-angle", 7, "ffoot", "qpos", 0),
        ("hopper-height", 0, "rootz", "qpos", 0),
        ("ant-sideways", 14, "root", "qvel", 1),  # of a free joint's six velocities: x, y, z, then the rotations
        ("swimmer-first-joint", 1, "motor1_rot", "qpos", 0),
        ("walker2d-upright", 1, "rooty", "qpos", 0),
        ("humanoid-sideways", 23, "root", "qvel", 1),
    ],
)
def test_index_is_what_it_claims(name: str, index: int, joint: str, kind: str, offset: int) -> None:
    env: Any = make_env(TASKS[name]).unwrapped
    env.reset(seed=0)
    handle = env.model.joint(joint)
    state = {"qpos": env.data.qpos.copy(), "qvel": env.data.qvel.copy()}
    before = env._get_obs()
    at = int(handle.qposadr[0] if kind == "qpos" else handle.dofadr[0]) + offset
    state[kind][at] += 0.125
    env.set_state(state["qpos"], state["qvel"])
    changed = np.flatnonzero(~np.isclose(env._get_obs(), before, atol=1e-9))
    state_entries = env.model.nq + env.model.nv  # what follows in Humanoid's observation is computed from these
    assert changed[changed < state_entries].tolist() == [index]
    assert env._get_obs()[index] == pytest.approx(before[index] + 0.125)
    for function in (TASKS[name].addon, TASKS[name].metric):
        assert isinstance(function, Linear)
        assert function.index == index


# What gymnasium's own table says of the entry: the last column is the unit.
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("halfcheetah-foot-angle", "| 7 | angle of the front foot | -Inf | Inf | ffoot | hinge | angle (rad) |"),
        (
            "hopper-height",
            "| 0 | z-coordinate of the torso (height of hopper) | -Inf | Inf | rootz | slide | position (m) |",
        ),
        ("swimmer-first-joint", "| 1 | angle of the first rotor | -Inf | Inf | motor1_rot | hinge | angle (rad) |"),
        ("walker2d-upright", "| 1 | angle of the torso | -Inf | Inf | rooty | hinge | angle (rad) |"),
        (
            "humanoid-sideways",
            "| 23 | y-coordinate velocity of the torso (centre) | -Inf | Inf | root | free | velocity (m/s) |",
        ),
        ("cartpole-center", "| 0 | Cart Position | -4.8 | 4.8 |"),
    ],
)
def test_index_and_unit_are_those_that_gymnasium_documents(name: str, row: str) -> None:
    """Spaces aside."""
    documented = [
        re.sub(r"\s+", " ", line).strip() for line in str(make_env(TASKS[name]).unwrapped.__doc__).splitlines()
    ]
    index = row.split("|")[1].strip()
    assert row in documented, [line for line in documented if line.startswith(f"| {index} ")]


def test_cartpole_is_centred_in_metres_and_mountain_car_counts_pushes_to_the_left() -> None:
    cartpole: Any = make_env(TASKS["cartpole-center"]).unwrapped
    assert cartpole.x_threshold == 2.4  # where the track ends: the reward there is -1
    obs, _ = cartpole.reset(seed=0)
    assert obs[0] == pytest.approx(cartpole.state[0])
    car: Any = make_env(TASKS["mountain_car-less-left"]).unwrapped
    task = TASKS["mountain_car-less-left"]
    speeds = []
    for push in (-1.0, -0.01, 0.0, 1.0):
        before, _ = car.reset(seed=0)
        action = np.array([push], np.float32)
        after, *_ = car.step(action)
        speeds.append(float(after[1]))
        rows = (before[None], action[None], after[None])
        left = push < 0
        assert task.addon(*rows, {})[0] == pytest.approx(-0.1 if left else 0.0)
        assert task.metric(*rows, {})[0] == float(left)
    assert speeds == sorted(speeds)  # a negative action is one to the left
    assert speeds[0] < speeds[-1]


def test_hopper_height_is_the_torso_in_metres_and_ant_sideways_its_y_velocity() -> None:
    hopper: Any = make_env(TASKS["hopper-height"]).unwrapped
    obs, _ = hopper.reset(seed=3)
    assert obs[0] == pytest.approx(hopper.data.body("torso").xpos[2])
    ant: Any = make_env(TASKS["ant-sideways"]).unwrapped
    ant.reset(seed=3)
    y = ant.data.body("torso").xpos[1]
    obs, _, _, _, info = ant.step(np.zeros(8))
    assert (ant.data.body("torso").xpos[1] - y) / ant.dt == pytest.approx(info["y_velocity"])
    assert obs[14] == pytest.approx(info["y_velocity"], abs=0.05)  # at the step's end against the step's mean
    assert obs.shape == (27,)  # without contact forces


@pytest.mark.parametrize(("name", "function"), step_functions())
def test_conformance(name: str, function: StepFunction) -> None:
    env = make_env(TASKS[name])
    obs, actions, next_obs = transitions(env)
    assert isinstance(function, AddonReward)
    _, _, _, _, info = env.step(env.action_space.sample())
    infos = {key: np.full(BATCH, info[key]) for key in function.info_keys}  # KeyError: the environment lacks it
    together = np.asarray(function(obs, actions, next_obs, infos))
    assert together.shape == (BATCH,)
    assert together.dtype.kind == "f"
    assert np.isfinite(together).all()
    assert len(set(together.tolist())) > 1  # it depends on the state
    one_by_one = [
        np.asarray(function(obs[i : i + 1], actions[i : i + 1], next_obs[i : i + 1], infos))[0] for i in range(BATCH)
    ]
    np.testing.assert_array_equal(together, one_by_one)
    again = pickle.loads(pickle.dumps(function))  # it goes to workers
    np.testing.assert_array_equal(again(obs, actions, next_obs, infos), together)


@pytest.mark.parametrize("name", TASKS)
def test_registered_under_its_name_and_its_environment_fits(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.description
    assert task.metric_name
    env = make_env(task)
    obs, _ = env.reset(seed=0)
    assert flatten_observations(env.observation_space, obs[None]).shape == (1, *obs.shape)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="task='hopper-hight': no such task; did you mean 'hopper-height'"):
        get_task("hopper-hight")
