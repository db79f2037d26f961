"""Following a job's log until its status is final, through every connection that breaks, each line once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from rpg_platform.jobs.client import Client, JobError, NoAnswerError
from rpg_platform.jobs.found import Job, job_of

_LOOK_EVERY_S, _LONGEST_PAUSE_S = 1.0, 15.0
_CHARS_PER_S = 100_000  # a log is read whole each time: a longer one less often
_GIVE_UP_S = 900.0
_ATTEMPTS = 5

Write = Callable[[str], None]


def follow(client: Client, job_id: str, write: Write, tell: Write) -> Job:
    """Writes a job's log as it grows, until the job's status is final.

    The log is read whole and its new end written. Ray's stream of it would save that, but a stream that breaks, or that
    the head closes in good order, says neither what it had sent nor whether the job goes on.

    Args:
        client: of its cluster.
        job_id: the job's.
        write: takes the log, in pieces that may end within a line.
        tell: takes a line about the connection.

    Returns:
        The job, whose status is final.

    Raises:
        JobError: the cluster has no such job any more, or has not answered for a quarter of an hour.
    """
    written, heard, away = 0, time.monotonic(), 0
    while True:
        try:
            job = job_of(client.get_job_info(job_id))
            log = _log(client, job_id, job.is_over)  # after the status: of a job that is over it is complete
            heard = time.monotonic()
            if away:
                tell(f"{client.get_address()} answers again")
                away = 0
            if len(log) > written:
                write(log[written:])
                written = len(log)
            if job.is_over:
                return job
            time.sleep(max(_LOOK_EVERY_S, len(log) / _CHARS_PER_S))
        except NoAnswerError as error:
            if time.monotonic() - heard > _GIVE_UP_S:
                raise JobError(f"{error}. The job may go on: rpg logs {job_id} --follow") from error
            if not away:
                tell(f"{error}. The job goes on; connecting again until it answers (Ctrl-C ends only this)")
            time.sleep(min(2.0**away, _LONGEST_PAUSE_S))
            away += 1


def _log(client: Client, job_id: str, is_over: bool) -> str:
    """The log; of a job that is over without what cannot be had, as the node that has it may be gone."""
    for attempt in range(_ATTEMPTS):
        try:
            return str(client.get_job_logs(job_id))
        except RuntimeError:  # it has not begun
            return ""
        except NoAnswerError:
            if not is_over:
                raise
            if attempt < _ATTEMPTS - 1:
                time.sleep(_LOOK_EVERY_S)
    return ""


def ended(client: Client, job_id: str) -> Job:
    """Waits until a job's status is final, and returns the job."""
    while True:
        with suppress(NoAnswerError):
            if (job := job_of(client.get_job_info(job_id))).is_over:
                return job
        time.sleep(_LOOK_EVERY_S)
