"""Ending a sweep in order, and ending a trial that hangs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import ray
from ray.tune import Callback, Stopper

from rpg_platform.storage.lease import Lease, LeaseLostError
from rpg_platform.tracking.tune_trial import explain_end

logger = logging.getLogger(__name__)
_RUNNING = "RUNNING"
_CHECK_EVERY_S = 5.0


class GracefulStop(Callback, Stopper):
    """Stops a sweep on the first signal, every running trial saved; a second signal stops it at once.

    A running trial saves its state with its next report and ends; trials that wait never start.

    Args:
        tell: called with a line for the user.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._saving: list[Any] | None = None
        self.requested = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks and stopper; the console stays here."""
        return {"requested": self.requested}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(logger.warning)  # type: ignore[misc]
        self.requested = state["requested"]

    def request(self) -> None:
        """Asks the sweep to end."""
        self.requested = True

    # --- Tune's side

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial that reports ends now; Tune saves it first."""
        return self.requested

    def stop_all(self) -> bool:
        """Whether everything that was running has been saved.

        Tune asks at the end of each step, and only after that gives the place of an ended trial to the next one.
        """
        saving = self._saving
        return self.requested and saving is not None and all(trial.status != _RUNNING for trial in saving)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Notes which trials are running when the stop is asked for."""
        if self.requested and self._saving is None:
            self._saving = [trial for trial in trials if trial.status == _RUNNING]
            count = len(self._saving)
            self._tell(f"stopping: {count} running trials save their state; once more to stop at once")

    # --- signals

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Takes SIGINT (Ctrl-C), SIGTERM (``ray job stop``, a container's end) and SIGHUP (a terminal that is closed).

        Tune's own handler of SIGINT is switched off; that of SIGUSR1, which ends a run at once and in order, serves for
        the second signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        variable = "TUNE_DISABLE_SIGINT_HANDLER"
        environment = os.environ.get(variable)
        os.environ[variable] = "1"
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if environment is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = environment

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.raise_signal(signal.SIGUSR1)
        self.request()


class LeaseKeeper(Callback):
    """Stops Tune's loop while nobody knows whether the sweep is still this driver's, and ends it when it is not.

    While the loop stands, no trial trains on, saves or is pruned, and nothing is recorded. To be the first callback.

    Args:
        lease: of the sweep in an object store; None: there is none.
        stopping: whether the sweep is asked to end.
        tell: called with a line for the user.
    """

    def __init__(self, lease: Lease | None, stopping: Callable[[], bool], tell: Callable[[str], None]) -> None:
        self._lease, self._stopping, self._tell = lease, stopping, tell

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; the lease is this process's."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(None, lambda: False, logger.warning)  # type: ignore[misc]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Returns when the sweep is surely this driver's.

        Raises:
            LeaseLostError: it is not any more; the trials' processes were ended, so that none saves again.
        """
        if self._lease is None:
            return
        try:
            self._lease.wait(self._stopping, self._tell)
        except LeaseLostError:
            for trial in trials:
                if (actor := trial.temporary_state.ray_actor) is not None:
                    ray.kill(actor, no_restart=True)
            raise


class Watchdog(Callback):
    """Ends the process of a trial that has reported nothing for too long; Tune then retries it from its checkpoint.

    The time counts from the start of the trial's process on, so a trial whose environment hangs while it is made is
    noticed too.

    Args:
        limit_s: seconds without a report; None: never.
        tell: called with a line for the user.
    """

    def __init__(self, limit_s: float | None, tell: Callable[[str], None]) -> None:
        self.limit_s, self._tell = limit_s, tell
        self._heard: dict[str, float] = {}
        self._checked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; the console stays here."""
        return {"limit_s": self.limit_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit_s"], logger.warning)  # type: ignore[misc]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources."""
        self._heard[trial.trial_id] = time.monotonic()
        explain_end(trial, None)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        self._heard[trial.trial_id] = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks at all running trials every few seconds."""
        now = time.monotonic()
        if self.limit_s is None or now - self._checked < min(_CHECK_EVERY_S, self.limit_s / 4):
            return
        self._checked = now
        for trial in trials:
            silent = now - self._heard.get(trial.trial_id, now)
            actor = trial.temporary_state.ray_actor
            if trial.status == _RUNNING and silent > self.limit_s and actor is not None:
                why = f"no report for {silent:.0f} s (faults.stall_after_s: {self.limit_s:g}), its process was ended"
                self._tell(f"{trial.config['trial']['trial_id']}: {why}")
                explain_end(trial, why)
                self._heard[trial.trial_id] = now
                ray.kill(actor, no_restart=True)
