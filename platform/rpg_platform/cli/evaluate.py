"""``rpg evaluate``: what a policy comes to on a task."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, Weights, Where, policy_folder, refusals, stdout_console


def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            help="A shipped prior's name, a bundle's folder, or a sweep's NAME or NAME#RANK.", metavar="POLICY"
        ),
    ],
    task: Annotated[str, typer.Option(help="The task to evaluate it on: a name (see `rpg tasks`) or a YAML file.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, all finished.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="First of the evaluation seeds.")] = 10_000,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps after which an episode is cut off. [default: 20,000 or more]")
    ] = None,
    weights: Weights = None,
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Evaluates a policy on a task: exactly N episodes from fixed seeds, deterministic and sampled."""
    from rpg_algorithms.addons import part_names
    from rpg_algorithms.policies.bundle import load_bundle
    from rpg_platform.evaluation.play import as_metrics, evaluate_both
    from rpg_platform.results.report import FINAL, MODES, mean_key, std_key
    from rpg_platform.spec.measures import PER_MODE
    from rpg_platform.spec.yaml_file import find_task
    from rpg_platform.tasks.environments import spaces_of

    with refusals():
        chosen = find_task(task)
        with policy_folder(policy, storage, weights=weights) as folder:
            bundle = load_bundle(folder)
        bundle.check_spaces(*spaces_of(chosen), chosen.env_id)
        metrics = as_metrics(evaluate_both(bundle.build(), chosen, episodes, seed, max_steps=max_steps))
    if as_json:
        output.data(json.dumps({k: v for k, v in metrics.items() if v == v}, indent=2))
        return
    table = Table("measure", *MODES, title=f"{bundle.card.name} on {chosen.name}: {episodes} episodes, mean ± std")
    parts = [f"addon/{name}_return" for name in part_names(chosen.addon)]
    for measure in (*PER_MODE[:2], *parts, *PER_MODE[2:]):
        label = chosen.metric_name if measure == "task_metric" else measure.replace("_", " ").replace("addon", "add-on")
        cells = [
            f"{metrics[mean_key(FINAL, mode, measure)]:,.2f} ± {metrics[std_key(FINAL, mode, measure)]:,.2f}"
            for mode in MODES
        ]
        table.add_row(label, *cells)
    stdout_console().print(table)
