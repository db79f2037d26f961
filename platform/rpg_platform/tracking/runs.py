"""Writes to MLflow: one parent run per sweep and one child run per trial, however often a record is sent.

``tracker`` turns Tune's reports into ``Record``s, ``spool`` keeps them, ``sender`` decides when to send them, and
``MlflowRuns`` sends them. A record names its run by our key (the trial's id, ``PARENT`` for the sweep), not by MLflow's
run id, and carries its own times, so it can wait, and be sent twice, without changing or doubling anything:

- a trial's metric has one point a step (``recorded_steps``): what is there is not sent again, nor is the same step of
  a trial that went back to a checkpoint;
- a run is looked up by its tags before it is made, wherever an earlier attempt may have made it;
- parameters are sent only where they are missing, and a tag, an artifact or a status is the same the second time.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from rpg_platform.spec.logins import with_login
from rpg_platform.tracking.policies import PolicyModels
from rpg_platform.tracking.recorded_steps import RecordedSteps
from rpg_platform.tracking.store import ARTIFACT_FOLDER, create_embedded_store, embedded_database, follow_move

if TYPE_CHECKING:
    from ray.tune import Checkpoint

PARENT = ""
"""Key of the sweep's own run."""

TAG_PARENT = "mlflow.parentRunId"
TAG_RUN_KEY = "run_key"
TAG_TRIAL_ID = "trial_id"
TAG_PROBE = "tracker_probe"
TAG_NOTE = "mlflow.note.content"
TAG_OUR_NOTE = "rpg_note"
"""Of an experiment: the hash of the description that we gave it, so that a user's own stays."""
RUN_ID, EXPERIMENT_ID = "{run_id}", "{experiment_id}"
"""Stand in a note for what is known only when it is sent; in a trial's the run is the sweep's."""

MAX_PARAM_CHARS = 6_000
MAX_TAG_CHARS = 5_000
# What MLflow takes in one log-batch request (together 1,000 of them and 1 MB).
_BATCH_METRICS, _BATCH_PARAMS, _BATCH_TAGS = 800, 100, 100
_MAX_BATCH_CHARS = 400_000

Kind = Literal["open", "metrics", "tags", "note", "experiment", "text", "file", "folder", "policy", "close"]
LOGGED: frozenset[Kind] = frozenset({"open", "metrics", "tags", "note", "experiment"})
ARTIFACTS: frozenset[Kind] = frozenset({"text", "file", "folder", "policy"})


@dataclass(frozen=True)
class Record:
    """One thing to deliver, made of JSON values only.

    Attributes:
        run: key of the run it belongs to: a trial's id, or ``PARENT``.
        kind: what ``data`` is. ``open``: name, tags, params, start_time; ``metrics``: values, step, timestamp;
            ``tags``: values; ``note``: text, the run's description, and of the sweep's run the experiment's too;
            ``experiment``: values, tags of the experiment; ``text``: text, path; ``file``: base64, path;
            ``folder``: checkpoint (path, relative to the sweep's folder where it is inside, or URI), folder (inside the
            checkpoint), path; ``policy``: the same and name, params, tags, of the model that stands for it in MLflow;
            ``close``: status, end_time, if_running (a run that is not is left alone).
            ``open``, ``folder`` and ``close`` may have unless_finished: a run that is finished stays as it is.
            Times are in ms since the epoch.
        data: the content.
    """

    run: str
    kind: Kind
    data: Mapping[str, Any]

    def payload(self) -> dict[str, Any]:
        """Gives the record as the spool keeps it."""
        return {"run": self.run, "kind": self.kind, "data": self.data}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Record:
        """Makes a record of what the spool has kept.

        Raises:
            KeyError: something is missing.
        """
        return cls(payload["run"], payload["kind"], payload["data"])


@dataclass
class KnownRun:
    """Holds what we know of one run.

    Attributes:
        run_id: MLflow's id.
        status: the last that was set.
        doubtful: it was looked up after an attempt to make it whose answer was lost: that attempt may still have made
            a second one.
    """

    run_id: str
    status: str = "RUNNING"
    doubtful: bool = False


@dataclass
class MlflowRuns:
    """The runs of one sweep at one tracking server. Every method raises what MLflow raises.

    Attributes:
        tracking_uri: MLflow server, or ``sqlite:///…``.
        experiment: name of the MLflow experiment; made if it is missing.
        run_key: what tells this sweep's parent run from another of the same name.
        sweep: name of the sweep.
        base: the sweep's folder as it lies now, which a record's checkpoint is relative to.
        known: our key → what is known of the run, of every run opened so far.
        changed: called with each run that becomes known or changes, to be kept for a later process.
    """

    tracking_uri: str
    experiment: str
    run_key: str
    sweep: str = "sweep"
    base: Path = field(default_factory=Path)
    known: dict[str, KnownRun] = field(default_factory=dict)
    changed: Callable[[str, KnownRun], None] = lambda key, run: None
    experiment_id: str | None = None

    def __post_init__(self) -> None:
        self._client: MlflowClient | None = None
        self._search_first: set[str] = set()  # runs that may exist without our knowing their id
        self._search_always = False
        self._settled: set[str] = set()  # runs whose parameters are known to be there
        self._steps = RecordedSteps()
        self._models = PolicyModels()

    @property
    def run_ids(self) -> dict[str, str]:
        """Maps our keys to MLflow's run ids."""
        return {key: run.run_id for key, run in self.known.items()}

    def page(self, key: str) -> str | None:
        """Address of a run's page; None for an embedded store, or while the run has not been opened."""
        if key not in self.known or self.experiment_id is None or not self.tracking_uri.startswith("http"):
            return None
        base = self.tracking_uri.rstrip("/")
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.known[key].run_id}"

    def expect_earlier_runs(self, *keys: str) -> None:
        """Notes that these runs may exist already, or any run if none is named: each is looked up before it is made."""
        self._search_first.update(keys)
        self._search_always |= not keys

    def put(self, *records: Record, closing: bool = False, late: bool = False) -> None:
        """Sends records one by one; ``closing`` and ``late`` as for ``log``."""
        for record in records:
            if record.kind in ARTIFACTS:
                self.upload(record)
            elif record.kind == "close":
                self.close(record)
            else:
                self.log([record], closing=closing, late=late)

    def log(self, records: Sequence[Record], *, closing: bool = False, late: bool = False) -> None:
        """Opens a run if it has to be, and logs its metrics, tags and parameters in as few requests as they take.

        Args:
            records: of one run, of the kinds in ``LOGGED``.
            closing: its end follows, so a run that has ended need not be shown as running in between.
            late: their turn has passed, so that later steps may be there already.
        """
        key = records[0].run
        openings = [record.data for record in records if record.kind == "open"]
        tags: dict[str, object] = {}
        params: dict[str, str] = {}
        if openings:
            adopted = all(data.get("unless_finished") for data in openings)
            opened, fresh = self._open(key, openings, reopen=not (closing or adopted))
            if not fresh:
                tags |= {name: value for data in openings for name, value in data["tags"].items()}
                if key != PARENT:
                    tags.pop(TAG_NOTE, None)  # it has one, perhaps the user's
            if key not in self._settled:  # parameters can't change, so a reopened run gets only those it lacks
                had = {} if opened is None else opened.data.params
                params = {n: v for data in reversed(openings) for n, v in data["params"].items() if n not in had}
        elif key not in self.known:
            self._open(key, [], reopen=False)
        metrics = []
        for record in records:
            if record.kind == "metrics":
                metrics += _metrics(record)
            elif record.kind == "tags":
                tags |= record.data["values"]
            elif record.kind == "note":
                tags[TAG_NOTE] = self._filled(record)
        run_id, (client, _) = self.known[key].run_id, self._connect()
        if metrics and not late and key != PARENT:  # the sweep's own figures may change when it is resumed
            if key not in self._steps:
                self._steps.found(key, client.get_run(run_id))
            metrics = self._steps.new(key, metrics)
        cut = [Param(name, value[:MAX_PARAM_CHARS]) for name, value in params.items()]
        for batch in _batches(metrics, cut, [RunTag(name, tag_value(value)) for name, value in tags.items()]):
            client.log_batch(run_id, **batch, synchronous=True)
            self._steps.add(key, batch["metrics"])
        for record in records:
            if record.kind == "experiment":
                self._tag_experiment(record.data["values"])
            elif record.kind == "note" and key == PARENT:
                self._describe_experiment(self._filled(record))
        if openings:
            self._settled.add(key)

    def _filled(self, record: Record) -> str:
        """A note with the ids that were not known when it was written."""
        text = str(record.data["text"]).replace(RUN_ID, self.known[record.run].run_id)
        return tag_value(text.replace(EXPERIMENT_ID, str(self.experiment_id)))

    def _tag_experiment(self, values: Mapping[str, str]) -> None:
        """Sets tags of the experiment, unless it has them: what a user made of a view stays."""
        client, experiment_id = self._connect()
        there = client.get_experiment(experiment_id).tags
        for name in values.keys() - there.keys():
            client.set_experiment_tag(experiment_id, name, values[name])

    def _describe_experiment(self, text: str) -> None:
        """Gives the experiment our description, unless it has one that is not ours."""
        client, experiment_id = self._connect()
        tags = client.get_experiment(experiment_id).tags
        there = tags.get(TAG_NOTE, "")
        if there in ("", text) or _digest(there) == tags.get(TAG_OUR_NOTE):
            client.set_experiment_tag(experiment_id, TAG_NOTE, text)
            client.set_experiment_tag(experiment_id, TAG_OUR_NOTE, _digest(text))

    def upload(self, record: Record) -> None:
        """Uploads an artifact, or makes the model of a policy.

        Raises:
            FileNotFoundError: the checkpoint that it was to come from is gone.
        """
        if record.run not in self.known:
            self._open(record.run, [], reopen=False)
        (client, _), run_id, data = self._connect(), self.known[record.run].run_id, record.data
        if record.kind == "text":
            client.log_text(run_id, data["text"], data["path"])
        elif record.kind == "file":
            path = PurePosixPath(data["path"])
            with tempfile.TemporaryDirectory() as made:
                file = Path(made) / path.name
                file.write_bytes(base64.b64decode(data["base64"]))
                client.log_artifact(run_id, str(file), str(path.parent))
        elif record.kind == "policy":
            card = _file_in(self._place_of(data["checkpoint"]), f"{data['folder']}/card.json")
            if card is not None:
                self._models.put(client, str(self.experiment_id), run_id, data, card)
        elif not (data.get("unless_finished") and self.known[record.run].status == "FINISHED"):
            inside = _folder_in(self._place_of(data["checkpoint"]), data["folder"])
            if inside is None:
                return
            with inside.as_directory() as local:
                client.log_artifacts(run_id, local, data["path"])

    def _place_of(self, checkpoint: str) -> str:
        return checkpoint if "://" in checkpoint else str(self.base / checkpoint)

    def close(self, record: Record, tags: Mapping[str, object] | None = None) -> None:
        """Ends a run with its status; once more if it has ended before."""
        key = record.run
        if record.data.get("if_running") and (key not in self.known or self.known[key].status != "RUNNING"):
            return
        if tags:
            self.log([Record(key, "tags", {"values": tags})], closing=True)
        elif key not in self.known:
            self._open(key, [], reopen=False)
        (client, _), run = self._connect(), self.known[key]
        if record.data.get("unless_finished") and run.status == "FINISHED":
            return
        client.set_terminated(run.run_id, record.data["status"], record.data["end_time"])
        run.status = record.data["status"]
        self._steps.forget(key)
        if run.doubtful:
            self._remove_strays(client, key)
            run.doubtful = False
        self.changed(key, run)

    def is_running(self, key: str) -> bool:
        """Whether a known run has not ended, also by another driver's hand."""
        (client, _), run = self._connect(), self.known[key]
        status = client.get_run(run.run_id).info.status
        if status != run.status:
            run.status = status
            self.changed(key, run)
        return bool(status == "RUNNING")

    def passed_over(self, record: Record) -> None:
        """Notes that a record is given up, so that another report of the same step does not take its place."""
        if record.kind == "metrics":
            self._steps.add(record.run, _metrics(record))

    def probe(self) -> None:
        """Makes a test write, a tag of the sweep's run, which a server that works always takes."""
        client, _ = self._connect()
        client.set_tag(self.known[PARENT].run_id, TAG_PROBE, "ok")

    # ---- opening --------------------------------------------------------------------------------

    def _connect(self) -> tuple[MlflowClient, str]:
        """Returns the client and the experiment's id; makes store and experiment the first time."""
        if self._client is not None and self.experiment_id is not None:
            return self._client, self.experiment_id
        database = embedded_database(self.tracking_uri)
        location = None
        if database is not None:
            create_embedded_store(database)
            follow_move(database)
            folder = re.sub(r"[^\w.=-]|^\.+", "_", self.experiment)
            location = (database.parent / ARTIFACT_FOLDER / folder).as_uri()
        client = MlflowClient(with_login(self.tracking_uri))
        found: Experiment | None = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                self.experiment_id = client.create_experiment(self.experiment, location)
            except MlflowException:  # another sweep may have made it a moment ago
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found is not None:
            if found.lifecycle_stage != "active":
                raise RuntimeError(
                    f"experiment {self.experiment!r} is deleted; restore it, or set another tracking.experiment"
                )
            self.experiment_id = found.experiment_id
        assert self.experiment_id is not None
        self._client = client
        return client, self.experiment_id

    def _open(self, key: str, openings: Sequence[Mapping[str, Any]], *, reopen: bool) -> tuple[Run | None, bool]:
        """Makes sure that the run exists.

        Args:
            key: its key.
            openings: data of its ``open`` records; none if they are lost: then the run carries what makes it ours.
            reopen: whether it runs from now on.

        Returns:
            The run as it was found (None: no need to ask), and whether it has just been made.
        """
        known = self.known.get(key)
        if known is not None and key in self._settled and known.status == "RUNNING":
            return None, False
        if key != PARENT and PARENT not in self.known:
            self._open(PARENT, [], reopen=False)
        client, experiment_id = self._connect()
        run, searched = self._find(client, experiment_id, key)
        fresh = run is None
        if run is None:
            self._search_first.add(key)  # if the answer is lost, the run exists all the same
            tags = {"kind": "trial" if key else "sweep", "sweep": self.sweep}
            tags |= {name: value for data in openings for name, value in data["tags"].items()}
            tags |= {TAG_RUN_KEY: self.run_key}
            if key != PARENT:
                above = next((data["parent"] for data in openings if "parent" in data), PARENT)
                if above not in self.known:
                    self._open(above, [], reopen=False)
                tags |= {TAG_PARENT: self.known[above].run_id, TAG_TRIAL_ID: key}
                if TAG_NOTE in tags:
                    links = str(tags[TAG_NOTE]).replace(RUN_ID, self.known[PARENT].run_id)
                    tags[TAG_NOTE] = links.replace(EXPERIMENT_ID, str(experiment_id))
            run = client.create_run(
                experiment_id,
                start_time=openings[0]["start_time"] if openings else None,
                tags={name: tag_value(value) for name, value in tags.items()},
                run_name=openings[0]["name"] if openings else key or self.sweep,
            )
        elif reopen and openings and (run.info.end_time or 0) > openings[-1]["start_time"]:
            reopen = False  # it has ended since, in another driver's hands perhaps
        elif reopen and run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        self._search_first.discard(key)
        self._steps.found(key, None if fresh else run)
        status = "RUNNING" if reopen else run.info.status
        doubtful = searched or (known is not None and known.doubtful)
        self.known[key] = KnownRun(run.info.run_id, status, doubtful)
        self.changed(key, self.known[key])
        return (None if fresh else run), fresh

    def _find(self, client: MlflowClient, experiment_id: str, key: str) -> tuple[Run | None, bool]:
        """Returns the run of ``key``, if one exists, and whether it was searched for; asks only if one may exist."""
        if key in self.known:
            try:
                run = client.get_run(self.known[key].run_id)
                if run.info.lifecycle_stage == "active":
                    return run, False
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        elif not self._search_always and key not in self._search_first:
            return None, False
        found = client.search_runs(
            [experiment_id], self._query(key), max_results=1, order_by=["attributes.start_time ASC"]
        )
        return (found[0] if found else None), True

    def _query(self, key: str) -> str:
        if key == PARENT:
            return f"tags.{TAG_RUN_KEY} = '{self.run_key}' and tags.kind = 'sweep'"
        return f"tags.{TAG_RUN_KEY} = '{self.run_key}' and tags.{TAG_TRIAL_ID} = '{key}'"

    def _remove_strays(self, client: MlflowClient, key: str) -> None:
        """Removes a second run, made by a request whose answer was lost and which came through after we had looked."""
        client, experiment_id = self._connect()
        for run in client.search_runs([experiment_id], self._query(key)):
            if run.info.run_id != self.known[key].run_id and not run.data.metrics and run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)


def _metrics(record: Record) -> list[Metric]:
    step, timestamp = record.data["step"], record.data["timestamp"]
    return [Metric(metric_key(k), v, timestamp, step) for k, v in record.data["values"].items()]


def _batches(
    metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
) -> Iterator[dict[str, list[Any]]]:
    """Yields as few batches as MLflow's limits allow; none if there is nothing to send."""
    batch: dict[str, list[Any]] = {"params": [], "tags": [], "metrics": []}
    limits = {"params": _BATCH_PARAMS, "tags": _BATCH_TAGS, "metrics": _BATCH_METRICS}
    chars = 0
    of_kinds: tuple[tuple[str, Iterable[Any]], ...] = (("params", params), ("tags", tags), ("metrics", metrics))
    for kind, each in ((kind, each) for kind, items in of_kinds for each in items):
        length = len(each.key) + (len(each.value) if isinstance(each.value, str) else 100)
        if len(batch[kind]) >= limits[kind] or chars + length > _MAX_BATCH_CHARS:
            yield batch
            batch, chars = {"params": [], "tags": [], "metrics": []}, 0
        batch[kind].append(each)
        chars += length
    if any(batch.values()):
        yield batch


def _folder_in(checkpoint: str, folder: str) -> Checkpoint | None:
    """Finds a folder inside a checkpoint; None if the checkpoint has no such folder.

    Raises:
        FileNotFoundError: the checkpoint is gone.
    """
    whole, inside, kind = _inside(checkpoint, folder)
    return type(whole)(inside, whole.filesystem) if kind == "Directory" else None


def _file_in(checkpoint: str, name: str) -> bytes | None:
    """Reads a file inside a checkpoint; as ``_folder_in``."""
    whole, inside, kind = _inside(checkpoint, name)
    if kind != "File":
        return None
    with whole.filesystem.open_input_stream(inside) as stream:
        return bytes(stream.read())


def _inside(checkpoint: str, name: str) -> tuple[Checkpoint, str, str]:
    from ray.tune import Checkpoint  # a second, which whoever only reads a store does not need

    whole = Checkpoint(checkpoint)
    inside = f"{whole.path.rstrip('/')}/{name}"
    found = [info.type.name for info in whole.filesystem.get_file_info([whole.path, inside])]
    if found[0] == "NotFound":
        raise FileNotFoundError(f"checkpoint {whole.path} is gone")
    return whole, inside, found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def metric_key(name: str) -> str:
    """Turns a name into one that MLflow accepts: letters, digits and ``_ - . : / space``, at most 250 characters."""
    return re.sub(r"[^\w\-.:/ ]", "_", name, flags=re.ASCII)[:250]


def tag_value(value: object) -> str:
    """Turns a value into a tag's text, cut to the length that every MLflow store takes."""
    return str(value)[:MAX_TAG_CHARS]
