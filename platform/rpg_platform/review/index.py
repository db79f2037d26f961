"""All sweeps of a storage on one page, newest first."""

from __future__ import annotations

import html
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpg_platform.results.names import short_name
from rpg_platform.results.report import as_json, is_finished
from rpg_platform.review.found import found_in
from rpg_platform.review.page import REPORT_FILE, index_page
from rpg_platform.spec.task import task_label
from rpg_platform.storage.listing import sweeps_in
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError

INDEX_FILE = "index.html"


@dataclass(frozen=True)
class Listed:
    """One sweep in a list.

    Attributes:
        name, task, state: of the sweep; ``unreadable`` where its folder is damaged.
        started: seconds since the epoch; 0.0 if unknown.
        finished, trials: how many trials.
        best: its best setting; None while there is none.
        total, prior_total: deterministic total return per episode of the best setting and of the prior.
        kept: share of the prior's basic return.
        note: why it is unreadable.
        has_report: whether its folder holds a report.
    """

    name: str
    task: str = ""
    state: str = "unreadable"
    started: float = 0.0
    finished: int = 0
    trials: int = 0
    best: str | None = None
    total: float | None = None
    prior_total: float | None = None
    kept: float | None = None
    note: str = ""
    has_report: bool = False

    @property
    def finished_words(self) -> str:
        """How many of its trials finished."""
        return f"{self.finished} of {self.trials}"

    @property
    def total_words(self) -> str:
        """The best total return and what it is above the prior's."""
        if self.total is None:
            return self.note or "–"
        return f"{self.total:,.4g}" + ("" if self.prior_total is None else f" ({self.total - self.prior_total:+,.4g})")

    @property
    def kept_words(self) -> str:
        """The share of the prior's basic return that is kept."""
        return "–" if self.kept is None else f"{100 * self.kept:.0f} %"

    def as_json(self) -> dict[str, Any]:
        """As strict JSON."""
        made: dict[str, Any] = as_json(asdict(self))
        return made


def sweeps_of(storage: str) -> list[Listed]:
    """The sweeps of a storage, newest first.

    Raises:
        SweepFolderError: the storage can't be read.
    """
    found = (_listed(SweepFolder(storage, name)) for name in sweeps_in(storage))
    return sorted(found, key=lambda each: (-each.started, each.name))


def _listed(folder: SweepFolder) -> Listed:
    try:
        found = found_in(folder)
    except SweepFolderError as error:
        return Listed(folder.name, note=str(error))
    best = next((row for row in found.rows if row.is_best), None)
    prior = next((row for row in found.rows if row.is_prior and row.seeds), None)
    return Listed(
        folder.name,
        task_label(found.spec.task) or "",
        str(found.status.get("state", "unknown")),
        float(found.status.get("started") or 0.0),
        sum(is_finished(report, error) for _, report, error in found.results),
        max(len(found.results), int(found.status.get("trials", {}).get("total", 0))),
        None if best is None else short_name(best),
        None if best is None else best.deterministic.total_return.mean,
        None if prior is None else prior.deterministic.total_return.mean,
        None if best is None else best.basic_kept,
        has_report=folder.read_text(REPORT_FILE) is not None,
    )


def write_index(storage: str, sweeps: list[Listed]) -> Path | None:
    """Writes ``index.html`` into a local storage; returns where, None for an object store."""
    if "://" in storage:
        return None
    file = Path(storage) / INDEX_FILE
    file.write_text(index_page([_line(each) for each in sweeps]), encoding="utf-8")
    return file


def _line(each: Listed) -> str:
    name = html.escape(each.name)
    link = f'<a href="{name}/{REPORT_FILE}">{name}</a>' if each.has_report else name
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started)) if each.started else "–"
    cells = [link, *map(html.escape, (when, each.task, each.state, each.finished_words, each.best or "–"))]
    numbers = [html.escape(text) for text in (each.total_words, each.kept_words)]
    left = "".join(f'<td class="left">{cell}</td>' for cell in cells)
    return f"<tr>{left}{''.join(f'<td>{cell}</td>' for cell in numbers)}</tr>"
