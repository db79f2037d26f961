"""What a job takes along, without a cluster: the default, and a sweep that reads what would stay here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import rpg_algorithms
import rpg_platform
from rpg_platform.jobs.client import JobError
from rpg_platform.jobs.submit import runtime_env
from rpg_platform.jobs.upload import check_files, check_size
from rpg_platform.spec.yaml_file import load_spec

TASK = {"env": "my_world:make", "wrappers": ["yaml:SafeLoader"], "addons": {"calm": {"function": "mine.calm:penalty"}}}
RAW = {"task": TASK, "algorithm": "full", "weights": {"alpha": 0.1}, "budget": {"env_steps": 100_000}}


def test_without_a_file_the_folder_and_the_package_that_runs_here_are_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of this machine is the cluster's to have; one beside the file is uploaded, all of its package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("my_world.py", "mine/__init__.py", "mine/calm.py", "mine/tables.py"):
        (tmp_path / name).touch()
    (tmp_path / "world.yaml").write_text(yaml.safe_dump(RAW))
    spec = load_spec("world.yaml", check_files=False)
    upload = runtime_env(None)
    assert upload.has_the_package
    assert not upload.brings_packages
    packages = [Path(str(each.__file__)).parent for each in (rpg_algorithms, rpg_platform)]
    assert list(upload.modules) == packages
    assert Path(str(rpg_platform.__file__)) in upload.modules[packages[1]]
    assert not [file for files in upload.modules.values() for file in files if "__pycache__" in file.parts]
    assert json.loads(upload.source[1]) == upload.runtime_env
    assert check_files(upload, Path("world.yaml"), spec) == ["yaml"]
    assert 2**20 < check_size(upload) < 20 * 2**20

    (tmp_path / ".rayignore").write_text("tables.py\n")
    with pytest.raises(JobError, match=rf"module 'mine.calm': {tmp_path}/mine/tables.py \(left out by"):
        check_files(runtime_env(None), Path("world.yaml"), spec)
    elsewhere = tmp_path.parent / "elsewhere.yaml"
    elsewhere.write_text(yaml.safe_dump(RAW))
    with pytest.raises(JobError, match=rf"the specification: {elsewhere} \(outside the working directory"):
        check_files(runtime_env(None), elsewhere, spec)
