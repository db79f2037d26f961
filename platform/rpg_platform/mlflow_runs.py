"""Delivery to MLflow: plain records in, exactly one parent run and one child run a trial out.

``tracking`` turns what Tune reports into ``Record``s and never talks to MLflow itself; ``MlflowRuns``
delivers them in order. A record names its run by our key (the trial's id, ``PARENT`` for the sweep), not by
MLflow's run id, and carries its own times, so it can wait, and be delivered twice, without changing or
doubling anything.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from ray.tune import Checkpoint

logger = logging.getLogger(__name__)

PARENT = ""
"""Key of the sweep's own run."""

DATABASE_FILE = "mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
TAG_PARENT = "mlflow.parentRunId"
TAG_RUN_KEY = "run_key"
TAG_TRIAL_ID = "trial_id"

MAX_PARAM_CHARS = 6_000
MAX_TAG_CHARS = 5_000
MAX_PENDING = 100_000

# The server says these of a request that will be no better the second time.
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"})
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_QUICK_S = 2.0
# MLflow's own defaults hold the caller for about four minutes when a server is away.
_REQUEST_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

Kind = Literal["open", "metrics", "tags", "text", "file", "folder", "close"]


@dataclass(frozen=True)
class Record:
    """One thing to deliver.

    Attributes:
        run: key of the run it belongs to: a trial's id, or ``PARENT``.
        kind: what ``data`` is. ``open``: name, tags, params, start_time; ``metrics``: values, step,
            timestamp; ``tags``: values; ``text``: text, path; ``file``: base64, path; ``folder``: checkpoint
            (``ray.tune.Checkpoint``), folder (inside the checkpoint), path; ``close``: status, end_time.
            Times are in ms since the epoch.
        data: the content; everything but a checkpoint is JSON.
    """

    run: str
    kind: Kind
    data: Mapping[str, Any]


def default_tracking_uri(storage: str | Path) -> str:
    """Address of the embedded store of a storage directory: ``sqlite:///<storage>/mlflow.db``.

    Args:
        storage: a local directory, as a path or a ``file://`` URI; need not exist yet.

    Raises:
        ValueError: if ``storage`` is not local: SQLite can't live in an object store.
    """
    text = str(storage)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    elif "://" in text:
        raise ValueError(
            f"storage: {text!r} is not a local directory and can't hold the embedded MLflow store; "
            "set tracking.uri to an MLflow server"
        )
    return f"sqlite:///{Path(text).expanduser().resolve() / DATABASE_FILE}"


def embedded_database(tracking_uri: str) -> Path | None:
    """The SQLite file behind a tracking URI, or None if it is not SQLite."""
    prefix = "sqlite:///"
    if not tracking_uri.startswith(prefix):
        return None
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]).resolve()


def create_embedded_store(database: Path) -> bool:
    """Makes the SQLite file with MLflow's schema if it is not there yet; takes some seconds.

    The file appears complete or not at all, so that neither a kill in the middle nor a second sweep that
    starts at the same moment leaves half a schema.

    Args:
        database: where the file belongs; its folder is made.

    Returns:
        Whether this call made it.
    """
    if database.exists() and database.stat().st_size > 0:
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f".{database.name}.{uuid4().hex}.new")
    artifacts = (database.parent / ARTIFACT_FOLDER).as_uri()
    try:
        with _quiet("alembic", "mlflow.store.db.utils"):
            store: Any = SqlAlchemyStore  # untyped in MLflow
            store(f"sqlite:///{unfinished}", artifacts).engine.dispose()
        if database.exists() and database.stat().st_size == 0:
            database.unlink()
        try:
            os.link(unfinished, database)
        except FileExistsError:  # another sweep was faster, and its file is as good
            return False
        except OSError:  # a file system without hard links
            if database.exists():
                return False
            unfinished.replace(database)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


@dataclass
class MlflowRuns:
    """The runs of one sweep at one tracking server.

    ``put`` delivers at once where it can. While the server is away, records wait in memory, in order, and are
    tried again with growing pauses; what the server refuses for good is dropped and counted. Nothing is
    raised.

    Attributes:
        tracking_uri: MLflow server, or ``sqlite:///…``.
        experiment: name of the MLflow experiment; made if it is missing.
        run_key: what tells this sweep's parent run from another of the same name.
        run_ids: our key → MLflow's run id, of every run opened so far.
        errors: failed deliveries and failures inside the tracker.
        dropped: records given up.
    """

    tracking_uri: str
    experiment: str
    run_key: str
    run_ids: dict[str, str] = field(default_factory=dict)
    errors: int = 0
    dropped: int = 0
    experiment_id: str | None = None

    def __post_init__(self) -> None:
        self._client: MlflowClient | None = None
        self._pending: deque[Record] = deque()
        self._search_first: set[str] = set()  # runs that may exist without our knowing their id
        self._unopened: set[str] = set()  # runs the server refused to open
        self._quiet_until = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks before a run: the connection stays behind."""
        return {**self.__dict__, "_client": None}

    @property
    def pending(self) -> int:
        """Number of records that wait for the server."""
        return len(self._pending)

    def expect_earlier_runs(self, *keys: str) -> None:
        """Says that these runs may exist already (a restored sweep): each is looked up before it is made."""
        self._search_first.update(keys)

    def put(self, record: Record) -> None:
        """Takes a record and delivers what can be delivered now."""
        if len(self._pending) >= MAX_PENDING and record.kind == "metrics":
            self._drop(record, f"more than {MAX_PENDING} records are waiting")
            return
        self._pending.append(record)
        self.flush()

    def flush(self, patience_s: float = 0.0) -> bool:
        """Delivers what is waiting.

        Args:
            patience_s: how long to keep trying when the server is away, in seconds; 0 tries at most once, and
                not at all during the pause after a failure.

        Returns:
            Whether nothing is left.
        """
        deadline = time.monotonic() + patience_s
        if patience_s:
            self._quiet_until = 0.0
        while self._pending:
            wait = self._quiet_until - time.monotonic()
            if wait > 0:
                if time.monotonic() + wait > deadline:
                    return False
                time.sleep(wait)
            if self._try(self._pending[0]):
                self._pending.popleft()
        return True

    def failed(self, what: str, error: BaseException) -> None:
        """Counts a failure and warns of the first of its kind, with what to do."""
        self.errors += 1
        level = logging.DEBUG if what in self._warned else logging.WARNING
        self._warned.add(what)
        logger.log(level, "tracking: %s: %s. Training continues.", what, _short(error))

    # ---- delivery -------------------------------------------------------------------------------

    def _try(self, record: Record) -> bool:
        """Delivers one record; True when it is done with, delivered or dropped."""
        if record.run in self._unopened or (record.kind != "open" and record.run not in self.run_ids):
            self._drop(record, f"run {record.run!r} could not be opened")
            return True
        start = time.monotonic()
        for attempt in (1, 2):
            try:
                with _request_limits():
                    self._deliver(record)
                break
            except Exception as error:
                if _is_refusal(error) and record.run + record.kind != PARENT + "open":
                    self._refused(record, error)
                    return True
                took_s = time.monotonic() - start
                # Once more at once, as a kept-alive connection may just have been closed; not after a time-out.
                if attempt == 2 or took_s > _QUICK_S:
                    self._away(error, took_s)
                    return False
        if self._pause_s > _FIRST_PAUSE_S:
            logger.info(
                "tracking: %s answers again; %d records follow",
                without_login(self.tracking_uri),
                len(self._pending),
            )
        self._pause_s = _FIRST_PAUSE_S
        return True

    def _away(self, error: Exception, took_s: float) -> None:
        # A server that swallows requests costs each caller's time: it gets a small share of it.
        self._quiet_until = time.monotonic() + max(self._pause_s, 10 * took_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.failed(
            f"MLflow at {without_login(self.tracking_uri)} can't be used now; records wait in memory until "
            "it is back. Check that the server runs, that tracking.uri is its address and the login is right",
            error,
        )

    def _refused(self, record: Record, error: Exception) -> None:
        if record.kind == "open":
            self._unopened.add(record.run)
        self.failed(f"MLflow refused {record.kind!r} of run {record.run or 'of the sweep'!r}; it is left out", error)
        self._drop(record, "refused")

    def _drop(self, record: Record, why: str) -> None:
        self.dropped += 1
        logger.debug("tracking: dropped %s of %r: %s", record.kind, record.run, why)

    def _deliver(self, record: Record) -> None:
        (client, experiment_id), data = self._connect(), record.data
        if record.kind == "open":
            self._open(client, experiment_id, record)
            return
        run_id = self.run_ids[record.run]
        if record.kind == "metrics":
            metrics = [
                Metric(metric_key(key), value, data["timestamp"], data["step"]) for key, value in data["values"].items()
            ]
            client.log_batch(run_id, metrics=metrics, synchronous=True)
        elif record.kind == "tags":
            client.log_batch(run_id, tags=_tags(data["values"]), synchronous=True)
        elif record.kind == "text":
            client.log_text(run_id, data["text"], data["path"])
        elif record.kind == "file":
            path = PurePosixPath(data["path"])
            with tempfile.TemporaryDirectory() as made:
                file = Path(made) / path.name
                file.write_bytes(base64.b64decode(data["base64"]))
                client.log_artifact(run_id, str(file), str(path.parent))
        elif record.kind == "folder":
            source: Checkpoint = data["checkpoint"]
            inside = Checkpoint(f"{source.path}/{data['folder']}", source.filesystem)
            with inside.as_directory() as local:
                if not Path(local).is_dir():
                    raise FileNotFoundError(f"{inside.path} is gone")
                client.log_artifacts(run_id, local, data["path"])
        else:
            client.set_terminated(run_id, data["status"], data["end_time"])

    def _connect(self) -> tuple[MlflowClient, str]:
        """The client and the experiment's id; makes store and experiment the first time."""
        if self._client is not None and self.experiment_id is not None:
            return self._client, self.experiment_id
        database = embedded_database(self.tracking_uri)
        location = None
        if database is not None:
            create_embedded_store(database)
            folder = re.sub(r"[^\w.=-]|^\.+", "_", self.experiment)
            location = (database.parent / ARTIFACT_FOLDER / folder).as_uri()
        client = MlflowClient(self.tracking_uri)
        found: Experiment | None = client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise RuntimeError(
                f"experiment {self.experiment!r} is deleted; restore it, or set another tracking.experiment"
            )
        # Two sweeps may make it at once: the slower one's call fails, and its second attempt finds it.
        experiment_id = found.experiment_id if found else client.create_experiment(self.experiment, location)
        self._client, self.experiment_id = client, experiment_id
        return client, experiment_id

    def _open(self, client: MlflowClient, experiment_id: str, record: Record) -> None:
        key, data = record.run, record.data
        run = self._find(client, experiment_id, key)
        tags = dict(data["tags"]) | {TAG_RUN_KEY: self.run_key}
        if key != PARENT:
            tags |= {TAG_PARENT: self.run_ids[PARENT], TAG_TRIAL_ID: key}
        if run is None:
            self._search_first.add(key)  # if the answer is lost, the run exists all the same
            run = client.create_run(
                experiment_id,
                start_time=data["start_time"],
                tags={name: tag_value(value) for name, value in tags.items()},
                run_name=data["name"],
            )
        elif run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        # Parameters can't change, so a reopened run gets only those it lacks.
        missing = {
            name: value[:MAX_PARAM_CHARS] for name, value in data["params"].items() if name not in run.data.params
        }
        if missing:
            params = [Param(name, value) for name, value in missing.items()]
            client.log_batch(run.info.run_id, params=params, synchronous=True)
        self.run_ids[key] = run.info.run_id

    def _find(self, client: MlflowClient, experiment_id: str, key: str) -> Run | None:
        """The run of ``key`` if there is one; asks the server only if there may be one."""
        if key in self.run_ids:
            with contextlib.suppress(MlflowException):
                run = client.get_run(self.run_ids[key])
                if run.info.lifecycle_stage == "active":
                    return run
        elif key not in self._search_first:
            return None
        if key == PARENT:
            query = f"tags.{TAG_RUN_KEY} = '{self.run_key}' and tags.kind = 'sweep'"
        else:
            query = f"tags.{TAG_PARENT} = '{self.run_ids[PARENT]}' and tags.{TAG_TRIAL_ID} = '{key}'"
        found = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        return found[0] if found else None


def without_login(text: str) -> str:
    """Addresses to show: without the user and password that may stand in them."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def metric_key(name: str) -> str:
    """A name as MLflow accepts it: letters, digits and ``_ - . : / space``, at most 250 characters."""
    return re.sub(r"[^\w\-.:/ ]", "_", name, flags=re.ASCII)[:250]


def tag_value(value: object) -> str:
    """A tag's text, cut to what every MLflow store takes."""
    return str(value)[:MAX_TAG_CHARS]


def _tags(values: Mapping[str, object]) -> list[RunTag]:
    return [RunTag(name, tag_value(value)) for name, value in values.items()]


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, (FileNotFoundError, TypeError, ValueError, KeyError))


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return without_login(f"{type(error).__name__}: {lines[0][:300]}")


@contextlib.contextmanager
def _request_limits() -> Iterator[None]:
    """Keeps one request short. MLflow reads these from the environment only; what the user has set stays."""
    ours = {name: value for name, value in _REQUEST_LIMITS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
