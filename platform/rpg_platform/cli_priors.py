"""``rpg priors``: the priors at hand."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from rpg_platform.cli_common import AsJson, stdout_console

app = typer.Typer(help="Lists, imports and checks priors.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def priors(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the shipped priors."""
    if context.invoked_subcommand is not None:
        return
    from rpg_algorithms.prior import load_card
    from rpg_platform.shipped import SHIPPED

    cards = {name: load_card(path) for name, path in SHIPPED.items()}
    if as_json:
        typer.echo(json.dumps({name: card.model_dump() for name, card in cards.items()}, indent=2))
        return
    table = Table("prior", "environment", "alpha", "basic return (deterministic)", "hash")
    for name, card in cards.items():
        basic = card.returns.get("basic/deterministic")
        returns = "–" if basic is None else f"{basic.mean:,.0f} ± {basic.std:,.0f} over {basic.episodes} episodes"
        table.add_row(
            name, card.env_id, "–" if card.alpha is None else f"{card.alpha:g}", returns, card.content_hash[:12]
        )
    stdout_console().print(table)
