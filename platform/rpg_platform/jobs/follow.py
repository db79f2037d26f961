"""Following a job's log until its status is final, through every connection that breaks, each line once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import aiohttp

from rpg_platform.jobs.client import Client, JobError, NoAnswerError
from rpg_platform.jobs.found import Job, job_of

_SILENT_S = 60.0  # a running sweep writes a line every ten seconds: the connection is dead without a word
_LOOK_EVERY_S, _LONGEST_PAUSE_S = 1.0, 15.0
_GIVE_UP_S = 900.0

Write = Callable[[str], None]


class _Log:
    """What has been written of a log that each new connection sends from its beginning."""

    def __init__(self, write: Write) -> None:
        self._write, self._written, self._seen = write, 0, 0

    def begin(self) -> None:
        """A new connection begins."""
        self._seen = 0

    def take(self, text: str) -> None:
        """Writes what is new in the next piece."""
        new = text[max(0, self._written - self._seen) :]
        self._seen += len(text)
        if new:
            self._written += len(new)
            self._write(new)


def follow(client: Client, job_id: str, write: Write, tell: Write) -> Job:
    """Writes a job's log as it grows, until the job's status is final.

    That the connection is closed, even in good order, says nothing of the job: its status does.

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
    return asyncio.run(_follow(client, job_id, _Log(write), tell))


async def _follow(client: Client, job_id: str, log: _Log, tell: Write) -> Job:
    pause, heard, told = 1.0, time.monotonic(), False
    while True:
        tailing = asyncio.create_task(_tail(client, job_id, log))
        try:
            while True:
                done, _ = await asyncio.wait([tailing], timeout=_LOOK_EVERY_S)
                job = job_of(await asyncio.to_thread(client.get_job_info, job_id))
                pause, heard = 1.0, time.monotonic()
                if told:
                    tell(f"{client.get_address()} answers again")
                    told = False
                if job.is_over:
                    await _rest(client, job_id, log)
                    return job
                if done:  # closed, in order or not, and the job goes on
                    break
        except NoAnswerError as error:
            if time.monotonic() - heard > _GIVE_UP_S:
                raise JobError(f"{error}. The job may go on: rpg logs {job_id} --follow") from error
            if not told:
                tell(f"{error}. The job goes on; connecting again until it answers (Ctrl-C ends only this)")
                told = True
        finally:
            tailing.cancel()
            await asyncio.gather(tailing, return_exceptions=True)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


async def _tail(client: Client, job_id: str, log: _Log) -> None:
    """One connection, until it ends, breaks or falls silent."""
    log.begin()
    try:
        async with aclosing(_pieces(client, job_id)) as pieces:
            while True:
                log.take(await asyncio.wait_for(anext(pieces), _SILENT_S))
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, OSError, RuntimeError):
        return  # the job's status tells whether there is more


async def _pieces(client: Client, job_id: str) -> AsyncGenerator[str]:
    async for piece in client.tail_job_logs(job_id):
        yield piece


async def _rest(client: Client, job_id: str, log: _Log) -> None:
    """What a connection that ended before the log did has not brought."""
    log.begin()
    try:
        log.take(await asyncio.to_thread(client.get_job_logs, job_id))
    except (NoAnswerError, RuntimeError):  # the node that has the log is gone
        return


def ended(client: Client, job_id: str) -> Job:
    """Waits until a job's status is final, and returns the job."""
    while True:
        with suppress(NoAnswerError):
            if (job := job_of(client.get_job_info(job_id))).is_over:
                return job
        time.sleep(_LOOK_EVERY_S)
