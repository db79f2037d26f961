"""How a sweep is doing, for whoever asks from another shell or machine: a small file in the sweep's folder.

The driver writes ``status.json`` every few seconds from a thread of its own, through the same file system as everything
else of the sweep (a local path, NFS or an object store), and once more at the end. A reader tells from its age, and on
the driver's own machine from the lock, whether the driver still lives.
"""

from __future__ import annotations

import json
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rpg_platform.results.endings import ENDS, State
from rpg_platform.search.proposals import known_trials
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.trials import count_trials
from rpg_platform.storage.heartbeat import (
    STATUS_FILE,
    WRITE_EVERY_S,
    dead_after_s,
    in_words,
    silent_for_s,
    this_process,
)
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError
from rpg_platform.storage.trial_state import TrialState

logger = logging.getLogger(__name__)

FORMAT = 1
_REST_PER_WORK = 20.0  # a slow storage is written to more rarely
_STOP_S = 30.0


class StatusWriter:
    """Keeps a sweep's ``status.json`` up to date; nothing that goes wrong with it reaches the sweep.

    Args:
        folder: the sweep's.
        content: what to write beside who writes it and when; called from the writer's thread.
    """

    def __init__(self, folder: SweepFolder, content: Callable[[], dict[str, Any]]) -> None:
        self._folder, self._content = folder, content
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.time()
        self._every_s = WRITE_EVERY_S

    def start(self) -> None:
        """Writes from now on."""
        self._thread = threading.Thread(target=self._work, name="rpg-status", daemon=True)
        self._thread.start()

    def stop(self, outcome: str) -> None:
        """Writes the last time.

        Args:
            outcome: the status of the sweep's run in MLflow, ``FINISHED``, ``KILLED`` or ``FAILED``.
        """
        self.leave()
        self._write(ENDS[outcome])

    def leave(self) -> None:
        """Writes no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _work(self) -> None:
        while True:
            began = time.monotonic()
            self._write("running")
            self._every_s = max(WRITE_EVERY_S, _REST_PER_WORK * (time.monotonic() - began))
            if self._ended.wait(self._every_s):
                return

    def _write(self, state: State) -> None:
        try:
            who = this_process() | {"started": self._started}
            now = {"format": FORMAT, "sweep": self._folder.name, "state": state, **who, "heartbeat": time.time()}
            now |= {"every_s": self._every_s, **self._content()}
            self._folder.write_text(STATUS_FILE, json.dumps(now, allow_nan=False))
        except Exception as error:  # a full disk, a storage that is away, a defect: the next one may pass
            logger.debug("status: %s: %s", type(error).__name__, error)


@dataclass(frozen=True)
class SweepStatus:
    """What is known of a sweep from its folder.

    Attributes:
        sweep: its name.
        folder: path or URI of its folder.
        state: ``running``; ``finished`` (every trial), ``stopped`` (by a signal) or ``failed`` (some trial has no
            result); ``dead``: the driver ended without a word; ``unknown``: it never wrote a status.
        words: the state, to read.
        content: of the status file; where there is none, ``trials`` and ``env_steps`` from the checkpoints.
        command: what goes on with the sweep; None if there is nothing to do.
    """

    sweep: str
    folder: str
    state: State
    words: str
    content: dict[str, Any] = field(default_factory=dict)
    command: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One document: the status file's content, judged."""
        mine = {"sweep": self.sweep, "folder": self.folder, "state": self.state, "words": self.words}
        return {**self.content, **mine, "command": self.command}


def status_of(folder: SweepFolder, storage_option: str | None = None, now: float | None = None) -> SweepStatus:
    """How the sweep in ``folder`` is doing.

    Args:
        folder: the sweep's.
        storage_option: what ``--storage`` has to be to find it; None: it need not be given.
        now: seconds since the epoch; None: now.

    Raises:
        SweepFolderError: there is no sweep, or its status is of another version.
    """
    spec = folder.spec()
    content = content_of(folder.read_text(STATUS_FILE), folder.uri)
    locked = folder.is_locked()
    if content is None:
        state, words, content = _from_checkpoints(folder, spec, locked)
    else:
        state, words = judge(content, locked, time.time() if now is None else now)
    where = "" if storage_option is None else f" --storage {shlex.quote(storage_option)}"
    command = None if state in ("running", "finished") else f"rpg resume {folder.name}{where}"
    return SweepStatus(folder.name, folder.uri, state, words, content, command)


def is_done(folder: SweepFolder) -> bool:
    """Whether nothing is left to do of a sweep: its driver said so, every trial is over, and MLflow has all of it.

    Raises:
        SweepFolderError: as ``status_of``.
    """
    found = status_of(folder)
    tracker = found.content.get("tracker") or {}
    if found.state != "finished" or tracker.get("spooled") or tracker.get("rejected"):
        return False
    return _from_checkpoints(folder, folder.spec(), False)[0] == "finished"  # it may have been extended since


def content_of(text: str | None, folder: str) -> dict[str, Any] | None:
    """What a status file says; None where there is none.

    Args:
        text: of the file.
        folder: where it lies.

    Raises:
        SweepFolderError: it is of another version.
    """
    if text is None:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
        if content["format"] == FORMAT:
            return content
        problem = f"format {content['format']}, this version reads {FORMAT}"
    except (ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise SweepFolderError(f"{folder}/{STATUS_FILE}: {problem}")


def judge(content: Mapping[str, Any], locked: bool | None, now: float) -> tuple[State, str]:
    """The state that a status file tells, and the same in words.

    Args:
        content: of the file.
        locked: whether a driver of this machine holds the sweep; None: the file lies elsewhere.
        now: seconds since the epoch, by the clock of whoever reads it.
    """
    state: State = content["state"]
    if state != "running":
        return state, f"{state} {_at(content['heartbeat'])}"
    # The lock speaks for drivers of this machine alone: not every network file system passes it on.
    here = locked is not None and content["host"] == socket.gethostname()
    dead = not locked if here else silent_for_s(content, now) > dead_after_s(content)
    if dead:
        return "dead", f"the driver ({in_words(content)}) is dead; it was last heard of {_at(content['heartbeat'])}"
    return "running", f"running ({in_words(content)}), since {_at(content['started'])}"


def _from_checkpoints(folder: SweepFolder, spec: SweepSpec, locked: bool | None) -> tuple[State, str, dict[str, Any]]:
    """What can be said without a status file."""
    trials, states = known_trials(spec, folder), folder.trials()
    done = [states.get(trial.trial_id) for trial in trials]
    finished = sum(s is not None and s.finishes(t) for t, s in zip(trials, done, strict=True))
    total = count_trials(spec) if spec.search.is_adaptive else len(trials)
    counts = {"total": total, "finished": finished, "pending": total - finished}
    steps = sum(_steps(state) for state in done)
    content = {
        "trials": counts,
        "env_steps": steps,
        "env_steps_total": sum(trial.env_steps for trial in trials),
    }
    if locked:
        return "running", "running; no status file yet, from the checkpoints", content
    if finished == total:
        return "finished", "finished; no status file, from the checkpoints", content
    return "unknown", "not known to be running: no status file, from the checkpoints", content


def _steps(state: TrialState | None) -> int:
    return 0 if state is None else state.env_steps


def _at(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def words_of(states: Mapping[str, int]) -> str:
    """How many trials are in which state, to read."""
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items() if count)
