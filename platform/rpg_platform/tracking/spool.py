"""A spool on disk: records are appended first, sent later, and deleted once they are acknowledged.

A spool is a folder that one process at a time may open::

    lock            held (``flock``) for as long as a process has the spool open; a killed process lets go
    spool.db        SQLite: the records that wait, and what ``remember`` keeps; beside it its write-ahead log, ``-wal``
    rejected.log    records given up, each with its reason, one JSON object a line
    sweep.json      whose records they are (``write_json``)

How SQLite is set (``_SETTINGS``), and why:

- ``journal_mode=WAL``, ``synchronous=NORMAL``: an append writes to the log and syncs nothing. The death of the process
  costs nothing that ``append`` has returned from, because the operating system has it. A thread syncs the log every
  second (``SYNC_EVERY_S``), so the death of the machine costs at most the last second. ``FULL`` would sync at each
  report in the driver's thread; with ``OFF``, the death of the machine could damage the database.
- ``wal_autocheckpoint=0``: that same thread moves a long log into the database, not the driver's.
- ``locking_mode=EXCLUSIVE``: SQLite then needs no shared memory, which network file systems do not have.

Each record has a checksum, so a damaged one is skipped and counted. A database that SQLite finds damaged is replaced by
one of what can still be read of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rpg_platform.storage.sweep_folder import SPOOL_FOLDER
from rpg_platform.tracking import old_spool

logger = logging.getLogger(__name__)

FOLDER = SPOOL_FOLDER

WINDOW_BYTES = 2**20
LOG_BYTES = 4 * 2**20
UNUSED_BYTES = 2**20
SYNC_EVERY_S = 1.0
MAX_UNWRITTEN = 10_000
_SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE; PRAGMA page_size = 2048; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 0;
"""  # small pages, because an append writes each page that it changes
_TABLES = """
CREATE TABLE IF NOT EXISTS records (n INTEGER PRIMARY KEY, crc INTEGER NOT NULL, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS remembered (key TEXT PRIMARY KEY, json TEXT NOT NULL);
"""  # user_version is the number up to which everything is acknowledged
_ADD = "INSERT OR IGNORE INTO records VALUES (?, ?, ?)"
_READ = "SELECT n, crc, CAST(json AS BLOB) FROM records"
_REMEMBER = "INSERT OR REPLACE INTO remembered VALUES (?, ?)"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)

Row: TypeAlias = "tuple[int, dict[str, Any] | None]"
"""A record with its number, counted from 1; None in place of a record that is damaged."""

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""JSON on one line; refuses NaN and infinity with a ``ValueError``."""


class SpoolError(ValueError):
    """A spool that can't be used; the message says which and why."""


class SpoolBusyError(SpoolError):
    """Another process has the spool open."""


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line, without lines that a kill cut; nothing if there is no such file.

    A checksum before the object, which version 0.1.0 wrote, is passed over.
    """
    with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line[line.index(b"{") :])


def remembered(folder: Path) -> dict[str, dict[str, Any]]:
    """What the spool in ``folder`` remembers of each key, for readers beside its user; nothing if there is none."""
    file = folder / "spool.db"
    if not file.is_file():
        return {}
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        ) as database:
            return {str(key): json.loads(text) for key, text in database.execute("SELECT key, json FROM remembered")}
    except (sqlite3.Error, ValueError):
        return {}


def spool_folder(storage: str, name: str) -> Path:
    """Where the spool of a sweep lies.

    Beside the trials, in ``<storage>/<name>/tracking``. For storage that is not a local path (``s3://…``), on the
    driver's own disk: ``$XDG_STATE_HOME/rpg/tracking/<name>-<hash of the storage>``, by default
    ``~/.local/state/rpg/tracking/…``; the same storage and name give the same folder.
    """
    if storage.startswith("file://"):
        storage = storage.removeprefix("file://")
    if "://" not in storage:
        return Path(storage).expanduser().resolve() / name / FOLDER
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    digest = hashlib.sha256(storage.rstrip("/").encode()).hexdigest()[:12]
    return state / "rpg" / FOLDER / f"{name}-{digest}"


class Spool:
    """One spool folder. ``open`` it before anything else, ``close`` it at the end.

    Any thread may call ``append``; ``read`` and ``acknowledge`` belong to one thread. Memory stays bounded whatever
    waits on the disk.

    Attributes:
        folder: the folder.
        rejected_file: where records lie that were given up.
        appended: records appended since the spool was made, by every process.
        acknowledged: the number up to which everything has been dealt with.
        damaged: records that could not be read, among those acknowledged since ``open``; also from ``open`` on, if
            damage may have taken records or something that ``remember`` kept.
        lost: records that could be written neither to the disk nor kept in memory.
        changed_s: when an earlier process last wrote, in seconds since the epoch; 0.0 if none did.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rejected_file = folder / "rejected.log"
        self.appended = self.acknowledged = self.damaged = self.lost = 0
        self.changed_s = 0.0
        self._file, self._log = folder / "spool.db", folder / "spool.db-wal"
        self._lock_fd: int | None = None
        self._vfs = "unix"
        self._database: sqlite3.Connection | None = None
        self._one_at_a_time = threading.Lock()
        self._unwritten: deque[tuple[int, int, str]] = deque()  # rows that a full disk did not take
        self._unsynced = self._warned = False
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_often, name="rpg-spool-sync", daemon=True)

    # ---- opening and closing --------------------------------------------------------------------

    def open(self) -> None:
        """Takes the spool for this process and finds what an earlier one left, whichever version wrote it.

        Raises:
            SpoolBusyError: another process has it.
            OSError: the folder can't be made or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            written = [file for file in (self._file, self._log, *old_spool.files(self.folder)) if file.exists()]
            self.changed_s = max((file.stat().st_mtime for file in written), default=0.0)
            self._database = self._open_database()
            self._take_over_old_spool(self._database)
            [self.acknowledged] = self._database.execute("PRAGMA user_version").fetchone()
            [newest] = self._database.execute("SELECT max(n) FROM records").fetchone()
            self.appended = max(newest or 0, self.acknowledged)
        except Exception as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise OSError(f"{self._file} can't be used: {error}") from error
            raise
        self._syncer.start()

    def close(self) -> None:
        """Moves the log into the database, gives unused space back, and lets go of the lock."""
        self._closing.set()
        if self._syncer.is_alive():
            self._syncer.join()
        with self._one_at_a_time:
            if self._database is not None:
                self._write()
                self.lost += len(self._unwritten)
                self._unwritten.clear()
                self._checkpoint(unused_bytes=0)
                self._database.close()
                self._database = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _take_lock(self) -> None:
        # Not inherited by child processes: Ray's would hold the lock of a driver that was killed.
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise SpoolBusyError(
                f"{self.folder} is in use by process {owner or 'unknown'}: that sweep is still running and sends "
                "its records itself"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("tracking: %s can't be locked (%s): run one process at a time on it", self.folder, error)
            self._vfs = "unix-none"  # SQLite takes no locks either
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = descriptor

    def _connect(self, file: Path) -> sqlite3.Connection:
        address = f"{file.absolute().as_uri()}?vfs={self._vfs}"
        return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)

    def _open_database(self) -> sqlite3.Connection:
        database = self._connect(self._file)
        try:
            database.executescript(_SETTINGS)
            _, frames, _ = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if hidden := _hidden_commits(self._log, frames):
                logger.warning("tracking: %s is damaged: %d writes can't be read", self._log, hidden)
                self.damaged += hidden
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # what is written next lies on nothing old
            database.executescript(_TABLES)
            [found] = database.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in _DAMAGED:
                database.close()
                raise
            found = str(error)
        return database if found == "ok" else self._salvage(database, found)

    def _salvage(self, damaged: sqlite3.Connection, why: str) -> sqlite3.Connection:
        """Makes a new database of what can be read of a damaged one: from both ends of a table up to the damage."""
        why = " ".join(why.split())
        logger.warning("tracking: %s is damaged (%s); what can be read of it goes on", self._file, why)
        new = self._file.with_suffix(".new")
        new.unlink(missing_ok=True)
        with contextlib.closing(damaged), contextlib.closing(self._connect(new)) as saved:
            saved.executescript(_SETTINGS + _TABLES)
            for [acknowledged] in _readable(damaged, "PRAGMA user_version"):
                saved.execute(f"PRAGMA user_version = {acknowledged:d}")
            saved.executemany(_REMEMBER, _readable(damaged, "SELECT key, json FROM remembered"))
            for order in ("ASC", "DESC"):
                saved.executemany(_ADD, _readable(damaged, f"{_READ} ORDER BY n {order}"))
            [missing] = saved.execute("SELECT max(n) - min(n) + 1 - count(*) FROM records").fetchone()
        self._log.unlink(missing_ok=True)
        new.replace(self._file)
        self.damaged += missing or 1
        return self._open_database()

    def _take_over_old_spool(self, database: sqlite3.Connection) -> None:
        """Copies what version 0.1.0 spooled, then removes its files; a kill in between costs nothing."""
        if not (old := old_spool.files(self.folder)):
            return
        with database:
            database.execute("BEGIN")
            records, runs = old_spool.records(self.folder), old_spool.runs(self.folder)
            database.executemany(_ADD, (_row(number, encode(payload)) for number, payload in records))
            database.executemany(_REMEMBER, ((run, encode(known)) for run, known in runs))
            database.execute(f"PRAGMA user_version = {old_spool.acknowledged(self.folder):d}")
        self.damaged += old_spool.damaged(self.folder)
        database.execute("PRAGMA wal_checkpoint(FULL)")  # which syncs
        for file in old:
            file.unlink()

    # ---- writing --------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Records appended and not acknowledged."""
        return max(0, self.appended - self.acknowledged)

    def append(self, payload: Mapping[str, Any]) -> None:
        """Appends a record (JSON) and gives it the next number.

        What a full disk does not take waits in memory for the next call, up to ``MAX_UNWRITTEN`` records; beyond that
        it is lost and counted.

        Raises:
            TypeError, ValueError: the record is not JSON, or holds NaN or infinity.
        """
        text = encode(payload)
        with self._one_at_a_time:
            self._write()
            row = _row(self.appended + 1, text)
            if self._unwritten or not self._execute(_ADD, row):
                if len(self._unwritten) >= MAX_UNWRITTEN:
                    self.lost += 1
                    return
                self._unwritten.append(row)
            self.appended += 1

    def _write(self) -> None:
        """Writes what waits in memory, as far as the disk takes it."""
        while self._unwritten and self._execute(_ADD, self._unwritten[0]):
            self._unwritten.popleft()

    def acknowledge(self, rows: Sequence[Row]) -> None:
        """Notes that what ``read`` has given has been dealt with, and deletes it."""
        with self._one_at_a_time:
            self.damaged += sum(payload is None for _, payload in rows)
            self.acknowledged = number = rows[-1][0]
            # A power failure, or a kill in between, may cost a repetition, and that adds nothing.
            if self._execute(f"PRAGMA user_version = {number:d}"):
                self._execute("DELETE FROM records WHERE n <= ?", (number,))

    def remember(self, key: str, payload: Mapping[str, Any]) -> None:
        """Keeps what is known of ``key``, in place of what was known before."""
        with self._one_at_a_time:
            self._execute(_REMEMBER, (key, encode(payload)))

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> bool:
        """Executes a statement and returns whether the disk took it."""
        if self._database is None:  # closed, while a request of the sender hung
            return False
        try:
            self._database.execute(statement, values)
        except sqlite3.Error as error:
            said = "tracking: %s can't be written (%s); up to %d records wait in memory"
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(level, said, self._file, error, MAX_UNWRITTEN)
            self._warned = True
            return False
        self._unsynced = True
        return True

    def _sync_often(self) -> None:
        while not self._closing.wait(SYNC_EVERY_S):
            if not self._unsynced and not self._unwritten:
                continue
            self._unsynced = False
            with contextlib.suppress(OSError), self._log.open("rb") as log:
                os.fsync(log.fileno())  # appends go on meanwhile
            # Where the disk is full, a log that begins anew needs no more of it.
            unneeded = not self.waiting and _size(self._file) > UNUSED_BYTES
            if self._unwritten or unneeded or _size(self._log) > LOG_BYTES:
                with self._one_at_a_time:
                    self._checkpoint(UNUSED_BYTES)

    def _checkpoint(self, unused_bytes: int) -> None:
        """Moves the log into the database; if nothing waits, gives space back of which more than this is unused."""
        assert self._database is not None
        unused = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        with contextlib.suppress(sqlite3.Error):
            if not self.waiting and self._database.execute(unused).fetchone()[0] > unused_bytes:
                self._database.execute("VACUUM")
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # ---- reading --------------------------------------------------------------------------------

    def read(self, after: int) -> list[Row]:
        """Some of the records after number ``after``, about ``WINDOW_BYTES``; none if there are none yet."""
        found, size = [], 0
        with self._one_at_a_time:
            assert self._database is not None
            with contextlib.closing(self._database.execute(f"{_READ} WHERE n > ? ORDER BY n", (after,))) as rows:
                for row in rows:
                    found.append(row)
                    size += len(row[2])
                    if size >= WINDOW_BYTES:
                        break
        return [(number, json.loads(text) if zlib.crc32(text) == crc else None) for number, crc, text in found]

    def remembered(self) -> dict[str, dict[str, Any]]:
        """What ``remember`` has kept, in this process and earlier ones."""
        assert self._database is not None
        return {key: json.loads(text) for key, text in self._database.execute("SELECT key, json FROM remembered")}

    # ---- beside the database --------------------------------------------------------------------

    def reject(self, payload: Mapping[str, Any]) -> None:
        """Adds a record that is given up to ``rejected_file``; a full disk is logged, not raised."""
        try:
            with self.rejected_file.open("a") as output:
                output.write(f"\n{encode(payload)}")  # on a line of its own, even if a kill cut the last one
        except OSError as error:
            logger.warning("tracking: %s can't be written: %s", self.rejected_file, error)

    def write_json(self, file: str, content: Mapping[str, Any]) -> None:
        """Replaces a small file of the folder: whoever reads it, and whatever dies, finds the old content or the new.

        Raises:
            OSError: it can't be written.
        """
        new = self.folder / f".{file}.new"
        with new.open("w") as output:
            json.dump(content, output, indent=2)
            output.flush()
            os.fsync(output.fileno())
        new.replace(self.folder / file)


def _row(number: int, text: str) -> tuple[int, int, str]:
    return number, zlib.crc32(text.encode()), text


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _readable(database: sqlite3.Connection, query: str) -> Iterator[Any]:
    """Yields the rows of a query up to the first that can't be read."""
    with contextlib.suppress(sqlite3.Error):
        yield from database.execute(query)


def _hidden_commits(log: Path, frames: int) -> int:
    """Counts the writes in a write-ahead log that SQLite passes over because a frame before them is damaged.

    Args:
        log: the log; its format is described at sqlite.org/fileformat2.html#walformat.
        frames: how many of its frames SQLite has read.
    """
    content = log.read_bytes() if log.exists() else b""
    step = 24 + int.from_bytes(content[8:12])  # a frame's head and page
    # A kill can leave the head of a frame without its page: that write had not returned, and hides nothing.
    whole = range(32 + max(0, frames) * step, len(content) - step + 1, step)
    heads = (content[start : start + 16] for start in whole)
    return sum(head[8:16] == content[16:24] and any(head[4:8]) for head in heads)
