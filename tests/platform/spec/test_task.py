"""Tasks written in a specification: what they become, what is refused and where, and that own code is found."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.platform import own_tasks

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.task import TaskSpec, get_task, task_label
from rpg_platform.spec.yaml_file import SpecError, dump_spec, find_task, load_spec, parse_spec
from rpg_platform.storage.sweep import Sweep, SweepError
from rpg_platform.tasks.environments import TaskEnv, make_env
from rpg_platform.tasks.expressions import Expression
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Nothing, WeightedSum
from rpg_platform.tasks.user_code import UserCodeError, UserFunction, load

OWN = own_tasks.__name__
REST = """\
algorithm: rpg
prior: halfcheetah-spg
weights: {omega_prime: 0.1, alpha_hat: 0.02}
budget: {env_steps: 100_000}
"""
FULL = f"""\
task:
  env: {OWN}:make_slide
  kwargs: {{speed: 0.3}}
  wrappers: [{{gymnasium.wrappers:ClipReward: {{max_reward: 1}}}}, "{OWN}:Scaled"]
  max_episode_steps: 7
  addons:
    foot: -10 * abs(next_obs[0])
    energy: {{expression: -sum(action ** 2), weight: 0.1}}
    gait: {{function: "{OWN}:gait", weight: 2.0}}
    late: {{function: "{OWN}:calm", info_keys: [late]}}
    always: 0.5
  metric: {{name: "|x| m", expression: "abs(next_obs[0])"}}
{REST.replace("halfcheetah-spg", "./prior")}"""


def spec(text: str) -> SweepSpec:
    return parse_spec(text, name="x", check_files=False)


def messages(text: str, folder: Path, check_files: bool = True) -> list[str]:
    (folder / "sweep.yaml").write_text(text)
    with pytest.raises(SpecError) as refused:
        load_spec(folder / "sweep.yaml", check_files=check_files)
    return [message.removeprefix(f"{folder / 'sweep.yaml'}:") for message in refused.value.messages]


# ---- what it becomes ------------------------------------------------------------------------------
def test_a_full_task() -> None:
    task = get_task(spec(FULL).task)
    assert task.name == f"{OWN}:make_slide: foot + energy + gait + late + always"
    assert task.metric_name == "|x| m"
    weights = {"foot": 1.0, "energy": 0.1, "gait": 2.0, "late": 1.0, "always": 1.0}
    assert {name: part.weight for name, part in task.addons.items()} == weights
    assert task.addon.info_keys == ("late", "position")
    obs = np.array([[0.5, 0.0], [1.0, 0.1]], np.float32)
    next_obs, actions = obs + 0.5, np.array([[2.0], [1.0]], np.float32)
    infos = {"position": np.array([10.0, 20.0]), "late": np.array([0.0, 1.0])}
    assert isinstance(task.addon, WeightedSum)
    # -10 |x'|, -0.1 a^2, 2 (-|a| + 0.1 position), -a^2, 0.5
    expected = [[-10, -15], [-0.4, -0.1], [2 * (-2 + 1), 2 * (-1 + 2)], [-4, -1], [0.5, 0.5]]
    np.testing.assert_allclose(task.addon.parts(obs, actions, next_obs, infos), expected, rtol=1e-6)
    np.testing.assert_allclose(task.addon(obs, actions, next_obs, infos), np.sum(expected, axis=0), rtol=1e-6)
    np.testing.assert_allclose(task.metric(obs, actions, next_obs, {}), [1.0, 1.5])
    env = make_env(task)
    assert isinstance(env, own_tasks.Scaled)
    assert isinstance(env.unwrapped, own_tasks.Slide)
    assert env.unwrapped.speed == 0.3
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(7)]
    assert [truncated for _, truncated in ends] == [False] * 6 + [True]


def test_reads_no_more_infos_than_asked_for() -> None:
    """Each part is given its own keys alone, as an env runner would."""
    task = get_task({"env": "Pendulum-v1", "addons": {"a": "info.x", "b": {"function": f"{OWN}:calm"}}})
    assert isinstance(task.addon, WeightedSum)
    one = np.zeros((1, 3), np.float32)
    assert task.addon(one, one, one, {"x": np.ones(1), "y": np.ones(1)}).tolist() == [1.0]


def test_a_registered_task_with_more() -> None:
    base = TASKS["halfcheetah-foot-angle"]
    task = get_task({"name": base.name, "addons": {"energy": "-sum(action ** 2)"}, "kwargs": {"frame_skip": 4}})
    assert task.name == "halfcheetah-foot-angle + energy"
    assert list(task.addons) == ["foot-angle", "energy"]
    assert task.addons["foot-angle"].function is base.addon
    assert (task.metric, task.metric_name, task.env_id) == (base.metric, base.metric_name, base.env_id)
    assert dict(task.env_kwargs) == {"frame_skip": 4}
    overridden = get_task({"name": base.name, "addons": {"foot-angle": {"task": base.name, "weight": 0.5}}})
    assert {name: part.weight for name, part in overridden.addons.items()} == {"foot-angle": 0.5}
    assert get_task({"name": "ant-sideways"}).env_kwargs == TASKS["ant-sideways"].env_kwargs


def test_one_add_on_has_no_parts_and_none_is_zero() -> None:
    one = get_task({"env": "Pendulum-v1", "addons": {"a": {"expression": "next_obs[0]", "weight": 3}}})
    assert isinstance(one.addon, WeightedSum)
    assert one.addon.part_names == ()
    assert one.metric is one.addon
    none = get_task({"env": "Pendulum-v1", "description": "swing up"})
    assert (none.addon, none.name, none.description) == (Nothing(), "Pendulum-v1", "swing up")
    assert none.addon(np.zeros((2, 3)), np.zeros((2, 1)), np.zeros((2, 3)), {}).tolist() == [0.0, 0.0]


def test_a_part_of_another_shape_is_named() -> None:
    task = get_task({"env": f"{OWN}:Slide", "addons": {"ok": "1", "bad": {"function": f"{OWN}:column"}}})
    with pytest.raises(ValueError, match=r"add-on 'bad' gave shape \(3, 1\) for 3 steps: expected \(3,\)"):
        task.addon(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros((3, 2)), {})


def test_survives_json_yaml_and_the_trials() -> None:
    for text in (FULL, f"task: {{name: hopper-height, addons: {{a: '1'}}}}\n{REST}", f"task: hopper-height\n{REST}"):
        loaded = spec(text)
        assert SweepSpec.model_validate(json.loads(loaded.model_dump_json())) == loaded
        assert SweepSpec.model_validate(loaded.model_dump()) == loaded
        assert parse_spec(dump_spec(loaded), check_files=False) == loaded
        for trial in expand(loaded):
            dumped = json.loads(json.dumps(trial.model_dump(mode="json")))
            assert TrialSpec.model_validate(dumped) == trial
            assert get_task(dumped["task"]).name == get_task(loaded.task).name == task_label(dumped["task"])


def test_travels_to_workers_as_names_and_text() -> None:
    task = get_task(spec(FULL).task)
    assert task.addon.info_keys == ("late", "position")  # by now the functions have been imported here
    pickled = pickle.dumps(TaskEnv(task))
    assert b"own_tasks\x94" not in pickled  # no class or function by reference: the worker could not import it yet
    again = pickle.loads(pickled)
    assert again.task == get_task(spec(FULL).task)
    assert isinstance(again({}).unwrapped, own_tasks.Slide)


def test_env_runners_see_what_envpool_must_not_make() -> None:
    plain = TaskEnv(get_task({"env": "HalfCheetah-v5"}))
    assert (plain.env_id, dict(plain.env_kwargs), plain.wrappers) == ("HalfCheetah-v5", {}, ())
    limited = TaskEnv(get_task({"env": "HalfCheetah-v5", "max_episode_steps": 5}))
    assert dict(limited.env_kwargs) == {"max_episode_steps": 5}
    wrapped = TaskEnv(get_task({"env": "HalfCheetah-v5", "wrappers": ["gymnasium.wrappers:ClipReward"]}))
    assert wrapped.wrappers == ("gymnasium.wrappers:ClipReward",)
    assert TaskEnv(get_task({"env": f"{OWN}:Slide"})).env_id is None


# ---- refused ----------------------------------------------------------------------------------------
def test_every_fault_with_its_line_and_column(tmp_path: Path) -> None:
    text = """\
task:
  env: HalfCheetah-v5
  addons:
    foot: -10 * abs(nxt_obs[7])
    energy: {expression: "-sum(action ** 2) + 'é' + foo(1)", weigth: 0.1}
    long: >-
      -10 * abs(next_obs[7])
      + sum(action
      + bar)
    lines: |
      1 +
        2 ^ 3
    quoted: 'info[''x''] + zzz'
    escaped: "1 + \\x62ar"
    two: {expression: "obs[0]", function: "a:b"}
    none: {weight: 1}
    bad name: 1
    other: {task: hopper-height}
    unknown: {task: hopper-hight}
    list: [1]
    keys: {expression: "1", info_keys: [x]}
  wrappers: [gymnasium.wrappers:ClipReward, {"a:B": {x: .nan}}, 3, {a: 1}]
  metric: {name: x, expression: "abs("}
  max_episode_steps: 0
  kwargs: [1]
algorithm: greedy
prior: halfcheetah-spg
budget: {env_steps: 10}
"""
    assert messages(text, tmp_path) == [
        "4:21: task.addons.foot: unknown name 'nxt_obs'; did you mean 'next_obs'?",
        "5:47: task.addons.energy.expression: text cannot be used here: expected a number",
        "5:62: task.addons.energy.weigth: unknown key; did you mean 'weight'?",
        "9:9: task.addons.long: unknown name 'bar'; expected one of 'obs', 'action', 'next_obs', 'info', 'pi'",
        "12:11: task.addons.lines: '^' cannot be used here: a power is written x ** y",
        "13:28: task.addons.quoted: unknown name 'zzz'; expected one of 'obs', 'action', 'next_obs', 'info', 'pi'",
        "14:19: task.addons.escaped: unknown name 'bar'; expected one of 'obs', 'action', 'next_obs', 'info', 'pi'",
        "15:10: task.addons.two: give one of expression, function and task, got expression and function",
        "16:11: task.addons.none: give one of expression, function and task, got none",
        "17:5: task.addons.'bad name': an add-on's name takes up to 64 letters, digits, - and _, and starts with a "
        "letter or digit",
        "19:21: task.addons.unknown.task: unknown task 'hopper-hight'; did you mean 'hopper-height'?",
        "20:11: task.addons.list: expected a mapping (key: value), got [1]",
        "21:11: task.addons.keys: info_keys is for a function; expression needs none",
        "22:57: task.wrappers[1].'a:B'.x: expected a finite number, got .nan",
        "22:65: task.wrappers[2]: expected module:Class or {module:Class: {...}}, got 3",
        "22:69: task.wrappers[3].a: expected module:Class, got 'a'",
        "23:37: task.metric.expression: not an expression: '(' was never closed",
        "24:22: task.max_episode_steps: must be at least 1, got 0",
        "25:11: task.kwargs: expected a mapping (argument: value), got [1]",
        "28:21: budget.env_steps: 10 env steps are less than one iteration of 4096 "
        "(rollout_length 512 x envs_per_runner 8)",
    ]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            "{}",
            "1:7: task: needs env: a gymnasium id, module:Class or module:function; or the name of a registered task",
        ),
        ("[hopper-height]", "1:7: task: expected a task's name or a mapping, got ['hopper-height']"),
        ("{name: hopper-hight}", "1:14: task.name: unknown task 'hopper-hight'; did you mean 'hopper-height'?"),
        (
            "{name: hopper-height, env: Hopper-v5}",
            "1:14: task.name: 'hopper-height' is a registered task: leave out env to extend it, or give another name",
        ),
        (
            "{env: Hopper-v5, addons: {a: {task: halfcheetah-foot-angle}}}",
            "1:43: task.addons.a.task: task 'halfcheetah-foot-angle' is in HalfCheetah-v5, and this one in Hopper-v5",
        ),
        ("{env: 'Half Cheetah', addons: {a: 1}}", "1:13: task.env: expected a gymnasium id such as HalfCheetah-v5"),
        ("{envv: Hopper-v5}", "1:8: task.envv: unknown key; did you mean 'env'?"),
        ("{env: Hopper-v5, kwargs: {a: {b: [.inf]}}}", "1:41: task.kwargs.a.b[0]: expected a finite number, got .inf"),
        ("{env: Hopper-v5, addons: {a: {function: nope}}}", "1:47: task.addons.a.function: expected module:name, got"),
        ("{env: Hopper-v5, addons: {a: -obs[0]}}", "1:40: not valid YAML"),
        ("{env: HalfCheetah-v5}", "1:1: task: method 'rpg' customises for add-on rewards, and the task has none"),
    ],
    ids=lambda value: value[:40],
)
def test_refused_at_its_place(task: str, says: str, tmp_path: Path) -> None:
    [*_, message] = messages(f"task: {task}\n{REST}", tmp_path, check_files=False)
    assert message.startswith(says)


def test_refused_for_what_only_the_environment_can_tell(tmp_path: Path) -> None:
    text = f"""\
task:
  env: HalfCheetah-v5
  addons:
    foot: -10 * abs(next_obs[17])
    vector: {{expression: "action ** 2", weight: 0.1}}
    key: "info['x_velocty'] * 2"
    gone: {{function: "{OWN}:gone"}}
    module: {{function: "tests.platform.own_taks:calm"}}
    shape: {{function: "{OWN}:column"}}
    speed: {{function: "{OWN}:calm", info_keys: [speed]}}
  metric: {{expression: "obs[-18]"}}
{REST}"""
    said = messages(text, tmp_path)
    assert [message.split(": ")[0] for message in said] == [
        *("4:21", "5:27", "6:11", "7:22", "8:24", "9:23", "10:23", "11:25")
    ]
    for message, part in zip(
        said,
        (
            "task.addons.foot: index 17 is out of range: there are 17 entries",
            "task.addons.vector: gives 6 values per step instead of one; did you mean sum(action ** 2)?",
            "task.addons.key: the environment's info has no 'x_velocty'; did you mean 'x_velocity'?",
            "task.addons.gone.function: module 'tests.platform.own_tasks' (",
            "task.addons.module.function: there is no module 'tests.platform.own_taks'",
            "task.addons.shape.function: gave shape (4, 1) for 4 steps, expected (4,)",
            "task.addons.speed.function: the environment's info has no number 'speed' in every step",
            "task.metric: index -18 is out of range: there are 17 entries",
        ),
        strict=True,
    ):
        assert part in message
    assert spec(text).task.label.startswith("HalfCheetah-v5: foot")  # and without the environment it is valid


def test_environment_faults_stand_at_their_place(tmp_path: Path) -> None:
    head = "task:\n  addons: {a: 1}\n"
    assert messages(f"{head}  env: HalfCheeta-v5\n{REST}", tmp_path)[0] == (
        "3:8: task.env: gymnasium has no environment 'HalfCheeta-v5'; did you mean 'HalfCheetah-v5'?"
    )
    wrong = f"{head}  env: HalfCheetah-v5\n  kwargs: {{forward_reward_wait: 1}}\n{REST}"
    assert messages(wrong, tmp_path)[0] == (
        "4:12: task.kwargs.forward_reward_wait: HalfCheetah-v5 takes no argument 'forward_reward_wait'; "
        "did you mean 'forward_reward_weight'?"
    )
    wrapped = f"{head}  env: Pendulum-v1\n  wrappers: [gymnasium.wrappers:ClipRewrd]\n{REST}"
    assert messages(wrapped, tmp_path)[0].startswith("4:14: task.wrappers[0]: module 'gymnasium.wrappers'")


def test_python_callers_are_told_too() -> None:
    with pytest.raises(ValueError, match=r"^task.addons.a: unknown name 'x'"):
        get_task({"env": "Pendulum-v1", "addons": {"a": "x"}})
    with pytest.raises(ValueError, match=r"task.kwargs.a: expected a number, text, true, false, a list or a mapping"):
        get_task({"env": "Pendulum-v1", "kwargs": {"a": object()}})


def test_a_prior_of_another_environment_is_refused_and_own_code_may_be_any(tmp_path: Path) -> None:
    said = messages(f"task: {{env: Hopper-v5, addons: {{a: 1}}}}\n{REST}", tmp_path)
    assert said == ["3:8: prior: 'halfcheetah-spg' acts in HalfCheetah-v5, but task 'Hopper-v5: a' is in Hopper-v5"]
    (tmp_path / "sweep.yaml").write_text(f'task: {{env: "{OWN}:Slide", addons: {{a: 1}}}}\n{REST}')
    load_spec(tmp_path / "sweep.yaml")  # whether the prior fits its spaces is checked when the sweep starts


# ---- files and own code ---------------------------------------------------------------------------------
def test_a_file_with_nothing_but_a_task(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("task: {env: Pendulum-v1, addons: {a: '1'}}\nseeds: nonsense that is not read\n")
    assert find_task(str(file)).name == "Pendulum-v1: a"
    assert find_task("hopper-height") is TASKS["hopper-height"]
    file.write_text("task: {env: Pendulum-v1,\n addons: {a: 'x', b: 'y'}}\n")
    with pytest.raises(SpecError) as refused:
        find_task(str(file))
    assert [m.removeprefix(f"{file}:").split(": ")[:2] for m in refused.value.messages] == [
        ["2:15", "task.addons.a"],
        ["2:23", "task.addons.b"],
    ]
    file.write_text("seeds: 1\n")
    with pytest.raises(SpecError, match="1:1: task: missing: expected a task's name or a mapping"):
        find_task(str(file))
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        find_task("nowhere.yaml")


def test_modules_beside_the_file_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir("/")
    (tmp_path / "code").mkdir()
    (tmp_path / "beside_addons.py").write_text("def f(o, a, n, i):\n    return n[:, 0]\nf.info_keys = ('k',)\n")
    (tmp_path / "code" / "deeper_addons.py").write_text("from beside_addons import f\n")
    (tmp_path / "sweep.yaml").write_text(
        f"task: {{env: Pendulum-v1, addons: {{a: {{function: 'beside_addons:f'}}}}}}\n{REST}"
    )
    loaded = load_spec(tmp_path / "sweep.yaml", check_files=False)
    assert isinstance(loaded.task, TaskSpec)
    assert loaded.task.folder == str(tmp_path)
    task = get_task(loaded.task)
    assert task.addon.info_keys == ("k",)
    assert isinstance(task.addons["a"].function, UserFunction)
    (tmp_path / "sweep.yaml").write_text(
        f"task: {{env: Pendulum-v1, folder: code, addons: {{a: {{function: 'deeper_addons:f'}}}}}}\n{REST}"
    )
    deeper = load_spec(tmp_path / "sweep.yaml", check_files=False)
    assert get_task(deeper.task).addon.info_keys == ("k",)
    # Without code of one's own nothing of this machine stands in the specification.
    (tmp_path / "sweep.yaml").write_text(f"task: {{env: Pendulum-v1, addons: {{a: 1}}}}\n{REST}")
    assert "folder" not in dump_spec(load_spec(tmp_path / "sweep.yaml", check_files=False))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            "import nothing_here",
            "f",
            "importing 'broken_0' failed: ModuleNotFoundError: No module named 'nothing_here'",
        ),
        ("def f(:", "f", "importing 'broken_1' failed: SyntaxError"),
        ("1 / 0", "f", "importing 'broken_2' failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", "f", "importing 'broken_3' failed: SystemExit: bye"),
        ("def gait(): pass", "gate", "has no 'gate'; did you mean 'gait'?"),
    ],
)
def test_modules_that_cannot_be_imported(
    content: str, name: str, message: str, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = f"broken_{request.node.callspec.indices['content']}"
    (tmp_path / f"{module}.py").write_text(content)
    with pytest.raises(UserCodeError) as refused:
        load(f"{module}:{name}", str(tmp_path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_that_another_hides_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text("def f(*_): ...\n")
    with pytest.raises(UserCodeError, match=r"module 'json' is .*, which hides .*json.py: rename the latter"):
        load("json:f", str(tmp_path))
    with pytest.raises(UserCodeError, match="is a class: expected a function"):
        _ = UserFunction(f"{OWN}:Slide").function


def test_reading_a_task_of_ones_own_imports_nothing_slow() -> None:
    """Without looking into the environment not even gymnasium is needed."""
    code = (
        "import sys; from rpg_platform.spec.yaml_file import parse_spec;"
        f"parse_spec({FULL!r}, name='x', check_files=False);"
        "print([m for m in ('ray', 'torch', 'mlflow', 'gymnasium') if m in sys.modules])"
    )
    path = ":".join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_expressions_are_what_they_say() -> None:
    task = get_task({"env": "Pendulum-v1", "addons": {"a": "1", "b": 2}})
    assert [part.function for part in task.addons.values()] == [Expression("1"), Expression("2")]


def test_a_sweep_made_in_python_is_checked_against_its_environment_too(tmp_path: Path) -> None:
    task = "task: {env: Pendulum-v1, addons: {a: 'next_obs[3]'}}"
    made = spec(f"{task}\nalgorithm: ppo\nbudget: {{env_steps: 100_000}}\nstorage: {tmp_path}\n")
    with pytest.raises(SweepError, match=r"^task.addons.a: index 3 is out of range: there are 3 entries$"):
        Sweep.resolve(made)
