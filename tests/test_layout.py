"""The layout of the repository: where code may stand, and which way dependencies run."""

from __future__ import annotations

import ast
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("algorithms", "platform")
ALGORITHMS = ROOT / "algorithms" / "rpg_algorithms"
PLATFORM = ROOT / "platform" / "rpg_platform"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
# Longer functions that are better whole: "path::function" -> why.
LONG_FUNCTIONS: dict[str, str] = {}

# What rpg_algorithms may depend on, beyond the standard library: anybody who has RLlib has these.
ALGORITHMS_MAY_IMPORT = {"gymnasium", "numpy", "pydantic", "ray", "rpg_algorithms", "safetensors", "torch", "envpool"}
# What needs no Ray: the mathematics, add-on rewards, and a policy and its file. Package or module -> those of ours, and
# of others, that it may import; nothing comes from rpg_algorithms itself, whose public names include Ray's.
PURE_MAY_IMPORT = {
    "maths": ({"maths"}, {"torch"}),
    "addons.py": (set[str](), {"numpy"}),
    "policies": ({"addons", "maths", "policies"}, {"gymnasium", "numpy", "pydantic", "safetensors", "torch"}),
}
PURE_MODULES = sorted(
    path for file in ALGORITHMS.rglob("*.py") if (path := file.relative_to(ALGORITHMS)).parts[0] in PURE_MAY_IMPORT
)
# A wrong sweep is refused before Ray starts, so what reads it must not need Ray.
PLATFORM_WITHOUT_RAY = sorted(path.relative_to(PLATFORM) for path in (PLATFORM / "spec").rglob("*.py"))


def python_files() -> list[Path]:
    """Return the repository's Python files, without environments and builds."""
    skipped = {"build", "dist", "__pycache__"}
    return sorted(
        path
        for path in ROOT.rglob("*.py")
        if not any(part in skipped or part.startswith(".") for part in path.relative_to(ROOT).parts)
    )


def imports_of(source: str) -> set[str]:
    """Return the absolute dotted names that a module imports, anywhere in it.

    `from a import b` gives both `a` and `a.b`, because `b` may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned by ruff"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def third_party(names: set[str]) -> set[str]:
    """Return the top-level packages of imported names, without the standard library."""
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def functions_of(source: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a module: its qualified name, and its number of lines without the docstring."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    lines = child.end_lineno - child.lineno + 1
                    docstring = child.body[0]
                    if ast.get_docstring(child) is not None:
                        assert docstring.end_lineno is not None
                        lines -= docstring.end_lineno - docstring.lineno + 1
                    yield name, lines
                yield from visit(child, f"{name}.")
            else:
                yield from visit(child, prefix)

    yield from visit(ast.parse(source), "")


def use_platform_from(folder: Path) -> subprocess.CompletedProcess[str]:
    """Use the standard library's `platform` as a Ray worker does: from a folder that is on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    program = "import platform; platform.system(); print(platform.__file__)"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_source_roots_hold_no_python_file(root: str) -> None:
    assert [path.name for path in (ROOT / root).iterdir() if path.suffix in {".py", ".pyi", ".so"}] == []


def test_standard_platform_wins_at_the_root() -> None:
    done = use_platform_from(ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "platform.py"
    assert ROOT / "platform" not in Path(done.stdout.strip()).parents


def test_the_guard_notices_a_stray_init(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    assert use_platform_from(tmp_path).returncode == 0
    (tmp_path / "platform" / "__init__.py").touch()
    assert use_platform_from(tmp_path).returncode != 0


def test_pytest_leaves_the_standard_platform_alone() -> None:
    assert sys.modules["platform"] is platform
    assert platform.__file__ is not None
    assert ROOT not in Path(platform.__file__).parents or ".venv" in Path(platform.__file__).parts
    assert hasattr(platform, "system")


@pytest.mark.parametrize(
    ("snippet", "banned"),
    [
        ("import algorithms.rpg_algorithms\n", True),
        ("from algorithms.rpg_algorithms import rewards\n", True),
        ("import platform.rpg_platform\n", True),
        ("from platform.rpg_platform import cli\n", True),
        ("import platform\n", False),
        ("from rpg_algorithms import rewards\n", False),
    ],
)
def test_ruff_bans_the_source_roots_as_packages(snippet: str, banned: bool) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251"]
    command += ["--stdin-filename", "platform/rpg_platform/snippet.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=snippet, capture_output=True, text=True, timeout=240)
    assert done.returncode == int(banned), done.stdout + done.stderr
    assert ("TID251" in done.stdout) == banned


def test_algorithms_depend_on_nothing_above_them() -> None:
    wrong = {
        str(path.relative_to(ROOT)): extra
        for path in ALGORITHMS.rglob("*.py")
        if (extra := third_party(imports_of(path.read_text())) - ALGORITHMS_MAY_IMPORT)
    }
    assert wrong == {}
    assert list(ALGORITHMS.rglob("*.py"))


@pytest.mark.parametrize("module", PURE_MODULES, ids=str)
def test_the_mathematics_is_pure(module: Path) -> None:
    """A module of the mathematics or of policies imports only such modules, and never Ray."""
    imports = imports_of((ALGORITHMS / module).read_text())
    ours, others = PURE_MAY_IMPORT[module.parts[0]]
    assert third_party(imports) <= others | {ALGORITHMS.name}
    assert {f"{name}.".split(".")[1] for name in imports if name.partition(".")[0] == ALGORITHMS.name} <= ours


@pytest.mark.parametrize("module", PLATFORM_WITHOUT_RAY, ids=str)
def test_a_sweep_is_read_without_ray(module: Path) -> None:
    imports = imports_of((PLATFORM / module).read_text())
    assert not third_party(imports) & {"ray", "mlflow", "torch"}


def test_the_lists_of_modules_name_some() -> None:
    assert {path.parts[0] for path in PURE_MODULES} == set(PURE_MAY_IMPORT)
    assert Path("spec/yaml_file.py") in PLATFORM_WITHOUT_RAY


def test_tests_take_nothing_from_other_tests() -> None:
    """Pytest runs a module of tests, and a conftest, by itself; what several need stands in a module beside them."""
    taken = {
        str(path.relative_to(ROOT)): wrong
        for path in (ROOT / "tests").rglob("*.py")
        if (wrong := {n for n in imports_of(path.read_text()) if re.match(r"tests\b.*\.(test_|conftest)", n)})
    }
    assert taken == {}


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert {path: length for path, length in lengths.items() if length >= MAX_FILE_LINES} == {}
    assert "tests/test_layout.py" in lengths


def test_functions_are_short() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}::{name}": lines
        for path in python_files()
        for name, lines in functions_of(path.read_text())
    }
    long = {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}
    assert set(long) - set(LONG_FUNCTIONS) == set(), long
    assert set(LONG_FUNCTIONS) - set(long) == set(), "exceptions that are no longer needed"


def test_the_walkers_see_what_they_should() -> None:
    """A guard that finds nothing must be one that could have found something."""
    body = "    import ray.tune\n    from a.b import c\n    return c\n"
    source = f"def f():\n    '''Doc.\n\n    More.\n    '''\n{body}"
    assert imports_of(source) == {"ray.tune", "a.b", "a.b.c"}
    assert third_party(imports_of(source + "import os.path\n")) == {"ray", "a"}
    assert list(functions_of(source)) == [("f", 4)]
    nested = "class A:\n    def m(self):\n        def inner():\n            pass\n"
    assert [name for name, _ in functions_of(nested)] == ["A.m", "A.m.inner"]
