"""Check the documents: links lead somewhere, named functions and make verbs exist, and lines are short.

`make docs-check` runs this script. It makes four checks of the repository's Markdown files:

1. every relative link and image points at a file of the repository, and every `#anchor` at a heading of that file;
2. every `rpg_algorithms.…` or `rpg_platform.…` name in code style can be imported (patches apart), and
   docs/mathematics.md has a table that names the function of each equation;
3. every `make VERB` in code style or in a code block is a target of the Makefile;
4. no line of prose is longer than 100 columns. Tables, code blocks and lines of one word are free, and so is
   benchmarks/RESULTS.md, which `make bench` writes.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent

MAX_COLUMNS = 100
GENERATED = ROOT / "benchmarks" / "RESULTS.md"

FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
CODE_SPAN = re.compile(r"(`+)(.+?)\1")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)")
HTML_LINK = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
HTML_ANCHOR = re.compile(r"<a\b[^>]*?\b(?:id|name)=\"([^\"]+)\"")
SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
PYTHON_NAME = re.compile(r"\brpg_(?:algorithms|platform)(?:\.[A-Za-z_]\w*)+")
MAKE_VERB = re.compile(r"(?:^|[\s;&|(])make\s+((?:[a-z][a-z-]*(?=\s|$|[;&|)])\s*)+)")
MAKE_TARGET = re.compile(r"^([a-z][a-z-]*):(?!=)", re.MULTILINE)


class Line(NamedTuple):
    """One line of a Markdown file."""

    file: Path
    number: int
    text: str
    is_code: bool  # inside a fenced block

    def problem(self, message: str) -> str:
        """Return a message that names this line; the path of a file of the repository is relative."""
        file = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        return f"{file}:{self.number}: {message}"

    def code(self) -> list[str]:
        """Return the parts in code style: the whole line of a fenced block, else its code spans."""
        return [self.text] if self.is_code else [span[1] for span in CODE_SPAN.findall(self.text)]

    def prose(self) -> str:
        """Return the line without its code spans; nothing for a line of a fenced block."""
        return "" if self.is_code else CODE_SPAN.sub("", self.text)


def read_lines(file: Path) -> Iterator[Line]:
    """Yield the lines of a Markdown file without the fences themselves."""
    fence = ""
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        found = FENCE.match(text)
        if fence:
            if found and found[1].startswith(fence) and not text.strip().strip(fence[0]):
                fence = ""
                continue
        elif found:
            fence = found[1]
            continue
        yield Line(file, number, text, is_code=bool(fence))


def anchors(file: Path) -> set[str]:
    """Return the anchors of a Markdown file: the slugs that GitHub makes of its headings, and HTML anchors."""
    found: set[str] = set()
    for line in read_lines(file):
        if line.is_code:
            continue
        found.update(HTML_ANCHOR.findall(line.text))
        heading = HEADING.match(line.text)
        if heading is None:
            continue
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeats = 0
        while (candidate := f"{slug}-{repeats}" if repeats else slug) in found:
            repeats += 1
        found.add(candidate)
    return found


def check_links(lines: list[Line], root: Path) -> list[str]:
    """Return a problem for each relative link that leads nowhere or out of the repository."""
    problems = []
    for line in lines:
        prose = line.prose()
        for target in [*LINK.findall(prose), *REFERENCE.findall(prose), *HTML_LINK.findall(prose)]:
            if SCHEME.match(target) or target.startswith("//"):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = (line.file.parent / path).resolve() if path else line.file
            if not file.is_relative_to(root):
                problems.append(line.problem(f"link leads out of the repository: {target}"))
            elif not file.exists():
                problems.append(line.problem(f"link to a missing file: {target}"))
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                problems.append(line.problem(f"link to a missing heading: {target}"))
    return problems


def resolves(name: str) -> bool:
    """Say whether a dotted name is a module, or an attribute of one.

    Raises:
        ImportError: if a module of that name exists but fails to import: a fault, not a wrong name.
    """
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        module = ".".join(parts[:split])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
                raise
            continue
        for attribute in parts[split:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def check_names(lines: list[Line]) -> list[str]:
    """Return a problem for each name of our packages that does not exist."""
    problems = []
    for line in lines:
        if line.is_code and line.text.startswith("+"):  # a patch, which may add the name
            continue
        names = {name for code in line.code() for name in PYTHON_NAME.findall(code)}
        problems += [line.problem(f"no such name: {name}") for name in sorted(names) if not resolves(name)]
    return problems


def check_equation_table(lines: list[Line], file: Path) -> list[str]:
    """Return a problem if no table row of the mathematics document names one of our functions."""
    own = [line for line in lines if line.file == file and line.text.lstrip().startswith("|")]
    if any(PYTHON_NAME.search(code) for line in own for code in line.code()):
        return []
    return [f"{file.name}: no table row names a function (`rpg_algorithms.…`)"]


def check_make_verbs(lines: list[Line], makefile: Path) -> list[str]:
    """Return a problem for each `make VERB` for which the Makefile has no target."""
    targets = set(MAKE_TARGET.findall(makefile.read_text(encoding="utf-8")))
    problems = []
    for line in lines:
        verbs = {verb for code in line.code() for verbs in MAKE_VERB.findall(code) for verb in verbs.split()}
        problems += [line.problem(f"no such verb: make {verb}") for verb in sorted(verbs - targets)]
    return problems


def check_width(lines: list[Line]) -> list[str]:
    """Return a problem for each line of prose that is longer than 100 columns and could be wrapped."""
    problems = []
    for line in lines:
        indented_code = line.text.startswith("    ") and not LIST_ITEM.match(line.text)
        if line.is_code or indented_code or line.text.lstrip().startswith("|"):
            continue
        columns, words = len(line.text), LIST_ITEM.sub("", line.text).split()
        if columns > MAX_COLUMNS and len(words) > 1:
            problems.append(line.problem(f"{columns} columns, at most {MAX_COLUMNS} are allowed: wrap the line"))
    return problems


def documents() -> list[Path]:
    """Return the Markdown files of the repository that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).exists())


def main() -> int:
    """Check every document; print the problems.

    Returns:
        The exit code: 0 if there is no problem.
    """
    files = documents()
    lines = [line for file in files for line in read_lines(file)]
    problems = [
        *check_links(lines, ROOT),
        *check_names(lines),
        *check_equation_table(lines, ROOT / "docs" / "mathematics.md"),
        *check_make_verbs(lines, ROOT / "Makefile"),
        *check_width([line for line in lines if line.file != GENERATED]),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs-check: {len(files)} documents, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
