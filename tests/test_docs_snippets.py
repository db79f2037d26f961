"""Runs what the documents tell people to type.

A fenced block that follows the line ``<!-- test: NAME -->`` is run: ``sh`` by bash, ``python`` by Python, and ``yaml``
is written to the file NAME. The blocks of a page run in its order, in one new folder, with ``rpg`` on the PATH and a
home of their own. Blocks are short on purpose. A page whose first line is ``<!-- slow -->`` runs in `make test-slow`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(
    r"^<!-- test: (?P<name>\S+) -->\n+```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
MARKER = re.compile(r"^<!-- test:", re.MULTILINE)
MOST_LINES = 6
LIMIT_S = 600


@dataclass(frozen=True)
class Snippet:
    """One block to run."""

    name: str
    language: str
    text: str

    @property
    def lines(self) -> int:
        return len([line for line in self.text.splitlines() if line.strip()])


def snippets(page: Path) -> list[Snippet]:
    """The marked blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [Snippet(**match.groupdict()) for match in MARKED.finditer(text)]
    assert len(found) == len(MARKER.findall(text)), f"{page.name}: a marker without a fenced block right after it"
    return found


def pages_with_snippets() -> list[object]:
    chosen: list[object] = []
    for page in PAGES:
        if snippets(page):
            slow = page.read_text(encoding="utf-8").startswith("<!-- slow -->")
            marks = (pytest.mark.slow,) if slow else ()
            chosen.append(pytest.param(page, id=page.stem, marks=marks))
    return chosen


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has the package installed."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("rpg", "-m rpg_platform.cli"), ("mlflow", "-m mlflow"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (commands / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    source_roots = f"{ROOT / 'algorithms'}:{ROOT / 'platform'}"
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return kept | {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(home), "PYTHONPATH": source_roots}


def run(snippet: Snippet, folder: Path, environment: dict[str, str]) -> None:
    if snippet.language == "yaml":
        (folder / snippet.name).write_text(snippet.text)
        return
    command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[snippet.language]
    done = subprocess.run(
        [*command, snippet.text],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{snippet.name}:\n{snippet.text}\n--- exit {done.returncode}\n{done.stdout[-3000:]}"


@pytest.mark.timeout(3 * LIMIT_S)
@pytest.mark.parametrize("page", pages_with_snippets())
def test_snippets_run(page: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for snippet in snippets(page):
        assert snippet.lines <= MOST_LINES, f"{page.name}: {snippet.name} has {snippet.lines} lines"
        run(snippet, folder, shell)


def test_a_snippet_that_fails_is_noticed(tmp_path: Path, shell: dict[str, str]) -> None:
    for language, text in (("sh", "rpg tasks show no-such-task"), ("python", "import no_such_module")):
        with pytest.raises(AssertionError, match="broken"):
            run(Snippet("broken", language, text), tmp_path, shell)
