"""Demonstrations out of real files: what is read, and every malformed one refused with its own message."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from tests.platform.priors.clone.demonstrators import balance, play, record, save, swing_up

from rpg_platform.priors.clone.demonstrations import DemonstrationError, Demonstrations, read_demonstrations

PENDULUM = gym.make("Pendulum-v1")
CARTPOLE = gym.make("CartPole-v1")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def pendulum() -> dict[str, Array]:
    """Three episodes of 20 steps."""
    return play("Pendulum-v1", swing_up(0.3), 3, 20)


def read(path: Path | str, env: gym.Env[Any, Any] | None = PENDULUM) -> Demonstrations:
    return read_demonstrations(str(path), *((env.observation_space, env.action_space) if env else (None, None)))


# ---- npz ----------------------------------------------------------------------------------------
def test_npz_of_numbers(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    file = save(tmp_path / "swing.npz", pendulum, something_else=np.zeros(3))
    found = read(file)
    assert np.array_equal(found.observations, pendulum["observations"])
    assert np.array_equal(found.actions, pendulum["actions"])
    assert found.actions.dtype == found.observations.dtype == np.float32
    assert found.episodes is not None
    assert np.bincount(found.episodes).tolist() == [20, 20, 20]
    assert found.number_of_episodes == 3
    assert found.returns == pytest.approx(pendulum["rewards"].reshape(3, 20).sum(1))
    assert (found.data_set, found.env_id) == ("swing.npz", None)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    # One dimension may be left out, and float64 is read too; without episodes nothing is known of them.
    flat = save(tmp_path / "flat.npz", pendulum, actions=pendulum["actions"][:, 0].astype(float), episode_ids=None)
    assert np.array_equal(read(flat).actions, pendulum["actions"])
    assert read(flat).episodes is read(flat).returns is read(flat).number_of_episodes is None


def test_npz_with_ends_instead_of_ids(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    terminations, timeouts = np.zeros((2, 60), bool)
    terminations[9], timeouts[[39, 59]] = True, True
    changes = {"episode_ids": None, "terminations": terminations, "timeouts": timeouts.astype(np.int8)}
    found = read(save(tmp_path / "ends.npz", pendulum, **changes))
    assert found.episodes is not None
    assert np.bincount(found.episodes).tolist() == [10, 30, 20]
    ids = read(save(tmp_path / "ids.npz", pendulum, episode_ids=np.repeat([7, -2, 7], 20)))
    assert ids.episodes is not None
    assert np.bincount(ids.episodes).tolist() == [20, 40]  # they need not be in order


def test_npz_of_indices(tmp_path: Path) -> None:
    arrays = play("CartPole-v1", balance, 2, 30)
    found = read(save(tmp_path / "balance.npz", arrays), CARTPOLE)
    assert found.actions.dtype == np.int64
    assert np.array_equal(found.actions, arrays["actions"])
    # Actions and observations of a space that starts elsewhere count from 0; observations become one-hot.
    arrays = {"observations": np.array([4, 6, 5]), "actions": np.array([-1, 1, 0])}
    spaces = gym.spaces.Discrete(3, start=4), gym.spaces.Discrete(3, start=-1)
    found = read_demonstrations(str(save(tmp_path / "discrete.npz", arrays)), *spaces)
    assert found.actions.tolist() == [0, 2, 1]
    assert found.observations.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_actions_a_rounding_beyond_their_bounds_are_clipped(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    actions = pendulum["actions"].astype(float)
    actions[3] = 2.0 + 3e-5
    found = read(save(tmp_path / "rounded.npz", pendulum, actions=actions))
    assert found.actions[3, 0] == 2.0


def with_nan(array: Array, row: int, value: float = np.nan) -> Array:
    changed = array.copy()
    changed[row] = value
    return changed


MALFORMED: dict[str, tuple[Callable[[dict[str, Array]], dict[str, Any]], str]] = {
    "no actions": (
        lambda x: {"actions": None, "moves": x["actions"]},
        "holds no array 'actions'; it holds .*moves.*; expected one named actions, acts or action",
    ),
    "no observations": (lambda x: dict.fromkeys(x), "holds no array 'observations'; it holds no array"),
    "empty": (lambda x: {name: array[:0] for name, array in x.items()}, "holds no transition"),
    "lengths": (lambda x: {"actions": x["actions"][:-1]}, r"different lengths \{.*'actions': 59.*\}; expected one row"),
    "scalar": (lambda x: {"actions": np.float32(0)}, r"different lengths \{.*'actions': 0"),
    "nan observation": (
        lambda x: {"observations": with_nan(x["observations"], 7)},
        "observations hold NaN or infinity in 1 rows, first in 7",
    ),
    "infinite action": (lambda x: {"actions": with_nan(x["actions"], 5, -np.inf)}, "actions hold NaN .* first in 5"),
    "nan reward": (lambda x: {"rewards": with_nan(x["rewards"], 0)}, "rewards hold NaN or infinity in 1 rows"),
    "beyond float32": (lambda x: {"observations": x["observations"].astype(float) * 1e39}, "observations hold NaN"),
    "out of bounds": (
        lambda x: {"actions": with_nan(with_nan(x["actions"], 4, 2.5), 9, -3.0)},
        r"actions\[4, 0\] = 2.5 is outside of the environment's bounds \[-2, 2\], as are 2 of 60 .* clip them",
    ),
    "wide actions": (lambda x: {"actions": np.zeros((60, 2))}, r"actions have the shape \[60, 2\]; expected \[N, 1\]"),
    "deep actions": (lambda x: {"actions": np.zeros((60, 1, 1))}, r"actions have the shape \[60, 1, 1\]"),
    "narrow observations": (lambda x: {"observations": np.zeros((60, 2))}, "have 2 entries .* the environment has 3"),
    "texts": (lambda x: {"actions": np.array(["left"] * 60)}, "holds <U4, expected numbers"),
    "complex": (lambda x: {"actions": x["actions"] * 1j}, "actions.npy: holds <c8, expected numbers|complex"),
    "dates": (lambda x: {"actions": np.zeros((60, 1), "M8[s]")}, "actions.npy: holds|not an array of numbers"),
    "float ids": (lambda x: {"episode_ids": x["rewards"]}, "episode_ids are float64; expected integers"),
    "wide ids": (
        lambda x: {"episode_ids": np.zeros((60, 1), int)},
        r"episode_ids has the shape \[60, 1\]; expected \[60\]",
    ),
    "flags": (lambda x: {"episode_ids": None, "timeouts": np.full(60, 2)}, "hold int64; expected booleans"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_npz(what: str, tmp_path: Path, pendulum: dict[str, Array]) -> None:
    change, message = MALFORMED[what]
    file = save(tmp_path / "bad.npz", pendulum, **change(pendulum))
    with pytest.raises(DemonstrationError, match=message) as refused:
        read(file)
    assert str(refused.value).startswith(str(file))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0.0, 1.0]), "actions are float64; expected integers for Discrete"),
        (np.array([0, 2]), r"actions\[1\] = 2 is not in Discrete\(2\)"),
        (np.array([-1, 0]), r"actions\[0\] = -1 is not in Discrete\(2\)"),
        (np.array([[0, 1], [1, 0]]), r"actions have the shape \[2, 2\]; expected \[N\] for Discrete"),
    ],
)
def test_malformed_indices(actions: Array, message: str, tmp_path: Path) -> None:
    file = save(tmp_path / "bad.npz", {"observations": np.zeros((2, 4)), "actions": actions})
    with pytest.raises(DemonstrationError, match=message):
        read(file, CARTPOLE)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_npz_files_are_not_executed_and_not_unpacked_without_end(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    proof = tmp_path / "executed"
    file = save(tmp_path / "objects.npz", pendulum, actions=np.array([Payload(proof)] * 60, object))
    with pytest.raises(DemonstrationError, match=r"actions.npy: .*(\|O|not an array of numbers)"):
        read(file)
    assert not proof.exists()
    with np.load(file, allow_pickle=True) as arrays:
        arrays["actions"]
    assert proof.exists()  # it would have been
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", bytes(20_000_000))
    data = bytearray(bomb.read_bytes())
    size_at = data.index(b"PK\1\2") + 24
    data[size_at : size_at + 4] = (0xF0000000).to_bytes(4, "little")  # it claims 4 GB
    bomb.write_bytes(data)
    with pytest.raises(DemonstrationError, match="a zip bomb, or damaged"):
        read(bomb)


def test_other_files(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    whole = save(tmp_path / "whole.npz", pendulum).read_bytes()
    for content, message in (
        (b"", "not a zip archive: it is empty"),
        (b"\x89HDF\r\n\x1a\n", "not an HDF5 file that can be read: .*"),
        (whole[: len(whole) // 2], "truncated"),
        (whole.replace(b"PK\3\4", b"PK\3\5", 2), "not a zip archive|damaged"),
    ):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(DemonstrationError, match=message):
            read(tmp_path / "other.npz")
    with pytest.raises(DemonstrationError, match="does not name its environment; say which: --env ID or --task NAME"):
        read(tmp_path / "whole.npz", None)
    with pytest.raises(DemonstrationError, match="no such file or folder, and no id of a Minari data set"):
        read(tmp_path / "missing.npz")


def test_mutated_npz_files_are_read_or_refused(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    data, rng, refused = save(tmp_path / "whole.npz", pendulum).read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 6)):
            changed[position] = rng.integers(0, 256)
        (tmp_path / "mutated.npz").write_bytes(changed)
        try:
            read(tmp_path / "mutated.npz")
        except DemonstrationError:
            refused += 1
    assert 200 < refused < 300


# ---- other people's names -----------------------------------------------------------------------
def d4rl(path: Path, arrays: dict[str, Array], **changes: Any) -> Path:
    """Writes a file as D4RL has it: other arrays, metadata and infos beside what is used."""
    terminals, timeouts = np.zeros((2, 60), bool)
    terminals[9], timeouts[[39, 59]] = True, True
    held = {name: arrays[name] for name in ("observations", "actions", "rewards")}
    held |= {"terminals": terminals, "timeouts": timeouts, "next_observations": arrays["observations"]}
    with h5py.File(path, "w") as file:
        for name, array in (held | changes).items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip" if array.dtype.kind in "fb" else None)
        file.create_dataset("infos/qpos", data=np.zeros((60, 2)))
        file["metadata/algorithm"] = "SAC"
    return path


def test_d4rl(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    found = read(d4rl(tmp_path / "pendulum.hdf5", pendulum))
    assert np.array_equal(found.observations, pendulum["observations"])
    assert np.array_equal(found.actions, pendulum["actions"])
    assert found.episodes is not None
    assert np.bincount(found.episodes).tolist() == [10, 30, 20]
    rewards = pendulum["rewards"]
    assert found.returns == pytest.approx([rewards[:10].sum(), rewards[10:40].sum(), rewards[40:].sum()])
    assert found.data_set == "pendulum.hdf5"


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_arrays_that_are_not_used_refuse_no_file(suffix: str, tmp_path: Path, pendulum: dict[str, Array]) -> None:
    """Objects in an .npz are pickles: they stay unread, and texts do no harm either."""
    proof = tmp_path / "executed"
    if suffix == ".npz":
        unused = {"infos": np.array([Payload(proof)] * 60, object), "env_id": np.array("Pendulum-v1")}
        renamed = {"obs": pendulum["observations"], "acts": pendulum["actions"], "observations": None, "actions": None}
        file = save(tmp_path / "own.npz", pendulum, **renamed, **unused)
    else:
        file = d4rl(tmp_path / "own.hdf5", pendulum, env_id=np.array([b"Pendulum-v1"] * 60))
    found = read(file)
    assert np.array_equal(found.observations, pendulum["observations"])
    assert np.array_equal(found.actions, pendulum["actions"])
    assert not proof.exists()


def test_imitations_trajectories_and_stable_baselines_2(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    """A trajectory's last observation has no action; episode_starts mark the first step of each episode."""
    after = np.full((1, 3), 9.0, np.float32)
    parts = np.split(pendulum["observations"], [10, 40])
    observations = np.concatenate([part for each in parts for part in (each, after)])
    arrays = {"obs": observations, "acts": pendulum["actions"], "rews": pendulum["rewards"]}
    arrays |= {"indices": np.array([10, 40]), "terminal": np.array([True, False, True])}
    np.savez(tmp_path / "trajectories.npz", **arrays, infos=np.array([{}] * 60, object))
    starts = np.zeros(60, bool)
    starts[[0, 10, 40]] = True
    baselines = {"obs": pendulum["observations"], "actions": pendulum["actions"], "rewards": pendulum["rewards"]}
    np.savez(tmp_path / "expert.npz", **baselines, episode_starts=starts, episode_returns=np.zeros(3))
    for file in ("trajectories.npz", "expert.npz"):
        found = read(tmp_path / file)
        assert np.array_equal(found.observations, pendulum["observations"])
        assert found.episodes is not None
        assert np.bincount(found.episodes).tolist() == [10, 30, 20]
        assert found.returns == pytest.approx([each.sum() for each in np.split(pendulum["rewards"], [10, 40])])
    np.savez(tmp_path / "short.npz", **{**arrays, "obs": observations[:-1]})
    with pytest.raises(DemonstrationError, match=r"62 observations, 60 actions and 3 trajectories .*: expected one"):
        read(tmp_path / "short.npz")


def test_malformed_hdf5_files(tmp_path: Path, pendulum: dict[str, Array]) -> None:
    def refused(change: Callable[[h5py.File], Any], message: str) -> None:
        file = d4rl(tmp_path / "bad.hdf5", pendulum)
        with h5py.File(file, "a") as root:
            change(root)
        with pytest.raises(DemonstrationError, match=message):
            read(file)

    def elsewhere(root: h5py.File) -> None:
        del root["actions"]
        root["actions"] = h5py.ExternalLink("/etc/hosts", "/")

    def bomb(root: h5py.File) -> None:
        del root["rewards"]
        root.create_dataset("rewards", (10**12,), np.float64, chunks=(1000,), compression="gzip")

    refused(elsewhere, "actions: a link to elsewhere; expected data")
    refused(bomb, "more than the .* bytes of arrays that are read")
    refused(
        lambda root: root.pop("actions"), "holds no array 'actions'; it holds .*infos.*; expected one named actions"
    )
    refused(lambda root: root.create_group("episode_0"), "a part of a Minari data set; give the data set's folder")
    file = d4rl(tmp_path / "group.hdf5", pendulum, observations=None)
    with h5py.File(file, "a") as root:
        root["observations/image"] = np.zeros(60)
    with pytest.raises(DemonstrationError, match="observations: a group of image; expected one array"):
        read(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DemonstrationError, match="not an HDF5 file that can be read"):
        read(file)


# ---- Minari -------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["hdf5", "arrow"])
def minari_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of Minari's own storage, of the swing-up controller: two episodes of 200 steps."""
    root, env = tmp_path_factory.mktemp("minari"), gym.make("Pendulum-v1", g=9.0)
    return record(root, "pendulum/swing-v0", env, swing_up(0.3), 2, data_format=request.param)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_minari_by_folder_and_by_id(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(minari_folder, None)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari_folder.parent.parent))
    for other in (read(minari_folder / "data", None), read("pendulum/swing-v0", None)):
        assert np.array_equal(other.observations, found.observations)
        assert other.sha256 == found.sha256
    assert found.data_set == "pendulum/swing-v0"
    assert (found.env_id, dict(found.env_kwargs)) == ("Pendulum-v1", {"g": 9.0})
    assert found.action_space == PENDULUM.action_space
    assert found.observations.shape == (400, 3)
    assert found.episodes is not None
    assert np.bincount(found.episodes).tolist() == [200, 200]
    episodes = list(minari.load_dataset("pendulum/swing-v0").iterate_episodes())
    assert np.array_equal(found.observations, np.concatenate([each.observations[:-1] for each in episodes]))
    assert np.array_equal(found.actions, np.concatenate([each.actions for each in episodes]))
    assert found.returns == pytest.approx([each.rewards.sum() for each in episodes])
    with pytest.raises(DemonstrationError, match="no such local Minari data set; did you mean 'pendulum/swing-v0'"):
        read("pendulum/swin-v0", None)
    with pytest.raises(DemonstrationError, match=r"its observation space Box\(.*is not that of the environment given"):
        read(minari_folder, CARTPOLE)


def test_minaris_hash_is_of_all_its_files(minari_folder: Path, tmp_path: Path) -> None:
    folder = copied(minari_folder, tmp_path)
    assert read(folder, None).sha256 == read(minari_folder, None).sha256
    (folder / "data" / "another").touch()
    assert read(folder, None).sha256 != read(minari_folder, None).sha256


def test_the_environment_that_a_data_set_describes_is_not_made(minari_folder: Path, tmp_path: Path) -> None:
    """Without its spaces, Minari imports and calls whatever ``entry_point`` names."""
    folder, proof = copied(minari_folder, tmp_path), tmp_path / "executed"
    (tmp_path / "payload_module.py").write_text(f"from pathlib import Path\nPath({str(proof)!r}).touch()\n")
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    described = json.loads(metadata["env_spec"]) | {"entry_point": "payload_module:Env"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.delitem(sys.modules, "payload_module", raising=False)
        file.write_text(json.dumps(metadata | {"env_spec": json.dumps(described)}))
        assert len(read(folder, None)) == 400
        without = {k: v for k, v in metadata.items() if k != "action_space"} | {"env_spec": json.dumps(described)}
        file.write_text(json.dumps(without))
        with pytest.raises(DemonstrationError, match="does not say action_space"):
            read(folder, None)
        assert not proof.exists()
        with pytest.raises(Exception):  # noqa: B017, PT011 - it has no Env; what matters is that it was imported
            minari.MinariDataset(folder / "data")
    assert proof.exists()


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda x: "{", "metadata.json: not JSON"),
    "a list": (lambda x: [], "does not say data_format, observation_space, action_space"),
    "a format": (lambda x: x | {"data_format": "zarr"}, "not a Minari data set that can be read"),
    "a version": (lambda x: x | {"minari_version": "0.1"}, "does not support the dataset generated by Minari 0.1"),
    "a space": (lambda x: x | {"action_space": '{"type": "Box"}'}, "not a Minari data set that can be read"),
    "images": (
        lambda x: x | {"observation_space": space_text((4, 4, 3))},
        "observation space Box.*: images are not read",
    ),
    "a dictionary": (
        lambda x: x | {"observation_space": json.dumps({"type": "Dict", "subspaces": {}})},
        "spaces Dict.*: expected Box or Discrete",
    ),
    "other bounds": (lambda x: x | {"action_space": space_text((1,))}, "is outside of the environment's bounds"),
    "other sizes": (lambda x: x | {"observation_space": space_text((2,))}, "the environment has 2|can be read"),
}


def space_text(shape: tuple[int, ...]) -> str:
    bounds = {"low": np.zeros(shape).tolist(), "high": np.full(shape, 0.01).tolist()}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": list(shape), **bounds})


@pytest.mark.parametrize("what", BROKEN)
def test_malformed_minari(what: str, minari_folder: Path, tmp_path: Path) -> None:
    folder = copied(minari_folder, tmp_path)
    file, (change, message) = folder / "data" / "metadata.json", BROKEN[what]
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DemonstrationError, match=message) as refused:
        read(folder, None)
    assert str(folder) in str(refused.value)


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match=r"not a Minari data set: it holds no metadata.json"):
        read(tmp_path, None)


def hdf5(folder: Path) -> h5py.File:
    return h5py.File(folder / "data" / "main_data.hdf5", "a")


@pytest.mark.parametrize("minari_folder", ["hdf5"], indirect=True)
def test_malformed_hdf5(minari_folder: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[h5py.File], Any], message: str) -> None:
        folder = copied(minari_folder, tmp_path)
        with hdf5(folder) as file:
            change(file)
        with pytest.raises(DemonstrationError, match=message):
            read(folder, None)
        shutil.rmtree(folder)

    def bomb(file: h5py.File) -> None:
        del file["episode_0/rewards"]
        file.create_dataset("episode_0/rewards", (10**12,), np.float64, chunks=(1000,), compression="gzip")

    def nan(file: h5py.File) -> None:
        file["episode_1/actions"][3] = np.nan

    def elsewhere(file: h5py.File) -> None:
        file["episode_0/elsewhere"] = h5py.ExternalLink("/etc/hosts", "/")

    def circle(file: h5py.File) -> None:
        file["episode_0/again"] = file["episode_0"]

    def short(file: h5py.File) -> None:
        file["episode_0/actions"].resize((150, 1))

    refused(bomb, "more than the .* bytes of arrays that are read")
    refused(elsewhere, "episode_0/elsewhere is a link to elsewhere")
    refused(circle, "is in the file twice")
    refused(nan, "episode 1: actions hold NaN or infinity in 1 rows, first in 3")
    refused(short, "episode 0: 201 observations, 150 actions and 200 rewards; expected one observation more")
    refused(lambda file: file.pop("episode_1/observations"), "can be read: .*observations")
    folder = copied(minari_folder, tmp_path)
    data = folder / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:3000])
    with pytest.raises(DemonstrationError, match=r"can be read: .*truncated"):
        read(folder, None)


def test_without_minari_it_says_what_to_install(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DemonstrationError, match=r"pip install 'residual-policy-gradient\[minari\]'"):
        read(minari_folder, None)
