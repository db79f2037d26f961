"""What is refused before a sweep starts."""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium
import pytest
from pyarrow import fs as filesystems
from tests.platform.disks import MB, fill
from tests.platform.planning.planned import TWO, planned, resolved, spec

from rpg_platform.planning.cluster import CapacityError
from rpg_platform.planning.preflight import (
    PlanError,
    check_hidden_modules,
    check_room,
    check_writable,
    must_stay_free,
    plan_of,
)
from rpg_platform.planning.shared_storage import check_shared
from rpg_platform.planning.words import head_lines
from rpg_platform.run.run import run_sweep
from rpg_platform.storage import probe
from rpg_platform.storage.location import file_system
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.trial.room import RESERVE


@pytest.fixture(autouse=True)
def _no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="asks for 3 CPU"):
        plan_of(resolved(tmp_path, spec(resources={"cpus_per_trial": 3})), TWO)
    huge = {"start_from_prior": False, "network": {"hidden": [8192] * 16}}
    with pytest.raises(PlanError, match=r"are free, and the sweep needs .* TB .*make room"):
        plan_of(resolved(tmp_path, spec(training=huge, seeds=300)), TWO)


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="file is a file, expected a folder"):
        check_writable(str(tmp_path / "file" / "results"))
    with pytest.raises(PlanError, match="cannot be written to"):
        check_writable("/proc/results" if os.geteuid() else "/sys/kernel/results")
    check_writable(str(tmp_path / "not" / "there" / "yet"))
    check_writable("s3://bucket/sweeps")


def test_every_running_trial_must_be_able_to_save_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the checkpoint that is due, and the one of the stop. All in the storage, those of its node here."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    plan = planned(tmp_path, nodes=[{"CPU": 2.0}, {"CPU": 4.0}])
    assert plan.at_once == 6
    here = (str(tmp_path / "temporary"), 6 * plan.checkpoint_bytes + RESERVE)
    local, remote = SweepFolder(str(tmp_path), "planned"), SweepFolder("s3://bucket/x?region=us-east-1", "planned")
    assert must_stay_free(plan, local) == [(str(tmp_path / "planned"), 12 * plan.checkpoint_bytes + RESERVE), here]
    assert must_stay_free(plan, remote) == [here]


def test_a_small_disk_is_refused_for_its_own_share(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    plan, folder = planned(small_disk), SweepFolder(str(small_disk), "planned")
    needed = plan.storage_bytes + RESERVE
    fill(small_disk, (needed // 4096 + 1) * 4096)
    check_room(plan, folder)
    fill(small_disk, needed // 4096 * 4096)
    with pytest.raises(PlanError, match=rf"^{small_disk}: .* are free, and the sweep needs .* there: make room"):
        check_room(plan, folder)
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))  # what is temporary adds to it
    (small_disk / "ballast").unlink()
    fill(small_disk, needed + MB)
    with pytest.raises(PlanError, match="TMPDIR moves what is temporary"):
        check_room(plan, folder)


def test_without_a_rate_the_times_are_unknown(tmp_path: Path) -> None:
    plan = plan_of(resolved(tmp_path), TWO)
    assert (plan.rate, plan.wall_s, plan.cpu_hours) == (None, None, None)
    assert "known after the first reports" in head_lines(plan)[2]


def test_a_file_that_hides_a_library_from_the_trials_is_refused(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_world.py").touch()
    (tmp_path / "numpy").mkdir()  # without an __init__.py it hides nothing
    check_hidden_modules(tmp_path)
    check_hidden_modules(Path(gymnasium.__file__).parents[1])  # the libraries' own folder
    (tmp_path / "gymnasium.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PlanError, match=rf"^{tmp_path}/gymnasium.py has the name of a library, gymnasium \(.*rename it"
    ):
        run_sweep(resolved(tmp_path))
    (tmp_path / "gymnasium.py").unlink()
    (tmp_path / "numpy" / "__init__.py").touch()
    with pytest.raises(PlanError, match=rf"^{tmp_path}/numpy/__init__.py has the name"):
        check_hidden_modules()


def test_a_remote_storage_is_tried_and_nothing_is_left_there(local_ray: None, bucket: str, tmp_path: Path) -> None:
    assert check_shared(bucket) == []
    files, base = file_system(bucket)
    assert [info.base_name for info in files.get_file_info(filesystems.FileSelector(base, allow_not_found=True))] == []
    with pytest.raises(PlanError, match=r"^storage='s3://nobodys/lab\?.* cannot be written to: "):
        check_shared(bucket.replace("s3://sweeps/", "s3://nobodys/"))
    assert check_shared(str(tmp_path / "not" / "yet")) == []  # of one node there is nothing to ask
    assert not (tmp_path / "not").exists()


def test_each_node_reads_what_every_other_one_has_written(tmp_path: Path) -> None:
    storage = str(tmp_path / "results")
    name = probe.ask(storage)
    assert [probe.answer(storage, name, who) for who in ("head", "worker")] == [None, None]
    assert probe.confirm(storage, name, "head", ["head", "worker"]) is None
    said = probe.confirm(storage, name, "head", ["head", "worker", "third"])
    assert said == "it does not see what 1 other nodes have written there"
    assert str(probe.confirm(storage, "elsewhere", "head", ["worker"])).startswith("FileNotFoundError")
    probe.end(storage, name)
    assert list((tmp_path / "results").iterdir()) == []


def test_results_in_a_jobs_own_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a relative storage of a submitted file would lie, and be gone with the job."""
    unpacked = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    with pytest.raises(PlanError, match="lies in what Ray unpacked for this job, and removes after it"):
        check_shared(str(unpacked / "tune_configs" / "results"))
