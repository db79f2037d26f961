"""Running a sweep: its trials under Ray Tune, tracked in MLflow, summed up in a table."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from rpg_platform import logs
from rpg_platform.planning.cluster import cluster_nodes, placement, quiet, start_ray, waiting_for, whereabouts
from rpg_platform.planning.estimate import SweepPlan
from rpg_platform.planning.preflight import check_hidden_modules, plan_of
from rpg_platform.planning.shared_storage import check_shared
from rpg_platform.planning.tracker_login import check_login
from rpg_platform.planning.words import head_lines
from rpg_platform.results.endings import ENDS, RunStatus
from rpg_platform.results.report import EARLIER, ENV_STEPS, FAILED, TrialResult, is_over, with_earlier
from rpg_platform.review.found import found_in
from rpg_platform.review.page import REPORT_FILE
from rpg_platform.review.report import LiveReport, write_report
from rpg_platform.review.videos import VIDEOS_FILE, sweep_videos
from rpg_platform.run.gauges import Gauges
from rpg_platform.run.node_faults import node_faults
from rpg_platform.run.notice import message, notify
from rpg_platform.run.progress import Progress
from rpg_platform.run.status import StatusWriter
from rpg_platform.run.stopping import GracefulStop, LeaseKeeper, Watchdog
from rpg_platform.run.watchers import watchers
from rpg_platform.search.start import SearchRun, first_trials
from rpg_platform.spec.sweep import TrialSpec, trial_id_of
from rpg_platform.storage.plans import PLANS_FILE, keep_plan
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.tracking.tracker import MlflowTracker
from rpg_platform.tracking.variables import variables
from rpg_platform.trial.config import check_trials
from rpg_platform.trial.trainable import CustomizationTrial, running_code

logger = logging.getLogger(__name__)

# Of Tune's own, CSV and TensorBoard: MLflow and result.json hold what they would write.
_NO_AUTOMATIC_LOGGERS = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
VIDEOS = "RPG_VIDEOS"
"""Environment variable: ``0`` leaves the videos at a sweep's end out."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep came to.

    Attributes:
        sweep: what was run.
        results: each trial with its last report, or with why it has none.
        parent_url: address of the parent run, where the store is a server.
        checkpoints: trial id → folder of its last checkpoint (a local path or a URI).
        interrupted: it was stopped (Ctrl-C, SIGTERM) before every trial had ended.
        unsent: records that are not in MLflow: they wait on the disk, or MLflow did not take them.
        unsent_because: why, in a line; None where nobody knows.
    """

    sweep: Sweep
    results: Sequence[TrialResult]
    parent_url: str | None
    checkpoints: dict[str, str]
    interrupted: bool = False
    unsent: int = 0
    unsent_because: str | None = None

    @property
    def failed(self) -> int:
        """Number of trials without a final evaluation that were not ended early by the sweep's own scheduler."""
        return sum(error is not None or not is_over(result) for _, result, error in self.results)


def run_sweep(sweep: Sweep, *, address: str | None = None, console: Console | None = None) -> SweepOutcome:
    """Runs every trial of a sweep and records it; of a sweep that is resumed those that are not finished yet.

    Args:
        sweep: from ``Sweep.resolve``. A resumed one goes on from its folder: finished trials are not run again, the
            others go on from their newest complete checkpoints.
        address: Ray cluster; None for a local one.
        console: where progress is shown.

    Raises:
        CapacityError: there is no cluster at the address, or it can never run a trial.
        PlanError: there is too little room, not every node sees the storage, MLflow does not take the login, or a file
            hides a module from the trials.
        SweepFolderError: the sweep's name is taken in its storage, or another driver runs it.
        LeaseLostError: another driver has taken the sweep over since.
        ValueError: RLlib refuses a setting.
    """
    console = console or Console()
    logs.about(sweep=sweep.spec.name)
    tell = logs.teller(console)
    quiet()
    check_trials(sweep, [*sweep.trials, *first_trials(sweep)])
    check_hidden_modules()
    start_ray(address)
    with contextlib.ExitStack() as held:
        states: Mapping[str, TrialState] = {}
        if sweep.is_resumed:
            held.enter_context(sweep.folder.lock(tell))  # nobody else moves the trials that are read now
            states = sweep.folder.trials()
        plan = plan_of(sweep, cluster_nodes(), states)
        check_login(sweep.tracking_uri)
        warnings = check_shared(sweep.storage)
        for line in [f"{'Runs on':<12}{whereabouts()}", *head_lines(plan), *warnings]:
            tell(line)
        if sweep.is_resumed:
            sweep.folder.go_on_with(sweep.spec, sweep.source)  # all that may refuse it has been asked
        else:
            held.enter_context(sweep.folder.lock(tell))  # first: of two that start at once one writes
            sweep.folder.create(sweep.spec, sweep.source, sweep.prior, sweep.start)
        kept = keep_plan(sweep.folder, plan.as_json())
        return _run(sweep, states, plan, {PLANS_FILE: kept}, console, tell)


def _run(
    sweep: Sweep,
    states: Mapping[str, TrialState],
    plan: SweepPlan,
    texts: Mapping[str, str],
    console: Console,
    tell: Callable[[str], None],
) -> SweepOutcome:
    """Runs what is not finished and collects everything; ``texts`` are artifacts of the sweep's run from its start."""
    spec, folder, began = sweep.spec, sweep.folder, time.monotonic()
    search = SearchRun(sweep, states)
    trials = search.trials
    states = {trial.trial_id: states[trial.trial_id] for trial in trials if trial.trial_id in states}
    finished = {t.trial_id for t in trials if t.trial_id in states and states[t.trial_id].finishes(t)}
    reports = {t.trial_id: states[t.trial_id].report_for(t) for t in trials if t.trial_id in states}
    tracker = MlflowTracker(sweep, trials, run_key=folder.run_key(), to_come=search.to_come, texts_at_start=texts)
    tracker.evaluated = [name for name, report in reports.items() if EARLIER in report]
    progress = Progress(
        trials,
        console,
        tracker.state,
        {name: states[name].report for name in finished},
        {name: state.env_steps for name, state in states.items()},
        planned=len(trials) + search.to_come,
        budget=spec.budget.env_steps,
        waiting_for=lambda: waiting_for(placement(spec)),
    )
    stop, watchdog = GracefulStop(tell), Watchdog(spec.faults.stall_after_s, tell)
    tell(f"{running_code()} (driver)")
    if states:
        restored = len(states) - len(finished)
        total = len(trials) + search.to_come
        tell(f"{len(finished)} of {total} trials are finished, {restored} go on from a checkpoint")
    tracker.start()
    for trial in (each for each in trials if each.trial_id in finished):
        tracker.adopt(trial, states[trial.trial_id])
    checkpoints = {name: states[name].checkpoint for name in finished}
    results: list[TrialResult] = [(trial, reports.get(trial.trial_id), None) for trial in trials]
    interrupted = True
    todo = [trial for trial in trials if trial.trial_id not in finished]
    gauges = Gauges(spec.name)
    status = StatusWriter(folder, lambda: gauges.show(progress.snapshot().as_json()))
    live = LiveReport(folder, lambda: progress.snapshot().over, lambda: tracker.run_ids)
    try:
        status.start()
        live.start()
        if todo or search.to_come:
            kept = {name: state.checkpoint for name, state in states.items()}
            with progress, stop.on_signals(), node_faults(), variables(_NO_AUTOMATIC_LOGGERS):
                watching = watchers(plan, folder, stop, tell)
                keeper = LeaseKeeper(folder.lease, lambda: stop.requested, tell)
                callbacks = [keeper, *search.callbacks, tracker, progress, stop, watchdog, *watching]
                grid = _tuner(sweep, search.for_tuner(todo), kept, callbacks, stop).fit()
            results, newer = _collect(search.trials, reports, grid)
            checkpoints |= newer
            why = progress.failures()  # as the tracker has it too
            results = [(t, report, error and (why.get(t.trial_id) or error)) for t, report, error in results]
        # Tune returns from a stop as from an end; a trial that neither ended nor failed tells them apart.
        interrupted = search.to_come > 0 or any(error is None and not is_over(result) for _, result, error in results)
    finally:
        live.stop()
        if folder.is_lost:  # what is said of the sweep from now on, and of its runs, is another driver's to say
            tracker.leave()
            status.leave()
        else:
            review = functools.partial(_review, folder, tracker, tell)
            outcome = tracker.finish(results, interrupted=interrupted, tell=tell, files=review)
            status.stop(outcome)
            notify(message(folder, ENDS[outcome], progress.snapshot(), tracker, time.monotonic() - began), tell)
    return SweepOutcome(
        sweep, results, tracker.parent_url, checkpoints, interrupted, tracker.unsent, tracker.last_failure
    )


def _review(
    folder: SweepFolder, tracker: MlflowTracker, tell: Callable[[str], None], status: RunStatus
) -> dict[str, bytes]:
    """Makes videos and report of a sweep; returns them as artifacts of its run. Results do not depend on them."""
    made: dict[str, bytes] = {}
    try:
        found = found_in(folder)
        if status == "FINISHED" and os.environ.get(VIDEOS) != "0":
            for video in sweep_videos(found, tell=tell):
                made[video.path] = folder.read_bytes(video.path) or b""
                made[VIDEOS_FILE] = folder.read_bytes(VIDEOS_FILE) or b""
        return {**made, f"summary/{REPORT_FILE}": write_report(found, tracker.run_ids, ENDS[status]).encode()}
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        tell(f"Report: it could not be written ({why}); to write it later: rpg report {folder.name}")
        return made


def _tuner(
    sweep: Sweep,
    for_config: dict[str, Any],
    checkpoints: Mapping[str, str],
    callbacks: list[Any],
    stop: GracefulStop,
) -> Tuner:
    spec = sweep.spec
    trainable = tune.with_resources(
        tune.with_parameters(CustomizationTrial, prior=sweep.prior, start=sweep.start, checkpoints=dict(checkpoints)),
        PlacementGroupFactory(placement(spec), strategy=spec.resources.placement.upper()),
    )
    storage, name = sweep.folder.next_attempt()
    return Tuner(
        trainable,
        tune_config=TuneConfig(reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name, **for_config),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            stop=stop,
            callbacks=[*callbacks, JsonLoggerCallback()],  # the tracker first: what a file has, its spool has
            # When else to save is the trial's to say: it alone knows its env steps per report.
            checkpoint_config=CheckpointConfig(num_to_keep=spec.checkpoint.keep, checkpoint_at_end=True),
            failure_config=FailureConfig(max_failures=spec.faults.retries),
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    """The trial's id, by which Tune names it and its folder."""
    return trial_id_of(trial.config)


def _collect(
    trials: Sequence[TrialSpec], reports: Mapping[str, dict[str, Any]], grid: Any
) -> tuple[list[TrialResult], dict[str, str]]:
    """Each trial's last report or error, in the plan's order, and its last checkpoint.

    Args:
        trials: all trials that are known by now.
        reports: those that earlier attempts left, for trials that have not reported in this one.
        grid: Tune's results of the others.
    """
    found: dict[str, Any] = {}
    for i in range(len(grid)):
        found[Path(grid[i].path).name] = grid[i]  # the folder's name is the trial's id, see _name
    rows: list[TrialResult] = []
    checkpoints = {}
    for trial in trials:
        result = found.get(trial.trial_id)
        if result is None:
            rows.append((trial, reports.get(trial.trial_id), None))
            continue
        error = (result.metrics or {}).get(FAILED)
        if result.error is not None:
            error = str(result.error).strip().splitlines()[-1]
        reported = ENV_STEPS in (result.metrics or {})  # Tune gives one that never started an empty report
        before = reports.get(trial.trial_id)
        earlier = (before or {}).get(EARLIER, ())
        rows.append((trial, with_earlier(result.metrics, trial, earlier) if reported else before, error))
        if result.checkpoint is not None:
            checkpoints[trial.trial_id] = result.checkpoint.path
    return rows, checkpoints
