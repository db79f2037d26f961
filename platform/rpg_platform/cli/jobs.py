"""``rpg submit``, ``rpg jobs``, ``rpg logs`` and ``rpg stop``: sweeps as Ray jobs, by name, from any machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rpg_platform.cli import output
from rpg_platform.cli.common import FAILED, INTERRUPTED, AsJson, Name, SpecFile, Storage, refusals, stdout_console
from rpg_platform.cli.sweep import load_for

if TYPE_CHECKING:
    from rpg_platform.jobs.client import Client
    from rpg_platform.jobs.found import Job

JobsAddress = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, http://HEAD:8265; default: as RAY_API_SERVER_ADDRESS says."),
]
JobName = Annotated[str, typer.Argument(help="A sweep's name, or the id of a job.", metavar="NAME")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (submit, jobs, logs, stop):
        app.command()(command)


def _tell(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def submit(
    file: SpecFile,
    address: JobsAddress = None,
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="What the job takes along, as `ray job submit` has it; default: deploy/runtime_env.yaml."),
    ] = None,
    name: Name = None,
    storage: Storage = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the sweep until its end.")] = True,
) -> None:
    """Runs a sweep on a Ray cluster, as a job: checks, uploads, follows; safe to repeat after whatever ended it.

    Exits as the sweep does. Ctrl-C ends the following alone.
    """
    with refusals():
        spec = load_for(file, name, storage)
        from rpg_platform.jobs.client import connect
        from rpg_platform.jobs.submit import prepare, running, send
        from rpg_platform.jobs.submit import runtime_env as read_env

        client = connect(address)
        ready = prepare(client, spec, file, read_env(runtime_env), _tell, name=name, storage=storage)
        job = running(client, ready)
        if job is None:
            _tell(f"The same by hand: {ready.plain(client.get_address())}")
            job = send(client, ready)
            _tell(f"Submitted as {job.id}")
        else:
            _tell(f"{job.id} runs this sweep already")
        if not wait:
            _tell(_how_to(client, spec.name))
            return
        _exit_as(_followed(client, job))


def jobs(address: JobsAddress = None, as_json: AsJson = False) -> None:
    """Lists the jobs of a cluster that run or ran sweeps, newest first."""
    from rpg_platform.jobs.client import connect
    from rpg_platform.jobs.found import jobs_of

    with refusals():
        client = connect(address)
        found = [job for job in jobs_of(client) if job.sweep]
    if as_json:
        output.data(json.dumps([job.as_json() for job in found], indent=2))
        return
    from rich.table import Table

    table = Table("sweep", "job", "status", box=None, padding=(0, 2, 0, 0))
    for job in found:
        table.add_row(job.sweep, job.id, job.words())
    none = f"No sweep was submitted to {client.get_address()}"
    stdout_console().print(table if found else none, soft_wrap=not found, highlight=False)


def logs(
    name: JobName,
    address: JobsAddress = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the sweep ends; exits as it does.")] = False,
) -> None:
    """Prints what a sweep's newest job has written."""
    from rpg_platform.jobs.client import connect
    from rpg_platform.jobs.found import newest

    with refusals():
        client = connect(address)
        job = newest(client, name)
        if follow:
            _exit_as(_followed(client, job))
        _write(client.get_job_logs(job.id))


def stop(name: JobName, address: JobsAddress = None) -> None:
    """Stops a sweep's newest job, its running trials saved, and waits until it has ended."""
    from rpg_platform.jobs.client import connect
    from rpg_platform.jobs.follow import ended
    from rpg_platform.jobs.found import newest

    with refusals():
        client = connect(address)
        job = newest(client, name)
        if job.is_over:
            _tell(f"{job.id} has ended already: {job.words()}")
            return
        client.stop_job(job.id)
        _tell(f"{job.id} is asked to stop; its running trials are saved with their next report")
        with _left_alone(f"{job.id} goes on stopping: rpg jobs shows when it has ended"):
            job = ended(client, job.id)
        _tell(f"{job.id}: {job.words()}. To go on, submit the same file again")


def _followed(client: Client, job: Job) -> Job:
    from rpg_platform.jobs.follow import follow

    with _left_alone(f"{job.id} goes on. {_how_to(client, job.sweep or job.id)}"):
        return follow(client, job.id, _write, _tell)


@contextmanager
def _left_alone(words: str) -> Iterator[None]:
    """Ctrl-C ends what we do, and says what goes on."""
    try:
        yield
    except KeyboardInterrupt:
        _tell(f"\n{words}")
        raise typer.Exit(INTERRUPTED) from None


def _how_to(client: Client, name: str) -> str:
    there = f"--address {client.get_address()}"
    return f"Follow it: rpg logs {name} --follow {there}; stop it: rpg stop {name} {there}"


def _exit_as(job: Job) -> None:
    """Ends with the code of a job's command, where it is one of ours; always raises."""
    from rpg_platform.cli.common import MEANINGS

    code = FAILED if job.exit_code is None else job.exit_code
    if job.exit_code in MEANINGS:
        _tell(f"{job.id}: {job.words()}: {MEANINGS[code]}")
        raise typer.Exit(code)
    if job.status == "STOPPED":
        _tell(f"{job.id} was stopped: submit the same file again to go on")
    else:
        _tell(f"{job.id}: {job.words()}: {job.message.strip()}")
    raise typer.Exit(FAILED)
