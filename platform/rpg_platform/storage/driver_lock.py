"""One driver at a time: by a lock of the sweep's file system, a lease in its object store, or the other's heartbeat."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rpg_platform.storage.heartbeat import alive, in_words, this_process
from rpg_platform.storage.lease import LEASE_FILE, Lease, LeaseHeldError, NoLeaseError

LOCK_FILE = "driver.lock"
_ATTEMPTS, _PAUSE_S = 5, 0.05
_ONLY_HEARTBEAT = "Two drivers that begin within the same seconds do not see each other: start one at a time"


class HeldError(ValueError):
    """Another driver that is still alive has the sweep; the message says which."""


@contextlib.contextmanager
def file_lock(folder: Path, status: Callable[[], str | None]) -> Iterator[None]:
    """Holds a sweep in a local or a mounted folder, which is made.

    Args:
        folder: the sweep's.
        status: reads the sweep's status file: a network file system may keep a machine's locks to itself.

    Raises:
        HeldError: another driver holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        _take(file, str(folder))
        _check_heartbeat(str(folder), status(), locked=True)
        yield


@contextlib.contextmanager
def leased(
    uri: str, region: str | None, status: Callable[[], str | None], tell: Callable[[str], None], *, is_there: bool
) -> Iterator[Lease | None]:
    """Holds a sweep in an object store by a lease; where there can be none (None), by nobody else's heartbeat alone.

    Args:
        uri: of the sweep's folder.
        region: of its bucket, where pyarrow knows it.
        status: reads the sweep's status file.
        tell: told why there can be no lease.
        is_there: some driver has left a lease there.

    Raises:
        HeldError: another driver holds it, or may hold it.
    """
    lease: Lease | None = None
    from_dead = False
    try:
        lease = Lease(uri, region)
        from_dead = lease.take()
    except LeaseHeldError as error:
        raise HeldError(f"{uri} is being run by {error}: end that one first") from error
    except NoLeaseError as error:
        if is_there:
            raise HeldError(
                f"{uri}/{LEASE_FILE} says which driver runs the sweep, but it can't be renewed from here ({error}). "
                "If no driver runs the sweep, delete that file"
            ) from error
        lease = None
        tell(f"No lease on the storage: {error}. {_ONLY_HEARTBEAT}")
    try:
        if not from_dead:  # a driver that had no lease may run
            _check_heartbeat(uri, status(), locked=False)
        yield lease
    finally:
        if lease is not None:
            lease.give_back()


def is_locked(folder: Path) -> bool:
    """Whether a driver holds the sweep in a local folder."""
    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _check_heartbeat(uri: str, status: str | None, *, locked: bool) -> None:
    running = alive(status, time.time(), locked=locked)
    if running is not None:
        raise HeldError(f"{uri} is being run by {running}: end that one first")


def _take(file: IO[str], uri: str) -> None:
    for _ in range(_ATTEMPTS):  # whoever asks whether it is locked holds it for a moment
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_PAUSE_S)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        raise HeldError(
            f"{uri} is being run by {file.read().strip() or 'another driver'}; end that one first"
        ) from error
    file.truncate(0)
    file.write(in_words(this_process()))
    file.flush()
