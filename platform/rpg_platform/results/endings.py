"""What of a sweep has no result at its end, and why: lines to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rpg_platform.results.rows import TrialResult, is_stopped

_MOST_NAMED = 3
_MOST_REASONS = 20


def without_result(results: Sequence[TrialResult]) -> list[str]:
    """Why trials have no result, those with the same reason together.

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
        elif not report.get("finished") and not is_stopped(report):
            stopped.append(f"{trial.trial_id} at {report.get('env_steps', 0):,.0f} of {trial.env_steps:,} env steps")
    lines = [f"{_names(trials)}: {why}" for why, trials in list(failed.items())[:_MOST_REASONS]]
    if len(failed) > _MOST_REASONS:
        lines.append(f"and {len(failed) - _MOST_REASONS} more reasons, see `rpg status --json`")
    lines += [f"stopped, and saved: {_names(stopped)}"] if stopped else []
    return lines + ([f"never started: {_names(never)}"] if never else [])


def _names(trials: Sequence[str]) -> str:
    more = len(trials) - _MOST_NAMED
    return ", ".join(trials[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
