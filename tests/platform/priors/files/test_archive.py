"""Zip archives and numpy files from others: what is read, and that each kind of bad one has its own message."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rpg_platform.priors.files.archive import ArchiveLimits, open_archive, read_file, read_npz
from rpg_platform.priors.imported import PriorImportError

TEXT = b"some text that packs well, " * 40


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, force_zip64: bool = False) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, content in members.items():
                with archive.open(zipfile.ZipInfo(name.rstrip("#")), "w", force_zip64=force_zip64) as member:
                    member.write(content)
    return stream.getvalue()


def deflated(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("make", [zipped, deflated, lambda m: zipped(m, force_zip64=True)])
def test_members_are_read(make: Callable[[dict[str, bytes]], bytes]) -> None:
    members = {"data": TEXT, "folder/": b"", "folder/ä.bin": np.random.default_rng(0).bytes(1_500_000), "empty": b""}
    archive = open_archive(make(members), "it")
    assert list(archive) == ["data", "folder/ä.bin", "empty"]
    assert {name: archive.read(name) for name in archive} == {k: v for k, v in members.items() if k != "folder/"}
    assert archive.size("data") == len(TEXT)
    assert archive.get("missing") is None


def test_an_archive_on_disk_with_wide_sizes_and_a_comment(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data", TEXT)
        archive.comment = b"a comment"
    assert open_archive(tmp_path / "a.zip")["data"] == TEXT
    assert zipfile.ZipFile(io.BytesIO(WIDE)).read("data") == TEXT
    assert open_archive(WIDE)["data"] == TEXT


def wide(data: bytes) -> bytes:
    """An archive of one member rewritten as zip64 writes it: the sizes stand in another record."""
    end = data.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<2I", data, end + 12)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size, start)
    record += b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    record += b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:end] + record


def patched(data: bytes, record: bytes, offset: int, value: bytes) -> bytes:
    """The archive with some bytes of its first such record replaced."""
    at = data.index(record) + offset
    return data[:at] + value + data[at + len(value) :]


WIDE = wide(zipped({"data": TEXT}))
PLAIN = zipped({"data": TEXT, "other": b"x"})
NESTED = zipped({"first": b"x", "inner": PLAIN, "last": b"x"})
PACKED = deflated({"data": TEXT, "other": b"x"})
CENTRAL = b"PK\1\2"
BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "not a zip archive: it is empty"),
    "text": (b"model weights, honestly\n" * 10, "not a zip archive: it looks like a text"),
    "pickle": (b"\x80\x02}q\x00.", "it looks like a pickle"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "HTML"),
    "noise": (bytes(range(128, 256)) * 4, "not a zip archive"),
    "cut in a member": (PLAIN[:200], "truncated: it has no directory"),
    "cut in the directory": (PLAIN[: PLAIN.index(CENTRAL) + 20], "truncated: it has no directory"),
    "cut in the end": (PLAIN[:-5], "truncated"),
    "cut behind an archive in it": (
        zipped({"other": b"x", "data": PLAIN, "last": b"x"})[: 80 + len(PLAIN)],
        "truncated",
    ),
    "something appended": (PLAIN + b"x" * 100, "truncated: it has no directory at its end"),
    "something before": (b"PK\3\4" + bytes(100) + PLAIN, "truncated"),
    "middle lost": (PLAIN[:300] + PLAIN[400:], "truncated or damaged: data is not where"),
    "directory elsewhere": (
        patched(PLAIN, b"PK\5\6", 16, struct.pack("<I", 10)),
        "is not where the archive's directory says",
    ),
    "smaller directory": (patched(PLAIN, b"PK\5\6", 12, struct.pack("<I", 51)), "damaged: other is not where"),
    "larger directory": (patched(PLAIN, b"PK\5\6", 12, struct.pack("<I", 200)), "truncated or damaged"),
    "directory of noise": (patched(PLAIN, CENTRAL, 0, b"noise"), "truncated or damaged"),
    "parts": (patched(PLAIN, CENTRAL, 34, struct.pack("<H", 3)), "one part of an archive in several"),
    "parts of a wide one": (patched(WIDE, b"PK\6\7", 4, b"\3"), "span multiple disks"),
    "encrypted": (patched(PLAIN, CENTRAL, 8, struct.pack("<H", 1)), "data is encrypted"),
    "another packer": (patched(PLAIN, CENTRAL, 10, struct.pack("<H", 14)), "packed by method 14"),
    "twice the same name": (zipped({"data": TEXT, "data#": b"x"}), "two members named data"),
    "parent folder": (zipped({"../../etc/cron.d/x": b"x"}), "points outside of the archive"),
    "parent folder inside": (zipped({"a/../../x": b"x"}), "points outside of the archive"),
    "root": (zipped({"/etc/passwd": b"x"}), "points outside of the archive"),
    "drive": (zipped({"C:/x": b"x"}), "points outside of the archive"),
    "backslashes": (patched(zipped({"..x..": b"x"}), CENTRAL, 46, b"..\\.."), "points outside of the archive"),
    "control character": (patched(zipped({"name": b"x"}), CENTRAL, 46, b"na\x1be"), "a member is named"),
    "name is no text": (patched(zipped({"nä": b"x"}), CENTRAL, 46, b"\xff\xff"), "name is not text"),
    "bomb": (deflated({"data": bytes(50 << 20)}), "unpack .* bytes to 52428800: a zip bomb"),
    "claims terabytes": (patched(PLAIN, CENTRAL, 24, struct.pack("<I", 0xF0000000)), "more than the 1073741824"),
    "no member there": (patched(PLAIN, CENTRAL, 42, struct.pack("<I", 7)), "data is not where the archive's directory"),
    "beyond the end": (patched(PLAIN, CENTRAL, 42, struct.pack("<I", 1 << 30)), "data is not where the archive's"),
    "claims more": (patched(PLAIN, CENTRAL, 20, struct.pack("<2I", 5_000, 5_000)), "data is not where the archive's"),
    "claims to be less of a bomb": (
        patched(deflated({"data": bytes(50 << 20)}), CENTRAL, 20, struct.pack("<I", 1 << 20)),
        "data is not where the archive's directory says",
    ),
    "many members": (zipped({str(i): b"" for i in range(10_001)}), "10001 members, more than the 10000"),
}
BAD_MEMBERS: dict[str, tuple[bytes, str]] = {
    "flipped bit": (patched(PLAIN, TEXT[:20], 3, b"\x00"), "data: truncated or damaged: Bad CRC-32"),
    "flipped bit, packed": (patched(PACKED, b"data", 20, b"\xff\xff\xff"), "data: truncated or damaged"),
    "unpacks to less": (patched(PACKED, CENTRAL, 24, struct.pack("<I", 5_000)), "1080 of 5000 bytes"),
    "another name in the member": (patched(PLAIN, b"PK\3\4", 30, b"evil"), "data: .*header b'evil' differ"),
    "unpacks to more": (patched(PACKED, CENTRAL, 24, struct.pack("<I", 100)), "data: truncated or damaged: Bad CRC-32"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archives_have_their_own_message(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    (tmp_path / "it.zip").write_bytes(data)
    start = time.process_time()
    with pytest.raises(PriorImportError, match=message) as caught:
        open_archive(tmp_path / "it.zip")
    assert str(caught.value).startswith(str(tmp_path / "it.zip"))
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_bad_members_have_their_own_message(name: str) -> None:
    data, message = BAD_MEMBERS[name]
    archive = open_archive(data, "it.zip")
    with pytest.raises(PriorImportError, match=message):
        archive.read("data")


def test_overlapping_members_do_not_multiply() -> None:
    """The bomb whose members share their bytes: small in ratio each, enormous together."""
    content = bytes(range(256)) * 4_096
    data = zipped({"a": content})
    at, end = data.index(CENTRAL), data.index(b"PK\5\6")
    entry = data[at : at + 28] + struct.pack("<H", 4) + data[at + 30 : at + 46]
    entries = b"".join(entry + f"{i:04}".encode() + data[at + 47 : end] for i in range(2_000))
    tail = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 2_000, 2_000, len(entries), at, 0)
    with pytest.raises(PriorImportError, match=r"unpacks 2097152000 bytes to 2097152000, more than"):
        open_archive(data[:at] + entries + tail)


def test_limits_are_those_that_are_given(tmp_path: Path) -> None:
    for limits, message in (
        (ArchiveLimits(members=1), "2 members"),
        (ArchiveLimits(member_bytes=10), "data unpacks to"),
        (ArchiveLimits(total_bytes=len(TEXT)), "more than the"),
        (ArchiveLimits(archive_bytes=10), "more than the 10 bytes"),
    ):
        (tmp_path / "a.zip").write_bytes(PLAIN)
        with pytest.raises(PriorImportError, match=message):
            open_archive(tmp_path / "a.zip", limits=limits)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PriorImportError, match="no such file"):
        open_archive(tmp_path / "missing.zip")
    with pytest.raises(PriorImportError, match="not a file"):
        read_file(tmp_path)
    with pytest.raises(PriorImportError, match=r"cannot be read|no such file"):
        read_file(tmp_path / ("x" * 300))


def test_npz() -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float32(2.5),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 4)),
        "big": np.arange(3, dtype=">f8"),
    }
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)
        found = read_npz(stream.getvalue())
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert found[name].dtype == np.asarray(array).dtype.newbyteorder("=")


def test_npz_with_anything_else() -> None:
    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    good = npy(np.zeros(4))
    for content, message in (
        (npy(np.array(["x", None], dtype=object)), "holds |O|expected numbers"),
        (npy(np.zeros(2, dtype=[("a", "f4")])), "not an array of numbers"),
        (npy(np.array(["text"])), "expected numbers"),
        (good[:-1], "truncated or damaged"),
        (good.replace(b"(4,)", b"(9,)"), "truncated or damaged"),
        (good.replace(b"(4,)", b"(4 )"), "not an array of numbers, or damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff", "not an array of numbers, or damaged"),
        (b"no array", "not a numpy array"),
    ):
        with pytest.raises(PriorImportError, match=message):
            read_npz(zipped({"a.npy": content}))
    with pytest.raises(PriorImportError, match="is no array"):
        read_npz(PLAIN)
