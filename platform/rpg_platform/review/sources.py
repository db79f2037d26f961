"""Where a sweep is read from: its folder, or MLflow alone. Both give the same; what MLflow cannot know it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from rpg_platform.results.endings import ENDS
from rpg_platform.results.report import (
    EARLIER,
    FINAL,
    FINISHED,
    HEADLINE,
    KL_ESTIMATED,
    SELECTION,
    STOPPED_BY,
    Mode,
    TrialResult,
    evaluations,
    report_of_metrics,
    stopped_by,
)
from rpg_platform.results.rows import Row
from rpg_platform.review.curves import Training, stored_trainings, trainings
from rpg_platform.search.proposals import known_trials
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.trials import arms, make_trials, searched, trials_of
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.location import tracking_uri_of
from rpg_platform.storage.plans import PLANS_FILE, plans_in
from rpg_platform.storage.sweep_folder import PRIOR_FOLDER, SweepFolder
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.tracking.run_tags import PACKAGE, TAG_POINT_OF
from rpg_platform.tracking.runs import PARENT
from rpg_platform.tracking.spool import remembered, spool_folder
from rpg_platform.tracking.stored import StoredSweep, StoreError


class Source(Protocol):
    """What a sweep is read from."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What this source cannot know, in words."""

    @property
    def place(self) -> str:
        """What the places of its own checkpoints begin with."""

    def spec(self) -> SweepSpec:
        """What was asked for."""

    def status(self) -> Mapping[str, Any]:
        """What the driver wrote last of how it goes; empty where it never did."""

    def results(self, spec: SweepSpec) -> list[TrialResult]:
        """Every known trial with its last report, and why it failed."""

    def checkpoints(self, results: Sequence[TrialResult], rows: Sequence[Row]) -> Mapping[str, str]:
        """Trial id → where the policy lies that its row's figures are of, else its newest, as ``commands`` takes it."""

    def trainings(self, results: list[TrialResult], mode: Mode) -> Mapping[str, Training]:
        """Trial id → its training, validated in that mode."""

    def read_bytes(self, path: str) -> bytes | None:
        """A file of the sweep's own; None if it is not there."""

    def run_ids(self) -> Mapping[str, str]:
        """Trial id (the sweep's own run: the empty string) → MLflow's run id, as far as known."""

    def tracking_uri(self, spec: SweepSpec) -> str:
        """MLflow's address, without a login."""

    def prior_hash(self) -> str | None:
        """Content hash of the prior; None without one, or where it is not known."""

    def commands(self, spec: SweepSpec) -> dict[str, str]:
        """Commands that work as pasted; ``export_at``, of a policy for a range at any weights, where that can be.

        ``{path}`` stands for a trial's policy, see ``checkpoints``, and ``{weights}`` for the option that says at which
        weights it is taken.
        """


@dataclass(frozen=True)
class FolderSource:
    """A sweep's folder."""

    folder: SweepFolder

    unknown = ()

    @property
    def place(self) -> str:
        """See ``Source``."""
        return f"{self.folder.uri}/"

    @cached_property
    def _states(self) -> Mapping[str, TrialState]:
        return self.folder.trials()

    def spec(self) -> SweepSpec:
        """See ``Source``.

        Raises:
            SweepFolderError: there is no sweep.
        """
        return self.folder.spec()

    def status(self) -> Mapping[str, Any]:
        """See ``Source``."""
        return _object(self.folder.read_text(STATUS_FILE))

    def results(self, spec: SweepSpec) -> list[TrialResult]:
        """See ``Source``; the report is that of the newest complete checkpoint, with those of smaller budgets."""
        why = {each["trial"]: str(each["error"]) for each in self.status().get("failures", [])}
        states = self._states
        found: list[TrialResult] = []
        for trial in known_trials(spec, self.folder):
            state = states.get(trial.trial_id)
            error = None if state is not None and state.finishes(trial) else why.get(trial.trial_id)
            found.append((trial, None if state is None else state.report_for(trial), error))
        return found

    def checkpoints(self, results: Sequence[TrialResult], rows: Sequence[Row]) -> Mapping[str, str]:
        """See ``Source``."""
        at, states = {row.group: row.evaluated_at for row in rows}, self._states
        trained = [(trial, states.get(trial.point_of or trial.trial_id)) for trial, _, _ in results]
        return {t.trial_id: state.checkpoint_at(at[t.group]) for t, state in trained if state is not None}

    def trainings(self, results: list[TrialResult], mode: Mode) -> Mapping[str, Training]:
        """See ``Source``."""
        return trainings(self.folder, [trial.trial_id for trial, _, _ in results], mode)

    def read_bytes(self, path: str) -> bytes | None:
        """See ``Source``."""
        return self.folder.read_bytes(path)

    def run_ids(self) -> Mapping[str, str]:
        """See ``Source``; those that the sweep's spool remembers."""
        known = remembered(spool_folder(self.folder.storage, self.folder.name))
        return {key: str(each["id"]) for key, each in known.items()}

    def tracking_uri(self, spec: SweepSpec) -> str:
        """See ``Source``."""
        return tracking_uri_of(spec)

    def prior_hash(self) -> str | None:
        """See ``Source``."""
        card = _object(self.folder.read_text(f"{PRIOR_FOLDER}/card.json"))
        return card.get("content_hash")

    def commands(self, spec: SweepSpec) -> dict[str, str]:
        """See ``Source``."""
        name = shlex.quote(spec.name)
        where = "" if spec.storage is None else f" --storage {shlex.quote(self.folder.storage)}"
        seeds = max(5, len(spec.seeds) + 3)
        return {
            "export": "rpg export {path} --out policy{weights}",
            "promote": f"rpg promote {{path}} --name {name} --alias champion{{weights}}",
            "export_at": f"rpg export {name} --out policy{{weights}}{where}",
            "extend": f"rpg extend {name}{where} --seeds {seeds}",
            "show": f"rpg show {name}{where}",
            "ui": f"rpg ui {name}{where}",
            "resume": f"rpg resume {name}{where}",
        }


@dataclass(frozen=True)
class StoreSource:
    """MLflow alone: runs, their metrics, tags and artifacts."""

    stored: StoredSweep

    unknown = (
        "where the sweep's folder lies: to extend or resume it, write the report from there",
        "the checkpoints of trials that have not finished",
        "which single episodes collapsed",
    )
    place = "runs:/"

    def spec(self) -> SweepSpec:
        """See ``Source``.

        Raises:
            StoreError: its run does not hold it, or another version wrote it.
        """
        text = self.stored.artifact("spec.json")
        if text is None:
            raise StoreError(f"{self.stored.uri}: the sweep's run has no artifact spec.json that can be read")
        try:
            return SweepSpec.model_validate_json(text)
        except ValueError as error:
            raise StoreError(f"{self.stored.uri}: spec.json of the sweep's run: {error}") from error

    def status(self) -> Mapping[str, Any]:
        """See ``Source``; the driver's time from its plan and the run's end."""
        info, plans = self.stored.parent.info, plans_in(self.read_bytes(PLANS_FILE))
        status: dict[str, Any] = {"state": ENDS.get(info.status, "running")}
        if plans and info.end_time:
            status |= {"started": plans[-1]["at"], "heartbeat": info.end_time / 1000}
        return status

    def results(self, spec: SweepSpec) -> list[TrialResult]:
        """See ``Source``."""
        mode = spec.objective.mode
        return [self._result(trial, mode) for trial in self._trials(spec)]

    def _result(self, trial: TrialSpec, mode: Mode) -> TrialResult:
        run = self.stored.trials.get(trial.trial_id)
        if run is None:
            return trial, None, None
        trial = trial.model_validate(trial.model_dump() | {"weights": _weights(run.data.tags) or trial.weights})
        steps = {each.key: each.step for each in run.data._metric_objs}  # the public dictionary has none
        last, tags = max(steps.values(), default=0), run.data.tags
        error = tags.get("error") if run.info.status == "FAILED" else None
        if not steps:
            return trial, None, error
        # What an earlier budget came to is no figure of a training that went on.
        metrics = {key: value for key, value in run.data.metrics.items() if not _is_final(key) or steps[key] == last}
        report = report_of_metrics(metrics, float(last), mode)
        before = max((step for key, step in steps.items() if _is_final(key) and step < last), default=None)
        if before is not None and metrics.keys().isdisjoint(key for key in steps if _is_final(key)):
            finals = {key: value for key, value in run.data.metrics.items() if _is_final(key) and steps[key] == before}
            report[EARLIER] = [report_of_metrics(finals, float(before), mode) | {FINISHED: True}]
        if run.info.status == "FINISHED":
            report[FINISHED] = True
        if (by := stopped_by(tags.get("outcome", ""))) is not None:
            report[STOPPED_BY] = by
        if "kl_to_prior" in tags:
            report[KL_ESTIMATED] = float(tags["kl_to_prior"] == "estimated")
        report["code"] = f"rpg {tags.get(f'version.{PACKAGE}', '')}".strip()
        return trial, report, error

    def _trials(self, spec: SweepSpec) -> list[TrialSpec]:
        """The trials that the specification determines, and those that a search has chosen."""
        known = {trial.trial_id: trial for trial, _ in make_trials(spec)}
        spaces = searched(spec, arms(spec)[0])
        for trial_id, run in self.stored.trials.items():
            training = known.get(run.data.tags.get(TAG_POINT_OF, ""))
            if training is not None:
                weights = _weights(run.data.tags)
                known[trial_id] = training.at({name: weights[name] for name in training.told})
            elif trial_id not in known:
                weights, params = _weights(run.data.tags), run.data.params
                point = {name: weights[name] if name in weights else _value(params.get(name)) for name in spaces}
                known |= {each.trial_id: each for each in trials_of(spec, point) if each.trial_id == trial_id}
        return list(known.values())

    def checkpoints(self, results: Sequence[TrialResult], rows: Sequence[Row]) -> Mapping[str, str]:
        """See ``Source``; of the trials that were evaluated, which left their policies."""
        left = [trial for trial, report, error in results if evaluations(trial, report, error)]
        runs = {trial.trial_id: self.stored.trials.get(trial.point_of or trial.trial_id) for trial in left}
        return {name: f"runs:/{run.info.run_id}/bundle" for name, run in runs.items() if run is not None}

    def trainings(self, results: list[TrialResult], mode: Mode) -> Mapping[str, Training]:
        """See ``Source``."""
        return stored_trainings(self.stored, mode)

    def read_bytes(self, path: str) -> bytes | None:
        """See ``Source``; an artifact of the sweep's run."""
        return self.stored.artifact(path)

    def run_ids(self) -> Mapping[str, str]:
        """See ``Source``."""
        children = {name: run.info.run_id for name, run in self.stored.trials.items()}
        return {PARENT: self.stored.parent.info.run_id, **children}

    def tracking_uri(self, spec: SweepSpec) -> str:
        """See ``Source``."""
        return self.stored.uri

    def prior_hash(self) -> str | None:
        """See ``Source``."""
        hash_: str | None = self.stored.parent.data.tags.get("prior_hash")
        return hash_

    def commands(self, spec: SweepSpec) -> dict[str, str]:
        """See ``Source``."""
        name, store = shlex.quote(spec.name), f"--tracking-uri {shlex.quote(self.stored.uri)}"
        return {
            "export": f"rpg priors import {{path}} {store} --out policies/{name}",
            "promote": f"rpg promote policies/{name} --name {name} --alias champion{{weights}} {store}",
            "show": f"rpg show {name} {store}",
            "ui": f"rpg ui {name} --storage {shlex.quote(self.stored.uri)}",
        }


def _is_final(key: str) -> bool:
    return key in HEADLINE or key.startswith((f"{FINAL}/", f"{SELECTION}/"))


def _weights(tags: Mapping[str, str]) -> dict[str, Any]:
    start = "weights."
    return {name.removeprefix(start): _value(text) for name, text in tags.items() if name.startswith(start)}


def _value(text: str | None) -> Any:
    """A setting from its text in MLflow, in which a list is a schedule."""
    try:
        value = json.loads(text or "null")
    except ValueError:
        return text
    return tuple((int(step), float(level)) for step, level in value) if isinstance(value, list) else value


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, Mapping) else {}
