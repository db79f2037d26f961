"""How a sweep's trials ended, counted: finished, ended early by its scheduler, failed, or missing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rpg_platform.results.rows import TrialResult, is_finished, is_stopped

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Outcomes:
    """A sweep's trials by how they ended.

    Attributes:
        finished: evaluated at the end of their budget.
        stopped: ended early by the sweep's scheduler, on purpose: neither failed nor missing.
        failed: with an error.
        missing: of those that are known, the others.
        unknown: how many trials an adaptive search did not come to.
    """

    finished: frozenset[str]
    stopped: frozenset[str]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: int = 0

    def status(self, interrupted: bool) -> RunStatus:
        """Of the sweep's run: ``FINISHED`` if nothing failed and nothing is missing."""
        if not (self.failed or self.missing or self.unknown):
            return "FINISHED"
        return "KILLED" if interrupted else "FAILED"

    def status_of(self, trial_id: str) -> RunStatus:
        """Of a trial's run; one that was ended early has no final evaluation and counts as killed."""
        return "FAILED" if trial_id in self.failed else "FINISHED" if trial_id in self.finished else "KILLED"

    def tags(self) -> dict[str, object]:
        """Of the sweep's run."""
        tags: dict[str, object] = {
            "trials_finished": len(self.finished),
            "trials_failed": len(self.failed),
            "trials_missing": len(self.missing) + self.unknown,
        }
        tags |= {"trials_stopped": len(self.stopped)} if self.stopped else {}
        tags |= {"failed_trials": ", ".join(self.failed)} if self.failed else {}
        return tags | ({"missing_trials": ", ".join(self.missing)} if self.missing else {})


def outcomes_of(results: Sequence[TrialResult], known: Collection[str], planned: int) -> Outcomes:
    """Counts a sweep's trials.

    Args:
        results: trials with their last reports and errors.
        known: ids of the trials that are known; one without a result is missing.
        planned: how many trials there were to be.
    """
    failed = sorted({trial.trial_id for trial, _, error in results if error is not None})
    finished = {trial.trial_id for trial, result, error in results if is_finished(result, error)}
    stopped = {trial.trial_id for trial, result, error in results if error is None and is_stopped(result)}
    names = dict.fromkeys([*known, *(trial.trial_id for trial, _, _ in results)])
    missing = [name for name in names if name not in finished | stopped and name not in failed]
    return Outcomes(
        frozenset(finished), frozenset(stopped), tuple(failed), tuple(missing), max(0, planned - len(names))
    )
