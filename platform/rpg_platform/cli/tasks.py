"""``rpg tasks``: the tasks at hand, what one of them is, and whether it keeps to what a task must."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, refusals, stdout_console

if TYPE_CHECKING:
    from rpg_platform.tasks.task import StepFunction, Task

app = typer.Typer(help="Lists, shows and checks tasks.", no_args_is_help=False)

TaskOrFile = Annotated[
    str, typer.Argument(help="A registered task's name, or a YAML file with a task in it.", metavar="TASK|FILE")
]


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the registered tasks."""
    if context.invoked_subcommand is not None:
        return
    from rpg_platform.tasks.registry import TASKS

    if as_json:
        listed = {task.name: {"env": task.env_id, "description": task.description} for task in TASKS.values()}
        output.data(json.dumps(listed, indent=2))
        return
    table = Table("task", "environment", "what is added")
    for task in TASKS.values():
        table.add_row(task.name, task.env_id, task.description)
    stdout_console().print(table)


@app.command()
def show(task: TaskOrFile, as_json: AsJson = False) -> None:
    """Shows a task: its environment and spaces, its add-on rewards and its metric."""
    with refusals():
        from rpg_platform.spec.yaml_file import find_task
        from rpg_platform.tasks.environments import spaces_of

        chosen = find_task(task)
        observations, actions = spaces_of(chosen)
        rows = _rows(chosen) | {"observations": str(observations), "actions": str(actions)}
    if as_json:
        output.data(json.dumps(rows, indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        lines = [f"{key}: {each}" for key, each in value.items()] if isinstance(value, dict) else value
        text = "\n".join(lines) if isinstance(lines, list) else str(lines or "")
        table.add_row(name.replace("_", " ").replace("addons", "add-ons"), text or "–")
    stdout_console().print(table)


def _rows(task: Task) -> dict[str, Any]:
    return {
        "task": task.name,
        "description": task.description,
        "environment": task.env_id,
        "arguments": dict(task.env_kwargs),
        "wrappers": [name for name, _ in task.wrappers],
        "max_episode_steps": task.max_episode_steps,
        "addons": {name: _weighted(part.weight, _text(part.function)) for name, part in task.addons.items()},
        "metric": {task.metric_name: "the add-on reward" if task.metric is task.addon else _text(task.metric)},
    }


def _weighted(weight: float, text: str) -> str:
    return text if weight == 1.0 else f"{weight:g} * ({text})"


def _text(function: StepFunction) -> str:
    """A step function to read: an expression's text, an own function's name, else its settings."""
    for attribute in ("text", "name"):
        if isinstance(given := getattr(function, attribute, None), str):
            return given
    return repr(function)


@app.command()
def check(
    task: TaskOrFile,
    seed: Annotated[int, typer.Option(min=0, help="Of the environments and of the random actions.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Checks that a task keeps to what every task must: shapes, finite numbers, seeds, no side effects.

    Exits with 2 and says what and where if it does not.
    """
    with refusals():
        from rpg_platform.spec.yaml_file import find_task
        from rpg_platform.tasks.conformance import ConformanceError, check_task

        chosen = find_task(task)
        checks = check_task(chosen, seed=seed)
        faulty = [each for each in checks if each.fault is not None]
        if as_json:
            rows = [{"where": each.where, "what": each.what, "fault": each.fault} for each in checks]
            output.data(json.dumps({"task": chosen.name, "ok": not faulty, "checks": rows}, indent=2))
        if faulty:
            raise ConformanceError(chosen.name, faulty)
    if not as_json:
        table = Table("where", "what", "", title=f"{chosen.name}: {len(checks)} checks")
        for each in checks:
            table.add_row(each.where, each.what, "ok")
        stdout_console().print(table)
