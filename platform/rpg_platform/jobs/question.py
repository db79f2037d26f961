"""Asking the head of a cluster what its dashboard does not tell: a job of a second, which is removed again."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

from rpg_platform.jobs.client import Client, JobError
from rpg_platform.jobs.found import ENDED

MARK = "rpg-answer:"
"""Stands before the JSON that a program prints."""
_LIMIT_S, _LOOK_EVERY_S = 120.0, 0.2


def ask(client: Client, program: str, *arguments: str) -> Any:
    """Runs a Python program on the head, with the ``python`` that jobs get there, and returns what it prints.

    It needs no upload and none of our code there, so it works for every cluster and takes a second or two.

    Args:
        client: of the cluster.
        program: prints ``MARK`` and its answer as JSON, in one line.
        *arguments: ``sys.argv[1:]`` of it.

    Raises:
        JobError: it did not start, failed, or did not end in time; with the last lines that it wrote.
    """
    entrypoint = shlex.join(["python", "-c", program, *arguments])
    job = client.submit_job(entrypoint=entrypoint, submission_id=f"rpg-question-{uuid4().hex[:12]}")
    try:
        deadline = time.monotonic() + _LIMIT_S
        while str((details := client.get_job_info(job)).status) not in ENDED:
            if time.monotonic() > deadline:
                why = details.message or ""
                raise JobError(
                    f"{client.get_address()} has not run a job of a second within {_LIMIT_S:.0f} s ({why}): "
                    "the head has no room for it, or hangs"
                )
            time.sleep(_LOOK_EVERY_S)
        said = client.get_job_logs(job)
    finally:
        with suppress(Exception):  # what is left of it does no harm
            client.stop_job(job)
            client.delete_job(job)
    for line in reversed(said.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    tail = "\n".join(said.replace(entrypoint, "…").splitlines()[-8:]) or details.message
    hint = ": there is no `python` on the PATH of the head" if details.driver_exit_code == 127 else ""
    raise JobError(f"a question to the head of {client.get_address()} failed{hint}\n{tail}")
