"""How a sweep is doing, from a machine that sees its cluster's dashboard and nothing else.

The sweep's own status file is read, by a job of a second on the head (``question.ask``). The alternatives were the last
lines of the job's log, which say little of a driver that died and cannot be read by a program, and ``rpg status`` in a
job, which needs the job's upload: Ray removes that minutes after the job has ended. This program needs pyarrow alone,
reads a path and an object store with the head's login, and brings the head's clock, by which the driver's last sign of
life is judged.
"""

from __future__ import annotations

import shlex
from typing import Any

from rpg_platform.jobs.client import Client, JobError
from rpg_platform.jobs.found import FILE, STORAGE, Job, newest
from rpg_platform.jobs.question import MARK, ask
from rpg_platform.run.status import SweepStatus, content_of, judge
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.location import DEFAULT_STORAGE

_PROGRAM = f"""
import json, os, posixpath, sys, time
from pyarrow import fs
storage, name, file = sys.argv[1:]
if "://" in storage:
    files, base = fs.FileSystem.from_uri(storage.rstrip("/"))
else:
    files, base = fs.LocalFileSystem(), os.path.realpath(os.path.expanduser(storage))
path = posixpath.join(base, name, file)
text = None
if files.get_file_info(path).is_file:
    with files.open_input_stream(path) as stream:
        text = stream.read().decode()
shown = storage if "://" in storage else base
print({MARK!r} + json.dumps(dict(now=time.time(), text=text, storage=shown)))
"""


def status_at(client: Client, name: str, storage: str | None = None) -> SweepStatus:
    """The status of the sweep ``name``, of whose jobs the newest counts; or of one that no known job has run.

    Args:
        client: of its cluster.
        name: the sweep's.
        storage: the sweep's, as the head sees it; None: as the job was given it, or the default of the head's user.

    Raises:
        JobError: there is no such sweep, or it has no status file yet, with what is known of the job.
        SweepFolderError: its status is of another version.
    """
    job, unknown = None, None
    try:
        job = newest(client, name)
    except JobError as error:  # submitted by hand, or long ago
        unknown = error
    name = job.sweep if job is not None and job.sweep else name
    about = {} if job is None else job.metadata
    answer = ask(client, _PROGRAM, storage or about.get(STORAGE) or DEFAULT_STORAGE, name, STATUS_FILE)
    folder = f"{answer['storage'].rstrip('/')}/{name}"
    content = content_of(answer["text"], folder)
    if content is None and job is None:
        raise JobError(f"{unknown}, and {folder} has no status") from unknown
    if content is None:
        assert job is not None
        last = f"; its output: rpg logs {job.id}" if job.began is not None else ""
        raise JobError(f"{name}: no status in {folder} yet; job {job.id} is {job.words()}{last}")
    state, words = judge(content, None, answer["now"])
    if state == "running" and job is not None and _ended(content, job):
        state, words = "dead", f"the driver is dead: job {job.id} has {job.words()}"
    command = None
    if state not in ("running", "finished"):
        command = f"rpg submit {shlex.quote(about.get(FILE, 'FILE'))} --address {client.get_address()}"
    return SweepStatus(name, folder, state, words, content, command)


def _ended(content: dict[str, Any], job: Job) -> bool:
    """Whether the driver that wrote a status is that of a job that is over."""
    return job.is_over and content.get("job") == job.id
