"""``rpg sweep``, ``rpg resume``, ``rpg extend`` and ``rpg train``: running what a specification describes."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rpg_platform.cli import output, review
from rpg_platform.cli.common import (
    FAILED,
    UNSENT,
    Address,
    AsJson,
    Name,
    SpecFile,
    Storage,
    SweepName,
    Where,
    refusals,
    stdout_console,
)

if TYPE_CHECKING:
    from rpg_platform.run.run import SweepOutcome
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.storage.sweep import Sweep
    from rpg_platform.storage.sweep_folder import SweepFolder


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (sweep, resume, extend, train):
        app.command()(command)


def load_for(file: Path, name: str | None, storage: str | None) -> SweepSpec:
    """The specification in ``file`` with the name and the storage of the command line."""
    from pydantic import ValidationError

    from rpg_platform.spec.errors import SpecError, explain
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.spec.yaml_file import load_spec

    spec = load_spec(file)
    changes = {k: v for k, v in (("name", name), ("storage", storage)) if v is not None}
    try:
        return SweepSpec.model_validate(spec.model_dump(mode="json") | changes) if changes else spec
    except ValidationError as error:
        raise SpecError([f"--{problem}" for problem in explain(error, SweepSpec)]) from error


def sweep(
    file: SpecFile,
    address: Address = None,
    name: Name = None,
    storage: Storage = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep of this name from its storage.")] = False,
    resume_or_start: Annotated[
        bool, typer.Option("--resume-or-start", help="Continue it if it was begun, else start it: safe to repeat.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Runs a sweep of customization weights and prints weights against returns and KL, best first."""
    with refusals():
        if resume and resume_or_start:
            raise ValueError("--resume and --resume-or-start: expected one of them")
        spec = load_for(file, name, storage)
        if resume or (resume_or_start and _folder_of(spec).is_sweep()):
            _continue(spec, address, as_json, unless_done=resume_or_start)
        else:
            _run(_resolved(spec, file), address, as_json)


def resume(name: SweepName, storage: Where = None, address: Address = None, as_json: AsJson = False) -> None:
    """Continues a sweep after whatever ended it: only what has no result yet is run, from its last checkpoint."""
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder

    with refusals():
        _continue(SweepFolder(storage_path(storage), name).spec(), address, as_json)


def _folder_of(spec: SweepSpec) -> SweepFolder:
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder

    return SweepFolder(storage_path(spec.storage), spec.name)


def extend(
    name: SweepName,
    env_steps: Annotated[int | None, typer.Option(min=1, help="New budget of env steps per trial.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="New number of seeds: 0 to N-1 are run.")] = None,
    file: Annotated[Path | None, typer.Option(help="The specification with more grid points or samples.")] = None,
    storage: Where = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Gives a sweep more env steps, seeds or grid points and runs what is new; nothing that it has is run again."""
    from rpg_platform.spec.extension import extended, what_schedules_do
    from rpg_platform.spec.yaml_file import text_of
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep import Sweep, as_found_here
    from rpg_platform.storage.sweep_folder import SweepFolder

    with refusals():
        folder = SweepFolder(storage_path(storage), name)
        wanted = None if file is None else load_for(file, name, folder.storage)
        stored = folder.spec()
        before = stored if wanted is None else as_found_here(folder, wanted)
        spec = extended(before, wanted, env_steps=env_steps, seeds=seeds)
        for line in what_schedules_do(stored, spec):
            Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)
        source = folder.source() if file is None else text_of(file).decode()
        _run(Sweep.resolve(spec, source=source, resume=True), address, as_json)


def _continue(spec: SweepSpec, address: str | None, as_json: bool, *, unless_done: bool = False) -> None:
    """Resumes the sweep that ``spec`` describes, if it is the one in its folder; one that is done is shown again."""
    from rpg_platform.run.status import is_done
    from rpg_platform.spec.extension import check_same
    from rpg_platform.storage.sweep import Sweep, as_found_here

    folder = _folder_of(spec)
    check_same(as_found_here(folder, spec), spec)
    if unless_done and is_done(folder):
        said = f"{spec.name} is finished: nothing is left to run. Results: {folder.uri}"
        Console(stderr=True).print(said, soft_wrap=True, highlight=False, markup=False)
        review.show(spec.name, spec.storage, as_json=as_json)
        return
    _run(Sweep.resolve(spec, source=folder.source(), resume=True), address, as_json)


def _resolved(spec: SweepSpec, file: Path) -> Sweep:
    from rpg_platform.spec.yaml_file import text_of
    from rpg_platform.storage.sweep import Sweep

    return Sweep.resolve(spec, source=text_of(file).decode())


def train(
    file: SpecFile,
    out: Annotated[Path | None, typer.Option(help="Folder that the trained policy's bundle is copied to.")] = None,
    address: Address = None,
    name: Name = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Trains the one policy that FILE describes and leaves it as a prior bundle."""
    from rpg_platform.spec.methods import METHODS
    from rpg_platform.spec.trials import count_trials

    with refusals():
        if out is not None:
            _check_out(out)
        spec = load_for(file, name, storage)
        sweep = _resolved(spec, file)
        trained = [trial for trial in sweep.trials if METHODS[trial.method].trains]
        if spec.search.is_adaptive or len(trained) != 1:
            count = count_trials(spec) - (spec.prior is not None)
            raise ValueError(f"{file}: describes {count} trainings; `rpg train` runs one, `rpg sweep` runs many")
        checkpoints = _run(sweep, address, as_json)
        if out is not None:
            sweep.folder.fetch_bundle(out, checkpoints[trained[0].trial_id])
            console = Console(stderr=True) if as_json else stdout_console()
            console.print(f"The policy: {out}", soft_wrap=True, highlight=False)


def _check_out(out: Path) -> None:
    """Refuses a folder for a bundle that cannot be made or written, before anything is trained.

    Raises:
        ValueError: says what stands in its way.
    """
    from rpg_platform.trial.room import existing

    if re.match(r"\w+:/", str(out)):
        raise ValueError(f"--out {out}: expected a folder of this machine; copy the policy from there afterwards")
    found = existing(out.absolute())
    if not found.is_dir():
        raise ValueError(f"--out {out}: {found} is a file, expected a folder")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {found} may not be written to; name another folder")


def _run(sweep: Sweep, address: str | None, as_json: bool) -> dict[str, str]:
    """Runs a sweep and prints its outcome; exits 1: trials have no result, 3: records are unsent."""
    from rpg_platform.planning.cluster import quiet, start_ray_while_importing

    console = stdout_console()
    quiet()
    start_ray_while_importing("rpg_platform.run.run", address)
    from rpg_platform.run.run import run_sweep
    from rpg_platform.storage.lease import LeaseLostError

    try:
        outcome = run_sweep(sweep, address=address, console=Console(stderr=True) if as_json else console)
    except LeaseLostError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(str(error), style="red", markup=False)
        raise typer.Exit(FAILED) from None
    from rpg_platform.results.picture import tradeoff_png  # matplotlib, which nothing needs before the end
    from rpg_platform.results.rows import summarise
    from rpg_platform.results.table import render_table, rows_to_json
    from rpg_platform.review.page import REPORT_FILE

    rows = summarise(outcome.results)
    if as_json:
        output.data(rows_to_json(rows))
    else:
        tell = functools.partial(console.print, soft_wrap=True, highlight=False)
        folder = sweep.folder.uri
        console.print(render_table(rows, metric_name=sweep.task.metric_name))
        if Path(folder).is_dir():
            draw = functools.partial(tradeoff_png, rows, title=sweep.spec.description)
            write_picture(Path(folder), draw, functools.partial(tell, markup=False))
        report = f"{folder}/{REPORT_FILE}"
        if "://" in report or Path(report).is_file():
            tell(f"Report      {report}")
        tell(f"Results     {folder}")
        tell(f"MLflow      {outcome.parent_url or sweep.tracking_uri}")
        if (dashboard := _dashboard(sweep)) is not None:
            tell(f"Dashboard   {dashboard}")
    if outcome.failed:
        _explain(outcome)
    if outcome.unsent:
        _explain_unsent(outcome)
    if outcome.failed or outcome.unsent:
        raise typer.Exit(FAILED if outcome.failed else UNSENT)
    return outcome.checkpoints


def write_picture(folder: Path, draw: Callable[[], bytes | None], tell: Callable[[str], None]) -> None:
    """Leaves a picture of a sweep in its folder, and says where or why not: results do not depend on it."""
    file = folder / "tradeoff.png"
    try:
        if (picture := draw()) is not None:
            file.write_bytes(picture)
            tell(f"Picture     {file}")
    except Exception as error:
        tell(f"Picture     none: {type(error).__name__}: {error}")


def _dashboard(sweep: Sweep) -> str | None:
    """The command that shows the sweep's embedded store; None where a server has its own dashboard."""
    from rpg_platform.storage.location import default_tracking_uri
    from rpg_platform.tracking.store import embedded_database

    database = embedded_database(sweep.tracking_uri)
    if database is None:
        return None
    beside = "://" not in sweep.storage and database == embedded_database(default_tracking_uri(sweep.storage))
    name = f"{sweep.spec.name} " if beside else ""
    return f"rpg ui {name}--storage {shlex.quote(sweep.storage if beside else sweep.tracking_uri)}"


def _explain(outcome: SweepOutcome) -> None:
    """Says what has no result, why, and the command that runs only that."""
    from rpg_platform.results.endings import without_result

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    what = "have no result: the sweep was stopped" if outcome.interrupted else "failed"
    console.print(f"{outcome.failed} of {len(outcome.results)} trials {what}", style="red")
    for line in without_result(outcome.results):
        console.print(f"  {line}", markup=False)
    spec = outcome.sweep.spec
    where = "" if spec.storage is None else f" --storage {shlex.quote(outcome.sweep.storage)}"
    console.print(f"Run only these: rpg resume {spec.name}{where}", markup=False)


def _explain_unsent(outcome: SweepOutcome) -> None:
    """Says last what MLflow has not got, and why."""
    folder, uri = outcome.sweep.folder.uri, outcome.sweep.tracking_uri
    why = "" if outcome.unsent_because is None else f" ({outcome.unsent_because})"
    said = f"{outcome.unsent} records are not in MLflow at {uri}{why}; to send them: rpg track {shlex.quote(folder)}"
    Console(stderr=True, soft_wrap=True, highlight=False).print(said, style="red", markup=False)
