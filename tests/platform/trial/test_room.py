"""Room for a checkpoint: on real file systems of a few megabytes."""

from __future__ import annotations

import errno
import pickle
import subprocess
from pathlib import Path

import pytest
from ray import tune
from tests.platform.disks import MB, fill
from tests.platform.trial.small import PRIOR, trial_spec

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.run.disk_guard import DiskGuard
from rpg_platform.storage.trial_state import read_state
from rpg_platform.trial.room import DiskFullError, by_disk, checkpoint_room, existing, free_bytes, size_text
from rpg_platform.trial.trainable import CustomizationTrial


def test_a_checkpoint_that_does_not_fit_is_not_begun(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "checkpoint"
    folder.mkdir()
    fill(small_disk, 5 * MB)
    with checkpoint_room(folder, None, 3 * MB):
        (folder / "weights").write_bytes(b"x" * MB)
    (folder / "weights").unlink()
    too_large = pytest.raises(DiskFullError, match=r"/disk/checkpoint: 5\.2 MB are free, .* needs 7\.3 MB$")
    with too_large, checkpoint_room(folder, None, 6 * MB):
        pytest.fail("was begun")
    # Where the copy goes counts as well, on a disk of its own and on the same.
    with pytest.raises(DiskFullError), checkpoint_room(tmp_path, str(folder), 6 * MB):
        pytest.fail("was begun")
    with pytest.raises(DiskFullError, match=r"needs 7\.3 MB$"), checkpoint_room(folder, str(small_disk), 3 * MB):
        pytest.fail("was begun")


def test_what_fails_half_way_leaves_nothing_behind(small_disk: Path) -> None:
    folder = small_disk / "checkpoint"
    (folder / "bundle").mkdir(parents=True)
    fill(small_disk, 4 * MB)

    def write() -> None:
        (folder / "bundle" / "card").write_text("x")
        (folder / "weights").write_bytes(b"x" * 8 * MB)  # something else has taken the room meanwhile

    with pytest.raises(OSError, match="No space left"), checkpoint_room(folder, None, 2 * MB):
        write()
    assert list(folder.iterdir()) == []
    assert free_bytes(small_disk) == 4 * MB


def test_a_disk_without_room_for_another_file_is_full(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=4", str(small_disk)], check=True)
    for index in range(3):  # the folder itself is one
        assert free_bytes(small_disk) > 90 * MB
        (small_disk / str(index)).touch()
    assert free_bytes(small_disk) == 0
    said = r"/disk: no more files can be made \(no inode is free\), and the next checkpoint needs 2\.1 MB$"
    with pytest.raises(DiskFullError, match=said), checkpoint_room(small_disk, None, MB):
        pytest.fail("was begun")
    told: list[str] = []
    DiskGuard([(small_disk, MB)], lambda: None, told.append, "Make room.").on_step_begin(0, [])
    assert "/disk is nearly full: no more files can be made (no inode is free), and 1.0 MB are needed" in told[0]


def test_the_refusal_comes_back_from_another_process_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as raised, checkpoint_room(tmp_path, None, 2**60):
        pytest.fail("was begun")
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is DiskFullError
    assert (str(again), again.errno) == (str(raised.value), errno.ENOSPC)
    assert str(again).startswith(f"{tmp_path}: ")
    assert str(again).endswith("the next checkpoint needs 1,152,921.5 TB")


def test_needs_of_one_disk_add_up(small_disk: Path, tmp_path: Path) -> None:
    assert by_disk([(small_disk / "a" / "b", 1), (tmp_path, 10), (small_disk, 2)]) == [(small_disk, 3), (tmp_path, 10)]
    assert existing(tmp_path / "not" / "there") == tmp_path
    assert free_bytes(small_disk / "not" / "there") == 96 * MB


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (999_600, "1.0 MB"), (3.2e12, "3.2 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


def test_a_trial_without_room_fails_before_it_writes_and_goes_on_when_there_is(
    local_ray: None, small_disk: Path
) -> None:
    """As on a machine whose disk the driver cannot see."""
    spec = trial_spec("greedy", budget={"env_steps": 100_000})
    trainable = tune.with_parameters(CustomizationTrial, prior=load_bundle(resolve_prior(PRIOR)))
    trial = trainable(config=spec.as_config())
    try:
        trial.step()
        folders = [small_disk / f"checkpoint_{index}" for index in range(3)]
        for folder in folders:
            folder.mkdir()
        trial.save_checkpoint(str(folders[0]))
        before = {file: file.read_bytes() for file in folders[0].rglob("*") if file.is_file()}
        ballast = fill(small_disk, 3 * MB // 2)
        trial.step()
        with pytest.raises(DiskFullError, match=r"checkpoint_1: 1\.6 MB are free, and .* needs 2\.\d MB$"):
            trial.save_checkpoint(str(folders[1]))
        assert list(folders[1].iterdir()) == []
        assert {file: file.read_bytes() for file in before} == before
        ballast.unlink()
        trial.save_checkpoint(str(folders[2]))
        assert read_state(folders[2])["env_steps"] > read_state(folders[0])["env_steps"] > 0
    finally:
        trial.stop()
