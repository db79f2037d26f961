"""``rpg clean``: what the sweeps of a storage take up, and deleting old ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rpg_platform.cli import output
from rpg_platform.cli.common import FAILED, AsJson, Where, refusals, stdout_console, sweep_names

if TYPE_CHECKING:
    from rpg_platform.run.cleaning import Kept


def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sweeps to delete; none: as --older-than says.", metavar="NAME", autocompletion=sweep_names
        ),
    ] = None,
    storage: Where = None,
    older_than: Annotated[
        str | None, typer.Option(help="Delete only what was not written for so long: 30d, 12h, 4w.", metavar="AGE")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Delete files alone; MLflow keeps the runs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Lists the sweeps of a storage with size and age, and deletes those asked for, with their runs in MLflow."""
    from rpg_platform.run.cleaning import age_of, chosen, kept_in, remove_all
    from rpg_platform.storage.location import storage_path

    console = Console(stderr=True) if as_json else stdout_console()
    with refusals():
        where = storage_path(storage)
        age_s = None if older_than is None else age_of(older_than)
        found = kept_in(where)
        asked = bool(names) or older_than is not None
        some = chosen(found, names or [], age_s) if asked else []
        asks = bool(some) and not (yes or dry_run)
        if asks and not sys.stdin.isatty():
            raise ValueError(f"nothing was deleted: --yes deletes {', '.join(each.sweep for each in some)} unasked")
    _show(some if asked else found, where, console)
    if asks:
        typer.confirm(f"Delete {len(some)} sweeps, their files and their runs?", abort=True, err=True)
    done = remove_all(
        where,
        [each.sweep for each in some],
        lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        keep_runs=keep_runs,
        dry_run=dry_run,
    )
    if as_json:
        results = {each["sweep"]: each for each in done}
        listed = [each.as_json() | results.get(each.sweep, {}) for each in (some if asked else found)]
        output.data(json.dumps({"deleted": bool(done) and not dry_run, "sweeps": listed}, indent=2))
    if any(each["error"] for each in done):
        raise typer.Exit(FAILED)


def _show(found: Sequence[Kept], storage: str, console: Console) -> None:
    from rich.table import Table

    from rpg_platform.trial.room import size_text

    table = Table("sweep", "state", box=None, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right")
    table.add_column("untouched", justify="right")
    for each in found:
        table.add_row(each.sweep, each.state, size_text(each.size), f"{each.age_s / 86_400:.1f} days")
    console.print(table if found else f"No such sweep in {storage}", highlight=False, soft_wrap=not found)
