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

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from rpg_algorithms.network import spec_for_spaces
from rpg_algorithms.prior import PriorBundle, load_bundle
from rpg_platform.conformance import probe
from rpg_platform.environments import make_env
from rpg_platform.methods import METHODS
from rpg_platform.mlflow_runs import default_tracking_uri
from rpg_platform.plan import expand
from rpg_platform.progress import Progress
from rpg_platform.report import TrialResult
from rpg_platform.shipped import resolve_prior
from rpg_platform.spec import SweepSpec, TrialSpec
from rpg_platform.spool import spool_folder
from rpg_platform.stopping import GracefulStop, Watchdog
from rpg_platform.sweep_folder import SweepFolder
from rpg_platform.tasks import get_task
from rpg_platform.tracking import MlflowTracker
from rpg_platform.trial import CustomizationTrial, algorithm_config, running_code

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
        """Number of trials without a final evaluation."""
        return sum(error is not None or not (result or {}).get("finished") for _, result, error in self.results)


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
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")


def start_ray(address: str | None) -> None:
    """Connects to the cluster at ``address`` (or to the one that a job runs in), or starts Ray on this machine.

    Token authentication stays as the environment sets it (``RAY_AUTH_MODE``); a local Ray without it set has none, as
    it listens on this machine alone.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


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
        SweepError: the cluster can never run a trial.
        SweepFolderError: the name is taken in this storage, or there is no such sweep to resume.
        SpecError: the specification contradicts itself.
    """
    console = console or Console()
    quiet()
    trials = expand(spec)
    folder = SweepFolder(storage_of(spec), spec.name)
    tracking_uri = tracking_uri_of(spec)
    if not resume:
        folder.check_free()
    prior = _prior_of(spec, folder if resume else None)
    _check_trials(trials, prior)
    start_ray(address)
    _check_capacity(placement(spec), [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if not resume:
        folder.create(spec, source, prior)
    with folder.lock():
        return _run(spec, trials, prior, folder, tracking_uri, source, console, resume)


def _prior_of(spec: SweepSpec, resumed: SweepFolder | None) -> PriorBundle | None:
    """The sweep's prior: from where the specification says, or what a sweep that is resumed has kept of it."""
    if spec.prior is None:
        return None
    kept = None if resumed is None else resumed.prior()
    return kept or load_bundle(resolve_prior(spec.prior))


def _run(
    spec: SweepSpec,
    trials: list[TrialSpec],
    prior: PriorBundle | None,
    folder: SweepFolder,
    tracking_uri: str,
    source: str | None,
    console: Console,
    resume: bool,
) -> SweepOutcome:
    """Runs what is not finished and collects everything."""
    experiment = spec.tracking.experiment or spec.name
    states = folder.trials()
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
    )
    progress = Progress(trials, console, tracker.state, {name: states[name].report for name in finished})
    stop, watchdog = GracefulStop(tell), Watchdog(spec.faults.stall_after_s, tell)
    tell(f"{running_code()} (driver)")
    if states:
        restored = len(states) - len(finished)
        tell(f"{len(finished)} of {len(trials)} trials are finished, {restored} go on from a checkpoint")
    tracker.start()
    for trial in (each for each in trials if each.trial_id in finished):
        tracker.adopt(trial, states[trial.trial_id])
    known: list[TrialResult] = [
        (t, dict(states[t.trial_id].report) if t.trial_id in finished else None, None) for t in trials
    ]
    checkpoints = {name: states[name].checkpoint for name in finished}
    results, interrupted = known, True
    todo = [trial for trial in trials if trial.trial_id not in finished]
    try:
        if todo:
            parameters = {"prior": prior, "checkpoints": {name: state.checkpoint for name, state in states.items()}}
            with progress, stop.on_signals(), _no_automatic_loggers():
                grid = _tuner(spec, todo, parameters, folder, [tracker, progress, stop, watchdog], stop).fit()
            results, newer = _collect(known, grid)
            checkpoints |= newer
        # Tune returns from a stop as from an end; a trial that neither ended nor failed tells them apart.
        interrupted = any(error is None and not (result or {}).get("finished") for _, result, error in results)
    finally:
        tracker.finish(results, interrupted=interrupted, tell=tell)
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
        if METHODS[trial.method].algorithm is None:
            continue
        uses_prior = METHODS[trial.method].prior != "unused"
        try:
            algorithm_config(trial, task, prior if uses_prior else None).validate()
            if trial.training.network is not None:
                spec_for_spaces(env.observation_space, env.action_space, trial.training.network.distribution)
        except ValueError as error:
            raise ValueError(f"{trial.trial_id}: {error}") from error


def _tuner(
    spec: SweepSpec,
    trials: Sequence[TrialSpec],
    parameters: Mapping[str, Any],
    folder: SweepFolder,
    callbacks: list[Any],
    stop: GracefulStop,
) -> Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(CustomizationTrial, **parameters), PlacementGroupFactory(placement(spec))
    )
    storage, name = folder.next_attempt()
    return Tuner(
        trainable,
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])},
        tune_config=TuneConfig(
            max_concurrent_trials=spec.resources.max_concurrent,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
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
    return str(trial.config["trial"]["trial_id"])


def placement(spec: SweepSpec) -> list[dict[str, float]]:
    """Resource bundles of one trial: its own process, then its env runners, then its learners."""
    resources = spec.resources
    gpus = resources.gpus_per_trial
    main: dict[str, float] = {"CPU": resources.cpus_per_trial}
    learner: dict[str, float] = {"CPU": 1}
    if gpus:
        (learner if resources.learners else main)["GPU"] = gpus
    return [main, *[{"CPU": 1.0}] * resources.env_runners, *[learner] * resources.learners]


def _check_capacity(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuses what no node, or not the whole cluster, could ever hold.

    Args:
        bundles: resources of one trial, each bundle on one node.
        nodes: resources of the cluster's nodes.

    Raises:
        SweepError: names the resource, what is asked for and what there is.
    """
    for name in ("CPU", "GPU"):
        asked, there = (sum(each.get(name, 0.0) for each in all_) for all_ in (bundles, nodes))
        if asked > there:
            raise SweepError(
                f"a trial asks for {asked:g} {name} (resources), the cluster has {there:g}: no trial could ever start"
            )
        asked, there = (max((each.get(name, 0.0) for each in all_), default=0.0) for all_ in (bundles, nodes))
        if asked > there:
            raise SweepError(
                f"a trial's process asks for {asked:g} {name} (resources), the largest node has {there:g}: "
                "no trial could ever start"
            )


def _collect(known: Sequence[TrialResult], grid: Any) -> tuple[list[TrialResult], dict[str, str]]:
    """Each trial's last report or error, in the plan's order, and its last checkpoint.

    Args:
        known: every trial, with its report where it had been finished before.
        grid: Tune's results of the others.
    """
    found: dict[str, Any] = {}
    for i in range(len(grid)):
        found[Path(grid[i].path).name] = grid[i]  # the folder's name is the trial's id, see _name
    rows: list[TrialResult] = []
    checkpoints = {}
    for trial, report, _ in known:
        result = found.get(trial.trial_id)
        if result is None:
            rows.append((trial, report, None))
            continue
        error = (result.metrics or {}).get("failed")
        if result.error is not None:
            error = str(result.error).strip().splitlines()[-1]
        rows.append((trial, result.metrics, error))
        if result.checkpoint is not None:
            checkpoints[trial.trial_id] = result.checkpoint.path
    return rows, checkpoints
