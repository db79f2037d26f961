"""``rpg plan``: what a sweep comes to before it starts."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rpg_platform.cli import output
from rpg_platform.cli.common import Address, AsJson, Name, SpecFile, Storage, refusals, stdout_console


def plan(
    file: SpecFile,
    address: Address = None,
    name: Name = None,
    storage: Storage = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Measure the heaviest trial's rate here, for seconds.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Says what FILE comes to: trials, env steps, time, the cluster's room, disk; refuses what can't run.

    Nothing is started and nothing written but the measured rate. Exits with 2 if the sweep would be refused.
    """
    from rpg_platform.cli.sweep import load_for

    with refusals():
        spec = load_for(file, name, storage)
        from rpg_platform.planning.cluster import nodes_of, quiet
        from rpg_platform.planning.preflight import plan_of
        from rpg_platform.planning.words import render
        from rpg_platform.storage.sweep import Sweep

        quiet()
        made = plan_of(Sweep.resolve(spec), nodes_of(address), calibrate=calibrate)
    if as_json:
        output.data(json.dumps(made.as_json(), indent=2))
        return
    stdout_console().print(render(made), highlight=False)
