"""Submitting a sweep as a Ray job, everything that can be checked beforehand checked."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import rpg_algorithms
import rpg_platform
from rpg_platform.jobs.client import Client, JobError
from rpg_platform.jobs.fitness import check_versions, nodes_at
from rpg_platform.jobs.found import FILE, SPEC, STORAGE, SWEEP, Job, job_of, jobs_of, next_id
from rpg_platform.jobs.upload import Upload, absolute, check_files, check_size, check_storage
from rpg_platform.planning.estimate import make_plan
from rpg_platform.planning.rates import known_rate, rate_key
from rpg_platform.planning.words import head_lines
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.yaml_file import text_of
from rpg_platform.storage.location import tracking_uri_of
from rpg_platform.storage.sweep import Sweep
from rpg_platform.trial.room import size_text

DEFAULT_ENV = Path("deploy/runtime_env.yaml")
_ATTEMPTS = 5
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """A sweep that is ready to be sent.

    Attributes:
        id: of its job.
        entrypoint: the command that runs on the head; safe to repeat.
        metadata: by which it is found again.
        upload: what it takes along.
    """

    id: str
    entrypoint: str
    metadata: Mapping[str, str]
    upload: Upload

    def plain(self, address: str) -> str:
        """The equivalent ``ray job submit``, for whoever has only that."""
        options = {
            "--address": address,
            "--submission-id": self.id,
            "--metadata-json": json.dumps(dict(self.metadata)),
            self.upload.source[0]: self.upload.source[1],
        }
        words = [f"{name} {shlex.quote(value)}" for name, value in options.items()]
        return f"ray job submit {' '.join(words)} -- {self.entrypoint}"


def runtime_env(file: Path | None) -> Upload:
    """What a job takes along.

    Args:
        file: a runtime environment, as ``ray job submit --runtime-env`` takes it; None: ``deploy/runtime_env.yaml``
            where there is one, else the working directory and the package that runs here.

    Raises:
        JobError: the file can't be read or holds no mapping.
    """
    file = DEFAULT_ENV if file is None and DEFAULT_ENV.is_file() else file
    if file is None:
        modules = [str(Path(each.__path__[0])) for each in (rpg_algorithms, rpg_platform)]
        made = {"working_dir": ".", "py_modules": modules, "excludes": ["__pycache__/", "*.pyc"]}
        return Upload(made, ("--runtime-env-json", json.dumps(made)))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"--runtime-env {file}: {error}") from error
    if not isinstance(content, dict):
        raise JobError(f"--runtime-env {file}: expected a mapping, as deploy/runtime_env.yaml is")
    return Upload(content, ("--runtime-env", str(file)))


def prepare(
    client: Client,
    spec: SweepSpec,
    file: Path,
    upload: Upload,
    tell: Tell,
    *,
    name: str | None = None,
    storage: str | None = None,
) -> Submission:
    """Checks a sweep, its upload and the cluster; nothing of the sweep is sent.

    Args:
        client: of the cluster.
        spec: the sweep.
        file: its YAML.
        upload: what the job takes along.
        tell: takes a line for the user.
        name: ``--name`` of the command line, which the job repeats.
        storage: ``--storage`` of the command line, which the job repeats.

    Raises:
        ValueError: says what is wrong, where, and what to do.
    """
    given, storage = storage, storage or (yaml.safe_load(text_of(file)) or {}).get("storage")
    check_storage(storage)
    installed = check_files(upload, file, spec)
    size = check_size(upload)
    options = [word for each in (("--name", name), ("--storage", given)) if each[1] for word in each if word]
    for line in _planned(spec, client):
        tell(line)
    tell(f"{'Head':<12}{check_versions(client, upload, installed)}")
    tell(f"{'Upload':<12}{size_text(size)} of {upload.source[1]}")
    assert upload.working_dir is not None
    inside = absolute(file).relative_to(upload.working_dir).as_posix()
    command = ["python", "-m", "rpg_platform.cli", "sweep", inside, *options, "--resume-or-start"]
    metadata = {SWEEP: spec.name, FILE: str(file), SPEC: _digest(spec, upload.working_dir)}
    if storage is not None:
        metadata[STORAGE] = storage
    return Submission(next_id(jobs_of(client), spec.name), shlex.join(command), metadata, upload)


def _planned(spec: SweepSpec, client: Client) -> list[str]:
    """What the sweep comes to there; refuses what could never run. Disks are the cluster's, so none is asked here."""
    tracking_uri_of(spec)
    nodes = nodes_at(client)
    with tempfile.TemporaryDirectory() as nowhere:
        sweep = Sweep.resolve(spec.model_copy(update={"storage": nowhere}))
        plan = make_plan(sweep, nodes, lambda trial: known_rate(rate_key(trial, nodes)))
    there = spec.storage or "the storage of the head's user"
    return head_lines(replace(plan, free_bytes=None, storage=there))


def _digest(spec: SweepSpec, folder: Path) -> str:
    """What tells a specification from another of its name, wherever its folder lies."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True).replace(str(folder), ".")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def running(client: Client, ready: Submission) -> Job | None:
    """The job that runs the same sweep already; None where none does.

    Raises:
        JobError: one runs it from another specification.
    """
    name = ready.metadata[SWEEP]
    for job in jobs_of(client):
        if job.sweep != name or job.is_over:
            continue
        if job.metadata.get(SPEC) != ready.metadata[SPEC]:
            raise JobError(
                f"job {job.id} runs the sweep {name!r}, from another specification: end it first (rpg stop {name}), or "
                "give this one another name (--name)"
            )
        return job
    return None


def send(client: Client, ready: Submission) -> Job:
    """Uploads and submits; under the next id where somebody was quicker.

    Raises:
        JobError: the cluster does not take it.
    """
    for _ in range(_ATTEMPTS):
        if (job := running(client, ready)) is not None:
            return job
        try:
            env: dict[str, Any] = dict(ready.upload.runtime_env)
            sent = client.submit_job(
                entrypoint=ready.entrypoint, runtime_env=env, metadata=dict(ready.metadata), submission_id=ready.id
            )
            return job_of(client.get_job_info(sent))
        except JobError:
            jobs = jobs_of(client)
            if ready.id not in {job.id for job in jobs}:
                raise
            ready = replace(ready, id=next_id(jobs, ready.metadata[SWEEP]))
        except (RuntimeError, ValueError, TypeError, OSError) as error:  # of Ray, about the runtime environment
            raise JobError(f"{ready.upload.source[1]}: {error}") from error
    raise JobError(f"{client.get_address()}: no id was free for a job of {ready.metadata[SWEEP]!r}; try again")
