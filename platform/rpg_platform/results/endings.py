"""How a sweep's trials ended: counted for the sweep's run in MLflow, and explained where they have no result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rpg_platform.results.report import TrialResult, ending, env_steps

_MOST_NAMED = 3
_MOST_REASONS = 20
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
State = Literal["running", "finished", "stopped", "failed", "dead", "unknown"]
ENDS: Mapping[str, State] = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
"""Status of a sweep's run in MLflow → what the sweep's status file says."""


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
        """The status of the sweep's run: ``FINISHED`` if nothing failed and nothing is missing."""
        if not (self.failed or self.missing or self.unknown):
            return "FINISHED"
        return "KILLED" if interrupted else "FAILED"

    def status_of(self, trial_id: str) -> RunStatus:
        """The status of a trial's run; a trial that was ended early has no final evaluation and counts as killed."""
        return "FAILED" if trial_id in self.failed else "FINISHED" if trial_id in self.finished else "KILLED"

    def tags(self) -> dict[str, object]:
        """The tags of the sweep's run."""
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
    ended: defaultdict[str, set[str]] = defaultdict(set)
    for trial, report, error in results:
        ended[ending(report, error)].add(trial.trial_id)
    finished, stopped, failed = ended["finished"], ended["stopped"], sorted(ended["failed"])
    names = dict.fromkeys([*known, *(trial.trial_id for trial, _, _ in results)])
    missing = [name for name in names if name not in finished | stopped and name not in failed]
    return Outcomes(
        frozenset(finished), frozenset(stopped), tuple(failed), tuple(missing), max(0, planned - len(names))
    )


def without_result(results: Sequence[TrialResult]) -> list[str]:
    """Explains which trials ended without a result, and why; trials with the same reason share a line.

    Args:
        results: every trial with its last report and error.
    """
    failed: defaultdict[str, list[str]] = defaultdict(list)
    stopped, never = [], []
    for trial, report, error in results:
        if error is not None:
            failed[error].append(trial.trial_id)
        elif report is None:
            never.append(trial.trial_id)
        elif ending(report) == "unfinished":
            stopped.append(f"{trial.trial_id} at {env_steps(report):,.0f} of {trial.env_steps:,} env steps")
    lines = [f"{_names(trials)}: {why}" for why, trials in list(failed.items())[:_MOST_REASONS]]
    if len(failed) > _MOST_REASONS:
        lines.append(f"and {len(failed) - _MOST_REASONS} more reasons, see `rpg status --json`")
    lines += [f"stopped, and saved: {_names(stopped)}"] if stopped else []
    return lines + ([f"never started: {_names(never)}"] if never else [])


def _names(trials: Sequence[str]) -> str:
    more = len(trials) - _MOST_NAMED
    return ", ".join(trials[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
