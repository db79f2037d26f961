"""Which sweeps a storage holds."""

from __future__ import annotations

from rpg_platform.storage.sweep_folder import SweepFolder


def sweeps_in(storage: str) -> list[str]:
    """Names of the sweeps in a storage.

    Raises:
        SweepFolderError: the storage can't be read.
    """
    root = SweepFolder(storage, "")
    return sorted(name for name in root.folders() if SweepFolder(storage, name).is_sweep())
