"""Filling a disk, and what lies on it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rpg_platform.trial.room import free_bytes

MB = 2**20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 96 MB at a new folder, which only root can mount."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, free: int) -> Path:
    """Leaves so many bytes free; the file that takes the rest."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        while (more := free_bytes(folder) - free) > 0:
            file.write(b"x" * min(more, MB))
            file.flush()
    return ballast


def written(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
