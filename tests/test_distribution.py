"""What is released: the wheel has everything, declared and locked versions are true, nothing is private."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rpg_algorithms

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "algorithms" / "rpg_algorithms", ROOT / "platform" / "rpg_platform")
LOCKS = ("dev.lock", "runtime.lock")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be released, built with the locked backend."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def package_files() -> set[str]:
    """Return every file of the two packages, as named in a wheel; the shipped sweeps lie behind a link."""
    return {
        str((Path(folder) / name).relative_to(package.parent))
        for package in PACKAGES
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }


def read_lock(name: str) -> dict[str, Version]:
    """Return the versions of a lock; every line but comments must be `name==version`."""
    pins = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"{name}: not an exact, plain version: {line!r}"
        assert match[1] not in pins, f"{name}: twice: {match[1]}"
        pins[match[1]] = Version(match[2])
    return pins


def repository_texts() -> dict[str, str]:
    """Return the text files that git has or would take, by path."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    texts = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            try:
                texts[name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # weights, pictures
                continue
    return texts


def private_strings(text: str) -> list[str]:
    """Return what a text says about the machine that it was written on."""
    # In pieces, so that this file does not find itself.
    hosts = ("py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org", "npm" + "js.org")
    host = "|".join(map(re.escape, hosts))
    # The user of the official Ray images is nobody's secret.
    home = r"/(?:ho" + r"me|Us" + r"ers)/(?!ray\b)[A-Za-z0-9_.-]+"
    here = rf"{re.escape(str(ROOT))}(?![\w.-])"
    return re.findall(rf"(?:{host})|(?<![\w.])(?:{home})|{here}", text)


def test_the_wheel_has_every_file_of_both_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {"rpg_algorithms/py.typed", "rpg_platform/py.typed"} <= names


def test_the_wheel_has_the_shipped_priors(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = [info for info in archive.infolist() if "/shipped_priors/" in info.filename]
    names = {info.filename for info in shipped}
    assert any(name.endswith(".safetensors") for name in names), names
    assert any(name.endswith(".json") for name in names), names


def test_the_sweeps_of_the_wheel_can_be_planned_outside_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    named = {str(file.relative_to(ROOT / "tune_configs")) for file in (ROOT / "tune_configs").rglob("*.yaml")}
    shipped = site / "rpg_platform" / "shipped_sweeps"
    assert {str(file.relative_to(shipped)) for file in shipped.rglob("*.yaml")} == named

    def rpg(*arguments: str, code: int = 0) -> str:
        # -P and no other path of ours: an editable install would bring the checkout's packages
        command = [sys.executable, "-P", "-m", "rpg_platform.cli", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200", "HOME": str(work)}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else " ".join(done.stderr.split())

    plan = json.loads(rpg("plan", "quickstart", "--no-calibrate", "--json"))
    assert plan["sweep"] == "quickstart"
    assert plan["trials"] == 7  # six settings and the prior
    # A prior that is not shipped is looked for, and trained, beside the working directory and never in the package.
    assert f"{work / 'priors' / 'swimmer-spg'}" in rpg("plan", "swimmer", "--no-calibrate", code=2)
    assert f"{work / 'priors' / 'ant-spg'}" in rpg("plan", "paper/ant_customise", "--no-calibrate", code=2)
    assert rpg("plan", "priors/hopper", "--no-calibrate")
    assert "quickstar: neither a file nor a shipped sweep; did you mean 'quickstart'?" in rpg(
        "plan", "quickstar", code=2
    )
    # A file of the user's goes before a shipped sweep of its name.
    (work / "quickstart").write_text("task: nothing")
    assert "quickstart:1:7: task" in rpg("plan", "quickstart", code=2)


def test_the_wheel_says_what_it_is(wheel: Path, pyproject: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "rpg = rpg_platform.cli.main:main" in archive.read(entry_points).decode().splitlines()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert wheel.name.startswith(f"residual_policy_gradient-{pyproject['project']['version']}-py3-none-any")


def test_every_place_that_names_the_version_agrees(pyproject: dict[str, Any]) -> None:
    version = pyproject["project"]["version"]
    assert importlib.metadata.version("residual-policy-gradient") == version
    assert rpg_algorithms.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_import_is_a_declared_dependency(pyproject: dict[str, Any]) -> None:
    """What comes in only through somebody else's dependencies can go away with them."""
    project = pyproject["project"]
    requirements = [
        *project["dependencies"],
        *(
            r
            for extra in ("envpool", "onnx", "minari", "optuna", "video")
            for r in project["optional-dependencies"][extra]
        ),
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in requirements}
    providers = importlib.metadata.packages_distributions()
    missing = set()
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                if top in {"rpg_algorithms", "rpg_platform"}:
                    continue
                distributions = {canonicalize_name(name) for name in providers.get(top, [top])}
                if not distributions & declared:
                    missing.add((str(path.relative_to(ROOT)), top))
    assert missing == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_is_declared(lock: str, pyproject: dict[str, Any]) -> None:
    pins = read_lock(lock)
    requirements = list(pyproject["project"]["dependencies"])
    if lock == "dev.lock":
        requirements += pyproject["project"]["optional-dependencies"]["dev"]
        requirements += pyproject["build-system"]["requires"]
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{lock}: {name} is missing: make lock"
        assert requirement.specifier.contains(pins[name]), f"{lock}: {pins[name]} is not {requirement}: make lock"


def test_what_is_tested_is_what_is_shipped() -> None:
    dev, runtime, server = (read_lock(f"{name}.lock") for name in ("dev", "runtime", "mlflow"))
    assert {name: dev.get(name) for name in runtime} == runtime
    assert {name: dev.get(name, version) for name, version in server.items()} == server
    assert {"psycopg2-binary", "flask-wtf", "boto3"} <= set(server)
    assert runtime["torch"] == Version("2.13.0")


def test_this_environment_is_the_locked_one() -> None:
    wrong = {
        name: (str(version), found)
        for name, version in read_lock("dev.lock").items()
        if Version(found := importlib.metadata.version(name)).public != version.public
    }
    assert wrong == {}, "make lock or make setup"


def test_no_text_names_a_home_or_a_registry() -> None:
    texts = repository_texts()
    assert {name: found for name, text in texts.items() if (found := private_strings(text))} == {}
    assert "pyproject.toml" in texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /ho" + "me/someone/x", 1),
        ("-i https://py" + "pi.org/simple", 1),
        (f"cd {ROOT}/docs", 1),
        ("/home" + "/ray/anaconda3", 0),
        ("the home page", 0),
    ],
)
def test_the_privacy_guard_sees_what_it_should(text: str, found: int) -> None:
    assert len(private_strings(text)) == found
