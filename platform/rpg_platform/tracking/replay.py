"""Sends the records that a driver left spooled because it died or gave up waiting: ``rpg track``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rpg_platform.spec.logins import take_login
from rpg_platform.storage.heartbeat import STATUS_FILE, alive
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.errors import short
from rpg_platform.tracking.identity import keep_identity, read_identity, write_identity
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record
from rpg_platform.tracking.sender import Sender, TrackerState
from rpg_platform.tracking.spool import (
    FOLDER,
    Spool,
    SpoolError,
    spool_folder,
)

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Replayed:
    """Reports what a replay did.

    Attributes:
        folder: of the spool.
        tracking_uri: where it was sent to, without login.
        experiment: MLflow experiment.
        sweep: name of the sweep.
        state: where the sweep's records are now.
        sent_now: records sent by this replay.
        ended: runs that the driver left as running and that are now marked as killed.
        page: address of the sweep's run; None for an embedded store, or if it was never reached.
    """

    folder: Path
    tracking_uri: str
    experiment: str
    sweep: str
    state: TrackerState
    sent_now: int
    ended: tuple[str, ...]
    page: str | None

    @property
    def complete(self) -> bool:
        """Says whether every record is in MLflow."""
        return not (self.state.spooled or self.state.rejected)


def find_spool(place: str) -> Path:
    """Finds the spool of a sweep.

    Args:
        place: the sweep's folder (a local path or a URI, ``<storage>/<name>``), or the spool's own.

    Raises:
        SpoolError: there is none.
    """
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    storage, _, name = path.rstrip("/").rpartition("/")
    if "://" in storage:
        folders = [spool_folder(f"{storage}{mark}{query}", name)]
    else:
        folders = [Path(place).expanduser() / FOLDER, Path(place).expanduser()]
    for folder in folders:
        if read_identity(folder) is not None:
            return folder.resolve()
    raise SpoolError(f"{place}: no sweep has spooled anything here; looked in {' and '.join(map(str, folders))}")


def _check_not_running(place: str) -> None:
    """A driver on another machine has a spool of its own, and the same runs."""
    path, mark, query = place.partition("?") if "://" in place else (str(Path(place).expanduser().resolve()), "", "")
    storage, _, name = path.rstrip("/").rpartition("/")
    try:
        status = SweepFolder(f"{storage}{mark}{query}", name).read_text(STATUS_FILE)
    except (OSError, ValueError):  # the storage is away; its MLflow may be there
        return
    if (running := alive(status, time.time())) is not None:
        raise SpoolError(f"{place} is being run by {running}: what waits here can be sent when that has ended")


def replay(
    place: str,
    *,
    tracking_uri: str | None = None,
    patience_s: float = PATIENCE_S,
    tell: Callable[[str], None] = lambda line: None,
) -> Replayed:
    """Sends the spooled records, tries the rejected ones once more, and ends the runs that a dead driver left running.

    It may be repeated, and stopped at any point.

    Args:
        place: as for ``find_spool``.
        tracking_uri: where to send it; None: where the sweep would have.
        patience_s: how many seconds to wait while MLflow takes nothing.
        tell: shows the user a line.

    Raises:
        SpoolError: there is no spool, it is damaged, or its sweep is still running.
    """
    folder = find_spool(place)
    _check_not_running(place)
    identity = read_identity(folder)
    assert identity is not None
    uri = take_login(tracking_uri) if tracking_uri else identity.tracking_uri
    spool = Spool(folder)
    spool.open()
    try:
        runs = MlflowRuns(uri, identity.experiment, identity.run_key, identity.sweep, base=folder.parent)
        if tracking_uri is not None:
            write_identity(spool, runs)
        else:  # the spool may have been of an earlier format
            keep_identity(spool, identity)
        sender, before = Sender(spool, runs), spool.acknowledged
        tell(f"{spool.waiting} records to send to {uri}, experiment {identity.experiment!r}")
        if identity.needs_login and tracking_uri is None and "MLFLOW_TRACKING_USERNAME" not in os.environ:
            tell("The sweep had a login for it: give --uri with it, or set MLFLOW_TRACKING_USERNAME and _PASSWORD")
        sender.start()
        try:
            sender.retry_rejected()
            ended: tuple[str, ...] = ()
            if sender.flush(patience_s):
                ended = _end_runs(spool, sender, runs, int(1000 * spool.changed_s), patience_s)
        finally:
            sender.stop()
        state = sender.state()
        sent = spool.acknowledged - before - len(ended)
        return Replayed(
            folder,
            uri,
            identity.experiment,
            identity.sweep,
            state,
            max(0, sent),
            ended,
            runs.page(PARENT),
        )
    finally:
        spool.close()


def _end_runs(spool: Spool, sender: Sender, runs: MlflowRuns, end_time: int, patience_s: float) -> tuple[str, ...]:
    """Marks runs that count as running as killed: we hold the spool, so their driver is dead. A resume reopens them."""
    left = sorted((key for key, run in runs.known.items() if run.status == "RUNNING"), reverse=True)  # PARENT last
    try:
        running = [key for key in left if runs.is_running(key)]  # a driver elsewhere may have ended them since
    except Exception as error:
        raise SpoolError(f"MLflow went away before the runs of a dead driver were ended ({short(error)})") from error
    for key in running:
        spool.append(Record(key, "close", {"status": "KILLED", "end_time": end_time}).payload())
    if running:
        sender.flush(patience_s)
    return tuple(running)
