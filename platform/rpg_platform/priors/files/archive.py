"""A zip reader with limits, for archives from others. Nothing is ever written to disk.

``open_archive`` lets ``zipfile`` read the directory of the archive and refuses what an honest one has not: members that
claim to be elsewhere (``../x``), twice the same name, encryption, compression far beyond what data compress to, more
members or bytes than the limits. ``Archive.read`` decompresses one member, never beyond the size that it claimed, and
checks its CRC. Every refusal is a ``PriorImportError``.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rpg_algorithms.addons import Array
from rpg_platform.priors.files.inert_readers import make_array
from rpg_platform.priors.imported import PriorImportError

_ENCRYPTED = 0x1
_END_BYTES = 22  # of the record at the end, without its comment
_MEGABYTE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds of one archive.

    Attributes:
        archive_bytes: size of the file.
        members: number of members, those of archives stored in it included.
        member_bytes: size of one member, unpacked.
        total_bytes: size of all members, unpacked.
        ratio: unpacked over packed size, where the unpacked size exceeds 1 MiB.
    """

    archive_bytes: int = 1 << 30
    members: int = 10_000
    member_bytes: int = 1 << 30
    total_bytes: int = 1 << 30
    ratio: int = 200


class Archive(Mapping[str, bytes]):
    """A zip archive in memory: a mapping from member names (folders left out) to their bytes.

    Attributes:
        what: names it in messages.
    """

    def __init__(self, what: str, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self.what = what
        self._archive = archive
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
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            KeyError: no such member.
            PriorImportError: it is damaged.
        """
        member, where = self._members[name], f"{self.what}: {name}"
        try:
            with self._archive.open(member) as stream:
                content = stream.read(member.file_size + 1)  # no more, whatever the data unpack to
        except _DAMAGE as error:
            raise PriorImportError(f"{where}: truncated or damaged: {str(error)[:200]}") from error
        if len(content) != member.file_size:
            raise PriorImportError(f"{where}: truncated or damaged: {len(content)} of {member.file_size} bytes")
        return content


def open_archive(source: Path | bytes, what: str | None = None, limits: ArchiveLimits | None = None) -> Archive:
    """Reads a zip archive's directory.

    Args:
        source: a file, or the bytes of an archive (such as a member of another).
        what: names it in messages; the path by default.
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
    if not data.startswith((b"PK\3\4", b"PK\5\6")):
        raise PriorImportError(f"{what}: not a zip archive{looks_like(data)}")
    if (count := data.count(b"PK\1\2")) > limits.members:  # before zipfile makes an object of each
        raise PriorImportError(f"{what}: {count} members, more than the {limits.members} that are read")
    headless = f"{what}: the archive is truncated: it has no directory at its end"
    if b"PK\5\6" not in data[-_END_BYTES - 0xFFFF :]:
        raise PriorImportError(headless)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except UnicodeDecodeError as error:
        raise PriorImportError(f"{what}: the archive is damaged: a member's name is not text") from error
    except _DAMAGE as error:
        raise PriorImportError(f"{what}: the archive is truncated or damaged: {str(error)[:200]}") from error
    if not data.startswith(b"PK\5\6", max(0, len(data) - _END_BYTES - len(archive.comment))):
        raise PriorImportError(headless)
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = _checked(member, data, what)
        if member.is_dir():
            continue
        if name in members:
            raise PriorImportError(f"{what}: has two members named {name}; expected each once")
        members[name] = member
    # A truncated archive may end in an archive stored in it, whose directory zipfile takes for that of the whole.
    if min((member.header_offset for member in archive.infolist()), default=0) > 0:
        raise PriorImportError(headless)
    _check_sizes(members, what, limits)
    return Archive(what, archive, members)


def _checked(member: zipfile.ZipInfo, data: bytes, what: str) -> str:
    """The member's name. Raises PriorImportError where an honest archive has no such member."""
    name = member.orig_filename
    if not name or not name.isprintable():
        raise PriorImportError(f"{what}: the archive is damaged: a member is named {name[:100]!r}")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise PriorImportError(f"{what}: member {name[:100]!r} points outside of the archive")
    if member.flag_bits & _ENCRYPTED:
        raise PriorImportError(f"{what}: {name} is encrypted; expected an archive without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PriorImportError(
            f"{what}: {name} is packed by method {member.compress_type}; expected stored or deflated"
        )
    if member.volume:
        raise PriorImportError(f"{what}: one part of an archive in several; expected a whole one")
    start, end = member.header_offset, member.header_offset + member.compress_size
    if start < 0 or end > len(data) or not data.startswith(b"PK\3\4", start):
        raise PriorImportError(f"{what}: truncated or damaged: {name} is not where the archive's directory says")
    return name


def _check_sizes(members: Mapping[str, zipfile.ZipInfo], what: str, limits: ArchiveLimits) -> None:
    for name, member in members.items():
        packed, size = member.compress_size, member.file_size
        if size > limits.member_bytes:
            raise PriorImportError(
                f"{what}: {name} unpacks to {size} bytes, more than the {limits.member_bytes} that are read"
            )
        if size > max(_MEGABYTE, limits.ratio * packed):
            raise PriorImportError(f"{what}: {name} claims to unpack {packed} bytes to {size}: a zip bomb, or damaged")
    packed = sum(member.compress_size for member in members.values())
    total = sum(member.file_size for member in members.values())
    if total > limits.total_bytes:
        raise PriorImportError(
            f"{what}: unpacks {packed} bytes to {total}, more than the {limits.total_bytes} that are read"
        )


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
        return make_array(data[start:], header["descr"], shape, "F" if header["fortran"] == "True" else "C")
    except TypeError as error:
        raise PriorImportError(f"{where}: holds {header['descr']}, expected numbers") from error
    except ValueError as error:
        raise PriorImportError(f"{where}: truncated or damaged: {error}") from error


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
