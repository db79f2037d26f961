"""A write-ahead spool on disk: records are appended first, sent later, and forgotten once they are acknowledged.

A spool is a folder that one process at a time may write::

    lock                    held (``flock``) for as long as a process has the spool open; a killed process lets go
    000001.log, …           segments: one record a line, ``CRC32 of the JSON, space, JSON, newline``
    acknowledged            how far everything has been dealt with; replaced whole, never written in place
    rejected.log            records given up, each with its reason, in the same line format
    …                       small files of whoever owns the spool (``remember``, ``write_json``)

What each death may cost:

- of the process, at any point: nothing. A record that ``append`` has returned from is in the operating system. The
  acknowledgement may be older than what was sent, never newer, so the same records may be read a second time.
- of the machine: what was appended in the last second (``SYNC_EVERY_S``), as segments are synced to the disk by a
  thread of their own that often.
- of a sector: the records in it. A line whose checksum does not fit is skipped and counted; a torn last line, of a
  record whose ``append`` never returned, is skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = "tracking"
"""Name of a sweep's spool inside the sweep's folder."""

SEGMENT_BYTES = 8 * 2**20
WINDOW_BYTES = 2**20
SYNC_EVERY_S = 1.0
MAX_UNWRITTEN = 10_000
_LOCK, _ACKNOWLEDGED, _REJECTED = "lock", "acknowledged", "rejected.log"
_SEGMENT = re.compile(r"(\d{6,})\.log")


class SpoolError(ValueError):
    """A spool that can't be used; the message says which and why."""


class SpoolBusyError(SpoolError):
    """Another process has the spool open."""


@dataclass(frozen=True)
class Position:
    """A place between two records.

    Attributes:
        segment: number of the segment.
        offset: bytes into it.
        number: records before this place, since the spool was made.
    """

    segment: int = 0
    offset: int = 0
    number: int = 0


@dataclass(frozen=True)
class Window:
    """Some records in a row.

    Attributes:
        records: each with its number, counted from 1.
        end: the place after them.
        damaged: lines among them that could not be read.
    """

    records: tuple[tuple[int, dict[str, Any]], ...]
    end: Position
    damaged: int = 0


def encode(payload: Mapping[str, Any]) -> bytes:
    """One line: checksum and JSON.

    Raises:
        TypeError: the payload is not JSON.
        ValueError: it holds NaN or infinity, or itself.
    """
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> dict[str, Any] | None:
    """The payload of one line, or None if it is not whole."""
    line = line.lstrip(b"\0")  # what some file systems fill the gap with that a power failure leaves
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:-1]):
            return None
        payload = json.loads(line[9:-1])
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None


def read_lines(file: Path) -> Iterator[dict[str, Any] | None]:
    """The payloads of a file of lines, None for each damaged one; nothing if there is no such file."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
        for line in lines:
            yield decode(line)


def write_atomically(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Replaces a file whole: a reader, and a kill, see the old content or the new one.

    Args:
        file: the file.
        content: all of it.
        durable: whether it must also outlive a power failure from now on.
    """
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as output:
        output.write(content)
        if durable:
            output.flush()
            os.fsync(output.fileno())
    temporary.replace(file)


def _end_last_line(file: Path) -> None:
    """Ends a line that a kill cut, so that the next one is not lost with it."""
    with contextlib.suppress(OSError), file.open("r+b") as lines:
        if lines.seek(0, os.SEEK_END) > 0:
            lines.seek(-1, os.SEEK_END)
            if lines.read(1) != b"\n":
                lines.write(b"\n")


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

    ``append`` may be called by any thread and costs a write to the page cache; ``read`` and ``acknowledge`` belong to
    one thread. Memory stays bounded whatever is waiting on the disk.

    Attributes:
        folder: the folder.
        damaged: lines that could not be read, among those acknowledged since ``open``.
        lost: records that could be written neither to the disk nor kept in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0
        self.lost = 0
        self._appending = threading.Lock()
        self._lock_fd: int | None = None
        self._acknowledged = Position()
        self._number = 0  # records appended since the spool was made, by every process
        self._segment = 0  # the one being written, or the last there was
        self._fd: int | None = None
        self._committed = 0  # bytes of the segment being written that are whole lines
        self._retired: list[int] = []  # descriptors of full segments, to be synced and closed
        self._dirty = False
        self._unwritten: deque[bytes] = deque()  # lines that a full disk did not take
        self._warned = False
        self._ack_written = True
        self._stop_syncing = threading.Event()
        self._syncer: threading.Thread | None = None

    # ---- opening and closing --------------------------------------------------------------------

    def open(self) -> None:
        """Takes the spool for this process and finds what an earlier one left.

        Raises:
            SpoolBusyError: another process has it.
            OSError: the folder can't be made or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        for file in self.folder.glob("*.log"):
            if not _SEGMENT.fullmatch(file.name):
                _end_last_line(file)
        segments = self._segments()
        self._acknowledged = self._read_acknowledged(segments)
        self._segment = max([*segments, self._acknowledged.segment])
        self._number = self._acknowledged.number
        for segment in reversed(segments):
            numbers = [payload["n"] for payload in read_lines(self._path(segment)) if payload]
            if numbers:
                self._number = max(self._number, *numbers)
                break
        self._remove_segments()
        self._stop_syncing.clear()
        self._syncer = threading.Thread(target=self._sync_often, name="rpg-spool-sync", daemon=True)
        self._syncer.start()

    def close(self) -> None:
        """Syncs, lets go of the lock, and removes the segments if nothing in them is waiting."""
        if self._lock_fd is None:
            return
        self._stop_syncing.set()
        if self._syncer is not None:
            self._syncer.join()
        with self._appending:
            self._write_unwritten()
            self.lost += len(self._unwritten)
            self._unwritten.clear()
            self._retire()
        self.sync()
        if self.waiting == 0 and self._ack_written:
            for segment in self._segments():
                self._path(segment).unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = None

    def _take_lock(self) -> None:
        # Not inherited by child processes: Ray's would hold the lock of a driver that was killed.
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = descriptor

    def _read_acknowledged(self, segments: list[int]) -> Position:
        start = Position(min(segments, default=0))
        try:
            found = decode((self.folder / _ACKNOWLEDGED).read_bytes())
        except FileNotFoundError:
            return start
        if found is None:  # then everything there is is read once more
            logger.warning("tracking: %s is damaged; what is spooled is sent again", self.folder / _ACKNOWLEDGED)
            return start
        return Position(**found)

    # ---- writing --------------------------------------------------------------------------------

    @property
    def appended(self) -> int:
        """Records appended since the spool was made, by every process."""
        return self._number

    @property
    def acknowledged(self) -> Position:
        """Up to where everything has been dealt with."""
        return self._acknowledged

    @property
    def waiting(self) -> int:
        """Records appended and not acknowledged."""
        return max(0, self._number - self._acknowledged.number)

    def append(self, payload: Mapping[str, Any]) -> None:
        """Appends a record (JSON); it gets the key ``n``, its number.

        A full disk is survived: what can't be written waits in memory, up to ``MAX_UNWRITTEN`` records, for the next
        call; beyond that it is lost and counted.

        Raises:
            TypeError, ValueError: the record is not JSON, or holds NaN or infinity.
        """
        with self._appending:
            line = encode({"n": self._number + 1, **payload})
            if len(self._unwritten) >= MAX_UNWRITTEN:
                self._write_unwritten()
            if len(self._unwritten) >= MAX_UNWRITTEN:
                self.lost += 1
                return
            self._number += 1
            self._unwritten.append(line)
            self._write_unwritten()

    def _write_unwritten(self) -> None:
        while self._unwritten and self._write(self._unwritten[0]):
            self._unwritten.popleft()

    def _write(self, line: bytes) -> bool:
        try:
            if self._fd is None or self._committed >= SEGMENT_BYTES:
                self._next_segment()
            assert self._fd is not None
            if os.write(self._fd, line) != len(line):
                raise OSError("the disk took a part only")
        except OSError as error:
            logger.log(
                logging.DEBUG if self._warned else logging.WARNING,
                "tracking: %s can't be written (%s); up to %d records wait in memory",
                *(self.folder, error, MAX_UNWRITTEN),
            )
            self._warned = True
            self._undo()
            return False
        self._committed += len(line)
        self._dirty = True
        return True

    def _next_segment(self) -> None:
        self._retire()
        self._segment += 1
        self._committed = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(self._segment), flags, 0o666)

    def _undo(self) -> None:
        """Takes a half-written line back; if even that fails, the next record begins a new segment."""
        if self._fd is None:
            return
        try:
            os.ftruncate(self._fd, self._committed)
        except OSError:
            self._retire()

    def _retire(self) -> None:
        if self._fd is not None:
            self._retired.append(self._fd)
            self._fd = None

    def sync(self) -> None:
        """Puts what has been appended on the disk itself."""
        with self._appending:
            retired, self._retired = self._retired, []
            current, self._dirty = (self._fd if self._dirty else None), False
        for descriptor in (*retired, *([] if current is None else [current])):
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        for descriptor in retired:
            os.close(descriptor)
        if retired or current is not None:
            with contextlib.suppress(OSError):
                folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def _sync_often(self) -> None:
        while not self._stop_syncing.wait(SYNC_EVERY_S):
            self.sync()

    # ---- reading --------------------------------------------------------------------------------

    def read(self, position: Position) -> Window:
        """Some of the records after ``position``, about ``WINDOW_BYTES``; none if there are none yet."""
        while True:
            with self._appending:
                writing = self._fd is not None and position.segment == self._segment
                committed, number = self._committed, self._number - len(self._unwritten)
            window = self._read_segment(position, committed if writing else None)
            if writing and window.end.offset == committed:  # whatever was damaged, this is where we are
                window = replace(window, end=replace(window.end, number=number))
            if window.records or window.damaged or writing:
                return window
            later = [segment for segment in self._segments() if segment > position.segment]
            if not later:
                return window
            position = Position(later[0], 0, window.end.number)

    def _read_segment(self, position: Position, limit: int | None) -> Window:
        """Reads on in one segment.

        Args:
            position: where.
            limit: bytes of it that are whole lines; None: all there is, as nobody writes it any more.
        """
        records: list[tuple[int, dict[str, Any]]] = []
        offset, number, damaged = position.offset, position.number, 0
        with contextlib.suppress(FileNotFoundError), self._path(position.segment).open("rb") as file:
            file.seek(offset)
            while offset - position.offset < WINDOW_BYTES and (limit is None or offset < limit):
                line = file.readline()
                offset += len(line)
                if not line.endswith(b"\n"):  # the end, or a record that a kill cut: its append never returned
                    break
                payload = decode(line)
                if payload is None or not isinstance(payload.get("n"), int):
                    damaged += 1
                    continue
                number = max(number, payload.pop("n"))
                records.append((number, payload))
        return Window(tuple(records), Position(position.segment, offset, number), damaged)

    def acknowledge(self, window: Window) -> None:
        """Notes that everything up to the end of ``window`` has been dealt with; removes segments that are."""
        self.damaged += window.damaged
        self._acknowledged = window.end
        try:
            # Not durable: after a power failure an older one costs a repetition, and that adds nothing.
            write_atomically(self.folder / _ACKNOWLEDGED, encode(asdict(window.end)), durable=False)
        except OSError as error:
            self._ack_written = False
            logger.debug("tracking: %s: %s", self.folder / _ACKNOWLEDGED, error)
            return
        self._ack_written = True
        self._remove_segments()

    def _remove_segments(self) -> None:
        for segment in self._segments():
            if segment < self._acknowledged.segment:
                self._path(segment).unlink(missing_ok=True)

    def _segments(self) -> list[int]:
        found = (_SEGMENT.fullmatch(name) for name in os.listdir(self.folder))  # noqa: PTH208 - hot: names alone
        return sorted(int(match[1]) for match in found if match)

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:06d}.log"

    # ---- beside the records ---------------------------------------------------------------------

    @property
    def rejected_file(self) -> Path:
        """Where records lie that were given up."""
        return self.folder / _REJECTED

    def remember(self, file: str, payload: Mapping[str, Any]) -> None:
        """Appends a line to a small file beside the segments; a full disk is logged, not raised."""
        try:
            with (self.folder / file).open("ab") as output:
                output.write(encode(payload))
        except OSError as error:
            logger.warning("tracking: %s can't be written: %s", self.folder / file, error)

    def write_json(self, file: str, content: Mapping[str, Any]) -> None:
        """Replaces a small file beside the segments, durably.

        Raises:
            OSError: it can't be written.
        """
        write_atomically(self.folder / file, json.dumps(content, indent=2).encode())

    def newest_change(self) -> float:
        """When an earlier process last wrote, in seconds since the epoch; 0.0 if it never did."""
        files = [self._path(segment) for segment in self._segments()] + [self.folder / _ACKNOWLEDGED]
        times = []
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                times.append(file.stat().st_mtime)
        return max(times, default=0.0)
