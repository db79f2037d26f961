"""A user's folder with an environment, a wrapper and add-on rewards of their own, swept by `rpg` from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ray.rllib.env.env_context import EnvContext
from tests.platform import own_tasks
from tests.platform.commands import rpg

from rpg_algorithms.rllib.vector_env import _pool_candidate
from rpg_platform.spec.task import get_task
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tasks.environments import register

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

SPEC = """\
name: mine
task:
  env: my_world:Slide
  kwargs: {length: 20}
  wrappers: ["my_world:Scaled"]
  addons:
    gait: {function: "my_world:gait", weight: 2.0}
    middle: -abs(next_obs[0])
    late: {expression: "-info.late", weight: 0.5}
algorithm: full
weights: {alpha: 0.01}
budget: {env_steps: 1024}
training: {rollout_length: 64, minibatch_size: 128, num_epochs: 1}
resources: {env_runners: 1, cpus_per_trial: 0.5}
evaluation: {episodes: 3, validations: 0}
"""
PARTS = ("gait", "middle", "late")
LABEL = "my_world:Slide: gait + middle + late"


def test_own_code_reaches_every_process_and_each_add_on_is_reported(tmp_path: Path, read_sweep: ReadSweep) -> None:
    world = tmp_path / "world"
    world.mkdir()
    (world / "my_world.py").write_text(Path(own_tasks.__file__).read_text())
    (world / "mine.yaml").write_text(SPEC)
    storage = tmp_path / "out"
    done = rpg("sweep", str(world / "mine.yaml"), "--storage", str(storage), cwd=tmp_path)  # not the file's folder
    assert done.returncode == 0, done.stdout + done.stderr
    [trial] = [path for path in (storage / "mine").iterdir() if (path / "result.json").is_file()]
    reports = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
    for report in reports:
        assert sum(report[f"addon/{name}_return"] for name in PARTS) == pytest.approx(report["addon_return"], rel=1e-4)
    last = reports[-1]
    for mode in ("deterministic", "sampled"):
        each = {name: last[f"eval/{mode}/addon/{name}_return_mean"] for name in PARTS}
        assert sum(each.values()) == pytest.approx(last[f"eval/{mode}/addon_return_mean"])
        # Each step after the fifth costs a half; in these three episodes there are more.
        assert each["late"] == pytest.approx(-0.5 * (last[f"eval/{mode}/episode_length_mean"] - 5))
        assert len(set(each.values())) == 3
    assert last["reward_addon_term"] != 0  # and it is trained on
    for name in PARTS:
        assert name in done.stdout  # a column of the table
    runs = read_sweep(default_tracking_uri(str(storage)), "mine")
    [child] = runs.children.values()
    for run in (runs.parent, child):
        assert (run.data.tags["task"], run.data.params["task"]) == (LABEL, LABEL)
    for place, key in (("train/", "addon/gait_return"), ("", "eval/sampled/addon/gait_return_mean")):
        assert child.data.metrics[place + key] == pytest.approx(last[key])
    *_, card_file = sorted(trial.glob("checkpoint_*/bundle/card.json"))
    card: dict[str, Any] = json.loads(card_file.read_text())
    assert (card["env_id"], card["env_kwargs"], card["made_by"]["task"]) == ("my_world:Slide", {"length": 20}, LABEL)
    assert set(get_task(card["made_by"]["task_spec"]).addons) == set(PARTS)


@pytest.mark.usefixtures("local_ray")
def test_envpool_is_kept_away_from_wrapped_environments() -> None:
    pytest.importorskip("envpool")
    for spec, reason in (
        ({"env": "HalfCheetah-v5"}, ""),
        ({"env": "HalfCheetah-v5", "wrappers": ["gymnasium.wrappers:RescaleAction"]}, "it does not take the wrappers"),
        ({"env": "HalfCheetah-v5", "max_episode_steps": 5}, "it does not take the keyword arguments"),
        ({"env": f"{own_tasks.__name__}:Slide"}, "it needs an environment given by its gymnasium id"),
    ):
        env_id, why = _pool_candidate(register(get_task(spec)), EnvContext({}, 0))
        assert (env_id is None) == bool(reason)
        assert why.startswith(reason)
