"""What a sweep has found so far, from its folder alone: its trials with their last reports, and its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rpg_platform.results.report import TrialResult
from rpg_platform.results.rows import Row, summarise
from rpg_platform.review.curves import Training, trainings
from rpg_platform.search.proposals import known_trials
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.sweep_folder import SweepFolder


@dataclass(frozen=True)
class Found:
    """A sweep as its folder has it.

    Attributes:
        folder: the sweep's.
        spec: what was asked for.
        results: every known trial with the report of its newest complete checkpoint, and why it failed.
        rows: the settings, as ``rows.summarise`` orders them.
        status: what the driver wrote last of how it goes; empty where it never did.
        checkpoints: trial id → the checkpoint that its row's figures are of, else its newest: a local path or a URI.
    """

    folder: SweepFolder
    spec: SweepSpec
    results: tuple[TrialResult, ...]
    rows: tuple[Row, ...]
    status: Mapping[str, Any]
    checkpoints: Mapping[str, str]

    @cached_property
    def trainings(self) -> Mapping[str, Training]:
        """Trial id → its training, validated as the objective asks; read when it is first asked for."""
        return trainings(self.folder, [trial.trial_id for trial, _, _ in self.results], self.spec.objective.mode)


def found_in(folder: SweepFolder, objective: Objective | None = None) -> Found:
    """Reads what a sweep has found.

    Args:
        folder: the sweep's.
        objective: what is best; None: what the specification says.

    Raises:
        SweepFolderError: there is no sweep.
    """
    spec = folder.spec()
    status = _status(folder)
    why = {each["trial"]: str(each["error"]) for each in status.get("failures", [])}
    states = folder.trials()
    results = []
    for trial in known_trials(spec, folder):
        state = states.get(trial.trial_id)
        error = None if state is not None and state.finishes(trial) else why.get(trial.trial_id)
        results.append((trial, None if state is None else state.report_for(trial), error))
    rows = summarise(results, objective)
    at = {row.group: row.evaluated_at for row in rows}
    checkpoints = {
        trial.trial_id: states[trial.trial_id].checkpoint_at(at[trial.group])
        for trial, _, _ in results
        if trial.trial_id in states
    }
    return Found(folder, spec, tuple(results), tuple(rows), status, checkpoints)


def _status(folder: SweepFolder) -> Mapping[str, Any]:
    text = folder.read_text(STATUS_FILE)
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, Mapping) else {}
