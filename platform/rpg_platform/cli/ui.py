"""``rpg ui``: the MLflow dashboard of an embedded store."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rpg_platform.cli.common import refusals, stdout_console


def ui(
    name: Annotated[str | None, typer.Argument(help="The sweep to show; without it the one that began last.")] = None,
    storage: Annotated[str | None, typer.Option(help="Storage folder of sweeps, or a database URI.")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 5000,
    browse: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a browser; by default where there is a screen."),
    ] = None,
) -> None:
    """Serves the MLflow dashboard of the embedded store until Ctrl-C, and prints the address of a sweep's trade-off."""
    from rpg_platform.storage.location import storage_path
    from rpg_platform.tracking.dashboard import serve

    with refusals():
        browse = has_screen() if browse is None else browse
        raise typer.Exit(serve(storage_path(storage), host, port, sweep=name, browse=browse, console=stdout_console()))


def has_screen() -> bool:
    """Whether somebody looks at a terminal on a machine that can show a browser."""
    shown = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return shown and sys.stdout.isatty()
