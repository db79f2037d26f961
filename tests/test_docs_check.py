"""docs/check.py notices each kind of false claim, and leaves true ones alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Other page\n\n## A `b`, and c's\n\n## Twice\n\n## Twice\n")
    (tmp_path / "Makefile").write_text("X := 1\n.PHONY: test\ntest: ## t\n\ttrue\ntest-slow: ## s\n\ttrue\n")
    return tmp_path


def problems(check: ModuleType, function: str, folder: Path, text: str, *arguments: object) -> list[str]:
    file = folder / "page.md"
    file.write_text(text)
    found = getattr(check, function)(list(check.read_lines(file)), *arguments)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "[x](docs/other.md)",
        "[x](docs/other.md#a-b-and-cs) and [y](docs/other.md#twice-1)",
        "[x](docs/)",
        "# Here\n[x](#here)",
        "[x](https://example.invalid/nowhere) ![p](docs/other.md)",
        "[![badge](docs/other.md)](docs/other.md)",
        "`[x](nowhere.md)`",
        "```text\n[x](nowhere.md)\n```",
        '<img src="docs/other.md">',
    ],
)
def test_true_links_pass(check: ModuleType, folder: Path, text: str) -> None:
    assert problems(check, "check_links", folder, text, folder) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n[x](nowhere.md)", "page.md:2: link to a missing file: nowhere.md"),
        ("![x](nowhere.png)", "missing file: nowhere.png"),
        ("[x](docs/other.md#nothing)", "missing heading: docs/other.md#nothing"),
        ("[x](#nothing)", "missing heading: #nothing"),
        ("[x](../outside.md)", "out of the repository"),
        ("[x]: nowhere.md", "missing file"),
        ('<img alt="a" src="nowhere.png">', "missing file"),
        ("```text\n```\n[x](nowhere.md)", "page.md:3: link to a missing file"),
    ],
)
def test_false_links_are_found(check: ModuleType, folder: Path, text: str, message: str) -> None:
    (problem,) = problems(check, "check_links", folder, text, folder)
    assert message in problem


def test_names_are_imported(check: ModuleType, folder: Path) -> None:
    true = "`rpg_algorithms.maths.rewards` and `rpg_platform.cli.main`"
    assert problems(check, "check_names", folder, true) == []
    false = "`rpg_algorithms.maths.rewards.no_such_reward`\n\n```python\nimport rpg_platform.nothing\n```\n"
    assert problems(check, "check_names", folder, false) == [
        f"{folder / 'page.md'}:1: no such name: rpg_algorithms.maths.rewards.no_such_reward",
        f"{folder / 'page.md'}:4: no such name: rpg_platform.nothing",
    ]


def test_the_equation_table_must_name_functions(check: ModuleType, folder: Path) -> None:
    page = folder / "page.md"
    row = "| (7) | `rpg_algorithms.maths.rewards.spg_reward` | soft reward |"
    assert problems(check, "check_equation_table", folder, row, page) == []
    assert problems(check, "check_equation_table", folder, "| (7) | to do |", page) != []
    assert problems(check, "check_equation_table", folder, row.replace("|", ""), page) != []


def test_make_verbs_exist(check: ModuleType, folder: Path) -> None:
    makefile = folder / "Makefile"
    true = 'Run `make test`, `make test test-slow` or `make test ARGS="-k make"`; make sure.\n\n    make\n'
    assert problems(check, "check_make_verbs", folder, true, makefile) == []
    false = "`make tests`\n```bash\ncd x && make demo  # run\n```\n"
    assert problems(check, "check_make_verbs", folder, false, makefile) == [
        f"{folder / 'page.md'}:1: no such verb: make tests",
        f"{folder / 'page.md'}:3: no such verb: make demo",
    ]


LONG = "word " * 20 + "a"  # 101 columns


def test_prose_is_at_most_100_columns(check: ModuleType, folder: Path) -> None:
    fine = [LONG[:-2], f"| {LONG} |", f"```text\n{LONG}\n```", f"    {LONG}", f"- [x](https://{'a' * 100})"]
    assert problems(check, "check_width", folder, "\n\n".join(fine)) == []
    message = "101 columns, at most 100 are allowed: wrap the line"
    assert problems(check, "check_width", folder, f"fine\n{LONG}\n- {LONG[2:]}\n    - {LONG[6:]}") == [
        f"{folder / 'page.md'}:{number}: {message}" for number in (2, 3, 4)
    ]


def test_the_repository_is_clean(check: ModuleType) -> None:
    assert check.main() == 0
