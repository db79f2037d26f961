"""What a sweep has found so far, from its folder or from MLflow alone: its trials with their last reports, its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rpg_platform.results.names import setting_words
from rpg_platform.results.report import TrialResult, with_points
from rpg_platform.results.rows import Row, setting_names, summarise
from rpg_platform.review.curves import Training
from rpg_platform.review.sources import FolderSource, Source, StoreSource
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.stored import stored_sweep


@dataclass(frozen=True)
class Found:
    """A sweep as its folder, or MLflow, has it.

    Attributes:
        source: what it was read from.
        spec: what was asked for.
        trained: every known trial with its last report, and why it failed.
        results: the same as they are compared, see ``report.with_points``.
        rows: the settings, as ``rows.summarise`` orders them.
        status: what the driver wrote last of how it goes; empty where it never did.
        checkpoints: trial id → the checkpoint that its row's figures are of, else its newest: a local path or a URI.
    """

    source: Source
    spec: SweepSpec
    trained: tuple[TrialResult, ...]
    results: tuple[TrialResult, ...]
    rows: tuple[Row, ...]
    status: Mapping[str, Any]
    checkpoints: Mapping[str, str]

    @cached_property
    def trainings(self) -> Mapping[str, Training]:
        """Trial id → its training, validated as the objective asks; read when it is first asked for."""
        read = self.source.trainings(list(self.trained), self.spec.objective.mode)
        return {trial.trial_id: read[trial.trial_id] for trial, _, _ in self.trained if trial.trial_id in read}

    @cached_property
    def lines(self) -> Mapping[str, str]:
        """Group → the group of its trainings: its own, but of a policy for a range that of the range."""
        groups = {training.trial_id: training.group for training, _, _ in self.trained}
        return {trial.group: groups.get(trial.point_of or "", trial.group) for trial, _, _ in self.results}

    @cached_property
    def line_names(self) -> Mapping[str, str]:
        """Group in ``lines`` → its setting to read, ranges by their ends."""
        trials = [trial for trial, _, _ in self.trained]
        names = setting_names(trials)
        return {trial.group: setting_words(trial.method, trial.weights, names[trial.group]) for trial in trials}

    @cached_property
    def lines_of(self) -> Mapping[str, Mapping[str, Training]]:
        """Group in ``lines`` → its trials' trainings, of those that have reported."""
        found: dict[str, dict[str, Training]] = {}
        for trial, _, _ in self.trained:
            if trial.trial_id in self.trainings:
                found.setdefault(trial.group, {})[trial.trial_id] = self.trainings[trial.trial_id]
        return found

    @cached_property
    def told(self) -> Mapping[str, tuple[str, ...]]:
        """Group → the weights that the setting's policy is told; plain policies' groups are not in it."""
        names = {training.trial_id: tuple(training.told) for training, _, _ in self.trained if training.told}
        return {trial.group: names[trial.point_of] for trial, _, _ in self.results if trial.point_of in names}

    @property
    def folder(self) -> SweepFolder:
        """The sweep's folder.

        Raises:
            ValueError: the sweep was read from MLflow.
        """
        if not isinstance(self.source, FolderSource):
            raise ValueError(f"{self.spec.name} was read from MLflow, which does not know its folder")
        return self.source.folder


def found_in(folder: SweepFolder, objective: Objective | None = None) -> Found:
    """Reads what a sweep has found.

    Args:
        folder: the sweep's.
        objective: what is best; None: what the specification says.

    Raises:
        SweepFolderError: there is no sweep.
    """
    return _found(FolderSource(folder), objective)


def found_at(tracking_uri: str, name: str) -> Found:
    """Reads what MLflow has of a sweep, whose folder need not be within reach.

    Args:
        tracking_uri: of the store, with its login if it needs one.
        name: the sweep's.

    Raises:
        ValueError: there is no such store, or no such sweep in it, or it was recorded by another version.
    """
    return _found(StoreSource(stored_sweep(tracking_uri, name)), None)


def _found(source: Source, objective: Objective | None) -> Found:
    spec = source.spec()
    every = source.results(spec)
    apart = {trial.point_of for trial, _, _ in every}  # MLflow has a policy's settings as runs of their own
    results = with_points(each for each in every if each[0].trial_id not in apart)
    rows = tuple(summarise(results, objective))
    trained = tuple(each for each in every if each[0].point_of is None)
    return Found(source, spec, trained, tuple(results), rows, source.status(), source.checkpoints(results, rows))
