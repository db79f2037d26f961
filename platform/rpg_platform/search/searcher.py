"""Runs an adaptive search in Tune: hands out trials when Tune asks for them, setting by setting, seed by seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.search import Searcher

from rpg_platform.results.report import ending
from rpg_platform.search.proposals import Proposals, usable
from rpg_platform.spec.sweep import TrialSpec


class SettingSearcher(Searcher):
    """Hands Tune the trials that are known, then those of one proposed setting after another.

    The seeds of a setting follow each other, and the table learns of the setting when all of them have ended: one seed
    alone teaches nothing. Tune keeps none of this: the table is rebuilt from the sweep's folder.

    Args:
        proposals: the table.
        known: trials to run before the first proposal: the prior's row, baselines, trials of an earlier attempt.
        max_concurrent: how many trials may run at once; None for as many as fit.
    """

    def __init__(self, proposals: Proposals, known: Iterable[TrialSpec], max_concurrent: int | None = None) -> None:
        super().__init__()
        self._proposals = proposals
        self._queue = deque(known)
        self._live: dict[str, TrialSpec] = {}
        self._limit = max_concurrent

    def __getstate__(self) -> dict[str, Any]:
        """Leaves everything out: Tune pickles the searcher, but never reads it back."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial's configuration; None while as many trials run as may."""
        if self._limit is not None and len(self._live) >= self._limit:
            return None
        if not self._queue:
            trials = self._proposals.propose()
            if trials is None:
                return str(self.FINISHED)
            self._queue.extend(trials)
        trial = self._queue.popleft()
        self._live[trial_id] = trial
        return trial.as_config()

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Notes that a trial ended. An interrupted trial has not ended; it goes on in a later attempt."""
        trial = self._live.pop(trial_id, None)
        if trial is None:
            return
        failed = error or ending(result) == "failed"
        report = None if failed else usable(result, None)
        if failed or report is not None:
            self._proposals.end(trial.trial_id, report)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Saves nothing, see the class."""
