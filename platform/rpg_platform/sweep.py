"""Running a sweep: its trials under Ray Tune, tracked in MLflow, summed up in a table."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
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
from rpg_platform.environments import make_env
from rpg_platform.methods import METHODS
from rpg_platform.mlflow_runs import default_tracking_uri
from rpg_platform.plan import expand
from rpg_platform.progress import Progress
from rpg_platform.report import TrialResult
from rpg_platform.shipped import resolve_prior
from rpg_platform.spec import SweepSpec, TrialSpec
from rpg_platform.tasks import get_task
from rpg_platform.tracking import MlflowTracker
from rpg_platform.trial import CustomizationTrial, algorithm_config, running_code

logger = logging.getLogger(__name__)
DEFAULT_STORAGE = "~/rpg_results"
MAX_FAILURES = 2


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
        return sum(error is not None or not (result or {}).get("done") for _, result, error in self.results)


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
    spec: SweepSpec, *, address: str | None = None, console: Console | None = None, source: str | None = None
) -> SweepOutcome:
    """Runs every trial of ``spec`` and records it.

    Args:
        spec: the sweep.
        address: Ray cluster; None for a local one.
        console: where progress is shown.
        source: the YAML as the user wrote it, for the record.

    Raises:
        SweepError: the name is taken in this storage, or the cluster can never run a trial.
        SpecError: the specification contradicts itself.
    """
    console = console or Console()
    quiet()
    trials = expand(spec)
    storage, experiment = storage_of(spec), spec.tracking.experiment or spec.name
    tracking_uri = tracking_uri_of(spec)
    if "://" not in storage and (Path(storage) / spec.name).exists():
        raise SweepError(
            f"{Path(storage) / spec.name} exists: a sweep named {spec.name!r} was run there; nothing is overwritten. "
            "Give another name (--name) or another storage (--storage)"
        )
    prior = load_bundle(resolve_prior(spec.prior)) if spec.prior is not None else None
    _check_trials(trials, prior)
    start_ray(address)
    bundles = placement(spec)
    _check_capacity(bundles, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    tracker = MlflowTracker(tracking_uri, experiment, spec, trials, source=source)
    progress = Progress(trials, console)
    console.print(f"{running_code()} (driver)", highlight=False, markup=False, soft_wrap=True)
    tracker.start()
    results: list[TrialResult] = [(trial, None, None) for trial in trials]
    interrupted = True
    checkpoints: dict[str, str] = {}
    try:
        with progress, _sigterm_as_interrupt(), _no_automatic_loggers():
            grid = _tuner(spec, trials, prior, bundles, storage, [tracker, progress]).fit()
        results, checkpoints = _collect(trials, grid)
        # Tune returns from a stop as from an end; a trial that neither ended nor failed tells them apart.
        interrupted = any(error is None and not (result or {}).get("done") for _, result, error in results)
    finally:
        tracker.finish(results, interrupted=interrupted)
    return SweepOutcome(
        results,
        str(Path(storage) / spec.name) if "://" not in storage else f"{storage}/{spec.name}",
        tracking_uri,
        experiment,
        tracker.parent_url,
        checkpoints,
        interrupted,
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


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Lets a SIGTERM (``ray job stop``, a container's end) stop Tune in order, as Ctrl-C does.

    Tune stops in order on SIGUSR1 too, which Ray, unlike SIGINT, does not block in a job's driver.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGUSR1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_trials(trials: Sequence[TrialSpec], prior: PriorBundle | None) -> None:
    """Lets RLlib refuse a setting here rather than in every trial's process.

    Raises:
        ValueError: names the trial and what does not fit.
    """
    task = get_task(trials[0].task)  # a sweep's trials share it
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
    prior: PriorBundle | None,
    bundles: list[dict[str, float]],
    storage: str,
    callbacks: list[Any],
) -> Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(CustomizationTrial, prior=prior), PlacementGroupFactory(bundles)
    )
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
            name=spec.name,
            storage_path=storage,
            callbacks=[JsonLoggerCallback(), *callbacks],
            # When else to save is the trial's to say: it alone knows its env steps per report.
            checkpoint_config=CheckpointConfig(num_to_keep=spec.checkpoint.keep, checkpoint_at_end=True),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
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


def _collect(trials: Sequence[TrialSpec], grid: Any) -> tuple[list[TrialResult], dict[str, str]]:
    """Each trial's last report or error, in the plan's order, and its last checkpoint."""
    found: dict[str, Any] = {}
    for i in range(len(grid)):
        found[Path(grid[i].path).name] = grid[i]  # the folder's name is the trial's id, see _name
    rows: list[TrialResult] = []
    checkpoints = {}
    for trial in trials:
        result = found.get(trial.trial_id)
        if result is None:
            rows.append((trial, None, None))
            continue
        error = None if result.error is None else str(result.error).strip().splitlines()[-1]
        rows.append((trial, result.metrics, error))
        if result.checkpoint is not None:
            checkpoints[trial.trial_id] = result.checkpoint.path
    return rows, checkpoints
