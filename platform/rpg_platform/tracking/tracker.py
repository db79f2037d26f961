"""Tune's events → MLflow: one parent run a sweep, one child run a trial, each report once.

The tracker decides *what* is recorded and appends it to the ``spool``; the ``sender`` delivers it from a thread of its
own. Every record is plain data with its own time, so that delivery may wait or be repeated. Training never waits for
any of it, and nothing that goes wrong here reaches it.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ray.tune import Callback

from rpg_platform.results.colours import colours_of, searched_weights
from rpg_platform.results.endings import Outcomes, RunStatus, outcomes_of
from rpg_platform.results.names import run_name
from rpg_platform.results.report import (
    FAILED,
    FINAL,
    FINISHED,
    KEPT,
    KL_ESTIMATED,
    TrialResult,
    finite_metrics,
    is_finished,
    is_of_the_end,
    is_stopped,
    kept_share,
    mean_key,
    number,
    report_step,
    stopped_words,
)
from rpg_platform.results.rows import summarise
from rpg_platform.spec.logins import without_login
from rpg_platform.spec.trials import PRIOR_TRIAL
from rpg_platform.spec.yaml_file import dump_spec
from rpg_platform.tracking import run_tags
from rpg_platform.tracking.errors import never_raises
from rpg_platform.tracking.identity import read_identity, write_identity
from rpg_platform.tracking.last_wait import Tell, wait_for_the_rest
from rpg_platform.tracking.overview import figures_of, links_back, note_of, summary_files, tags_of
from rpg_platform.tracking.policies import policy_data
from rpg_platform.tracking.runs import PARENT, TAG_NOTE, Kind, MlflowRuns, Record
from rpg_platform.tracking.sender import Sender, TrackerState
from rpg_platform.tracking.spool import Spool, SpoolError, spool_folder
from rpg_platform.tracking.tune_trial import checkpoint_address, count_restart, error_text, movable, trial_spec
from rpg_platform.tracking.views import experiment_tags

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from rpg_platform.spec.sweep import TrialSpec
    from rpg_platform.storage.sweep import Sweep
    from rpg_platform.storage.trial_state import TrialState

logger = logging.getLogger(__name__)


BUNDLE = "bundle"
ARTIFACT_FOLDERS = (BUNDLE, "bundle_best", "evaluation", "config")

BASIC = mean_key(FINAL, "deterministic", "basic_return")
_OF_THIS_PROCESS = ("_spool", "_runs", "_sender")
_PLANNED = {"trial_id", "method", "weights", "seed", "env_steps"}


class MlflowTracker(Callback):
    """Records a sweep in MLflow while Tune runs it.

    Made by ``sweep`` before the Tuner, given to it as its *first* callback (so that no file has a report that the spool
    has not), and told the end by ``finish``::

        tracker = MlflowTracker(sweep, sweep.trials, run_key=sweep.folder.run_key())
        tracker.start()
        try:
            ...  # Tuner(run_config=RunConfig(callbacks=[tracker, ...])).fit()
        finally:
            tracker.finish(results, interrupted=...)

    Runs are reopened, never doubled: after a trial's restart by its id; for a new driver of the same sweep (``resume``)
    by what the earlier one left in the spool's folder, which is sent first; where that folder is gone, by ``run_key``.

    Args:
        sweep: the sweep. One that is resumed goes on with the spool that an earlier driver left; a new one refuses it.
        trials: all of its trials, or those that are known before an adaptive search begins.
        run_key: tells this sweep from another of its name, and reopens its runs. None: the spool's own, or a new one.
        to_come: how many trials more a search will make.
        texts_at_start: artifacts of the sweep's run from its start, by their path.
    """

    evaluated: Collection[str] = ()
    """Trials that were evaluated at a smaller budget: their policy of then stays their run's until the new end."""
    last_failure: str | None = None
    """Why MLflow took nothing at the end, in a line."""

    def __init__(
        self,
        sweep: Sweep,
        trials: Sequence[TrialSpec],
        *,
        run_key: str | None = None,
        to_come: int = 0,
        texts_at_start: Mapping[str, str] | None = None,
    ) -> None:
        self._is_ours = sweep.folder.is_ours
        self.tracking_uri, self.experiment = sweep.tracking_uri, sweep.experiment
        self.folder = spool_folder(sweep.storage, sweep.spec.name)
        self.run_key, self._resume = run_key, sweep.is_resumed
        self._spec: dict[str, Any] = json.loads(without_login(json.dumps(sweep.spec.model_dump(mode="json"))))
        self._texts = dict(texts_at_start or {})
        self._source = sweep.source or without_login(dump_spec(sweep.spec))
        self._prior_hash = None if sweep.prior is None else sweep.prior.card.content_hash
        self._trials = {trial.trial_id: trial.model_dump(mode="json", include=_PLANNED) for trial in trials}
        self._to_come, self._planned = to_come, len(trials) + to_come
        self._colours, self._weights = colours_of(sweep.spec), list(searched_weights(sweep.spec))
        self._searched = list(sweep.spec.training.searched)
        self._prior_basic: float | None = None
        self._kept_unknown: dict[str, dict[str, Any]] = {}  # finished trials, while the prior's return is unknown
        self._policies: dict[str, dict[str, Any]] = {}  # what is recorded of their policies
        self._open: set[str] = set()  # trials whose run has been opened here and not been closed
        self._defects = self._unkept = 0
        self._spool: Spool | None = None
        self._runs: MlflowRuns | None = None
        self._sender: Sender | None = None
        self._last_state = TrackerState(0, 0)

    @property
    def errors(self) -> int:
        """Requests that failed, and failures inside the tracker."""
        return self._defects + (self._sender.errors if self._sender is not None else 0)

    def state(self) -> TrackerState:
        """Where the records are: sent, spooled, rejected; and whether MLflow can be reached."""
        if self._spool is not None and self._sender is not None:
            self._last_state = self._sender.state()
        return self._last_state

    @property
    def unsent(self) -> int:
        """Records that MLflow has not got: on the disk, not taken, or, where the spool can't be used, nowhere."""
        state = self.state()
        return state.spooled + state.rejected + self._unkept

    @property
    def run_ids(self) -> dict[str, str]:
        """Our key (a trial's id, ``PARENT``) → MLflow's run id, of every run opened so far."""
        return {} if self._runs is None else self._runs.run_ids

    @property
    def parent_run_id(self) -> str | None:
        """MLflow's id of the sweep's run; None while it has not been opened."""
        return self.run_ids.get(PARENT)

    @property
    def parent_url(self) -> str | None:
        """The sweep's page; None for an embedded store, or while the run has not been opened."""
        return None if self._runs is None else self._runs.page(PARENT)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; one that comes back has to open its spool and its runs again."""
        return {**self.__dict__, **dict.fromkeys(_OF_THIS_PROCESS), "_open": set(), "_resume": True}

    # ---- the sweep ------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens the spool, begins to send what an earlier driver left in it, and opens the sweep's run.

        A second call does nothing.

        Raises:
            SpoolError: another driver of this sweep is running, an earlier one has left a spool and this is not to
                resume it, or the spool is damaged or of a later version.
        """
        if self._spool is not None:
            return
        spool = Spool(self.folder)
        try:
            spool.open()
            self._begin(spool)
        except Exception as error:
            if self._spool is None:
                spool.close()  # a later call may take it
            if isinstance(error, SpoolError):
                raise
            self.defect(f"the spool {self.folder} can't be used", error)

    def _begin(self, spool: Spool) -> None:
        found = read_identity(self.folder)
        if found is not None and not self._resume:
            raise SpoolError(
                f"{self.folder} belongs to an earlier sweep named {found.sweep!r} on this storage: give another name, "
                "or, if it is not needed any more, remove that folder"
            )
        earlier = None if found is None else found.run_key
        key, base = self.run_key or earlier or uuid4().hex, self.folder.parent
        runs = MlflowRuns(self.tracking_uri, self.experiment, key, str(self._spec["name"]), base=base)
        if self._resume and self.run_key not in (None, earlier):
            runs.expect_earlier_runs()
        self.run_key = runs.run_key
        write_identity(spool, runs)
        self._spool, self._runs, self._sender = spool, runs, Sender(spool, runs, self._is_ours)
        self._sender.start()
        self._open_parent()

    @never_raises
    def adopt(self, trial: TrialSpec, state: TrialState) -> None:
        """Records a trial that had finished, or been ended early, when its driver died, as far as that one had not.

        Args:
            trial: the trial.
            state: its last checkpoint, which says that it finished.
        """
        known = None if self._runs is None else self._runs.known.get(trial.trial_id)
        status = "KILLED" if state.stopped else "FINISHED"
        said = {"outcome": stopped_words(state.report)} if state.stopped else {}
        if known is not None and known.status == status:
            if said:
                self._put(trial.trial_id, "tags", values=said)  # a run that was interrupted is killed too
            self._put_end(trial.trial_id, state.report)  # an earlier version gave it other names, and made no model
            self._put_policy(trial.model_dump(mode="json"), state.report, state.checkpoint)
            return
        self._open_trial(trial.model_dump(mode="json"), unless_finished=True)
        if said:
            self._put(trial.trial_id, "tags", values=said)
        self._put_report(trial.trial_id, state.report)
        self._put_end(trial.trial_id, state.report)
        self._put_policy(trial.model_dump(mode="json"), state.report, state.checkpoint)
        self._put_folders(trial.trial_id, state.checkpoint, unless_finished=True)
        self._put_points(trial.model_dump(mode="json"), state.report)
        self._close_run(trial.trial_id, status, unless_finished=True)

    def finish(
        self,
        results: Sequence[TrialResult],
        *,
        interrupted: bool = False,
        tell: Tell = logger.warning,
        files: Callable[[RunStatus], Mapping[str, bytes]] = lambda status: {},
    ) -> RunStatus:
        """Closes the sweep: summary as artifacts, the true status, and a last, bounded wait for what is not sent yet.

        Args:
            results: every trial with its last result and error; one that is not among them counts as missing.
            interrupted: the sweep was stopped from outside.
            tell: what is said to the user, a line at a time: that it waits, and what is left.
            files: makes further artifacts of the sweep's run, by their path; what it raises is counted, no more.

        Returns:
            ``FINISHED`` if every trial finished or was ended early by its scheduler, ``KILLED`` if interrupted before
            that, else ``FAILED``.
        """
        outcomes = outcomes_of(results, self._trials, self._planned)
        status = outcomes.status(interrupted)
        try:
            try:
                self._close(results, status, outcomes, files)
            except Exception as error:
                self.defect("the sweep's summary", error)
            if self._sender is not None:
                wait_for_the_rest(self._sender, self.folder, self.tracking_uri, tell)
        finally:
            self.leave()
        return status

    def leave(self) -> None:
        """Sends no more, and says nothing of what became of the sweep: that is another driver's to say."""
        if self._sender is not None and self._spool is not None:
            self._sender.stop()
            self._last_state, self.last_failure = self._sender.state(), self._sender.last_failure
            self._spool.close()
            self._spool = None

    def _open_parent(self) -> None:
        spec = self._spec
        tags = {"kind": "sweep", **run_tags.common_tags(self._spec, self._prior_hash), "trials_total": self._planned}
        if spec.get("description"):
            tags[TAG_NOTE] = spec["description"]
        self._open_run(PARENT, str(spec["name"]), run_tags.sweep_params(spec, self._planned), tags)
        maximize = spec["objective"]["maximize"]
        self._put(PARENT, "experiment", values=experiment_tags(spec["name"], self._weights, maximize, _now_ms()))
        texts_of_it = {"sweep.yaml": self._source, "spec.json": json.dumps(spec, indent=2), **self._texts}
        for path, content in texts_of_it.items():
            self._put(PARENT, "text", text=content, path=path)
        self._put_plan()

    def _put_plan(self) -> None:
        each, steps = list(self._trials.values()), sum(trial["env_steps"] for trial in self._trials.values())
        text = json.dumps({"trials": self._planned, "env_steps": steps, "each": each}, indent=1)
        self._put(PARENT, "text", text=text, path="plan.json")

    def _close(
        self,
        results: Sequence[TrialResult],
        status: RunStatus,
        outcomes: Outcomes,
        files: Callable[[RunStatus], Mapping[str, bytes]],
    ) -> None:
        # Also what an earlier driver has opened and this one has not come to.
        for trial_id in sorted(self._open | (set(self._trials) if self._resume else set())):
            self._close_run(trial_id, outcomes.status_of(trial_id), if_running=trial_id not in self._open)
        for run, tags in {PARENT: outcomes.tags(), **run_tags.marks_of(results, self._searched)}.items():
            self._put(run, "tags", values=tags)
        if self._to_come:
            self._put_plan()
        made: Mapping[str, bytes] = {}
        try:
            made = files(status)
        except Exception as error:
            self.defect("the sweep's further files", error)
        try:
            self._summarise(results, len(outcomes.failed), made)
        finally:
            self._close_run(PARENT, status)

    def _summarise(self, results: Sequence[TrialResult], failures: int, files: Mapping[str, bytes]) -> None:
        rows = summarise(results)
        self._put(PARENT, "tags", values=tags_of(rows))
        files = {**summary_files(rows, self._spec.get("description", "")), **files}
        for path, content in files.items():
            self._put(PARENT, "file", base64=base64.b64encode(content).decode("ascii"), path=path)
        self._put(PARENT, "metrics", values=figures_of(rows, failures), step=0, timestamp=_now_ms())
        self._put(PARENT, "note", text=note_of(rows, self._spec, failures, set(files)))

    # ---- Tune's hooks ---------------------------------------------------------------------------

    def setup(self, *args: Any, **info: Any) -> None:
        """Opens the sweep's run before Tune starts a trial."""
        try:
            self.start()
        except SpoolError as error:
            self.defect("the sweep's run", error)

    @never_raises
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Opens the trial's run, or reopens it if the trial has been restarted."""
        self._open_trial(trial_spec(trial))

    def _open_trial(self, spec: Mapping[str, Any], **more: Any) -> None:
        tags = run_tags.trial_tags(spec, run_tags.common_tags(self._spec, self._prior_hash))
        colour = self._colours.of(spec["method"], spec.get("weights") or {})
        tags |= {TAG_NOTE: links_back(self._spec["name"]), "mlflow.runColor": colour}
        trial_id = str(spec["trial_id"])
        self._trials.setdefault(trial_id, {name: spec.get(name) for name in sorted(_PLANNED)})
        self._open_run(
            trial_id, run_name(spec, self._searched), run_tags.trial_params(spec, self._searched), tags, **more
        )

    @never_raises
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records one report; its final evaluation only once the policy that was evaluated is saved."""
        self._put_report(trial_spec(trial)["trial_id"], result)

    @never_raises
    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Notes a failure that Tune answers with a restart; the trial's run stays open."""
        said = {"restarts": count_restart(trial), "last_failure": error_text(trial)[0]}
        self._put(trial_spec(trial)["trial_id"], "tags", values=said)

    @never_raises
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records the customised policy and closes the trial's run: finished, failed, or stopped before its end."""
        trial_id = trial_spec(trial)["trial_id"]
        last = trial.last_result or {}
        if (estimated := last.get(KL_ESTIMATED)) is not None:
            self._put(trial_id, "tags", values={"kl_to_prior": "estimated" if estimated else "closed form"})
        self._put_end(trial_id, last)
        if FAILED in last:  # it gave up by itself, and Tune counts that as an end
            self._put(trial_id, "tags", values={"error": last[FAILED]})
            self._close_run(trial_id, "FAILED")
            return
        if is_stopped(last):
            self._put(trial_id, "tags", values={"outcome": stopped_words(last)})
        self._put_bundle(trial_id, trial, last)
        self._put_points(trial_spec(trial), last)
        self._close_run(trial_id, "KILLED" if last.get(FINISHED) is False else "FINISHED")

    @never_raises
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records why a trial failed for good, and its last good policy if there is one."""
        trial_id = trial_spec(trial)["trial_id"]
        if trial_id not in self._open:
            self.on_trial_start(iteration, trials, trial)  # it failed before it started
        last_line, full = error_text(trial)
        self._put(trial_id, "tags", values={"error": last_line})
        self._put(trial_id, "text", text=full, path="error.txt")
        self._put_bundle(trial_id, trial)
        self._close_run(trial_id, "FAILED")

    def get_state(self) -> dict[str, Any] | None:
        """What Tune keeps for a restored driver, should the spool's folder be gone."""
        return {"run_key": self.run_key}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes ``get_state`` back, before ``setup``: the runs of the interrupted sweep go on."""
        self.run_key = state["run_key"]

    def _put_points(self, spec: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Records each setting at which a policy that is told its weights was evaluated, as a run below its trial's."""
        for point, figures in run_tags.points_of(spec, report):
            tags = run_tags.trial_tags(point, run_tags.common_tags(self._spec, self._prior_hash))
            tags["mlflow.runColor"] = self._colours.of(point["method"], point["weights"])
            name, key = run_name(point, self._searched), point["trial_id"]
            self._open_run(key, name, run_tags.trial_params(point, self._searched), tags, parent=point["point_of"])
            self._put_report(key, figures)
            self._put_end(key, figures)
            self._close_run(key, "FINISHED")

    # ---- records --------------------------------------------------------------------------------

    def _put_report(self, trial_id: str, report: Mapping[str, Any], *, end: bool = False) -> None:
        found = finite_metrics(report, self._spec["objective"]["mode"])
        self._put_metrics(trial_id, {key: value for key, value in found.items() if is_of_the_end(key) is end}, report)

    def _put_end(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """Records what a trial came to; its share of the prior's return as soon as that is known."""
        self._put_report(trial_id, report, end=True)
        if self._prior_hash is None or not is_finished(report):
            return
        self._kept_unknown[trial_id] = dict(report)
        if trial_id == PRIOR_TRIAL:
            self._prior_basic = number(report, BASIC)
        while self._kept_unknown and self._prior_basic is not None:
            each, ended = self._kept_unknown.popitem()
            kept = kept_share(number(ended, BASIC), self._prior_basic)
            self._put_metrics(each, {} if kept is None else {KEPT: 100 * kept}, ended)
            if each in self._policies:
                self._put(each, "policy", **self._policies.pop(each))

    def _put_metrics(self, trial_id: str, values: Mapping[str, float], report: Mapping[str, Any]) -> None:
        # The report's own time, so that delivering it twice adds nothing.
        if not values:
            return
        timestamp = int(report["timestamp"] * 1000) if "timestamp" in report else _now_ms()
        self._put(trial_id, "metrics", values=dict(values), step=report_step(report), timestamp=timestamp)

    def _put(self, run: str, kind: Kind, **data: Any) -> None:
        self.start()
        if self._spool is None or self._sender is None:  # it can't be opened, which has been said
            self._defects += 1
            self._unkept += 1
            return
        self._spool.append(Record(run, kind, data).payload())
        self._sender.wake()

    def defect(self, what: str, error: Exception) -> None:
        """Counts what went wrong in here, and warns of the first."""
        self._defects += 1
        logger.log(
            logging.WARNING if self._defects == 1 else logging.DEBUG,
            "tracking: %s failed: %s: %s. Training continues; please report it.",
            *(what, type(error).__name__, without_login(str(error))),
        )
        logger.debug("tracking: %s", what, exc_info=error)

    def _open_run(
        self, run: str, name: str, params: Mapping[str, Any], tags: Mapping[str, object], **more: Any
    ) -> None:
        if run != PARENT:
            self._open.add(run)
        self._put(run, "open", name=name, params=run_tags.texts(params), tags=dict(tags), start_time=_now_ms(), **more)

    def _close_run(self, run: str, status: str, **condition: bool) -> None:
        self._open.discard(run)
        self._put(run, "close", status=status, end_time=_now_ms(), **condition)

    def _put_bundle(self, trial_id: str, trial: Trial, last: Mapping[str, Any] | None = None) -> None:
        if trial.checkpoint is not None and (trial_id not in self.evaluated or is_finished(trial.last_result)):
            place = checkpoint_address(trial.checkpoint, self._spec.get("storage"))
            self._put_policy(trial_spec(trial), last or {}, place)
            self._put_folders(trial_id, place)

    def _put_folders(self, trial_id: str, checkpoint: str, **more: Any) -> None:
        place = movable(checkpoint, self.folder.parent)
        for folder in ARTIFACT_FOLDERS:
            self._put(trial_id, "folder", checkpoint=place, folder=folder, path=folder, **more)

    def _put_policy(self, spec: Mapping[str, Any], report: Mapping[str, Any], checkpoint: str) -> None:
        """Records the policy of a trial that was evaluated at its end; once more when its share is known."""
        if not is_finished(report):
            return
        trial_id, place = str(spec["trial_id"]), movable(checkpoint, self.folder.parent)
        data = policy_data(spec, self._searched, self._spec["name"], report_step(report))
        data |= {"checkpoint": place, "folder": BUNDLE, "path": "model"}
        self._put(trial_id, "policy", **data)
        if trial_id in self._kept_unknown:
            self._policies[trial_id] = data


def _now_ms() -> int:
    return int(time.time() * 1000)
