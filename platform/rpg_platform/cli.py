"""The command line ``rpg``: thin, every command calls one function of the package.

Exit codes: 0 all went well; 1 a sweep has trials without a result; 2 the input was refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from rpg_platform import cli_priors
from rpg_platform.cli_common import FAILED, Address, AsJson, Name, SpecFile, Storage, refusals, stdout_console
from rpg_platform.spec import SweepSpec
from rpg_platform.spec_errors import SpecError, explain
from rpg_platform.yaml_source import load_spec

app = typer.Typer(
    name="rpg",
    help="Customise trained policies by residual policy gradient: sweep the weights, track, review.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_priors.app, name="priors")


def _load(file: Path, name: str | None, storage: str | None) -> SweepSpec:
    spec = load_spec(file)
    changes = {k: v for k, v in (("name", name), ("storage", storage)) if v is not None}
    try:
        return SweepSpec.model_validate(spec.model_dump(mode="json") | changes) if changes else spec
    except ValidationError as error:
        raise SpecError([f"--{problem}" for problem in explain(error, SweepSpec)]) from error


@app.command()
def sweep(
    file: SpecFile, address: Address = None, name: Name = None, storage: Storage = None, as_json: AsJson = False
) -> None:
    """Runs a sweep of customization weights and prints weights against returns and KL, best first."""
    with refusals():
        spec = _load(file, name, storage)
        _run(spec, file, address, as_json)


@app.command()
def train(
    file: SpecFile,
    out: Annotated[Path | None, typer.Option(help="Folder that the trained policy's bundle is copied to.")] = None,
    address: Address = None,
    name: Name = None,
    storage: Storage = None,
) -> None:
    """Trains the one policy that FILE describes and leaves it as a prior bundle."""
    from rpg_platform.plan import expand

    with refusals():
        spec = _load(file, name, storage)
        trained = [t for t in expand(spec) if t.method != "prior"]
        if len(trained) != 1:
            raise ValueError(f"{file}: describes {len(trained)} trainings; `rpg train` runs one, `rpg sweep` runs many")
        checkpoints = _run(spec, file, address, as_json=False)
        if out is not None:
            from rpg_platform.trial import copy_bundle

            copy_bundle(Path(checkpoints[trained[0].trial_id]), out)
            stdout_console().print(f"The policy: {out}")


def _run(spec: SweepSpec, file: Path, address: str | None, as_json: bool) -> dict[str, str]:
    """Runs a sweep and prints its outcome; exits with 1 when a trial has no result."""
    from rpg_platform.plots import tradeoff_png
    from rpg_platform.report import render_table, rows_to_json, summarise
    from rpg_platform.sweep import run_sweep
    from rpg_platform.tasks import get_task

    console = stdout_console()
    outcome = run_sweep(
        spec, address=address, console=Console(stderr=True) if as_json else console, source=file.read_text()
    )
    rows = summarise(outcome.results)
    if as_json:
        typer.echo(rows_to_json(rows))
    else:
        console.print(render_table(rows, metric_name=get_task(spec.task).metric_name))
        picture = tradeoff_png(rows, title=spec.description)
        if picture is not None and Path(outcome.folder).is_dir():
            file = Path(outcome.folder) / "tradeoff.png"
            file.write_bytes(picture)
            console.print(f"Picture     {file}", soft_wrap=True, highlight=False)
        console.print(f"Results     {outcome.folder}", soft_wrap=True, highlight=False)
        console.print(f"MLflow      {outcome.parent_url or outcome.tracking_uri}", soft_wrap=True, highlight=False)
        if outcome.parent_url is None:
            console.print(
                f"Dashboard   rpg ui --storage {Path(outcome.folder).parent}", soft_wrap=True, highlight=False
            )
    if outcome.failed:
        what = "have no result: the sweep was stopped" if outcome.interrupted else "failed"
        Console(stderr=True).print(f"{outcome.failed} of {len(outcome.results)} trials {what}", style="red")
        raise typer.Exit(FAILED)
    return outcome.checkpoints


@app.command()
def evaluate(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name or a bundle's folder.")],
    task: Annotated[str, typer.Option(help="The task to evaluate it on; see `rpg tasks`.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, all finished.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="First of the evaluation seeds.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Evaluates a policy on a task: exactly N episodes from fixed seeds, deterministic and sampled."""
    from rpg_algorithms.prior import load_bundle
    from rpg_platform.environments import make_env
    from rpg_platform.evaluation import MEASURES, MODES, as_metrics, evaluate_both
    from rpg_platform.shipped import resolve_prior
    from rpg_platform.tasks import get_task

    with refusals():
        chosen, bundle = get_task(task), load_bundle(resolve_prior(prior))
        env = make_env(chosen)
        bundle.check_spaces(env.observation_space, env.action_space, chosen.env_id)
        metrics = as_metrics(evaluate_both(bundle.build(), chosen, episodes, seed))
    if as_json:
        typer.echo(json.dumps({k: v for k, v in metrics.items() if v == v}, indent=2))
        return
    table = Table("measure", *MODES, title=f"{bundle.card.name} on {chosen.name}: {episodes} episodes, mean ± std")
    for measure in MEASURES:
        label = chosen.metric_name if measure == "task_metric" else measure.replace("_", " ").replace("addon", "add-on")
        cells = [
            f"{metrics[f'eval/{mode}/{measure}_mean']:,.2f} ± {metrics[f'eval/{mode}/{measure}_std']:,.2f}"
            for mode in MODES
        ]
        table.add_row(label, *cells)
    stdout_console().print(table)


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """Lists the registered tasks."""
    from rpg_platform.tasks import TASKS

    if as_json:
        typer.echo(
            json.dumps({t.name: {"env": t.env_id, "description": t.description} for t in TASKS.values()}, indent=2)
        )
        return
    table = Table("task", "environment", "what is added")
    for task in TASKS.values():
        table.add_row(task.name, task.env_id, task.description)
    stdout_console().print(table)


@app.command()
def ui(
    storage: Annotated[str | None, typer.Option(help="Storage folder of sweeps, or a database URI.")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 5000,
) -> None:
    """Serves the MLflow dashboard of the embedded store until Ctrl-C."""
    from rpg_platform.sweep import DEFAULT_STORAGE
    from rpg_platform.ui import serve

    with refusals():
        raise typer.Exit(
            serve(storage or str(Path(DEFAULT_STORAGE).expanduser()), host, port, console=stdout_console())
        )


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
