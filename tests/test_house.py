"""The house: packages in one order, doors that open outwards, and a sentence on each of them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = ROOT / "platform" / "rpg_platform"
ALGORITHMS = ROOT / "algorithms" / "rpg_algorithms"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

# A package imports only what stands in a line above its own; packages of one line do not import each other.
FLOORS = (
    ("wording", "logs"),
    ("bundles",),
    ("tasks",),
    ("spec",),
    ("results",),
    ("evaluation", "storage"),
    ("tracking", "trial", "search"),
    ("priors", "planning", "review"),
    ("run", "export"),
    ("jobs",),
    ("cli",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ALGORITHM_FLOORS = {"addons": 0, "maths": 1, "policies": 2, "rllib": 3}


def imports(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """Yields each module of ``package`` that a module imports, and whether a function does it."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == package:
                if child.module == package:
                    yield from ((f"{package}.{alias.name}", inside) for alias in child.names)
                else:
                    yield str(child.module), inside
            elif isinstance(child, ast.Import):
                yield from ((each.name, inside) for each in child.names if each.name.startswith(f"{package}."))
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from visit(ast.parse(source), False)


def modules(root: Path) -> dict[str, Path]:
    """Dotted name inside the package → file, of every module and every package's face."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(parts)] = path
    return found


def wrong_doors(root: Path, floors: dict[str, int]) -> list[str]:
    """Imports that run against the order of packages."""
    found = []
    for name, path in modules(root).items():
        room = name.partition(".")[0]
        for imported, _ in imports(path.read_text(), root.name):
            other = imported.split(".")[1]
            if other in floors and other != room and floors[other] >= floors[room]:
                found.append(f"{name} imports {imported}")
    return found


def test_every_package_has_its_floor() -> None:
    assert {name.partition(".")[0] for name in modules(PLATFORM)} == set(FLOOR)
    assert {name.partition(".")[0] for name in modules(ALGORITHMS)} == set(ALGORITHM_FLOORS)


def test_packages_import_only_what_stands_before_them() -> None:
    assert wrong_doors(PLATFORM, FLOOR) == []
    assert wrong_doors(ALGORITHMS, ALGORITHM_FLOORS) == []
    # A walker that finds nothing must be one that could have found something.
    assert list(imports("def f():\n    from rpg_platform.run import run\n", "rpg_platform")) == [
        ("rpg_platform.run", True)
    ]
    turned = {name: -number for name, number in FLOOR.items()}
    assert len(wrong_doors(PLATFORM, turned)) > 100


def runtime_imports(path: Path, known: dict[str, Path], package: str) -> set[str]:
    """Modules of ``known`` that a module imports when it runs: at its top or in a function, not for types alone."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (name for other in child.orelse for name in visit(other))
            elif isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == package:
                inside = str(child.module).partition(".")[2]
                yield inside
                yield from (f"{inside}.{alias.name}".lstrip(".") for alias in child.names)
            else:
                yield from visit(child)

    return {name for name in visit(ast.parse(path.read_text())) if name in known}


def test_no_module_is_part_of_a_circle() -> None:
    """Imports at the top and inside functions together: none is hidden in a function to dodge a circle."""
    for root in (PLATFORM, ALGORITHMS):
        known = modules(root)
        arrows = {name: runtime_imports(path, known, root.name) - {name} for name, path in known.items()}
        assert sum(map(len, arrows.values())) > len(known), "the walker sees the imports"
        assert circle_in(arrows) == []


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """Names of one circle, in order; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows.get(name, ())):
            if found := walk(other, (*path, name)):
                return found
        done.add(name)
        return []

    for name in sorted(arrows):
        if found := walk(name, ()):
            return found
    return []


def test_the_search_for_circles_finds_one() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def faces() -> dict[str, Path]:
    """Every package, by its dotted name."""
    found = {}
    for root in (PLATFORM, ALGORITHMS):
        for face in sorted(root.rglob("__init__.py")):
            found[".".join((root.name, *face.parent.relative_to(root).parts))] = face
    return found


@pytest.mark.parametrize("package", faces())
def test_a_package_says_in_a_sentence_what_it_is_for(package: str) -> None:
    said = (ast.get_docstring(ast.parse(faces()[package].read_text())) or "").splitlines()
    assert said, package
    assert said[0].endswith("."), said[0]
    assert 4 <= len(said[0].split()) <= 25, said[0]


def test_the_architecture_names_each_package_once() -> None:
    """In the tree on that page: one line for each package and each module that stands alone."""
    text = ARCHITECTURE.read_text()
    tree = text[text.index("algorithms/rpg_algorithms/") : text.index("tune_configs/")]
    named = re.findall(r"^ {6,}(\w+)/? ", tree, re.MULTILINE)
    wanted = [*ALGORITHM_FLOORS, *FLOOR]
    assert sorted(name for name in named if name in wanted) == sorted(wanted)


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}")
sys.meta_path.insert(0, Blocked())
import {module}
"""


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("rpg_algorithms.maths.rewards", ("ray", "mlflow", "gymnasium")),
        ("rpg_algorithms.policies.bundle", ("ray", "mlflow")),
        ("rpg_platform.spec.yaml_file", ("ray", "mlflow", "torch", "gymnasium", "scipy")),
        ("rpg_platform.cli.main", ("ray", "mlflow", "torch", "gymnasium", "numpy", "scipy", "pyarrow", "pydantic")),
        ("rpg_platform.run.status", ("ray", "mlflow", "torch", "scipy", "matplotlib")),
        ("rpg_platform.storage.sweep_folder", ("ray", "mlflow", "torch", "scipy")),
        ("rpg_platform.planning.preflight", ("ray", "mlflow", "matplotlib")),
        ("rpg_platform.tracking.store", ("ray", "mlflow", "torch")),
        ("rpg_platform.priors.formats", ("ray", "mlflow", "torch", "onnx")),
        ("rpg_platform.review.found", ("ray",)),
        ("rpg_platform.cli.common as cli; cli.policy_folder('halfcheetah-spg', None).__enter__()", ("ray", "mlflow")),
    ],
)
def test_importing_costs_what_is_used(module: str, blocked: tuple[str, ...]) -> None:
    program = BLOCKED.format(blocked=set(blocked), module=module)
    paths = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
