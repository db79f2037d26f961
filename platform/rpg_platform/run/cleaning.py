"""What the sweeps of a storage take up, and deleting those that nobody needs any more."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rpg_platform.run.status import status_of
from rpg_platform.storage.listing import sweeps_in
from rpg_platform.storage.location import LocationError, tracking_uri_of
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError
from rpg_platform.tracking.removal import RemovalError, Removed, remove_runs
from rpg_platform.tracking.spool import spool_folder
from rpg_platform.wording import suggestion

_DAY_S = 86_400.0
_UNITS = {"h": 3_600.0, "d": _DAY_S, "w": 7 * _DAY_S}


@dataclass(frozen=True)
class Kept:
    """A sweep that a storage keeps.

    Attributes:
        sweep: its name.
        folder: path or URI.
        state: as ``rpg status`` has it; ``unreadable``: of another version, or damaged.
        size: of its files, bytes.
        age_s: seconds since one of them was written.
    """

    sweep: str
    folder: str
    state: str
    size: int
    age_s: float

    def as_json(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)


def age_of(text: str) -> float:
    """Seconds of ``30d``, ``12h`` or ``4w``.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise ValueError(f"--older-than {text}: expected a number of hours, days or weeks, such as 12h, 30d or 4w")
    return float(found[1]) * _UNITS[found[2]]


def kept_in(storage: str) -> list[Kept]:
    """The sweeps of a storage, the one that was untouched for longest first.

    Raises:
        SweepFolderError: the storage can't be read.
    """
    found = []
    for name in sweeps_in(storage):
        folder = SweepFolder(storage, name)
        size, written = folder.usage()
        found.append(Kept(name, folder.uri, _state(folder), size, max(0.0, time.time() - written)))
    return sorted(found, key=lambda each: -each.age_s)


def chosen(found: Sequence[Kept], names: Sequence[str], older_than_s: float | None) -> list[Kept]:
    """Those that are named, or all, of the age that is asked for, without those that run.

    Raises:
        ValueError: there is no sweep of a name, or one that is named runs.
    """
    by_name = {each.sweep: each for each in found}
    for name in names:
        if name not in by_name:
            raise ValueError(f"no sweep {name!r} there{suggestion(name, by_name)}")
        if by_name[name].state == "running":
            raise ValueError(f"{name} is running: end it first (rpg stop, or Ctrl-C where it runs)")
    some = [by_name[name] for name in dict.fromkeys(names)] if names else list(found)
    return [each for each in some if each.state != "running" and each.age_s >= (older_than_s or 0.0)]


def remove(storage: str, name: str, *, keep_runs: bool = False, dry_run: bool = False) -> Removed:
    """Deletes a sweep: its runs in MLflow, then its files, so that a failure leaves what finds the rest.

    Args:
        storage: of the sweep.
        name: of the sweep.
        keep_runs: MLflow keeps its runs.
        dry_run: nothing is deleted.

    Raises:
        SweepFolderError: a driver runs it, or, unless ``keep_runs``, its specification can't be read.
        RemovalError: MLflow's runs can't be deleted; the files are there still.
        OSError: the files can't be deleted.
    """
    folder = SweepFolder(storage, name)
    removed = Removed(0, 0)
    with folder.lock():
        if not keep_runs:
            spec = folder.spec()
            try:
                uri = tracking_uri_of(spec)
            except LocationError as error:
                raise RemovalError(str(error)) from error
            removed = remove_runs(uri, spec.tracking.experiment or spec.name, folder.run_key(), dry_run=dry_run)
        if not dry_run:
            folder.remove()
            shutil.rmtree(spool_folder(storage, name), ignore_errors=True)
    return removed


def _state(folder: SweepFolder) -> str:
    try:
        return status_of(folder).state
    except (SweepFolderError, ValueError, KeyError):
        return "unreadable"


def remove_all(
    storage: str, names: Sequence[str], tell: Callable[[str], None], *, keep_runs: bool, dry_run: bool
) -> list[dict[str, Any]]:
    """Deletes sweeps one after the other; one that can't be deleted is said, and the others are.

    Returns:
        Of each: ``sweep``, ``runs``, ``runs_kept``, and ``error`` or None.
    """
    done: list[dict[str, Any]] = []
    for name in names:
        error: str | None = None
        removed = Removed(0, 0)
        try:
            removed = remove(storage, name, keep_runs=keep_runs, dry_run=dry_run)
            rest = f", {removed.kept} runs stay, as a policy of them is registered" if removed.kept else ""
            verb = "would be deleted" if dry_run else "deleted"
            tell(f"{name}: {verb}, with {removed.runs} runs in MLflow{rest}")
        except (ValueError, OSError) as problem:
            error = str(problem)
            tell(f"{name}: not deleted: {error}")
        done.append({"sweep": name, "runs": removed.runs, "runs_kept": removed.kept, "error": error})
    return done
