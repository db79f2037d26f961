"""Writing a sweep's report: when it is asked for, while it runs, and at its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from rpg_platform.review.content import content_of
from rpg_platform.review.found import Found, found_in
from rpg_platform.review.page import REPORT_FILE, render
from rpg_platform.spec.task import get_task
from rpg_platform.storage.sweep_folder import SweepFolder

logger = logging.getLogger(__name__)

EVERY_S = 60.0
_REST_PER_WORK = 30.0  # the report of a sweep of thousands of trials is written more rarely
_STOP_S = 60.0


def write_report(found: Found, run_ids: Mapping[str, str] | None = None, state: str | None = None) -> str:
    """Writes ``report.html`` into a sweep's folder, whole or not at all.

    Args:
        found: the sweep.
        run_ids: trial id (the sweep's own run: the empty string) → MLflow's run id; None: those that its source
            knows.
        state: how the sweep is doing, where its status file does not say so yet.

    Returns:
        The page.
    """
    if state is not None:
        found = replace(found, status={**found.status, "state": state, "heartbeat": time.time()})
    page = report_of(found, run_ids)
    found.folder.write_text(REPORT_FILE, page)
    return page


def report_of(found: Found, run_ids: Mapping[str, str] | None = None) -> str:
    """The page of what a sweep has found; arguments as for ``write_report``."""
    if run_ids is None:
        run_ids = found.source.run_ids()
    return render(content_of(found, run_ids, metric_name_of(found)))


def metric_name_of(found: Found) -> str:
    """The heading of the task's readable metric; a neutral one where the task's code is not at hand."""
    try:
        return get_task(found.spec.task).metric_name
    except ValueError:
        return "task metric"


class LiveReport:
    """Rewrites a running sweep's report from a thread of its own: at most once a minute, if a trial has ended since.

    Nothing that goes wrong with it reaches the sweep.

    Args:
        folder: the sweep's.
        finished: how many trials have ended so far; called from the thread.
        run_ids: as for ``write_report``; called from the thread.
    """

    def __init__(
        self, folder: SweepFolder, finished: Callable[[], int], run_ids: Callable[[], Mapping[str, str]]
    ) -> None:
        self._folder, self._finished, self._run_ids = folder, finished, run_ids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rpg-report", daemon=True)

    def start(self) -> None:
        """Writes from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Writes no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _work(self) -> None:
        before, pause = 0, EVERY_S
        while not self._ended.wait(pause):
            began, count = time.monotonic(), self._finished()
            if count == before:
                continue
            try:
                write_report(found_in(self._folder), self._run_ids())
                before = count
            except Exception as error:  # a full disk, a storage that is away, a defect: the next one may pass
                logger.warning("report: %s: %s", type(error).__name__, error)
            pause = max(EVERY_S, _REST_PER_WORK * (time.monotonic() - began))
