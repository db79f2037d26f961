"""The command line ``rpg``: every command calls one function of the package, and imports it when it is called.

``common.MEANINGS`` has the exit codes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rpg_platform.cli import (
    clean,
    clone,
    evaluate,
    export,
    jobs,
    output,
    plan,
    priors,
    render,
    review,
    status,
    sweep,
    tasks,
    track,
    ui,
    weights,
)
from rpg_platform.cli.common import FAILED

app = typer.Typer(
    name="rpg",
    help="Customise trained policies by residual policy gradient: sweep the weights, track, review.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(priors.app, name="priors")
app.add_typer(tasks.app, name="tasks")


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported, which comes later

for command in (evaluate.evaluate, render.render, ui.ui, weights.weights):
    app.command()(command)
sweep.add_to(app)
export.add_to(app)
clone.add_to(app)
review.add_to(app)
jobs.add_to(app)
app.command()(track.track)
app.command()(plan.plan)
app.command()(status.status)
app.command()(clean.clean)


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
    output.guard()
    if "--json" in sys.argv[1:]:
        output.data_only()
    try:
        app()
    finally:
        if (error := output.lost()) is not None:
            typer.echo(f"standard output could not be written: {error.strerror}", err=True)
            raise SystemExit(FAILED)


if __name__ == "__main__":
    main()
