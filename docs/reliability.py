"""Writes the table of docs/reliability.md from what `make test-cluster` has measured in test-artifacts/reliability/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
MEASURED = ROOT / "test-artifacts" / "reliability"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
STORAGES = {"path": "path", "s3": "S3"}


def main() -> None:
    """Replaces what stands between the page's markers."""
    found = {each: json.loads((MEASURED / f"{each}.json").read_text(encoding="utf-8")) for each in STORAGES}
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n".join(lines_of(found)) + "\n" + END + after, encoding="utf-8")


def lines_of(found: dict[str, Any]) -> list[str]:
    """The table and what it was measured with."""
    heads = [f"{word}, {name}" for word in ("recovery", "lost", "doubled") for name in STORAGES.values()]
    lines = [f"| fault | how it is made | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    for rows in zip(*(each["faults"] for each in found.values()), strict=True):
        cells = [seconds(row) for row in rows]
        cells += [f"{row[name]} of {row['points']:,}" for name in ("lost", "doubled") for row in rows]
        lines.append(f"| {rows[0]['fault']} | {rows[0]['how']} | {' | '.join(cells)} |")
    lines.append("")
    for name, each in zip(STORAGES.values(), found.values(), strict=True):
        versions = ", ".join(f"{package} {version}" for package, version in each["versions"].items())
        what = f"{each['points']:,} points in {each['seconds'] / 60:.0f} minutes on {each['cores']} cores"
        lines += [f"- {name}: {what}", f"  ({versions})."]
    return lines


def seconds(row: dict[str, Any]) -> str:
    """The times of a fault; one that stops nothing has none."""
    if row["recovered_s"] is None:
        return "refused"
    noticed = "" if row["noticed_s"] is None else f", noticed after {row['noticed_s']:.0f} s"
    return f"{row['recovered_s']:.0f} s{noticed}"


if __name__ == "__main__":
    main()
