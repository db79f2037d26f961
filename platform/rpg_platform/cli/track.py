"""``rpg track``: sends what a sweep could not send to MLflow."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rpg_platform.cli import output
from rpg_platform.cli.common import UNSENT, AsJson, refusals, stdout_console


def track(
    folder: Annotated[str, typer.Argument(help="The sweep's folder, STORAGE/NAME.", metavar="FOLDER")],
    uri: Annotated[
        str | None, typer.Option(help="MLflow server to send to, with its login if it needs one; default: the sweep's.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds to go on while MLflow takes nothing.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Sends what a sweep could not send to MLflow: after an outage, or after its driver died. Safe to repeat."""
    from rpg_platform.tracking.replay import replay

    console = Console(stderr=True) if as_json else stdout_console()

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with refusals():
        done = replay(folder, tracking_uri=uri, patience_s=wait, tell=tell)
    state = done.state
    if as_json:
        content = {
            "folder": str(done.folder),
            "tracking_uri": done.tracking_uri,
            "experiment": done.experiment,
            "sweep": done.sweep,
            "complete": done.complete,
            "sent_now": done.sent_now,
            "sent": state.sent,
            "spooled": state.spooled,
            "rejected": state.rejected,
            "damaged": state.damaged,
            "ended": list(done.ended),
            "page": done.page,
        }
        output.data(json.dumps(content, indent=2))
    else:
        tell(f"Sent now    {done.sent_now}")
        tell(f"Records     {state}")
        if done.ended:
            tell(
                f"Ended       {len(done.ended)} runs of a driver that died, as killed; resuming the sweep reopens them"
            )
        tell(f"MLflow      {done.page or done.tracking_uri}")
    if state.spooled:
        tell(f"{state.spooled} records are still to send: MLflow at {done.tracking_uri} took nothing for {wait:g} s")
    if state.rejected:
        tell(f"{state.rejected} records are not taken; the reasons: {done.folder / 'rejected.log'}")
    if not done.complete:
        raise typer.Exit(UNSENT)
