"""Reads what version 0.1.0 of rpg spooled: files of lines, each ``CRC32 of a JSON object, space, the object``.

``000001.log``, … hold the records, ``acknowledged`` the number up to which they have been sent, and ``runs.log`` which
MLflow run belongs to which trial (the last line of a trial is the valid one).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE = re.compile(r"\d{6,}\.log|acknowledged|runs\.log")


def files(folder: Path) -> list[Path]:
    """The files of that version in a spool's folder, segments in their order; empty for a later version's spool."""
    found = [file for file in folder.iterdir() if _FILE.fullmatch(file.name)]
    return sorted(found, key=lambda file: (len(file.name), file.name))


def acknowledged(folder: Path) -> int:
    """The number up to which everything was sent; 0 if that can't be read: then all that is there is sent again."""
    return next((int(payload["number"]) for payload in _lines(folder / "acknowledged") if payload), 0)


def records(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each record that can be read, with its number."""
    for file in files(folder):
        if file.name[0].isdigit():
            yield from ((payload.pop("n"), payload) for payload in _lines(file) if payload)


def runs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what was kept of the trials' runs, as far as it can be read."""
    return ((payload.pop("run"), payload) for payload in _lines(folder / "runs.log") if payload)


def damaged(folder: Path) -> int:
    """How many lines can't be read."""
    return sum(payload is None for file in files(folder) for payload in _lines(file))


def _lines(file: Path) -> Iterator[dict[str, Any] | None]:
    if not file.exists():
        return
    for line in file.read_bytes().splitlines(keepends=True):
        text = line.lstrip(b"\0")  # what some file systems fill the gap with that a power failure leaves
        try:
            if line.endswith(b"\n"):  # else a kill cut the line, before it counted
                yield json.loads(text[9:]) if int(text[:8], 16) == zlib.crc32(text[9:-1]) else None
        except ValueError:
            yield None
