"""The content by which a format is told: a file's first bytes, an archive's members, a folder's files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rpg_platform.priors.imported import PriorImportError

_START_BYTES = 256


@dataclass(frozen=True)
class Content:
    """A file or folder that somebody gives as a prior, looked at only as far as a question needs it.

    Attributes:
        path: the file or folder; it exists.
    """

    path: Path

    @cached_property
    def start(self) -> bytes:
        """The first 256 bytes of a file; nothing of a folder. Raises PriorImportError where it cannot be read."""
        if self.path.is_dir():
            return b""
        try:
            with self.path.open("rb") as stream:
                return stream.read(_START_BYTES)
        except OSError as error:
            raise PriorImportError(f"{self.path}: cannot be read: {error.strerror}") from error

    @cached_property
    def members(self) -> frozenset[str]:
        """The names of a zip archive's members; none of anything else. Raises PriorImportError for a damaged one."""
        if not self.start.startswith(b"PK"):
            return frozenset()
        from rpg_platform.priors.files.archive import open_archive  # needs numpy, which `rpg --help` does not

        return frozenset(open_archive(self.path))

    @cached_property
    def member_files(self) -> frozenset[str]:
        """The same names without their folders."""
        return frozenset(name.rpartition("/")[2] for name in self.members)

    def has(self, name: str) -> bool:
        """Whether a folder holds a file of this name."""
        return (self.path / name).is_file()
