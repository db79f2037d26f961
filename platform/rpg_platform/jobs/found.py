"""The jobs that run sweeps, found by the sweep's name: each carries it in its metadata."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpg_platform.jobs.client import Client, JobError
from rpg_platform.wording import suggestion

SWEEP, FILE, SPEC, STORAGE = "rpg_sweep", "rpg_file", "rpg_spec", "rpg_storage"
"""Metadata of a job: the sweep's name, the file as it was submitted, its specification's digest, its storage."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """One job that runs, or ran, a sweep.

    Attributes:
        id: what it was submitted as.
        sweep: the sweep's name; empty for a job without it that was asked for by its id.
        status: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``, as Ray has it.
        began, ended: seconds since the epoch; None where it has not.
        exit_code: of its command; None where that never ended by itself.
        message: what Ray says of its status.
        entrypoint: its command.
        metadata: what was submitted with it.
    """

    id: str
    sweep: str
    status: str
    began: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""
    entrypoint: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED

    def words(self) -> str:
        """Its status, to read."""
        at = self.ended if self.is_over else self.began
        since = "" if at is None else time.strftime(" %Y-%m-%d %H:%M:%S", time.localtime(at))
        code = "" if self.exit_code is None else f", exit code {self.exit_code}"
        return f"{self.status.lower()}{'' if self.is_over else ' since'}{since}{code}" if since else self.status.lower()

    def as_json(self) -> dict[str, Any]:
        """As data."""
        times = {"began": self.began, "ended": self.ended, "exit_code": self.exit_code}
        about = {"entrypoint": self.entrypoint, "message": self.message}
        return {"sweep": self.sweep, "job": self.id, "status": self.status, **times, **about}


def job_of(details: Any) -> Job:
    """A job as Ray tells it (``JobDetails``)."""
    metadata = details.metadata or {}
    return Job(
        details.submission_id,
        metadata.get(SWEEP, ""),
        str(details.status),
        None if details.start_time is None else details.start_time / 1000,
        None if details.end_time is None else details.end_time / 1000,
        details.driver_exit_code,
        details.message or "",
        details.entrypoint,
        metadata,
    )


def jobs_of(client: Client) -> list[Job]:
    """All jobs of the cluster that were submitted, newest first."""
    found = [job_of(each) for each in client.list_jobs() if each.submission_id is not None]
    return sorted(found, key=lambda job: time.time() if job.began is None else job.began, reverse=True)


def newest(client: Client, name: str) -> Job:
    """The newest job of the sweep ``name``; or the job that was submitted as ``name``.

    Raises:
        JobError: there is none, with the nearest name.
    """
    jobs = jobs_of(client)
    for job in jobs:
        if job.sweep == name:
            return job
    for job in jobs:
        if job.id == name:
            return job
    known = list(dict.fromkeys(job.sweep for job in jobs if job.sweep))
    none = "" if known else "; it has run no sweep by `rpg submit`"
    raise JobError(f"{client.get_address()} has no job of a sweep {name!r}{suggestion(name, known)}{none}")


def next_id(jobs: Sequence[Job], name: str) -> str:
    """An id that no job has had: the sweep's name and the number of the attempt."""
    taken = {job.id for job in jobs}
    number = 1
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"
