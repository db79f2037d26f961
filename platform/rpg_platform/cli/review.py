"""``rpg report``, ``rpg show``, ``rpg list`` and ``rpg compare``: looking at what sweeps have found."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, SweepName, Where, refusals, stdout_console

if TYPE_CHECKING:
    from rpg_platform.review.found import Found

FromStore = Annotated[
    str | None,
    typer.Option(help="Read it from this MLflow store alone (sqlite:///FILE or a server), not from its folder."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to ``rpg``."""
    for command in (report, show, list_, compare):
        app.command(command.__name__.rstrip("_"))(command)


def report(
    name: SweepName,
    storage: Where = None,
    tracking_uri: FromStore = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write it to; default: report.html in its folder, of MLflow alone NAME.html here."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the same pictures as PNG and SVG.")] = None,
) -> None:
    """Writes a sweep's report: one HTML file with what each weight bought, what it cost, and which setting to take."""
    from rpg_platform.review.page import REPORT_FILE
    from rpg_platform.review.report import metric_name_of, report_of, write_report

    console = stdout_console()
    with refusals():
        found = _found(name, storage, tracking_uri)
        if out is None and tracking_uri is not None:
            out = Path(f"{name}.html")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(report_of(found), encoding="utf-8")
        else:
            write_report(found)
        where = str(out.resolve()) if out is not None else f"{found.folder.uri}/{REPORT_FILE}"
        console.print(f"Report      {where}", soft_wrap=True, highlight=False, markup=False)
        if figures is not None:
            from rpg_platform.review.figures import write_figures

            for file in write_figures(found, figures, metric_name_of(found)):
                console.print(f"Figure      {file}", soft_wrap=True, highlight=False, markup=False)
    if open_ and "://" not in where:
        webbrowser.open(Path(where).as_uri())


def show(name: SweepName, storage: Where = None, tracking_uri: FromStore = None, as_json: AsJson = False) -> None:
    """Prints a sweep's table again, from its folder: weights against returns and KL, best first."""
    from rpg_platform.results.table import render_table, rows_to_json
    from rpg_platform.review.report import metric_name_of

    with refusals():
        found = _found(name, storage, tracking_uri)
    if as_json:
        output.data(rows_to_json(found.rows))
    else:
        stdout_console().print(render_table(found.rows, metric_name=metric_name_of(found)))


def _found(name: str, storage: str | None, tracking_uri: str | None) -> Found:
    """The sweep, from its folder or, where a store is named, from MLflow alone.

    Raises:
        ValueError: there is none, or both a storage and a store are named.
    """
    from rpg_platform.review.found import found_at, found_in
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError

    if tracking_uri is not None:
        if storage is not None:
            raise ValueError("--storage and --tracking-uri: expected one of them, to say where the sweep is read from")
        return found_at(tracking_uri, name)
    try:
        return found_in(SweepFolder(storage_path(storage), name))
    except SweepFolderError as error:
        raise ValueError(f"{error}; to read it from MLflow alone: --tracking-uri URI") from error


def list_(storage: Where = None, as_json: AsJson = False) -> None:
    """Lists the sweeps of a storage, newest first, with the best setting of each; also as a page, index.html."""
    from rich.table import Table

    from rpg_platform.review.index import sweeps_of, write_index
    from rpg_platform.storage.location import storage_path

    with refusals():
        where = storage_path(storage)
        sweeps = sweeps_of(where)
    if as_json:
        output.data(json.dumps([each.as_json() for each in sweeps], indent=2))
        return
    console = stdout_console()
    if not sweeps:
        console.print(f"No sweep in {where}", soft_wrap=True, highlight=False, markup=False)
        return
    table = Table("sweep", "state", "finished", "best setting", "total", "kept", box=None, padding=(0, 2, 0, 0))
    for each in sweeps:
        table.add_row(each.name, each.state, each.finished_words, each.best or "–", each.total_words, each.kept_words)
    console.print(table)
    page = write_index(where, sweeps)
    if page is not None:
        console.print(f"As a page   {page}", soft_wrap=True, highlight=False, markup=False)


def compare(
    first: Annotated[str, typer.Argument(help="A sweep, or one of its settings: NAME or NAME#RANK.", metavar="A")],
    second: Annotated[str, typer.Argument(help="What it is compared with.", metavar="B")],
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Compares two sweeps by their best settings, or any two settings: differences, which is better, what differs."""
    from rpg_platform.review.compare import compared, comparison_table
    from rpg_platform.storage.location import storage_path

    with refusals():
        found = compared(first, second, storage_path(storage))
    if as_json:
        output.data(json.dumps(found.as_json(), indent=2))
    else:
        stdout_console().print(comparison_table(found))
