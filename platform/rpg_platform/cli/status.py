"""``rpg status``: how a sweep is doing, from any shell or machine that sees its storage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, refusals, stdout_console

if TYPE_CHECKING:
    from rpg_platform.run.status import SweepStatus

_MOST_FAILURES, _MOST_RUNNING = 20, 20
_WATCH_S, _LINE_S = 2.0, 60.0


def status(
    name: Annotated[str | None, typer.Argument(help="A sweep's name; none: all of them.", metavar="NAME")] = None,
    storage: Annotated[str | None, typer.Option(help="Where the sweep's results are; default: ~/rpg_results.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ask NAME's cluster, http://HEAD:8265, instead of a storage; see rpg submit."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow NAME until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Says how a sweep is doing and what to do: from another shell, or any machine that sees its storage."""
    from rpg_platform.run.status import status_of
    from rpg_platform.storage.listing import sweeps_in
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError

    with refusals():
        if address is not None:
            if name is None or watch:
                raise ValueError(
                    "--address takes one sweep, without --watch: rpg status NAME --address http://HEAD:8265"
                )
            _show([_status_there(name, address, storage)], name, as_json)
            return
        where = storage_path(storage)
        if watch:
            if name is None or as_json:
                raise ValueError("--watch follows one sweep, without --json: rpg status NAME --watch")
            _watch(lambda: status_of(SweepFolder(where, name), storage))
            return
        names = sweeps_in(where) if name is None else [name]
        try:
            found = [status_of(SweepFolder(where, each), storage) for each in names]
        except SweepFolderError as error:
            if "RAY_API_SERVER_ADDRESS" not in os.environ:
                raise
            hint = "of a sweep that runs as a job: --address $RAY_API_SERVER_ADDRESS"
            raise SweepFolderError(f"{error}; {hint}") from error
    if found or as_json:
        _show(found, name, as_json)
    else:
        stdout_console().print(f"No sweep in {where}", soft_wrap=True, highlight=False)


def _status_there(name: str, address: str, storage: str | None) -> SweepStatus:
    from rpg_platform.jobs.client import connect
    from rpg_platform.jobs.status import status_at

    return status_at(connect(address), name, storage)


def _show(found: list[SweepStatus], name: str | None, as_json: bool) -> None:
    if as_json:
        documents = [each.as_json() for each in found]
        output.data(json.dumps(documents if name is None else documents[0], indent=2))
    elif name is not None:
        _print(found[0], stdout_console())
    else:
        _print_all(found, stdout_console())


def _watch(look: Callable[[], SweepStatus]) -> None:
    """Shows the status anew every two seconds on a terminal, and elsewhere a line a minute, until nothing runs."""
    from rich.live import Live
    from rich.text import Text

    console, found = stdout_console(), look()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while found.state == "running":
                live.update(Text("\n".join(_lines(found))), refresh=True)
                time.sleep(_WATCH_S)
                found = look()
            live.update(Text(""), refresh=True)
    while found.state == "running":
        content = found.content
        steps = f"{content['env_steps']:,} of {content['env_steps_total']:,} env steps"
        console.print(f"{_counts(content['trials'])}; {steps}", markup=False, highlight=False, soft_wrap=True)
        for _ in range(int(_LINE_S / _WATCH_S)):
            time.sleep(_WATCH_S)
            found = look()
            if found.state != "running":
                break
    _print(found, console)


def _print(found: SweepStatus, console: Console) -> None:
    for line in _lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(found: SweepStatus) -> list[str]:
    from rpg_platform.wording import duration

    content = found.content
    lines = [("Sweep", found.sweep), ("State", found.words), ("Trials", _counts(content["trials"]))]
    total, done = content["env_steps_total"], content["env_steps"]
    share = f" ({100 * done / total:.0f} %)" if total else ""
    lines.append(("Env steps", f"{done:,} of {total:,}{share}"))
    if found.state == "running" and content.get("env_steps_per_s"):
        left = content.get("time_left_s")
        pace = f"{content['env_steps_per_s']:,.0f} env steps/s"
        lines.append(("Pace", pace if left is None else f"{pace}, about {duration(left)} left"))
    if found.state == "running" and content.get("waiting"):
        lines.append(("Waiting", content["waiting"]))
    if content.get("job"):
        lines.append(("Ray job", content["job"]))
    if content.get("best"):
        lines.append(("Best", content["best"]["text"]))
    if content.get("tracker"):
        lines.append(("MLflow", content["tracker"]["text"]))
    if found.state == "running":
        running = content.get("running", [])
        lines += [("Running", f"{e['trial']}: {e['env_steps']:,} of {e['budget']:,}") for e in running[:_MOST_RUNNING]]
        if len(running) > _MOST_RUNNING:
            lines.append(("", f"and {len(running) - _MOST_RUNNING} more"))
    failures = content.get("failures", [])
    lines += [("Failed", f"{each['trial']}: {each['error']}") for each in failures[:_MOST_FAILURES]]
    if len(failures) > _MOST_FAILURES:
        lines.append(("", f"and {len(failures) - _MOST_FAILURES} more, see --json"))
    lines.append(("Folder", found.folder))
    if found.command is not None:
        lines.append(("Go on", found.command))
    return [f"{heading:<11} {text}" for heading, text in lines]


def _counts(trials: dict[str, Any]) -> str:
    from rpg_platform.run.status import words_of

    return f"{trials['total']}: {words_of({state: count for state, count in trials.items() if state != 'total'})}"


def _print_all(found: list[SweepStatus], console: Console) -> None:
    from rich.table import Table

    from rpg_platform.wording import duration

    table = Table("sweep", "state", "finished", "failed", "env steps", "time left", box=None, padding=(0, 2, 0, 0))
    for each in found:
        trials, total = each.content["trials"], each.content["env_steps_total"]
        left = each.content.get("time_left_s") if each.state == "running" else None
        table.add_row(
            each.sweep,
            each.state,
            f"{trials.get('finished', 0)} of {trials['total']}",
            str(trials.get("failed", 0) or "–"),
            f"{100 * each.content['env_steps'] / total:.0f} %" if total else "–",
            "–" if left is None else duration(left),
        )
    console.print(table)
