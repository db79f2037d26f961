"""``rpg tasks``: the list, one task, and its conformance, for registered names and for files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.platform import own_tasks
from typer.testing import CliRunner, Result

from rpg_platform.cli.main import app
from rpg_platform.tasks.registry import TASKS

OWN = own_tasks.__name__


def rpg(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tasks", *arguments], env={"COLUMNS": "160"})


def written(folder: Path, task: str) -> str:
    file = folder / "task.yaml"
    file.write_text(f"task: {task}\n")
    return str(file)


def test_the_list() -> None:
    listed = rpg()
    assert listed.exit_code == 0
    assert all(name in listed.stdout and task.env_id in listed.stdout for name, task in TASKS.items())
    as_json = json.loads(rpg("--json").stdout)
    assert {name: row["env"] for name, row in as_json.items()} == {name: task.env_id for name, task in TASKS.items()}


def test_shows_a_registered_task_and_one_of_a_file(tmp_path: Path) -> None:
    shown = rpg("show", "cartpole-center")
    assert shown.exit_code == 0
    for part in ("CartPole-v1", "Discrete(2)", "center: Linear(", "|position| m"):
        assert part in shown.stdout
    file = written(
        tmp_path,
        f'{{env: "{OWN}:Slide", kwargs: {{speed: 2}}, wrappers: ["{OWN}:Scaled"], max_episode_steps: 9, '
        f'addons: {{far: "abs(next_obs[0])", gait: {{function: "{OWN}:gait", weight: 2}}}}}}',
    )
    rows: dict[str, Any] = json.loads(rpg("show", file, "--json").stdout)
    assert rows["environment"] == f"{OWN}:Slide"
    assert (rows["arguments"], rows["max_episode_steps"]) == ({"speed": 2}, 9)
    assert rows["addons"] == {"far": "abs(next_obs[0])", "gait": f"2 * ({OWN}:gait)"}
    assert rows["metric"] == {"add-on / step": "the add-on reward"}
    assert rows["observations"].startswith("Box(-inf, inf, (2,)")


def test_checks_and_says_what_is_wrong_with_exit_code_2(tmp_path: Path) -> None:
    good = rpg("check", "cartpole-center")
    assert good.exit_code == 0, good.output
    assert "the same seed repeats" in good.stdout
    file = written(tmp_path, f'{{env: "{OWN}:Slide", addons: {{a: {{function: "{OWN}:mutating"}}}}}}')
    bad = rpg("check", file)
    assert (bad.exit_code, bad.stdout) == (2, "")
    assert f"task {OWN}:Slide: a: add-on a: leaves its inputs as they are: it wrote into next_obs" in bad.stderr
    report = rpg("check", file, "--json")
    assert report.exit_code == 2
    found = json.loads(report.stdout)
    assert found["ok"] is False
    assert next(each["what"] for each in found["checks"] if each["fault"]) == "leaves its inputs as they are"


def test_a_policy_is_evaluated_on_the_task_of_a_file(tmp_path: Path) -> None:
    addons = '{foot: "-10 * abs(next_obs[7])", energy: {expression: "-sum(action ** 2)", weight: 0.1}}'
    file = written(tmp_path, f"{{env: HalfCheetah-v5, max_episode_steps: 50, addons: {addons}}}")
    arguments = ["evaluate", "halfcheetah-spg", "--task", file, "--episodes", "2"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    parts = [found[f"eval/sampled/addon/{name}_return_mean"] for name in ("foot", "energy")]
    assert sum(parts) == pytest.approx(found["eval/sampled/addon_return_mean"])
    assert found["eval/sampled/episode_length_mean"] == 50
    table = CliRunner().invoke(app, arguments).stdout
    assert "add-on/energy return" in table


@pytest.mark.parametrize("command", ["show", "check"])
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("cartpole-centre", "task='cartpole-centre': no such task; did you mean 'cartpole-center'?"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
        ("{env: Pendulum-v1, addons: {a: obs}}", None),
    ],
    ids=["name", "file", "content"],
)
def test_refuses(command: str, task: str, message: str | None, tmp_path: Path) -> None:
    if message is None:
        task = written(tmp_path, "{env: Pendulum-v1, addons: {a: foo}}")
        message = f"{task}:1:38: task.addons.a: unknown name 'foo'; expected one of 'obs', 'action'"
    refused = rpg(command, task)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert message in refused.stderr
