"""A sweep's folder: what is asked for is kept, and only complete checkpoints count."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.platform.commands import refused
from tests.platform.resolved import resolved

from rpg_platform.spec.errors import SpecError
from rpg_platform.spec.logins import with_login, without_login
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.yaml_file import parse_spec
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError
from rpg_platform.storage.trial_state import write_state
from rpg_platform.tracking.tracker import MlflowTracker

SPEC = SweepSpec.model_validate(
    {
        "name": "mine",
        "task": "halfcheetah-foot-angle",
        "algorithm": "spg",
        "weights": {"alpha": {"grid": [0.1, 0.2]}},
        "budget": {"env_steps": 100_000},
    }
)


def checkpoint(run: Path, trial: str, index: int, env_steps: int, finished: bool = False) -> Path:
    folder = run / trial / f"checkpoint_{index:06d}"
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "weights").write_bytes(b"w" * 100)
    report = {"basic_return": 1.5, "kl": float("nan"), "nested": {}, "finished": finished}
    write_state(folder, env_steps, report)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(str(tmp_path), "mine")
    folder.create(SPEC, "task: x\n")
    return folder


def test_what_was_asked_for_is_kept(folder: SweepFolder, tmp_path: Path) -> None:
    again = SweepFolder(str(tmp_path), "mine")
    assert again.spec() == SPEC.model_copy(update={"storage": str(tmp_path)})
    assert again.source() == "task: x\n"
    with pytest.raises(SweepFolderError, match=r"nothing is overwritten.*--resume"):
        again.create(SPEC, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mime", None, "no sweep there .*did you mean 'mine'"),
        ("mine", '{"format": 9}', "format 9, this version reads 1"),
        ("mine", "{", "sweep.json"),
        ("mine", '{"format": 1, "spec": {"name": "mine"}}', "task"),
    ],
)
def test_what_is_no_sweep_is_refused(
    folder: SweepFolder, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name / "sweep.json").write_text(content)
    with pytest.raises(SweepFolderError, match=message):
        SweepFolder(str(tmp_path), name).spec()


def test_the_newest_complete_checkpoint_counts(folder: SweepFolder, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    checkpoint(run, "a", 0, 1_000)
    newest = checkpoint(run, "a", 1, 2_000)
    cut = checkpoint(run, "a", 10, 3_000)
    (cut / "bundle" / "weights").write_bytes(b"w" * 50)  # the machine died while it was written
    (run / "a" / "checkpoint_000011").mkdir()
    unreadable = checkpoint(run, "a", 12, 4_000)
    (unreadable / "trial.json").write_text('{"env_steps"')
    failed = run / "a" / "checkpoint_000013"
    failed.mkdir()
    write_state(failed, 5_000, {"failed": "NonFiniteError"})
    checkpoint(run, "b", 5, 9_000)
    later = checkpoint(run / "attempt-2", "b", 0, 10_000, finished=True)
    checkpoint(run / "attempt-10", "c", 0, 10)
    (run / "spool").mkdir()
    found = folder.trials()
    assert sorted(found) == ["a", "b", "c"]
    assert (found["a"].checkpoint, found["a"].env_steps, found["a"].finished) == (str(newest), 2_000, False)
    assert (found["b"].checkpoint, found["b"].finished) == (str(later), True)
    assert found["b"].report["basic_return"] == 1.5
    assert "nested" not in found["b"].report


def test_each_attempt_has_a_folder_of_its_own(folder: SweepFolder, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert folder.next_attempt() == (str(tmp_path), "mine")
    (run / ".validate_storage_marker").touch()
    assert folder.next_attempt() == (str(run), "attempt-2")
    (run / "attempt-2").mkdir()
    (run / "attempt-10").mkdir()
    assert folder.next_attempt() == (str(run), "attempt-11")


def test_one_driver_at_a_time(folder: SweepFolder, tmp_path: Path) -> None:
    code = (
        "import sys; from rpg_platform.storage.sweep_folder import SweepFolder\n"
        f"with SweepFolder({str(tmp_path)!r}, 'mine').lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SweepFolderError, match=f"being run by process {other.pid} on"), folder.lock():
            pass
        other.kill()
    with folder.lock():  # a killed driver's lock is gone with it
        pass


def test_a_copy_of_a_sweep_is_a_sweep_of_its_own(folder: SweepFolder, tmp_path: Path) -> None:
    checkpoint(tmp_path / "mine", "trial", 1, 5_000)
    (tmp_path / "mine" / "tracking").mkdir()
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    copy = SweepFolder(str(tmp_path), "other")
    assert (copy.spec().name, copy.spec().storage) == ("other", str(tmp_path))
    assert copy.trials()["trial"].checkpoint == str(tmp_path / "other" / "trial" / "checkpoint_000001")
    before = (tmp_path / "mine" / "sweep.json").read_bytes()
    copy.go_on_with(copy.spec())
    assert copy.run_key() != folder.run_key()  # else its results go into the original's runs
    assert not (tmp_path / "other" / "tracking").exists()
    assert (tmp_path / "mine" / "sweep.json").read_bytes() == before
    key = copy.run_key()
    copy.go_on_with(copy.spec())
    assert copy.run_key() == key


def test_a_sweep_that_was_moved_goes_on_where_it_lies_with_its_own_runs(folder: SweepFolder, tmp_path: Path) -> None:
    key = folder.run_key()
    (tmp_path / "away").mkdir()
    (tmp_path / "mine").rename(tmp_path / "away" / "renamed")
    moved = SweepFolder(str(tmp_path / "away"), "renamed")
    spec = moved.spec()
    assert (spec.name, spec.storage, spec.tracking.experiment) == ("renamed", str(tmp_path / "away"), "mine")
    moved.go_on_with(spec)
    assert moved.run_key() == key
    assert moved.spec() == spec


def test_no_file_of_a_sweep_keeps_a_login(tmp_path: Path) -> None:
    """The address that is connected to has it; everything that can be written, pickled or shown has not."""
    for n, password in enumerate(("s3cret", "s3@cret", "s3%2Fcret")):
        uri = f"http://alice:{password}@host:5000/mlflow"
        text = yaml.safe_dump(SPEC.model_dump(mode="json") | {"tracking": {"uri": uri}})
        spec = parse_spec(text, check_files=False)
        assert spec.tracking.uri == "http://host:5000/mlflow"
        assert with_login(spec.tracking.uri) == uri
        SweepFolder(str(tmp_path), f"sweep{n}").create(spec, without_login(text))
        tracker = MlflowTracker(resolved(spec, tmp_path, uri=spec.tracking.uri), [])
        kept = [file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()]
        assert not [each for each in [*kept, pickle.dumps((tracker, spec))] if b"alice" in each or b"cret" in each]
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace("%2F", "/"), check_files=False)
    assert "%2F" in str(caught.value)
    assert "cret" not in str(caught.value)
    assert without_login("at http://alice:s3/c@ret@host: no") == "at http://***@host: no"


@pytest.mark.parametrize(
    "storage",
    [
        "s3://alice:s3cret@bucket/sweeps",
        "s3://alice:1/s3cret@bucket/sweeps",
        "s3://s3cret@bucket/sweeps",
        "fsspec+s3://alice:s3cret@bucket/sweeps",
        "abfs://:s3cret@alice.blob.core.windows.net/sweeps",
        "abfs://sweeps:s3/cret@alice.dfs.core.windows.net/",
        "abfs://sweeps@alice.dfs.core.windows.net/?client_id=alice&client_secret=s3cret",
        "abfs://sweeps@alice.dfs.core.windows.net/?sv=2022&sig=s3cret",
        "s3://bucket/sweeps?endpoint_override=alice:s3cret@host:9000",
    ],
)
def test_a_storage_with_a_login_is_refused_and_the_login_not_shown(storage: str, tmp_path: Path) -> None:
    own, plain = tmp_path / "own.yaml", tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(SPEC.model_dump(mode="json", exclude={"storage"})))
    own.write_text(f"storage: {storage}\n{plain.read_text()}")
    for arguments, where in (
        (("sweep", str(own)), f"{own}:1:10: storage: holds a login"),
        (("plan", str(plain), "--storage", storage), "--storage: holds a login"),
        (("resume", "mine", "--storage", storage), "storage: holds a login"),
        (("list", "--storage", storage), "storage: holds a login"),
    ):
        said = refused(*arguments)
        assert where in said
        assert "AWS_SECRET_ACCESS_KEY" in said
        assert not re.search("alice|cret", said)
    assert not re.search("s3cret", without_login(f"{storage}: not found"))


@pytest.mark.parametrize(
    "storage", ["s3://b/me@home", "gs://anonymous@b/x", "hdfs://me@h:8020/a@b", "/a:b@c", "s3://b?region=a"]
)
def test_a_storage_without_a_login_is_taken(storage: str) -> None:
    assert SweepSpec.model_validate(SPEC.model_dump() | {"storage": storage}).storage == storage
