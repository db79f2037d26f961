"""The hash of a source that a prior comes from, as its card records it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rpg_platform.priors.imported import PriorImportError

_MAX_FILES = 10_000


def hash_of(path: Path) -> str:
    """Computes the SHA-256 of a file, or of a folder's file names and their hashes in order, links left out.

    Raises:
        PriorImportError: the folder has more files than are hashed.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    whole = hashlib.sha256()
    files = sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
    if len(files) > _MAX_FILES:
        raise PriorImportError(f"{path}: {len(files)} files, more than the {_MAX_FILES} that are read")
    for each in files:
        whole.update(f"{each.relative_to(path).as_posix()}\0{hash_of(each)}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
