"""A zip reader with limits, for archives from others. Nothing is ever written to disk.

``open_archive`` reads the directory of the archive and refuses what an honest one has not: members that claim to be
elsewhere (``../x``), twice the same name, encryption, compression far beyond what data compress to, more members or
bytes than the limits. ``Archive.read`` decompresses one member, never beyond the size that it claimed, and checks its
CRC. Every refusal is a ``PriorImportError``.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rpg_platform.priors.files.inert_values import KeepInert, make_array
from rpg_platform.priors.imported import PriorImportError

Array = NDArray[Any]
_DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_END_64_LOCATOR = struct.Struct("<4sIQI")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x1, 0x800
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds of one archive.

    Attributes:
        archive_bytes: size of the file.
        members: number of members.
        member_bytes: size of one member, unpacked.
        total_bytes: size of all members, unpacked.
        ratio: unpacked over packed size, where the unpacked size exceeds 1 MiB.
    """

    archive_bytes: int = 1 << 30
    members: int = 10_000
    member_bytes: int = 1 << 30
    total_bytes: int = 1 << 30
    ratio: int = 200


@dataclass(frozen=True)
class _Member:
    offset: int
    packed: int
    size: int
    method: int
    crc: int


class Archive(Mapping[str, bytes]):
    """A zip archive in memory: a mapping from member names (folders left out) to their bytes.

    Attributes:
        what: what it is, for messages.
    """

    def __init__(self, data: bytes, what: str, members: Mapping[str, _Member]) -> None:
        self.what = what
        self._data = data
        self._members = members

    def __getitem__(self, name: str) -> bytes:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def size(self, name: str) -> int:
        """Unpacked size of a member. Raises KeyError."""
        return self._members[name].size

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            KeyError: no such member.
            PriorImportError: it is damaged.
        """
        member, where = self._members[name], f"{self.what}: {name}"
        header = self._data[member.offset : member.offset + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise PriorImportError(f"{where}: the archive is truncated or damaged: no data where its directory says")
        name_size, extra_size = _LOCAL_HEADER.unpack(header)[-2:]
        start = member.offset + _LOCAL_HEADER.size + name_size + extra_size
        packed = self._data[start : start + member.packed]
        if len(packed) != member.packed:
            raise PriorImportError(f"{where}: the archive is truncated: {len(packed)} of {member.packed} bytes")
        content = packed if member.method == _STORED else _inflate(packed, member.size, where)
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise PriorImportError(f"{where}: damaged: its checksum or size is not what the archive says")
        return content


def open_archive(source: Path | bytes, what: str | None = None, limits: ArchiveLimits | None = None) -> Archive:
    """Reads a zip archive's directory.

    Args:
        source: a file, or the bytes of an archive (such as a member of another).
        what: what it is, for messages; the path by default.
        limits: bounds, by default ``ArchiveLimits()``.

    Raises:
        PriorImportError: missing, not a zip archive, truncated, damaged, or beyond the limits.
    """
    limits = limits or ArchiveLimits()
    if isinstance(source, Path):
        what = what or str(source)
        data = read_file(source, limits.archive_bytes)
    else:
        what, data = what or "archive", source
    try:
        members = _directory(data, what, limits)
    except struct.error as error:
        raise PriorImportError(f"{what}: the archive is truncated or damaged: {error}") from error
    _check_sizes(members, what, limits)
    return Archive(data, what, members)


def read_file(path: Path, limit: int = 1 << 30) -> bytes:
    """The bytes of a file of at most ``limit`` bytes. Raises PriorImportError."""
    try:
        if not path.is_file():
            raise PriorImportError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, PriorImportError):
            raise
        raise PriorImportError(f"{path}: cannot be read: {error}") from error
    if len(data) > limit:
        raise PriorImportError(f"{path}: more than the {limit} bytes that are read")
    return data


def read_npz(source: Path | bytes, what: str | None = None, limits: ArchiveLimits | None = None) -> dict[str, Array]:
    """The arrays of a numpy ``.npz`` file by name; numeric ones only, as ``numpy.load`` without pickles reads them.

    Raises:
        PriorImportError: not such a file, or beyond the limits.
    """
    archive = open_archive(source, what, limits)
    arrays: dict[str, Array] = {}
    for name in archive:
        if not name.endswith(".npy"):
            raise PriorImportError(f"{archive.what}: {name} is no array; expected a file of numpy.savez")
        arrays[name.removesuffix(".npy")] = read_npy(archive.read(name), f"{archive.what}: {name}")
    return arrays


_NPY_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{1,8})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,13}(?:, ?\d{1,13}){0,31})?,?)\),? ?\} *\n?"
)


def read_npy(data: bytes, where: str) -> Array:
    """The array of a numpy ``.npy`` file; of numbers. Raises PriorImportError, which names it ``where``."""
    width = {b"\x93NUMPY\1\0": 2, b"\x93NUMPY\2\0": 4}.get(data[:8])
    if width is None:
        raise PriorImportError(f"{where}: not a numpy array")
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _NPY_HEADER.fullmatch(data[8 + width : min(start, 10_000)].decode("latin-1"))
    if header is None:
        raise PriorImportError(f"{where}: not an array of numbers, or damaged")
    shape = tuple(int(n) for n in header["shape"].split(",") if n.strip())
    try:
        return make_array(data[start:], header["descr"], shape, "F" if header["fortran"] == "True" else "C", _free)
    except KeepInert as error:
        raise PriorImportError(f"{where}: holds {header['descr']}, expected numbers") from error
    except ValueError as error:
        raise PriorImportError(f"{where}: truncated or damaged: {error}") from error


def _free(size: int) -> None:
    """Memory that the archive's own limits already bound."""


def _directory(data: bytes, what: str, limits: ArchiveLimits) -> dict[str, _Member]:
    start, size, count = _end_record(data, what)
    if count > limits.members:
        raise PriorImportError(f"{what}: {count} members, more than the {limits.members} that are read")
    position, end = start, start + size
    members: dict[str, _Member] = {}
    for _ in range(count):
        entry = _DIRECTORY_ENTRY.unpack_from(data, position)
        if entry[0] != b"PK\1\2":
            raise PriorImportError(f"{what}: the archive is damaged: its directory has fewer members than it says")
        flags, method, crc, packed, full, name_size, extra_size, comment_size = (*entry[3:5], *entry[7:13])
        position += _DIRECTORY_ENTRY.size
        raw = data[position : position + name_size]
        extra = data[position + name_size : position + name_size + extra_size]
        position += name_size + extra_size + comment_size
        if position > end or end > len(data):
            raise PriorImportError(f"{what}: the archive is truncated or damaged: its directory is cut")
        name = _member_name(raw, flags, what)
        if flags & _ENCRYPTED:
            raise PriorImportError(f"{what}: {name} is encrypted; expected an archive without a password")
        if method not in (_STORED, _DEFLATED):
            raise PriorImportError(f"{what}: {name} is packed by method {method}; expected stored or deflated")
        full, packed, offset = _wide_sizes(extra, full, packed, entry[16])
        if name.endswith("/"):
            continue
        if name in members:
            raise PriorImportError(f"{what}: has two members named {name}; expected each once")
        members[name] = _Member(offset, packed, full, method, crc)
    return members


def _end_record(data: bytes, what: str) -> tuple[int, int, int]:
    """Where the directory starts, its size and the number of its entries."""
    if not data.startswith((b"PK\3\4", b"PK\5\6")):
        raise PriorImportError(f"{what}: not a zip archive{looks_like(data)}")
    at, limit = len(data), len(data) - _END.size - 0xFFFF
    while (at := data.rfind(b"PK\5\6", max(0, limit), at)) >= 0:  # an archive stored in it has such a record too
        if at + _END.size <= len(data) == at + _END.size + int.from_bytes(data[at + 20 : at + 22], "little"):
            break
    else:
        raise PriorImportError(f"{what}: the archive is truncated: it has no directory at its end")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(data, at)
    locator_at = at - _END_64_LOCATOR.size
    if locator_at >= 0 and data.startswith(b"PK\6\7", locator_at):
        end_64 = _END_64_LOCATOR.unpack_from(data, locator_at)[2]
        if end_64 > locator_at or not data.startswith(b"PK\6\6", end_64):
            raise PriorImportError(f"{what}: the archive is damaged: its directory is not where it says")
        disk, count, size, start = (_END_64.unpack_from(data, end_64)[i] for i in (4, 7, 8, 9))
    if disk:
        raise PriorImportError(f"{what}: one part of an archive in several; expected a whole one")
    if start + size > at:
        raise PriorImportError(f"{what}: the archive is truncated or damaged: its directory is not where it says")
    return start, size, count


def _wide_sizes(extra: bytes, full: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset of 64 bits out of the extra field, where the entry says that they stand there."""
    values = [full, packed, offset]
    wide = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    position = 0
    while wide and position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            for index, value in zip(wide, struct.unpack_from(f"<{len(wide)}Q", extra, position + 4), strict=True):
                values[index] = value
            break
        position += 4 + size
    return values[0], values[1], values[2]


def _member_name(raw: bytes, flags: int, what: str) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise PriorImportError(f"{what}: the archive is damaged: a member's name is not text") from error
    if not name or not name.isprintable():
        raise PriorImportError(f"{what}: the archive is damaged: a member is named {name[:100]!r}")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise PriorImportError(f"{what}: member {name[:100]!r} points outside of the archive")
    return name


def _check_sizes(members: Mapping[str, _Member], what: str, limits: ArchiveLimits) -> None:
    total = sum(member.size for member in members.values())
    packed = sum(member.packed for member in members.values())
    for name, member in members.items():
        if member.size > limits.member_bytes:
            raise PriorImportError(
                f"{what}: {name} unpacks to {member.size} bytes, more than the {limits.member_bytes} that are read"
            )
        if member.size > max(_MEGABYTE, limits.ratio * member.packed):
            raise PriorImportError(
                f"{what}: {name} claims to unpack {member.packed} bytes to {member.size}: a zip bomb, or damaged"
            )
    if total > limits.total_bytes:
        raise PriorImportError(
            f"{what}: unpacks {packed} bytes to {total}, more than the {limits.total_bytes} that are read"
        )


def _inflate(packed: bytes, size: int, where: str) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise PriorImportError(f"{where}: damaged: {error}") from error


def looks_like(data: bytes) -> str:
    """What the bytes look like instead, to append to a message: ``: it looks like …``, or nothing."""
    if not data:
        return ": it is empty"
    for start, kind in (
        (b"\x80", "a pickle, or a file of torch.save of before 1.6"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"%PDF", "a PDF document"),
        (b"<", "an XML or HTML document"),
        (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
    ):
        if data.startswith(start):
            return f": it looks like {kind}"
    text = data[:1000]
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in text)
    return ": it looks like a text" if printable > 0.95 * len(text) else ""
