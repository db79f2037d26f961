"""docs/extending.md: each worked example is applied to a copy of the packages, and its lines are run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
SECTION = re.compile(
    r"^## (?P<title>.+?)$.*?^```diff\n(?P<patch>.*?)^```$.*?^```python\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL
)
EXAMPLES = {found["title"]: found for found in SECTION.finditer(PAGE.read_text())}
MOST_FILES = 2


def test_the_page_has_the_five_extensions() -> None:
    assert list(EXAMPLES) == ["A measure", "A method", "A prior format", "A search", "A scheduler"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_extension_touches_few_files_and_works(title: str, tmp_path: Path) -> None:
    patch, lines = EXAMPLES[title]["patch"], EXAMPLES[title]["lines"]
    touched = re.findall(r"^\+\+\+ b/(\S+)$", patch, re.MULTILINE)
    assert 1 <= len(touched) <= MOST_FILES
    table = next(row for row in PAGE.read_text().splitlines() if row.startswith(f"| {title.lower()} "))
    for file in touched:  # the page's table says the same
        assert Path(file).name in table or str(Path(file).parent.relative_to("platform/rpg_platform")) in table, file
    for source in ("algorithms", "platform"):
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    roots = os.pathsep.join([str(tmp_path / "algorithms"), str(tmp_path / "platform")])
    environment = os.environ | {"PYTHONPATH": roots}
    place = tmp_path / "elsewhere"
    place.mkdir()

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", lines]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)

    assert run().returncode != 0, "without the change the lines do not run"
    applied = subprocess.run(
        ["git", "apply", "--verbose", "-"], cwd=tmp_path, input=patch, capture_output=True, text=True, timeout=60
    )
    assert applied.returncode == 0, applied.stderr
    done = run()
    assert done.returncode == 0, done.stderr
