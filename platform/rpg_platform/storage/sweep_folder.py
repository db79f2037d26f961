"""A sweep's folder in its storage: what was asked for, and how far each trial is. Local path, NFS or object store.

    STORAGE/NAME/sweep.json, .yaml     the specification as data, and as the user wrote it
    STORAGE/NAME/plans.json            what each of its drivers planned; status.json: how it is doing, see ``status``
    STORAGE/NAME/prior-bundle/         the prior, wherever it came from
    STORAGE/NAME/start-bundle/         the policy that training starts from, where that is another
    STORAGE/NAME/videos/               what the prior and the best policies do, see ``review.videos``
    STORAGE/NAME/search/               settings that an adaptive search proposed, verdicts of a scheduler: a file each
    STORAGE/NAME/TRIAL/checkpoint_*/   the first attempt's trials
    STORAGE/NAME/attempt-2/TRIAL/...   those of the attempt that resumed it, and so on

A resumed sweep is rebuilt from the specification and the trials' checkpoints, never from pickled functions; each
attempt writes to a folder of its own, so nothing is overwritten. A checkpoint counts when it is complete: its
``trial.json`` names every other file with its size.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import posixpath
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pyarrow import fs as filesystems

from rpg_platform.results.report import STOPPED_BY
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.driver_lock import LOCK_FILE, HeldError, file_lock, is_locked, leased
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.lease import LEASE_FILE, Lease
from rpg_platform.storage.location import LocationError, file_system, storage_path
from rpg_platform.storage.trial_state import STATE_FILE, TrialState
from rpg_platform.wording import suggestion

if TYPE_CHECKING:
    from rpg_algorithms.policies.bundle import PriorBundle

logger = logging.getLogger(__name__)
FORMAT = 1
SPEC_FILE, SOURCE_FILE = "sweep.json", "sweep.yaml"
PRIOR_FOLDER, START_FOLDER = "prior-bundle", "start-bundle"
SEARCH_FOLDER = "search"
SPOOL_FOLDER = "tracking"
"""Of what MLflow has not got yet."""
_PROPOSAL, _VERDICT, _GENERATION, _START = "proposal", "verdict", "generation", "start"
_ATTEMPT = re.compile(r"attempt-(\d+)")
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")
_MARK_OF_TUNE = ".validate_storage_marker"  # the first file that Tune writes into a run's folder
_REPORTS_OF_TUNE = "result.json"
_UNFINISHED = ".part"
_READERS = 16
_BEGUN = {LOCK_FILE, LEASE_FILE, SOURCE_FILE, PRIOR_FOLDER, START_FOLDER, SPEC_FILE}


class SweepFolderError(ValueError):
    """A sweep's folder that is missing, taken, in use or damaged; the message says what to do."""


class SweepFolder:
    """One sweep's folder.

    Args:
        storage: absolute local path, or a URI that pyarrow knows (``s3://bucket/path``, ``gs://``, ``hdfs://``).
        name: of the sweep.

    Raises:
        LocationError: the storage is of a kind that cannot be read.
    """

    def __init__(self, storage: str, name: str) -> None:
        self.storage, self.name = storage.rstrip("/"), name
        self.is_local = "://" not in storage
        self.lease: Lease | None = None  # while this process holds the sweep by one
        self._fs, base = file_system(self.storage)
        self._root = posixpath.join(base, name).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what its callbacks hold; a lease is one process's."""
        return self.__dict__ | {"lease": None}

    @property
    def uri(self) -> str:
        """The folder's path or URI."""
        return self._address(self._root)

    def _address(self, path: str) -> str:
        """A path of the file system as users and Ray name it, a URI's query (an endpoint, a region) kept."""
        if self.is_local:
            return path
        prefix, _, query = self.storage.partition("?")
        scheme = prefix.partition("://")[0]
        return f"{scheme}://{path}" + (f"?{query}" if query else "")

    def _path(self, address: str) -> str:
        """The path in the file system that ``_address`` named."""
        return address if self.is_local else address.partition("://")[2].partition("?")[0]

    # --- the specification

    def exists(self) -> bool:
        """Whether something is there already."""
        return bool(self._fs.get_file_info(self._root).type != filesystems.FileType.NotFound)

    def check_free(self) -> None:
        """Refuses a name that is taken; what a driver that was killed while it began has left takes none.

        Raises:
            SweepFolderError: something is there; nothing is overwritten.
        """
        if self.exists() and not self._is_only_begun():
            hint = "continue it with --resume" if self._exists(SPEC_FILE) else "it is no sweep of this version"
            raise SweepFolderError(
                f"{self.uri} exists: a sweep named {self.name!r} was run there; nothing is overwritten. "
                f"Either {hint}, or give another name (--name) or another storage (--storage)"
            )

    def _is_only_begun(self) -> bool:
        """Whether all that is there is what ``create`` makes before ``sweep.json``, which it writes last."""
        found = self._fs.get_file_info(filesystems.FileSelector(self._root, allow_not_found=True))
        names = {info.base_name.removesuffix(_UNFINISHED) for info in found}
        begun = LOCK_FILE in names or not self.is_local
        return begun and not self._exists(SPEC_FILE) and names <= _BEGUN

    def create(
        self, spec: SweepSpec, source: str | None, prior: PriorBundle | None = None, start: PriorBundle | None = None
    ) -> None:
        """Claims the folder for a new sweep and keeps what was asked for, the prior and what it starts from too.

        Raises:
            SweepFolderError: something is there; nothing is overwritten.
        """
        self.check_free()
        self._fs.create_dir(self._root, recursive=True)
        for place, bundle in ((PRIOR_FOLDER, prior), (START_FOLDER, start)):
            if bundle is not None:
                self._keep_bundle(place, bundle)
        if source is not None:
            self._write(SOURCE_FILE, source)
        data = {"format": FORMAT, "run_key": uuid4().hex, "spec": self._as_data(spec)}
        self._write(SPEC_FILE, json.dumps(data, indent=2))

    def _keep_bundle(self, place: str, bundle: PriorBundle) -> None:
        from rpg_algorithms.policies.bundle import save_bundle  # torch, which no reader of JSON files needs

        with tempfile.TemporaryDirectory() as folder:
            save_bundle(folder, bundle.build(), bundle.card)
            self._fs.create_dir(posixpath.join(self._root, place))
            for file in Path(folder).iterdir():
                self._write(f"{place}/{file.name}", file.read_bytes())

    def run_key(self) -> str:
        """What tells this sweep from any other of its name, in MLflow too."""
        key: str = json.loads(self._read(SPEC_FILE))["run_key"]
        return key

    def spec(self) -> SweepSpec:
        """The specification that the sweep was started with, or extended to, with the name and storage of this folder.

        The folder may have been moved, renamed or copied since: what is asked of it is meant for it, wherever it lies.

        Raises:
            SweepFolderError: there is no sweep, or it was written by another version.
        """
        if not self._exists(SPEC_FILE):
            raise SweepFolderError(f"{self.uri}: no sweep there (it holds no {SPEC_FILE}){self._others()}")
        try:
            data = json.loads(self._read(SPEC_FILE))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
            stored = data["spec"]
            here: dict[str, Any] = {
                "name": self.name,
                "storage": None if self.storage == storage_path(None) else self.storage,
            }
            if stored["name"] != self.name and not self._is_copy(stored, data["run_key"]):  # renamed: the same runs
                tracking = stored.get("tracking") or {}
                here["tracking"] = tracking | {"experiment": tracking.get("experiment") or stored["name"]}
            return SweepSpec.model_validate(stored | here)
        except (ValueError, KeyError, TypeError) as error:
            raise SweepFolderError(f"{self.uri}/{SPEC_FILE}: {error}") from error

    def go_on_with(self, spec: SweepSpec, source: str | None = None) -> None:
        """Makes what a resumed sweep is to be from now on what its folder says. The lock is held.

        A copy of a sweep's folder becomes a sweep of its own: the original's runs in MLflow stay the original's.
        """
        data = json.loads(self._read(SPEC_FILE))
        before = data["spec"]
        if self._is_copy(before, data["run_key"]):
            if self.is_local:
                shutil.rmtree(Path(self._root) / SPOOL_FOLDER, ignore_errors=True)
            data["run_key"] = uuid4().hex
        if source is not None and source != self.source():
            self._write(SOURCE_FILE, source)
        if (now := self._as_data(spec)) != before:
            self._write(SPEC_FILE, json.dumps(data | {"spec": now}, indent=2))

    def _as_data(self, spec: SweepSpec) -> dict[str, Any]:
        """A specification as ``sweep.json`` keeps it: it says where it lies, by which a copy is told from it."""
        return spec.model_dump(mode="json") | {"name": self.name, "storage": self.storage}

    def _is_copy(self, stored: Mapping[str, Any], run_key: str) -> bool:
        """Whether the sweep still lies where ``sweep.json`` says, and that is another place than this one."""
        try:
            original = SweepFolder(storage_path(stored.get("storage")), stored["name"])
        except LocationError:  # it holds a login, as earlier versions kept it: this folder's address takes its place
            return False
        return original.uri != self.uri and original.is_sweep() and original.run_key() == run_key

    def prior(self, kept: str = PRIOR_FOLDER) -> PriorBundle | None:
        """The prior that the sweep was started with, or by ``START_FOLDER`` what its trainings start from; else None.

        Raises:
            BundleError: it is damaged.
        """
        from rpg_algorithms.policies.bundle import CARD_FILE, load_bundle

        if not self._exists(f"{kept}/{CARD_FILE}"):
            return None
        with tempfile.TemporaryDirectory() as folder:
            return load_bundle(self.fetch_bundle(Path(folder), kept=kept))

    def fetch_bundle(self, out: Path, checkpoint: str | None = None, kept: str = PRIOR_FOLDER) -> Path:
        """Copies a policy's bundle from the sweep's storage to a folder of this machine, and returns that folder.

        Args:
            out: the folder; made when missing.
            checkpoint: of the trial whose policy it is, see ``TrialState``; None: what it keeps.
            kept: ``PRIOR_FOLDER`` or ``START_FOLDER``.

        Raises:
            OSError: the storage does not have it.
        """
        from rpg_algorithms.policies.bundle import CARD_FILE, WEIGHTS_FILE

        source = posixpath.join(self._root, kept)
        if checkpoint is not None:
            source = posixpath.join(self._path(checkpoint), "bundle")
        out.mkdir(parents=True, exist_ok=True)
        for name in (CARD_FILE, WEIGHTS_FILE):
            with self._fs.open_input_stream(posixpath.join(source, name)) as stream:
                (out / name).write_bytes(stream.read())
        return out

    def source(self) -> str | None:
        """The YAML as the user wrote it, where there was one."""
        return self._read(SOURCE_FILE) if self._exists(SOURCE_FILE) else None

    def _others(self) -> str:
        """The names of the sweeps that the storage does hold, as a hint."""
        selector = filesystems.FileSelector(posixpath.dirname(self._root), allow_not_found=True)
        names = [info.base_name for info in self._fs.get_file_info(selector) if info.type.name == "Directory"]
        return suggestion(self.name, [name for name in names if not name.startswith((".", "ml"))])

    def usage(self) -> tuple[int, float]:
        """Bytes of all files, and when the newest was written, in seconds since the epoch; the lock counts as none."""
        selector = filesystems.FileSelector(self._root, allow_not_found=True, recursive=True)
        files = [info for info in self._fs.get_file_info(selector) if info.type == filesystems.FileType.File]
        written = [info.mtime_ns / 1e9 for info in files if info.base_name not in (LOCK_FILE, LEASE_FILE)]
        return sum(info.size for info in files), max(written, default=0.0)

    def remove(self) -> None:
        """Deletes all of it, ``sweep.json`` last: what a failure leaves is a sweep still. The lock is held."""
        for info in self._fs.get_file_info(filesystems.FileSelector(self._root, allow_not_found=True)):
            if info.type == filesystems.FileType.Directory:
                self._fs.delete_dir(info.path)
            elif info.base_name not in (SPEC_FILE, LOCK_FILE, LEASE_FILE):
                self._fs.delete_file(info.path)
        self._fs.delete_dir(self._root)

    # --- attempts and trials

    def next_attempt(self) -> tuple[str, str]:
        """Storage path and run name for Tune's next attempt: the folder itself, then ``attempt-2`` inside it."""
        names = [info.base_name for info in self._fs.get_file_info(filesystems.FileSelector(self._root))]
        numbers = [int(m[1]) for name in names if (m := _ATTEMPT.fullmatch(name))]
        if _MARK_OF_TUNE not in names:
            return self.storage, self.name
        return self.uri, f"attempt-{max(numbers, default=1) + 1}"

    def trials(self) -> dict[str, TrialState]:
        """Trial id → state, of every trial that has a complete checkpoint."""
        sizes: dict[str, int] = {}
        checkpoints: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        selector = filesystems.FileSelector(self._root, allow_not_found=True, recursive=True)
        for info in self._fs.get_file_info(selector):
            relative = posixpath.relpath(info.path, self._root)
            if info.type != filesystems.FileType.File:
                continue
            sizes[relative] = info.size
            parts = relative.split("/")
            attempt = 1
            if m := _ATTEMPT.fullmatch(parts[0]):
                attempt, parts = int(m[1]), parts[1:]
            if len(parts) == 3 and parts[2] == STATE_FILE and (m := _CHECKPOINT.fullmatch(parts[1])):
                checkpoints[parts[0]].append((attempt, int(m[1]), posixpath.dirname(relative)))
        with ThreadPoolExecutor(_READERS) as pool:
            newest = pool.map(lambda found: self._newest(found, sizes), checkpoints.values())
            states = {trial_id: s for trial_id, s in zip(checkpoints, newest, strict=True) if s is not None}
        ended = {each["group"]: each for each in self.verdicts() if not each["goes_on"]}
        for trial_id, state in states.items():
            verdict = ended.get(trial_id.rpartition("-seed=")[0])
            # One that was ended but not saved at its rung or after goes on until there, and is ended again.
            if verdict is not None and not state.finished and state.env_steps >= verdict["rung"]:
                states[trial_id] = replace(state, report={**state.report, STOPPED_BY: verdict["by"]})
        return states

    def report_files(self) -> dict[str, list[str]]:
        """Trial id → the files that hold its reports, a JSON object a line, an attempt a file, oldest first."""
        found: dict[str, list[str]] = defaultdict(list)
        attempts = {int(m[1]): name for name in self.folders() if (m := _ATTEMPT.fullmatch(name))}
        for inside in ("", *(attempts[number] for number in sorted(attempts))):
            selector = filesystems.FileSelector(posixpath.join(self._root, inside), recursive=False)
            for info in self._fs.get_file_info(selector):
                if info.type == filesystems.FileType.Directory and not _ATTEMPT.fullmatch(info.base_name):
                    found[info.base_name].append(posixpath.join(inside, info.base_name, _REPORTS_OF_TUNE))
        return dict(found)

    def _newest(self, found: list[tuple[int, int, str]], sizes: Mapping[str, int]) -> TrialState | None:
        """The newest complete checkpoint; with it those at the ends of earlier attempts that were evaluated."""
        newest: dict[int, TrialState] = {}
        for attempt, _, folder in sorted(found, reverse=True):
            if attempt not in newest and (state := self._complete(folder, sizes)) is not None:
                newest[attempt] = state
        if not newest:
            return None
        last, *before = newest.values()
        earlier = tuple(each for each in before if each.finished and each.env_steps < last.env_steps)
        return replace(last, earlier=earlier)

    def _complete(self, folder: str, sizes: Mapping[str, int]) -> TrialState | None:
        try:
            state = json.loads(self._read(f"{folder}/{STATE_FILE}"))
            files: Mapping[str, int] = state["files"]
            if not files or any(sizes.get(f"{folder}/{name}") != size for name, size in files.items()):
                return None  # a trial that failed leaves a checkpoint without files
            address = self._address(posixpath.join(self._root, folder))
            return TrialState(address, int(state["env_steps"]), state["report"])
        except (ValueError, KeyError, TypeError, OSError):
            return None  # a checkpoint that was being written when everything ended; the one before it counts

    # --- what a search has decided

    def keep_proposal(self, number: int, proposal: Mapping[str, Any]) -> None:
        """Makes the ``number``-th setting that an adaptive search proposes durable."""
        self._keep(f"{_PROPOSAL}-{number:06d}", proposal)

    def proposals(self) -> list[Mapping[str, Any]]:
        """The settings that were proposed so far, in order."""
        return self._kept(_PROPOSAL)

    def keep_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Makes a scheduler's verdict (``search.judge.Verdict``, as data) durable."""
        self._keep(f"{_VERDICT}-{verdict['group']}@{verdict['rung']}", verdict)

    def verdicts(self) -> list[Mapping[str, Any]]:
        """The verdicts that were passed so far, as data."""
        return self._kept(_VERDICT)

    def keep_generation(self, rung: int, generation: Mapping[str, Any]) -> None:
        """Makes durable what was decided of a population at a rung."""
        self._keep(f"{_GENERATION}-{rung:015d}", generation)

    def generations(self) -> list[Mapping[str, Any]]:
        """What was decided of a population so far, rung by rung."""
        return self._kept(_GENERATION)

    def start_of(self, rung: int, trial_id: str) -> str:
        """Where the copy of a trial's checkpoint at a rung is kept for others to start from."""
        return self._address(self._start_path(rung, trial_id))

    def keep_start(self, rung: int, trial_id: str, checkpoint: Any) -> None:
        """Copies a trial's checkpoint (Tune's) at a rung, which Tune itself would remove when the trial goes on."""
        path = self._start_path(rung, trial_id)
        self._fs.create_dir(path, recursive=True)
        filesystems.copy_files(
            str(checkpoint.path), path, source_filesystem=checkpoint.filesystem, destination_filesystem=self._fs
        )

    def _start_path(self, rung: int, trial_id: str) -> str:
        return posixpath.join(self._root, SEARCH_FOLDER, f"{_START}-{rung}", trial_id)

    def _keep(self, name: str, data: Mapping[str, Any]) -> None:
        self._fs.create_dir(posixpath.join(self._root, SEARCH_FOLDER), recursive=True)
        self._write(f"{SEARCH_FOLDER}/{name}.json", json.dumps(data, allow_nan=False))

    def _kept(self, kind: str) -> list[Mapping[str, Any]]:
        selector = filesystems.FileSelector(posixpath.join(self._root, SEARCH_FOLDER), allow_not_found=True)
        names = sorted(info.base_name for info in self._fs.get_file_info(selector))
        chosen = [f"{SEARCH_FOLDER}/{name}" for name in names if name.startswith(f"{kind}-") and name.endswith(".json")]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(lambda name: json.loads(self._read(name)), chosen))

    # --- one driver at a time

    @contextlib.contextmanager
    def lock(self, tell: Callable[[str], None] = logger.warning) -> Iterator[None]:
        """Holds the sweep for this driver; a new one's folder is made.

        Args:
            tell: told what the user has to know: an object store without conditional writes has no lease.

        Raises:
            SweepFolderError: another driver that is still alive holds it.
        """
        status = functools.partial(self.read_text, STATUS_FILE)
        with contextlib.ExitStack() as held:
            try:
                if self.is_local:
                    held.enter_context(file_lock(Path(self._root), status))
                else:
                    region, is_there = getattr(self._fs, "region", None), self._exists(LEASE_FILE)
                    self.lease = held.enter_context(leased(self.uri, region, status, tell, is_there=is_there))
            except HeldError as error:
                raise SweepFolderError(str(error)) from error
            try:
                yield
            finally:
                self.lease = None

    def is_ours(self) -> bool:
        """Whether no other driver can have the sweep now that this process holds; a lease may be in doubt, or lost."""
        return self.lease is None or self.lease.is_sure

    @property
    def is_lost(self) -> bool:
        """Whether another driver has the sweep that this process held by a lease."""
        return self.lease is not None and self.lease.is_lost

    def is_locked(self) -> bool | None:
        """Whether a driver holds the sweep; None where there are no locks."""
        return is_locked(Path(self._root)) if self.is_local else None

    # --- files

    def is_sweep(self) -> bool:
        """Whether a sweep is there."""
        return self._exists(SPEC_FILE)

    def folders(self) -> list[str]:
        """Names of the folders inside; none if this one is not there.

        Raises:
            SweepFolderError: the storage can't be read.
        """
        try:
            found = self._fs.get_file_info(filesystems.FileSelector(self._root, allow_not_found=True))
        except OSError as error:
            raise SweepFolderError(f"{self.uri}: {error}") from error
        return [info.base_name for info in found if info.type == filesystems.FileType.Directory]

    def read_text(self, name: str) -> str | None:
        """A file of the sweep's own; None if it is not there."""
        return self._read(name) if self._exists(name) else None

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of the sweep's own, whole or not at all."""
        self._write(name, text)

    def read_bytes(self, name: str) -> bytes | None:
        """As ``read_text``, of a file that is no text."""
        return self._read_bytes(name) if self._exists(name) else None

    def write_bytes(self, name: str, content: bytes) -> None:
        """As ``write_text``, of a file that is no text; makes the folder that ``name`` has."""
        self._fs.create_dir(posixpath.dirname(posixpath.join(self._root, name)), recursive=True)
        self._write(name, content)

    def _exists(self, name: str) -> bool:
        info = self._fs.get_file_info(posixpath.join(self._root, name))
        return bool(info.type == filesystems.FileType.File)

    def _read(self, name: str) -> str:
        return self._read_bytes(name).decode("utf-8")

    def _read_bytes(self, name: str) -> bytes:
        with self._fs.open_input_stream(posixpath.join(self._root, name)) as stream:
            return bytes(stream.read())

    def _write(self, name: str, content: str | bytes) -> None:
        if self.lease is not None:
            self.lease.check()  # else the sweep may be another driver's by now
        path = posixpath.join(self._root, name)
        temporary = f"{path}{_UNFINISHED}" if self.is_local else path  # an object appears whole
        with self._fs.open_output_stream(temporary) as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        if temporary != path:
            self._fs.move(temporary, path)
