"""Filling a disk, and what lies on it."""

from __future__ import annotations

from pathlib import Path

from rpg_platform.trial.room import free_bytes

MB = 2**20


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
