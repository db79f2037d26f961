"""Running a sweep: its trials under Ray Tune, tracked in MLflow, summed up in a table."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from rpg_algorithms.policies.bundle import PriorBundle, load_bundle
from rpg_algorithms.policies.network import spec_for_spaces
from rpg_platform.bundles import resolve_prior
from rpg_platform.planning.cluster import cluster_nodes, placement, start_ray
from rpg_platform.planning.estimate import SweepPlan
from rpg_platform.planning.preflight import plan_of
from rpg_platform.planning.words import head_lines
from rpg_platform.results.report import FAILED, TrialResult, is_over
from rpg_platform.run.progress import Progress
from rpg_platform.run.status import StatusWriter
from rpg_platform.run.stopping import GracefulStop, Watchdog
from rpg_platform.run.watchers import watchers
from rpg_platform.search.start import SearchRun, first_trials
from rpg_platform.spec.checks import expand
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import SweepSpec, TrialSpec, trial_id_of
from rpg_platform.spec.task import get_task
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tasks.conformance import probe
from rpg_platform.tasks.environments import make_env
from rpg_platform.tracking.spool import spool_folder
from rpg_platform.tracking.tracker import MlflowTracker
from rpg_platform.trial.trainable import CustomizationTrial, algorithm_config, running_code

logger = logging.getLogger(__name__)
DEFAULT_STORAGE = "~/rpg_results"


class SweepError(ValueError):
    """A sweep that cannot be started as asked; the message says what to do."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep came to.

    Attributes:
        results: each trial with its last report, or with why it has none.
        folder: where Tune left the trials' files.
        tracking_uri: MLflow store.
        experiment: MLflow experiment.
        parent_url: address of the parent run, where the store is a server.
        checkpoints: trial id → folder of its last checkpoint (a local path or a URI).
        interrupted: it was stopped (Ctrl-C, SIGTERM) before every trial had ended.
    """

    results: Sequence[TrialResult]
    folder: str
    tracking_uri: str
    experiment: str
    parent_url: str | None
    checkpoints: dict[str, str]
    interrupted: bool = False

    @property
    def failed(self) -> int:
        """Number of trials without a final evaluation that were not ended early by the sweep's own scheduler."""
        return sum(error is not None or not is_over(result) for _, result, error in self.results)


def storage_of(spec: SweepSpec) -> str:
    """Where a sweep's results go: an absolute local path, or a URI as given."""
    text = spec.storage or DEFAULT_STORAGE
    return text if "://" in text else str(Path(text).expanduser().resolve())


def tracking_uri_of(spec: SweepSpec) -> str:
    """The MLflow store of a sweep: as given, or the embedded one beside its results.

    Raises:
        SweepError: the storage is remote and no server is given.
    """
    if spec.tracking.uri is not None:
        return spec.tracking.uri
    storage = storage_of(spec)
    if "://" in storage:
        raise SweepError(
            f"storage={storage!r} is remote: give tracking.uri, the embedded MLflow store needs a local path"
        )
    return default_tracking_uri(storage)


def quiet() -> None:
    """Keeps Ray's and RLlib's own chatter out of the way of the progress view; warnings of ours stay."""
    for name in ("ray.rllib", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the progress view says why, MLflow has all of it
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")


def run_sweep(
    spec: SweepSpec,
    *,
    address: str | None = None,
    console: Console | None = None,
    source: str | None = None,
    resume: bool = False,
) -> SweepOutcome:
    """Runs every trial of ``spec`` and records it; with ``resume`` those that are not finished yet.

    Args:
        spec: the sweep.
        address: Ray cluster; None for a local one.
        console: where progress is shown.
        source: the YAML as the user wrote it, for the record.
        resume: continue the sweep of this name from its storage: finished trials are not run again, the others go on
            from their newest complete checkpoints.

    Raises:
        CapacityError: there is no cluster at the address, or it can never run a trial.
        SweepFolderError: the name is taken in this storage, or there is no such sweep to resume.
        SpecError: the specification contradicts itself.
    """
    console = console or Console()
    quiet()
    folder, prior = check_sweep(spec, resume=resume)
    start_ray(address)
    states = folder.trials() if resume else {}
    sweep = Sweep.resolve(spec, source=source, resume=resume)
    plan = plan_of(sweep, cluster_nodes(), states)
    for line in head_lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not resume:
        folder.create(spec, source, prior)
    with folder.lock():
        return _run(spec, plan, prior, folder, source, console, resume)


def check_sweep(spec: SweepSpec, *, resume: bool = False) -> tuple[SweepFolder, PriorBundle | None]:
    """Refuses what is wrong with a sweep, cluster and disks apart, before anything is started.

    Args:
        spec: the sweep.
        resume: the one of this name is to go on.

    Returns:
        Its folder, which a new sweep does not have yet, and its prior.

    Raises:
        ValueError: says what is wrong.
    """
    trials = expand(spec)
    tracking_uri_of(spec)
    folder = SweepFolder(storage_of(spec), spec.name)
    if not resume:
        folder.check_free()
    prior = _prior_of(spec, folder if resume else None)
    _check_trials([*trials, *first_trials(spec)], prior)
    return folder, prior


def _prior_of(spec: SweepSpec, resumed: SweepFolder | None) -> PriorBundle | None:
    """The sweep's prior: from where the specification says, or what a sweep that is resumed has kept of it."""
    if spec.prior is None:
        return None
    kept = None if resumed is None else resumed.prior()
    return kept or load_bundle(resolve_prior(spec.prior))


def _run(
    spec: SweepSpec,
    plan: SweepPlan,
    prior: PriorBundle | None,
    folder: SweepFolder,
    source: str | None,
    console: Console,
    resume: bool,
) -> SweepOutcome:
    """Runs what is not finished and collects everything."""
    tracking_uri, experiment = tracking_uri_of(spec), spec.tracking.experiment or spec.name
    states = folder.trials()
    search = SearchRun(spec, expand(spec), folder, states)
    trials = search.trials
    states = {trial.trial_id: states[trial.trial_id] for trial in trials if trial.trial_id in states}
    finished = {t.trial_id for t in trials if t.trial_id in states and states[t.trial_id].finishes(t)}
    tell = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    prior_hash = None if prior is None else prior.card.content_hash
    spool = spool_folder(folder.storage, spec.name)
    tracker = MlflowTracker(
        tracking_uri,
        experiment,
        spec,
        trials,
        spool,
        source=source,
        prior_hash=prior_hash,
        resume=resume,
        run_key=folder.run_key(),
        to_come=search.to_come,
    )
    progress = Progress(
        trials,
        console,
        tracker.state,
        {name: states[name].report for name in finished},
        {name: state.env_steps for name, state in states.items()},
        planned=len(trials) + search.to_come,
        budget=spec.budget.env_steps,
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
    reports = {name: dict(states[name].report) for name in finished}
    checkpoints = {name: states[name].checkpoint for name in finished}
    results: list[TrialResult] = [(trial, reports.get(trial.trial_id), None) for trial in trials]
    interrupted = True
    todo = [trial for trial in trials if trial.trial_id not in finished]
    status = StatusWriter(folder, lambda: progress.snapshot().as_json())
    try:
        status.start()
        if todo or search.to_come:
            parameters = {"prior": prior, "checkpoints": {name: state.checkpoint for name, state in states.items()}}
            with progress, stop.on_signals(), _no_automatic_loggers():
                watching = watchers(plan, folder, stop, tell)
                callbacks = [*search.callbacks, tracker, progress, stop, watchdog, *watching]
                grid = _tuner(spec, search.for_tuner(todo), parameters, folder, callbacks, stop).fit()
            results, newer = _collect(search.trials, reports, grid)
            checkpoints |= newer
            why = progress.failures()  # as the tracker has it too
            results = [(t, report, error and (why.get(t.trial_id) or error)) for t, report, error in results]
        # Tune returns from a stop as from an end; a trial that neither ended nor failed tells them apart.
        interrupted = search.to_come > 0 or any(error is None and not is_over(result) for _, result, error in results)
    finally:
        status.stop(tracker.finish(results, interrupted=interrupted, tell=tell))
    return SweepOutcome(
        results, folder.uri, tracking_uri, experiment, tracker.parent_url, checkpoints, interrupted=interrupted
    )


@contextlib.contextmanager
def _no_automatic_loggers() -> Iterator[None]:
    """Keeps Tune's own CSV and TensorBoard loggers away: MLflow and result.json hold what they would write."""
    name = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _check_trials(trials: Sequence[TrialSpec], prior: PriorBundle | None) -> None:
    """Lets RLlib refuse a setting here rather than in every trial's process.

    Raises:
        ValueError: names the trial and what does not fit.
    """
    task = get_task(trials[0].task)  # a sweep's trials share it
    if not isinstance(trials[0].task, str) and (refused := probe(task)):
        raise SweepError("\n".join(map(str, refused)))
    env = make_env(task)
    if prior is not None:
        prior.check_spaces(env.observation_space, env.action_space, task.env_id)
    for trial in trials:
        if not METHODS[trial.method].trains:
            continue
        uses_prior = METHODS[trial.method].uses_prior
        try:
            algorithm_config(trial, task, prior if uses_prior else None).validate()
            if trial.training.network is not None:
                spec_for_spaces(env.observation_space, env.action_space, trial.training.network.distribution)
        except ValueError as error:
            raise ValueError(f"{trial.trial_id}: {error}") from error


def _tuner(
    spec: SweepSpec,
    arguments: tuple[dict[str, Any], dict[str, Any]],
    parameters: Mapping[str, Any],
    folder: SweepFolder,
    callbacks: list[Any],
    stop: GracefulStop,
) -> Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(CustomizationTrial, **parameters), PlacementGroupFactory(placement(spec))
    )
    storage, name = folder.next_attempt()
    for_tuner, for_config = arguments
    return Tuner(
        trainable,
        **for_tuner,
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
        reports: those of trials that had been finished before.
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
        rows.append((trial, result.metrics, error))
        if result.checkpoint is not None:
            checkpoints[trial.trial_id] = result.checkpoint.path
    return rows, checkpoints
