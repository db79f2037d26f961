"""Writing a sweep's report, figures and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping

from rpg_platform.review.content import content_of
from rpg_platform.review.found import Found, found_in
from rpg_platform.review.page import REPORT_FILE, render
from rpg_platform.spec.task import get_task
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.spool import remembered, spool_folder


def write_report(folder: SweepFolder, run_ids: Mapping[str, str] | None = None) -> str:
    """Writes ``report.html`` into a sweep's folder, whole or not at all.

    Args:
        folder: the sweep's.
        run_ids: trial id (the sweep's own run: the empty string) → MLflow's run id; None: those that the sweep's spool
            remembers.

    Returns:
        The page.

    Raises:
        SweepFolderError: there is no sweep.
    """
    page = report_of(found_in(folder), run_ids)
    folder.write_text(REPORT_FILE, page)
    return page


def report_of(found: Found, run_ids: Mapping[str, str] | None = None) -> str:
    """The page of what a sweep has found; arguments as for ``write_report``."""
    if run_ids is None:
        known = remembered(spool_folder(found.folder.storage, found.folder.name))
        run_ids = {key: str(each["id"]) for key, each in known.items()}
    return render(content_of(found, run_ids, metric_name_of(found)))


def metric_name_of(found: Found) -> str:
    """The heading of the task's readable metric; a neutral one where the task's code is not at hand."""
    try:
        return get_task(found.spec.task).metric_name
    except ValueError:
        return "task metric"
