"""The command line ``rpg``: thin, every command calls one function of the package.

Exit codes: 0 all went well; 1 a sweep has trials without a result; 2 the input was refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rpg_platform.cli import clone as cli_clone
from rpg_platform.cli import export as cli_export
from rpg_platform.cli import plan as cli_plan
from rpg_platform.cli import priors as cli_priors
from rpg_platform.cli import status as cli_status
from rpg_platform.cli import sweep as cli_sweep
from rpg_platform.cli import tasks as cli_tasks
from rpg_platform.cli import track as cli_track
from rpg_platform.cli.common import AsJson, refusals, stdout_console

app = typer.Typer(
    name="rpg",
    help="Customise trained policies by residual policy gradient: sweep the weights, track, review.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_priors.app, name="priors")
app.add_typer(cli_tasks.app, name="tasks")


@app.command()
def evaluate(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name or a bundle's folder.")],
    task: Annotated[str, typer.Option(help="The task to evaluate it on: a name (see `rpg tasks`) or a YAML file.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, all finished.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="First of the evaluation seeds.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Evaluates a policy on a task: exactly N episodes from fixed seeds, deterministic and sampled."""
    from rpg_algorithms.addons import part_names
    from rpg_algorithms.policies.bundle import load_bundle
    from rpg_platform.bundles import resolve_prior
    from rpg_platform.evaluation.play import as_metrics, evaluate_both
    from rpg_platform.results.report import FINAL, MODES, mean_key, std_key
    from rpg_platform.spec.measures import PER_MODE
    from rpg_platform.spec.yaml_file import find_task
    from rpg_platform.tasks.environments import make_env

    with refusals():
        chosen, bundle = find_task(task), load_bundle(resolve_prior(prior))
        env = make_env(chosen)
        bundle.check_spaces(env.observation_space, env.action_space, chosen.env_id)
        metrics = as_metrics(evaluate_both(bundle.build(), chosen, episodes, seed))
    if as_json:
        typer.echo(json.dumps({k: v for k, v in metrics.items() if v == v}, indent=2))
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


@app.command()
def ui(
    storage: Annotated[str | None, typer.Option(help="Storage folder of sweeps, or a database URI.")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 5000,
) -> None:
    """Serves the MLflow dashboard of the embedded store until Ctrl-C."""
    from rpg_platform.storage.location import DEFAULT_STORAGE
    from rpg_platform.tracking.dashboard import serve

    with refusals():
        raise typer.Exit(
            serve(storage or str(Path(DEFAULT_STORAGE).expanduser()), host, port, console=stdout_console())
        )


cli_sweep.add_to(app)
cli_export.add_to(app)
cli_clone.add_to(app)
app.command()(cli_track.track)
app.command()(cli_plan.plan)
app.command()(cli_status.status)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and where the package is.")] = False,
) -> None:
    if version:
        import rpg_platform

        typer.echo(f"rpg {rpg_platform.__version__} ({Path(rpg_platform.__file__).parent})")
        raise typer.Exit


def main() -> None:
    """Entry point of the ``rpg`` script."""
    app()


if __name__ == "__main__":
    main()
