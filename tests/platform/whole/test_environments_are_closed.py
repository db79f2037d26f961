"""Whatever makes an environment closes it, once: it may be a simulator's process, a window, a licence."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.platform.commands import here, refused

from rpg_algorithms.rllib.vector_env import make_vector_env
from rpg_platform.planning.measuring import measure
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.task import get_task
from rpg_platform.storage.sweep import Sweep
from rpg_platform.tasks.environments import make_env
from rpg_platform.trial.trainable import CustomizationTrial


def counted(folder: Path) -> tuple[int, int]:
    """How many environments are open, and how many were closed, since the last time."""
    found = [len(list(folder.glob(f"*.{state}"))) for state in ("open", "closed")]
    for file in folder.glob("*.closed"):
        file.unlink()
    return found[0], found[1]


def test_every_environment_is_closed(local_ray: None, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    task = {"env": "tests.platform.own_tasks:Counted", "kwargs": {"folder": str(marks)}, "addons": {"x": "next_obs[0]"}}
    raw = {
        "name": "closing",
        "task": task,
        "algorithm": "full",
        "weights": {"alpha": 0.01},
        "budget": {"env_steps": 512},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1},
        "resources": {"envs_per_runner": 4},
        "evaluation": {"episodes": 2, "validations": 1, "validation_episodes": 1},
        "storage": str(tmp_path / "out"),
    }
    spec = SweepSpec.model_validate(raw)
    Sweep.resolve(spec)
    assert counted(marks)[0] == 0
    [planned] = expand(spec)
    measure(planned, None)
    assert counted(marks)[0] == 0

    trial = CustomizationTrial(planned.as_config())
    while not trial.train()["done"]:
        pass
    (tmp_path / "saved").mkdir()
    trial.save_checkpoint(str(tmp_path / "saved"))
    trial.stop()
    still, closed = counted(marks)
    assert (still, closed > 6) == (0, True)

    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump({"task": task}))
    policy = str(tmp_path / "saved" / "bundle")
    for command in (
        ("tasks", "show", str(file)),
        ("tasks", "check", str(file)),
        ("evaluate", policy, "--task", str(file), "--episodes", "2"),
        ("priors", "check", policy, "--task", str(file), "--episodes", "1", "--steps", "1000"),
    ):
        here(*command)
        still, closed = counted(marks)
        assert (still, closed > 0) == (0, True), command
    refused("evaluate", "halfcheetah-spg", "--task", str(file))  # of other spaces
    assert counted(marks) == (0, 1)


def test_those_are_closed_that_were_made_before_one_that_could_not_be(tmp_path: Path) -> None:
    kwargs = {"folder": str(tmp_path), "most": 2}
    task = get_task({"env": "tests.platform.own_tasks:Counted", "kwargs": kwargs, "addons": {"x": "next_obs[0]"}})
    with pytest.raises(ValueError, match="too many are open"):
        make_vector_env(partial(make_env, task), 3, "sync", frozenset())
    assert counted(tmp_path) == (0, 2)
