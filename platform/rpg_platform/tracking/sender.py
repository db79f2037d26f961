"""Sends the records of a spool to MLflow, from a thread of its own, in batches, through any outage.

Nobody waits for the sender: trials report into the spool, and the thread takes the records from there.

- **Batches.** The sender reads some rows of the spool, joins the records of one run into one request, acknowledges the
  rows once it has dealt with all of them, and rests: about ten times as long as sending took, a second at least and ten
  at most. Records that arrive meanwhile share the next requests.
- **Outage.** When a request fails, the sender makes a small test write to the sweep's own run (``MlflowRuns.probe``) to
  find out whether the request or the server is at fault. If the test write fails too, the server is away: the sender
  tries again after 1 s, 2 s, … 60 s with jitter, for as long as it takes.
- **A bad record.** If the test write passes, the request is at fault, and the sender halves it until it finds the one
  record. It gives this record up at once if MLflow refuses it (4xx), or after ``ATTEMPTS`` attempts over about 15 s if
  MLflow fails on it (5xx, time-outs), and puts it into ``rejected.log`` with the reason; the rest goes on. Any other
  record of the same run (or, for artifacts, of any run) is then set aside at its first failure, until one passes again.
  Before the sender closes the sweep's run, it tries failed records once more; ``rpg track`` tries all in the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rpg_platform.spec.logins import without_login
from rpg_platform.tracking.errors import is_refusal, says_gone, short
from rpg_platform.tracking.runs import (
    ARTIFACTS,
    LOGGED,
    PARENT,
    KnownRun,
    MlflowRuns,
    Record,
)
from rpg_platform.tracking.spool import Row, Spool, encode, read_lines
from rpg_platform.tracking.variables import variables

logger = logging.getLogger(__name__)

ATTEMPTS = 5
MAX_FLUSH_S = 600.0
_SHORTEST_REST_S, _LONGEST_REST_S, _REST_PER_WORK = 1.0, 10.0, 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_HURRY_S = 1.0
_STOP_S = 2.0
# MLflow's own retries hold a caller for about four minutes when a server is away, and make a run twice when the first
# answer is lost: whatever the user has set, there are none here. The time-out stays the user's.
_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class _Stopped(Exception):  # noqa: N818 - not an error: the thread was asked to end
    """Ends the thread between two requests."""


@dataclass(frozen=True)
class TrackerState:
    """Says where a sweep's records are.

    Attributes:
        sent: in MLflow.
        spooled: on this disk only, waiting.
        rejected: given up, in ``rejected.log``.
        damaged: unreadable on the disk, or lost to a full one.
        unreachable_s: since how many seconds MLflow can't be used; None if it can.
    """

    sent: int
    spooled: int
    rejected: int = 0
    damaged: int = 0
    unreachable_s: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.sent:,} sent", f"{self.spooled:,} spooled"]
        parts += [f"{self.rejected:,} rejected"] if self.rejected else []
        parts += [f"{self.damaged:,} damaged"] if self.damaged else []
        if self.unreachable_s is not None:
            parts.append(f"unreachable for {self.unreachable_s:,.0f} s")
        return ", ".join(parts)


class Sender:
    """Sends an open spool's records.

    ``start`` and ``stop`` belong to the main thread: they turn MLflow's own retries off and its time-out down for this
    process, and back, and MLflow reads those from the environment.

    Args:
        spool: open.
        runs: takes the records.
        may_send: whether the sweep is surely this driver's; while it is not, the records wait.

    Attributes:
        errors: requests that failed, and defects.
        last_failure: the last of them in one line, while none has gone well since.
    """

    def __init__(self, spool: Spool, runs: MlflowRuns, may_send: Callable[[], bool] = lambda: True) -> None:
        self._may_send = may_send
        self.errors = 0
        self.last_failure: str | None = None
        self._spool = spool
        self._runs = runs
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._hurry = False
        self._retry_all = False
        self._thread: threading.Thread | None = None
        self._settings = contextlib.ExitStack()
        self._earlier = 0  # records up to here are of earlier processes
        self._rejected = 0
        self._passed = 0  # requests that went well
        self._away_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._failing: set[str] = set()  # lanes in which a record has been given up since the last one passed
        self._unopened: set[str] = set()  # runs that MLflow refused to open
        self._warned: set[str] = set()

    # ---- from other threads ---------------------------------------------------------------------

    def start(self) -> None:
        """Reads what earlier processes knew of the runs, and begins to send."""
        self._earlier = self._spool.appended
        for key, known in self._spool.remembered().items():
            self._runs.known[key] = KnownRun(known["id"], known["status"], known["doubtful"])
        self._runs.changed = self._remember
        self._rejected = sum(1 for _ in read_lines(self._spool.rejected_file))
        settings = {name: value for name, value in _DEFAULTS.items() if name not in os.environ} | _SETTINGS
        self._settings.enter_context(variables(settings))
        self._thread = threading.Thread(target=self._work, name="rpg-tracking", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a request that hangs is left to its time-out."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
        self._settings.close()

    def wake(self) -> None:
        """Tells the thread that the spool has a new record."""
        self._wake.set()

    def retry_rejected(self) -> None:
        """Tries everything in ``rejected.log`` once more, refused or not."""
        self._retry_all = True
        self._wake.set()

    def flush(self, patience_s: float) -> bool:
        """Waits until everything is sent.

        Args:
            patience_s: how long nothing at all may pass before this gives up. While MLflow takes records, it waits for
                ``MAX_FLUSH_S`` at most.

        Returns:
            Whether nothing is waiting any more.
        """
        started = moved = time.monotonic()
        passed = self._passed
        self._hurry = True
        self._wake.set()
        try:
            while self._spool.waiting or self._retry_all:
                now = time.monotonic()
                if self._passed != passed:
                    passed, moved = self._passed, now
                working = self._thread is not None and self._thread.is_alive()
                if not working or now - moved > patience_s or now - started > MAX_FLUSH_S:
                    return False
                self._stopping.wait(0.05)
            return True
        finally:
            self._hurry = False

    def state(self) -> TrackerState:
        """Says where the records are now."""
        spool = self._spool
        away = None if self._away_since is None else time.monotonic() - self._away_since
        sent = max(0, spool.acknowledged - self._rejected - spool.damaged)
        return TrackerState(sent, spool.waiting, self._rejected, spool.damaged + spool.lost, away)

    def failed(self, what: str, error: BaseException) -> None:
        """Counts a failure and warns of the first of its kind."""
        self.errors += 1
        self.last_failure = short(error)
        level = logging.DEBUG if what in self._warned else logging.WARNING
        self._warned.add(what)
        logger.log(level, "tracking: %s: %s. Training continues.", what, short(error))

    # ---- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            rows: list[Row] = []
            try:
                self._wake.clear()
                rows = self._spool.read(self._spool.acknowledged)
                if rows:
                    started = time.monotonic()
                    self._send(rows)
                    self._check()
                    self._spool.acknowledge(rows)
                    self._rest(time.monotonic() - started, behind=self._spool.waiting > len(rows))
                elif self._retry_all:
                    try:
                        self._send_rejected(everything=True)
                    finally:
                        self._retry_all = False
                else:
                    self._wake.wait()
            except _Stopped:
                return
            except Exception as error:
                self.failed("the sender failed, a defect; please report it", error)
                logger.debug("tracking: the sender", exc_info=True)
                if rows:
                    self._set_aside(rows, short(error))
                else:
                    with contextlib.suppress(_Stopped):
                        self._sleep(_LONGEST_REST_S)

    def _rest(self, work_s: float, *, behind: bool) -> None:
        """Lets reports gather, and keeps this thread a small load for the driver; a larger one while it is behind."""
        if behind:
            self._sleep(min(work_s, _SHORTEST_REST_S))
        elif not self._hurry:
            self._sleep(min(max(_SHORTEST_REST_S, _REST_PER_WORK * work_s), _LONGEST_REST_S))

    def _send(self, rows: Sequence[Row]) -> None:
        """Deals with every record of the rows; opens the sweep's run first and closes it last."""
        groups: dict[str, list[Record]] = {PARENT: []}
        for number, payload in rows:
            if payload is None:
                self._runs.expect_earlier_runs()
                continue
            try:
                record = Record.from_payload(payload)
            except KeyError as error:
                self.failed("a record of the spool is not one of ours", error)
                continue
            if number <= self._earlier and record.run not in self._runs.known:
                self._runs.expect_earlier_runs(record.run)
            groups.setdefault(record.run, []).append(record)
        if self._spool.damaged:
            self._runs.expect_earlier_runs()
        parent = groups.pop(PARENT)
        self._log(parent)
        for records in groups.values():
            self._log(records)
            self._upload(records)
            self._close(records)
        self._upload(parent)
        self._close(parent)

    def _log(self, records: Sequence[Record]) -> None:
        closing = _closing(records) is not None
        logged = [record for record in records if record.kind in LOGGED]
        if logged:
            self._deliver(logged, lambda some: self._runs.log(some, closing=closing))

    def _upload(self, records: Sequence[Record]) -> None:
        # Of several with one path the last counts.
        latest = {record.data["path"]: record for record in records if record.kind in ARTIFACTS}
        for record in latest.values():
            self._deliver([record], lambda some: self._runs.upload(some[0]))

    def _close(self, records: Sequence[Record]) -> None:
        closing = _closing(records)
        if closing is None:
            return
        tags = None
        if closing.run == PARENT:
            self._send_rejected(everything=False)
            tags = {
                "tracker_errors": self.errors,
                "tracker_rejected": self._rejected,
                "tracker_damaged": self._spool.damaged + self._spool.lost,
            }
        self._deliver([closing], lambda some: self._runs.close(some[0], tags))

    def _deliver(self, records: Sequence[Record], send: Callable[[Sequence[Record]], None]) -> None:
        """Sends records of one run; returns when each has been sent or set aside, however long that takes."""
        run, first = records[0].run, records[0]
        lane = "artifacts" if first.kind in ARTIFACTS else f"run {run}"
        if run in self._unopened:
            self._reject(records, "its run could not be opened", refused=True)
            return
        attempts = 0
        while True:
            self._check()
            try:
                send(records)
            except Exception as error:
                if not self._others_pass():
                    self._wait_for_server(error)
                    continue
                self.errors += 1
                attempts += 1
                refused = is_refusal(error)
                if lane in self._failing and not refused:
                    self._reject(records, short(error), refused=False)
                    return
                if len(records) > 1 and (refused or attempts > 1):
                    half = len(records) // 2
                    self._deliver(records[:half], send)
                    self._deliver(records[half:], send)
                    return
                if refused or attempts >= ATTEMPTS:
                    self._reject(records, short(error), refused=refused)
                    if refused and first.kind == "open" and run != PARENT and run not in self._runs.known:
                        self._unopened.add(run)
                    if not refused:
                        self._failing.add(lane)
                    return
                self._sleep(_FIRST_PAUSE_S * 2 ** (attempts - 1))
            else:
                self._went_well()
                self._failing.discard(lane)
                return

    # ---- when it does not go well ---------------------------------------------------------------

    def _went_well(self) -> None:
        self._passed += 1
        self._pause_s = _FIRST_PAUSE_S
        self.last_failure = None
        if self._away_since is not None:
            self._away_since = None
            logger.info("tracking: MLflow answers again; %d records follow", self._spool.waiting)

    def _others_pass(self) -> bool:
        """Makes the test write and returns whether it passed; False while the sweep's run is not open yet."""
        if PARENT not in self._runs.known:
            return False
        try:
            self._runs.probe()
        except Exception as error:
            logger.debug("tracking: probe: %s", short(error))
            return says_gone(error)  # the sweep's run has been deleted: then the others' records decide for themselves
        self._went_well()
        return True

    def _wait_for_server(self, error: Exception) -> None:
        """Waits until the server takes the test write again; just a while if there is no run yet to write to."""
        if self._away_since is None:
            self._away_since = time.monotonic()
        self.failed(
            f"MLflow at {without_login(self._runs.tracking_uri)} can't be used now; records wait in "
            f"{self._spool.folder}. Check that the server runs, that tracking.uri is right, and the login",
            error,
        )
        while True:
            self._sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            if PARENT not in self._runs.known or self._others_pass():
                return

    def _reject(self, records: Sequence[Record], why: str, *, refused: bool) -> None:
        for record in records:
            self._spool.reject({**record.payload(), "why": why, "refused": refused})
            self._runs.passed_over(record)
        self._rejected += len(records)
        what = f"{records[0].kind!r} of {records[0].run or 'the sweep'}"
        verb = "refused" if refused else "could not take"
        level = logging.DEBUG if verb in self._warned else logging.WARNING
        said = "tracking: MLflow %s %s: %s. It is set aside in %s; the rest goes on."
        logger.log(level, said, verb, what, why, self._spool.rejected_file)
        self._warned.add(verb)

    def _set_aside(self, rows: Sequence[Row], why: str) -> None:
        """Gives records up, so that a defect does not hold up the queue for ever."""
        whole = [payload for _, payload in rows if payload is not None]
        for payload in whole:
            self._spool.reject({**payload, "why": why, "refused": True})
        self._rejected += len(whole)
        self._spool.acknowledge(rows)

    def _send_rejected(self, *, everything: bool) -> None:
        """Tries each rejected record once; those that fail again stay, in an outage all of them."""
        file = self._spool.rejected_file
        if not file.exists():
            return
        kept, before, away = 0, self._rejected, False
        unfinished = file.with_name(f".{file.name}.new")
        self._unopened.clear()
        with unfinished.open("w") as output:
            for payload in read_lines(file):
                self._check()
                why = payload["why"]
                if not away and (everything or not payload["refused"]):
                    try:
                        self._runs.put(Record.from_payload(payload), closing=True, late=True)  # what has ended stays so
                        self._went_well()
                        continue
                    except Exception as error:
                        why, away = short(error), not self._others_pass()
                kept += 1
                output.write(encode({**payload, "why": why}) + "\n")
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(file)
        self._rejected = kept
        if kept == 0:
            file.unlink()
        if everything and kept != before:
            with contextlib.suppress(Exception):
                self._runs.log([Record(PARENT, "tags", {"values": {"tracker_rejected": kept}})])

    # ---- small parts ----------------------------------------------------------------------------

    def _remember(self, key: str, run: KnownRun) -> None:
        self._spool.remember(key, {"id": run.run_id, "status": run.status, "doubtful": run.doubtful})

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped
        while not self._may_send():
            self._sleep(_SHORTEST_REST_S)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left, 0.2)):
                raise _Stopped
            if self._hurry:
                until = min(until, time.monotonic() + _HURRY_S)


def _closing(records: Sequence[Record]) -> Record | None:
    """Finds the record that ends the run; None if the records hold no end, or open the run again after it."""
    closing: Record | None = None
    for record in records:
        if record.kind == "open":
            closing = None
        elif record.kind == "close" and (closing is None or not record.data.get("if_running")):
            closing = record  # one for a run that still runs says nothing where another has ended it
    return closing
