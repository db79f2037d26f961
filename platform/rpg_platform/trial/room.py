"""Room on a disk: what is free in a folder, and no checkpoint begun that does not fit.

A trial writes a checkpoint to the temporary folder of its machine, and Tune copies it to the storage from there. A
checkpoint that does not fit on either disk is not begun, so that the one before it stays whole. The driver watches its
own disks besides (`run.disk_guard`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

RESERVE = 32 * 2**20
"""Bytes that the driver leaves for results, MLflow's database and logs."""
SLACK = 2**20
"""Bytes that a trial leaves beside its checkpoint."""


class DiskFullError(OSError):
    """There is no room for a checkpoint; the message names the folder, what is free and what is needed."""

    def __str__(self) -> str:
        return str(self.strerror)


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of 1,000: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} TB"


def existing(folder: str | Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder)
    return next(each for each in (path, *path.parents) if each.exists())


def free_bytes(folder: str | Path) -> int:
    """Bytes that may still be written to a folder (or to where it will be made); 0 where no file can be added."""
    path = existing(folder)
    return 0 if _is_out_of_files(path) else shutil.disk_usage(path).free


def free_text(folder: str | Path) -> str:
    """What is free in a folder, as a sentence."""
    path = existing(folder)
    if _is_out_of_files(path):
        return "no more files can be made (no inode is free)"
    return f"{size_text(shutil.disk_usage(path).free)} are free"


def _is_out_of_files(path: Path) -> bool:
    """Whether a file system has room for no further file; some (btrfs) count none."""
    found = os.statvfs(path)
    return found.f_files > 0 and found.f_favail == 0


def by_disk(needs: Iterable[tuple[str | Path, int]]) -> list[tuple[Path, int]]:
    """Adds up the needs of folders that share a file system, under the first of them."""
    found: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        path = existing(folder)
        first, so_far = found.get(path.stat().st_dev, (path, 0))
        found[path.stat().st_dev] = (first, so_far + needed)
    return list(found.values())


@contextlib.contextmanager
def checkpoint_room(folder: Path, storage: str | None, needed: int) -> Iterator[None]:
    """Stands around the writing of a checkpoint: refuses what does not fit, and leaves nothing half written behind.

    Args:
        folder: the temporary folder that it is written to.
        storage: the local folder that it is copied to afterwards; None where that is elsewhere.
        needed: its size, bytes.

    Raises:
        DiskFullError: it does not fit, on either disk; nothing has been written.
    """
    places: list[str | Path] = [folder] if storage is None else [folder, storage]
    for path, size in by_disk((place, needed) for place in places):
        if free_bytes(path) < size + SLACK:
            text = f"{path}: {free_text(path)}, and the next checkpoint needs {size_text(size + SLACK)}"
            raise DiskFullError(errno.ENOSPC, text)
    try:
        yield
    except OSError:
        for each in folder.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        raise
