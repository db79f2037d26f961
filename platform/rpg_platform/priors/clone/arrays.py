"""Reads the arrays of demonstrations out of ``.npz`` and HDF5 files, by whichever of their usual names they have.

D4RL's HDF5 files, the ``.npz`` files of imitation (transitions and trajectories) and of Stable-Baselines 2, and those
of ``demonstrations`` are read. Only what is needed is: other arrays (``infos``, ``env_id``) may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.priors.files.archive import ArchiveLimits, open_archive, read_npy
from rpg_platform.priors.imported import PriorImportError

# Our name of an array, and the names by which files have it; the first that is there counts.
NAMES: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "obs", "observation"),
    "actions": ("actions", "acts", "action"),
    "episode_ids": ("episode_ids",),
    "episode_starts": ("episode_starts",),
    "terminations": ("terminations", "terminals", "dones"),
    "timeouts": ("timeouts", "truncations"),
    "rewards": ("rewards", "rews", "reward"),
    "indices": ("indices",),  # imitation's trajectories: where each but the first begins among the actions
    "terminal": ("terminal",),  # one per trajectory
}
MAX_BYTES = 4 << 30
"""Of arrays in memory, and of a file."""
HDF5_START = b"\x89HDF\r\n\x1a\n"
# Deflate itself packs at most 1,032 to 1, which the flags of long episodes reach.
_LIMITS = ArchiveLimits(archive_bytes=MAX_BYTES, member_bytes=MAX_BYTES, total_bytes=MAX_BYTES, ratio=1_100)


def read_arrays(path: Path) -> dict[str, Array]:
    """Reads the arrays of a file by our names: ``observations``, ``actions``, and what there is of the others.

    Raises:
        PriorImportError: another kind of file, damaged, beyond the limits, or without observations or actions.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(HDF5_START))
    except OSError as error:
        raise PriorImportError(f"{path}: cannot be read: {error.strerror}") from error
    arrays = _read_hdf5(path) if start == HDF5_START else _read_npz(path)
    if "indices" in arrays and "terminal" in arrays:
        return _of_trajectories(arrays, str(path))
    if "episode_starts" in arrays and "episode_ids" not in arrays:
        arrays["episode_ids"] = np.cumsum(arrays["episode_starts"].astype(bool))
    return {name: array for name, array in arrays.items() if name not in ("indices", "terminal", "episode_starts")}


def _chosen(held: Collection[str], where: str) -> dict[str, str]:
    """Returns the file's name of each array that is there. Raises PriorImportError without the first two."""
    chosen = {ours: next((name for name in names if name in held), "") for ours, names in NAMES.items()}
    for ours in ("observations", "actions"):
        if not chosen[ours]:
            listed = ", ".join(sorted(name[:60] for name in held)[:12]) or "no array"
            *some, last = NAMES[ours]
            raise PriorImportError(
                f"{where}: holds no array {ours!r}; it holds {listed}; expected one named {', '.join(some)} or {last}"
            )
    return {ours: name for ours, name in chosen.items() if name}


def _read_npz(path: Path) -> dict[str, Array]:
    archive = open_archive(path, limits=_LIMITS)
    held = {name.removesuffix(".npy") for name in archive if name.endswith(".npy")}
    return {
        ours: read_npy(archive.read(f"{name}.npy"), f"{path}: {name}.npy")
        for ours, name in _chosen(held, str(path)).items()
    }


def _read_hdf5(path: Path) -> dict[str, Array]:
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise PriorImportError(
            f"{path}: an HDF5 file, which is read with h5py: pip install 'residual-policy-gradient[minari]'"
        ) from error
    try:
        with h5py.File(path, "r") as root:
            if any(name.startswith("episode_") and isinstance(root.get(name), h5py.Group) for name in root):
                raise PriorImportError(f"{path}: a part of a Minari data set; give the data set's folder")
            arrays, total = dict[str, Array](), 0
            for ours, name in _chosen(set(root), str(path)).items():
                read, size = _dataset(root, name, f"{path}: {name}")
                total += size
                if total > MAX_BYTES:
                    raise PriorImportError(f"{path}: more than the {MAX_BYTES} bytes of arrays that are read")
                arrays[ours] = read()
            return arrays
    except PriorImportError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise
        raise PriorImportError(f"{path}: not an HDF5 file that can be read: {error!r:.300}") from error


def _dataset(root: object, name: str, where: str) -> tuple[Callable[[], Array], int]:
    """Finds a data set of numbers in the file itself; returns how it is read, and its bytes."""
    import h5py

    assert isinstance(root, h5py.File)
    if not isinstance(root.get(name, getlink=True), h5py.HardLink):
        raise PriorImportError(f"{where}: a link to elsewhere; expected data")
    item = root[name]
    if not isinstance(item, h5py.Dataset):
        raise PriorImportError(f"{where}: a group of {', '.join(sorted(item)[:8])}; expected one array")
    if item.is_virtual or item.external:
        raise PriorImportError(f"{where}: stored in another file; expected data")
    if item.dtype.kind not in "fiub":
        raise PriorImportError(f"{where}: holds {item.dtype}, expected numbers")
    return lambda: np.asarray(item[()]), item.nbytes


def _of_trajectories(arrays: dict[str, Array], where: str) -> dict[str, Array]:
    """Makes transitions of imitation's trajectories: each holds one observation more than actions."""
    actions, observations, indices = arrays["actions"], arrays["observations"], arrays["indices"]
    n, e = len(actions), len(arrays["terminal"])
    ends = np.concatenate((indices.reshape(-1), [n]))
    fits = indices.dtype.kind in "iu" and len(ends) == e and (np.diff(ends, prepend=0) > 0).all()
    if not fits or len(observations) != n + e:
        raise PriorImportError(
            f"{where}: {len(observations)} observations, {n} actions and {e} trajectories that begin at indices "
            f"{indices.reshape(-1)[:5].tolist()}: expected one observation more than actions in each"
        )
    found = {"observations": np.delete(observations, ends + np.arange(e), axis=0), "actions": actions}
    found["episode_ids"] = np.repeat(np.arange(e), np.diff(ends, prepend=0))
    return found | ({"rewards": arrays["rewards"]} if "rewards" in arrays else {})
