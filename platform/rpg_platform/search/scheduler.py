"""Carries out the judge's verdicts in Tune: a scheduler ends trials, and a callback notes it in their last report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler

from rpg_platform.results.report import FAILED, STOPPED_BY, ending
from rpg_platform.search.judge import Judge


class EarlyStopping(FIFOScheduler):
    """Ends the trials of settings that the judge has ended; starts trials in their order.

    Args:
        judge: passes the verdicts.
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge: Judge | None = judge

    def __getstate__(self) -> dict[str, Any]:
        """Leaves everything out: Tune pickles the scheduler, but a sweep is rebuilt from its folder."""
        return {"_judge": None}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Says whether a trial goes on after its report."""
        assert self._judge is not None
        spec = self._judge.trial(trial.config["trial"])
        self._judge.report(spec, result)
        ended: str = self.STOP if self._judge.stops(spec, result) else self.CONTINUE
        return ended


class EarlyStoppingNotes(Callback):
    """Notes in a trial's last report that it was ended early; comes before the callbacks that record reports.

    Args:
        judge: the judge that the scheduler has.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge: Judge | None = judge

    def __getstate__(self) -> dict[str, Any]:
        """Leaves everything out, as the scheduler does."""
        return {"_judge": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes a trial's report; the scheduler never sees the last report of a trial that ends by itself."""
        assert self._judge is not None
        spec = self._judge.trial(trial.config["trial"])
        if FAILED in result:
            self._judge.lose(spec)
        self._judge.report(spec, result)
        if ending(result) == "unfinished" and self._judge.stops(spec, result):
            result[STOPPED_BY] = self._judge.name

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells the judge that a trial failed for good."""
        assert self._judge is not None
        self._judge.lose(self._judge.trial(trial.config["trial"]))
