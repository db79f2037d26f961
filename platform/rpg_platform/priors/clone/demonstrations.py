"""Reads demonstrations (observations and the actions taken there) to clone a prior from; executes nothing of the files.

An ``.npz`` or HDF5 file holds these arrays (others are ignored, and ``arrays`` knows their names in files of D4RL,
imitation and Stable-Baselines 2), N transitions in the order in which they happened:

    observations   [N, ...] of the environment's observation space
    actions        [N, A], or [N] for one dimension or a Discrete space: what the environment received
    episode_ids    [N] integers, optional: which episode a transition is of
    terminations, timeouts   [N] booleans, optional instead: whether the episode ended with this transition
    rewards        [N], optional: only to state the demonstrated return

A Minari data set is read from its folder or, by its id, from Minari's local ones; its own metadata name environment and
spaces. The environment that it describes is never made: such a description may name any code.

Dimension letters: N transitions, D observation size, A action dimensions, E episodes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.addons import Array
from rpg_algorithms.policies.network import observation_size
from rpg_algorithms.policies.spaces import flatten_observations, same_space
from rpg_platform.priors.clone.arrays import MAX_BYTES, read_arrays
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.priors.origin import hash_of
from rpg_platform.wording import suggestion

MAX_METADATA_BYTES = 10_000_000
BOUND_TOLERANCE = 1e-5  # of the action's range: float32 copies of float64 bounds
_MINARI_ID = re.compile(r"[\w-]+(/[\w-]+)*-v\d+")


class DemonstrationError(ValueError):
    """Demonstrations that are refused: names the file, what is wrong with it and what was expected."""


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Observations, and the actions that the demonstrator took there.

    Attributes:
        observations: ``[N, D]`` float32, flat.
        actions: ``[N, A]`` float32 as the environment received them, or ``[N]`` int64 indices from 0.
        episodes: ``[N]`` int64, which of the E episodes; None where they are not known.
        returns: ``[E]`` undiscounted return of each episode; None where rewards or episodes are not known.
        data_set: Minari id, or the file's name.
        sha256: of the file, or of a folder's files with their names.
        observation_space, action_space: of the environment.
        env_id, env_kwargs: the environment as a Minari data set names it; None and empty where nothing does.
    """

    observations: NDArray[np.float32]
    actions: Array
    episodes: NDArray[np.int64] | None
    returns: NDArray[np.float64] | None
    data_set: str
    sha256: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def number_of_episodes(self) -> int | None:
        """E; None where episodes are not known."""
        return None if self.episodes is None else int(self.episodes.max()) + 1


def read_demonstrations(
    source: str, observation_space: gym.Space[Any] | None = None, action_space: gym.Space[Any] | None = None
) -> Demonstrations:
    """Reads an ``.npz`` or HDF5 file, a Minari folder, or a local Minari data set by its id.

    Args:
        source: path or id.
        observation_space: the environment's, which a Minari data set must agree with and a single file, which has no
            word of it, needs.
        action_space: likewise.

    Raises:
        DemonstrationError: names the file, what is wrong and what was expected.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if observation_space is None or action_space is None:
            raise DemonstrationError(
                f"{source}: such a file does not name its environment; say which: --env ID or --task NAME"
            )
        return _read_file(path, observation_space, action_space)
    found = _read_minari(path if path.is_dir() else _minari_folder(source))
    for what, given, own in (
        ("observation", observation_space, found.observation_space),
        ("action", action_space, found.action_space),
    ):
        if given is not None and not same_space(given, own):
            raise DemonstrationError(f"{source}: its {what} space {own} is not that of the environment given, {given}")
    return found


# ---- one file -----------------------------------------------------------------------------------
def _read_file(path: Path, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Demonstrations:
    try:
        arrays = read_arrays(path)
    except PriorImportError as error:
        raise DemonstrationError(str(error)) from error
    where = str(path)
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DemonstrationError(f"{path}: arrays of different lengths {lengths}; expected one row per transition")
    for name in ("episode_ids", "terminations", "timeouts", "rewards"):
        if name in arrays and arrays[name].ndim != 1:
            shape = arrays[name].shape
            raise DemonstrationError(f"{path}: {name} has the shape {list(shape)}; expected [{lengths[name]}]")
    episodes = _episodes(arrays, where)
    return Demonstrations(
        _observations(arrays["observations"], observation_space, where),
        _actions(arrays["actions"], action_space, where),
        episodes,
        _returns(arrays.get("rewards"), episodes, where),
        path.name,
        hash_of(path),
        observation_space,
        action_space,
    )


def _episodes(arrays: Mapping[str, Array], where: str) -> NDArray[np.int64] | None:
    if "episode_ids" in arrays:
        ids = arrays["episode_ids"]
        if ids.dtype.kind not in "iu":
            raise DemonstrationError(f"{where}: episode_ids are {ids.dtype}; expected integers")
        return np.asarray(np.unique(ids, return_inverse=True)[1], np.int64)
    ends = [arrays[name] for name in ("terminations", "timeouts") if name in arrays]
    if not ends:
        return None
    for flags in ends:
        if flags.dtype.kind != "b" and not np.isin(flags, (0, 1)).all():
            raise DemonstrationError(f"{where}: terminations and timeouts hold {flags.dtype}; expected booleans")
    ended = np.any([flags.astype(bool) for flags in ends], axis=0)
    return np.concatenate(([0], np.cumsum(ended[:-1]))).astype(np.int64)


def _returns(rewards: Array | None, episodes: NDArray[np.int64] | None, where: str) -> NDArray[np.float64] | None:
    if rewards is None or episodes is None:
        return None
    _check_finite(rewards, "rewards", where)
    return np.asarray(np.bincount(episodes, weights=rewards.astype(np.float64)), np.float64)


# ---- checks of both -----------------------------------------------------------------------------
def _observations(array: Array, space: gym.Space[Any], where: str) -> NDArray[np.float32]:
    """Flattens observations to float32 and checks them against their space."""
    if not len(array):
        raise DemonstrationError(f"{where}: holds no transition")
    _check_finite(array, "observations", where)
    if isinstance(space, gym.spaces.Discrete):
        return flatten_observations(space, _indices(array, space, "observations", where) + int(space.start))
    wanted = observation_size(space)
    if array[0].size != wanted:
        raise DemonstrationError(
            f"{where}: observations have {array[0].size} entries ({list(array.shape)}); the environment has {wanted}"
        )
    flat = flatten_observations(space, array)
    _check_finite(flat, "observations", where)  # beyond float32
    return flat


def _actions(array: Array, space: gym.Space[Any], where: str) -> Array:
    """Returns actions as float32 within their bounds, or as indices from 0."""
    if isinstance(space, gym.spaces.Discrete):
        return _indices(array, space, "actions", where)
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise DemonstrationError(f"{where}: action space {space}: expected Box of one dimension or Discrete")
    size = space.shape[0]
    rows = array.reshape(len(array), -1)
    if array.ndim > 2 or rows.shape[1] != size:
        raise DemonstrationError(f"{where}: actions have the shape {list(array.shape)}; expected [N, {size}]")
    _check_finite(rows, "actions", where)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        room = np.nan_to_num(BOUND_TOLERANCE * (high - low), posinf=0.0)
    outside = (rows < low - room) | (rows > high + room)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise DemonstrationError(
            f"{where}: actions[{row}, {column}] = {float(rows[row, column]):g} is outside of the environment's bounds "
            f"[{low[column]:g}, {high[column]:g}], as are {int(outside.any(axis=1).sum())} of {len(rows)} actions; "
            "expected what the environment received: clip them"
        )
    return np.clip(rows, low, high).astype(np.float32)


def _indices(array: Array, space: gym.spaces.Discrete[Any], what: str, where: str) -> NDArray[np.int64]:
    """Returns indices ``[N]`` from 0 of values ``[N]`` or ``[N, 1]`` of a Discrete space."""
    if array.ndim > 2 or array.size != len(array):
        raise DemonstrationError(f"{where}: {what} have the shape {list(array.shape)}; expected [N] for {space}")
    array = array.reshape(-1)
    if array.dtype.kind not in "iu":
        raise DemonstrationError(f"{where}: {what} are {array.dtype}; expected integers for {space}")
    index = array.astype(np.int64) - int(space.start)
    wrong = (index < 0) | (index >= int(space.n))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DemonstrationError(f"{where}: {what}[{row}] = {int(array[row])} is not in {space}")
    return index


def _check_finite(array: Array, what: str, where: str) -> None:
    if array.dtype.kind not in "fiub":
        raise DemonstrationError(f"{where}: {what} are {array.dtype}; expected real numbers")
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DemonstrationError(f"{where}: {what} hold NaN or infinity in {int((~finite).sum())} rows, first in {row}")


# ---- Minari -------------------------------------------------------------------------------------
def _minari_folder(source: str) -> Path:
    """Finds the folder of a local Minari data set."""
    if source.endswith((".npz", ".hdf5", ".zip")) or not _MINARI_ID.fullmatch(source):
        raise DemonstrationError(f"{source}: no such file or folder, and no id of a Minari data set (name-v0)")
    _import_minari(source)
    from minari.storage.datasets_root_dir import get_dataset_path  # type: ignore[import-untyped]

    folder = Path(get_dataset_path(source))
    if not folder.is_dir():
        root = Path(get_dataset_path())
        local = [file.parent.parent.relative_to(root).as_posix() for file in root.rglob("data/metadata.json")]
        near = suggestion(source, local) if local else f" (nothing is in {root})"
        fetch = f"`minari download {source}` fetches it"
        raise DemonstrationError(f"{source}: no such local Minari data set{near}; {fetch}")
    return folder


def _import_minari(source: str) -> Any:
    try:
        import minari  # type: ignore[import-untyped]
    except ImportError as error:
        raise DemonstrationError(
            f"{source}: reading Minari data sets needs Minari: pip install 'residual-policy-gradient[minari]'"
        ) from error
    return minari


def _read_minari(folder: Path) -> Demonstrations:
    data = folder if (folder / "metadata.json").is_file() else folder / "data"
    where = str(folder)
    if not (data / "metadata.json").is_file():
        raise DemonstrationError(f"{where}: not a Minari data set: it holds no metadata.json or data/metadata.json")
    metadata = _minari_metadata(data / "metadata.json")
    minari = _import_minari(where)
    files = sorted(file for file in data.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    if total > MAX_BYTES:
        raise DemonstrationError(f"{where}: {total} bytes, more than the {MAX_BYTES} that are read")
    try:
        if metadata["data_format"] == "hdf5":
            _check_hdf5(data / "main_data.hdf5")
        data_set = minari.MinariDataset(data)
        spaces = data_set.observation_space, data_set.action_space
        if not all(isinstance(space, gym.spaces.Box | gym.spaces.Discrete) for space in spaces):
            raise DemonstrationError(f"{where}: spaces {spaces[0]} and {spaces[1]}: expected Box or Discrete")
        if len(spaces[0].shape or ()) > 2:
            raise DemonstrationError(f"{where}: observation space {spaces[0]}: images are not read")
        episodes = list(_minari_episodes(data_set, spaces, where))
    except DemonstrationError:
        raise
    except ImportError as error:  # Minari names the package that the storage format needs
        raise DemonstrationError(f"{where}: {error}") from error
    except Exception as error:  # whatever a damaged file makes the storage libraries raise
        raise DemonstrationError(f"{where}: not a Minari data set that can be read: {error!r:.300}") from error
    if not episodes:
        raise DemonstrationError(f"{where}: holds no transition")
    env_id, env_kwargs = _described_environment(metadata)
    return Demonstrations(
        np.concatenate([each[0] for each in episodes]),
        np.concatenate([each[1] for each in episodes]),
        np.repeat(np.arange(len(episodes)), [len(each[0]) for each in episodes]),
        np.array([each[2] for each in episodes]),
        str(metadata.get("dataset_id", folder.name)),
        _sha256(files, data),
        *spaces,
        env_id,
        env_kwargs,
    )


def _sha256(files: Sequence[Path], root: Path) -> str:
    """Hashes each file's path below ``root``, its size and its content, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _minari_metadata(file: Path) -> Mapping[str, Any]:
    if file.stat().st_size > MAX_METADATA_BYTES:
        raise DemonstrationError(f"{file}: more than the {MAX_METADATA_BYTES} bytes that are read")
    try:
        metadata = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DemonstrationError(f"{file}: not JSON: {error}") from error
    # Without its spaces Minari would make the environment that the file describes, which may name any code.
    missing = [
        key
        for key in ("data_format", "observation_space", "action_space")
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), str)
    ]
    if missing:
        raise DemonstrationError(f"{file}: does not say {', '.join(missing)}; expected metadata of Minari 0.5 or later")
    return dict(metadata)


def _check_hdf5(file: Path) -> None:
    """Refuses links out of the file, and more data than are read: HDF5 states sizes that take no room in a file."""
    import h5py  # type: ignore[import-untyped]

    total, seen = 0, set()
    with h5py.File(file, "r") as root:
        groups = [root]
        while groups:
            group = groups.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise DemonstrationError(f"{file}: {group.name}/{name} is a link to elsewhere; expected data")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise DemonstrationError(f"{file}: {item.name} is in the file twice; expected each once")
                seen.add(address)
                if isinstance(item, h5py.Group):
                    groups.append(item)
                    continue
                if item.is_virtual or item.external:
                    raise DemonstrationError(f"{file}: {item.name} is stored in another file; expected data")
                total += item.nbytes
                if total > MAX_BYTES:
                    raise DemonstrationError(f"{file}: more than the {MAX_BYTES} bytes of arrays that are read")


def _minari_episodes(
    data_set: Any, spaces: tuple[gym.Space[Any], gym.Space[Any]], where: str
) -> Iterator[tuple[NDArray[np.float32], Array, float]]:
    """Yields observations, actions and return of each episode that has a step."""
    total = 0
    for episode in data_set.iterate_episodes():
        steps, here = len(episode.rewards), f"{where}: episode {int(episode.id)}"
        observations, actions = np.asarray(episode.observations), np.asarray(episode.actions)
        total += observations.nbytes + actions.nbytes
        if total > MAX_BYTES:
            raise DemonstrationError(f"{where}: more than the {MAX_BYTES} bytes of arrays that are read")
        if steps == 0:
            continue
        if len(observations) not in (steps, steps + 1) or len(actions) != steps:
            raise DemonstrationError(
                f"{here}: {len(observations)} observations, {len(actions)} actions and {steps} rewards; expected one "
                "observation more than actions"
            )
        rewards = np.asarray(episode.rewards, np.float64)
        _check_finite(rewards, "rewards", here)
        yield _observations(observations[:steps], spaces[0], here), _actions(actions, spaces[1], here), rewards.sum()


def _described_environment(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Reads the id and keyword arguments of the environment that the metadata describe; makes nothing of them."""
    try:
        described = json.loads(metadata.get("env_spec") or "null")
    except (TypeError, ValueError, RecursionError):
        return None, {}
    if not isinstance(described, dict) or not isinstance(described.get("id"), str):
        return None, {}
    kwargs = described.get("kwargs")
    return described["id"], dict(kwargs) if isinstance(kwargs, dict) else {}
