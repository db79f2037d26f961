"""``rpg ui``: the MLflow dashboard of an embedded store."""

from __future__ import annotations

from typing import Annotated

import typer

from rpg_platform.cli.common import refusals, stdout_console


def ui(
    storage: Annotated[str | None, typer.Option(help="Storage folder of sweeps, or a database URI.")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 5000,
) -> None:
    """Serves the MLflow dashboard of the embedded store until Ctrl-C."""
    from rpg_platform.storage.location import storage_path
    from rpg_platform.tracking.dashboard import serve

    with refusals():
        raise typer.Exit(serve(storage_path(storage), host, port, console=stdout_console()))
