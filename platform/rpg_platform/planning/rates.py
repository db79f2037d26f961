"""How fast trials are: measured here in seconds, or by an earlier sweep's own reports, and kept for the next plan.

A rate belongs to a task, the settings that cost time, and a machine. It is kept in ``~/.cache/rpg/rates/`` (or under
``$XDG_CACHE_HOME``), a small JSON file each; the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, NUM_MODULE_STEPS_TRAINED_LIFETIME
from ray.tune import Callback

import rpg_platform
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
from rpg_algorithms.rllib.rollout import RolloutBatch
from rpg_platform.evaluation.play import evaluate
from rpg_platform.planning.cluster import Amounts
from rpg_platform.results.report import ENV_STEPS_PER_S, EVALUATION_STEPS_PER_S, number
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec, trial_id_of
from rpg_platform.spec.task import get_task
from rpg_platform.trial.config import algorithm_config

logger = logging.getLogger(__name__)

_ITERATION_STEPS = 4_096  # env steps of a measured iteration, at most
_MEASURED_S, _MOST_ITERATIONS = 2.0, 5
_EVALUATED_STEPS, _EVALUATED_EPISODES = 50, 64
_ENOUGH_REPORTS, _MOST_REPORTS = 3, 10_000
_COSTS_TIME = {"rollout_length", "minibatch_size", "num_epochs", "start_from_prior", "network"}


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast one trial is.

    Attributes:
        env_steps_per_s: of training.
        evaluation_steps_per_s: of evaluating.
        setup_s: seconds to build the trial.
        source: where the figures come from.
        at: when, seconds since the epoch.
    """

    env_steps_per_s: Annotated[float, Field(gt=0)]
    evaluation_steps_per_s: Annotated[float, Field(gt=0)]
    setup_s: Annotated[float, Field(ge=0)]
    source: Literal["measured here", "reports of an earlier sweep"]
    at: float


# ---- kept ----------------------------------------------------------------------------------------
def rate_key(trial: TrialSpec, nodes: Sequence[Amounts]) -> str:
    """What has the same rate: the task, the settings that cost time, the resources, the machine or cluster.

    Args:
        trial: one that trains.
        nodes: resources of the machines that it may run on.
    """
    what = [
        rpg_platform.__version__,
        trial.task if isinstance(trial.task, str) else trial.task.model_dump(mode="json"),
        METHODS[trial.method].algorithm,
        trial.prior if METHODS[trial.method].uses_prior else None,
        trial.training.model_dump(mode="json", include=_COSTS_TIME),
        trial.resources.model_dump(mode="json", exclude={"max_concurrent"}),
        _processor(),
        sorted({(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes}),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _file(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rpg" / "rates" / f"{key}.json"


def known_rate(key: str) -> Rate | None:
    """The rate that was kept under a key; None if there is none that can be read."""
    try:
        return TypeAdapter(Rate).validate_json(_file(key).read_bytes())
    except (OSError, ValidationError):
        return None


def keep_rate(key: str, rate: Rate) -> None:
    """Keeps a rate for later plans; what cannot be written is not kept."""
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(dataclasses.asdict(rate), indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        logger.debug("the rate could not be kept: %s", error)


# ---- measured ------------------------------------------------------------------------------------
def measure_apart(trial: TrialSpec, prior: PriorBundle | None) -> Rate:
    """`measure` in a process of its own with as many threads as Ray gives a trial, which are fixed at its start."""
    name, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault(name, str(max(1, int(trial.resources.cpus_per_trial))))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, trial, prior).result()
    finally:
        if before is None:
            os.environ.pop(name)


def measure(trial: TrialSpec, prior: PriorBundle | None) -> Rate:
    """Builds a trial's env runner and learner in this process, takes a few iterations, and evaluates a little.

    Nothing of Ray is started. Remote env runners and learners are taken into account by arithmetic: runners
    sample side by side, learners share the minibatches. GPUs are not used.

    Args:
        trial: one that trains.
        prior: the sweep's prior.
    """
    task, settings = get_task(trial.task), trial.evaluation
    used = prior if METHODS[trial.method].uses_prior else None
    logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)  # RLlib warns of its own calls
    started = time.perf_counter()
    config = algorithm_config(_shortened(trial), task, used)
    runner = RolloutEnvRunner(config=config)
    try:
        learner = config.build_learner(env=runner.env)
        setup_s = time.perf_counter() - started
        steps, sampling, learning = _iterations(runner, learner, config.minibatch_size)
        network = learner.module["default_policy"].policy
    finally:
        runner.stop()
    runners, learners = max(1, trial.resources.env_runners), max(1, trial.resources.learners)
    rate = runners * steps / (sampling + learning * runners / learners)
    short = dataclasses.replace(task, max_episode_steps=_EVALUATED_STEPS)
    frozen = None if used is None else used.build()
    started = time.perf_counter()
    played = evaluate(network, short, min(settings.episodes, _EVALUATED_EPISODES), settings.seed, "sampled", frozen)
    of_evaluation = float(played.episode_length.sum()) / (time.perf_counter() - started)
    return Rate(rate, of_evaluation, setup_s, "measured here", time.time())


def _shortened(trial: TrialSpec) -> TrialSpec:
    """The trial in one process, with iterations of a bounded number of env steps, the critic's warm-up left out."""
    envs = min(trial.resources.envs_per_runner, _ITERATION_STEPS)
    rollout = max(1, min(trial.training.rollout_length, _ITERATION_STEPS // envs))
    minibatch = min(trial.training.minibatch_size, rollout * envs)
    shorter = {"critic_warmup_iterations": 0, "rollout_length": rollout, "minibatch_size": minibatch}
    one_process = {"env_runners": 0, "learners": 0, "gpus_per_trial": 0, "envs_per_runner": envs}
    return trial.model_copy(
        update={
            "training": trial.training.model_copy(update=shorter),
            "resources": trial.resources.model_copy(update=one_process),
        }
    )


def _iterations(runner: RolloutEnvRunner, learner: Any, minibatch_size: int | None) -> tuple[float, float, float]:
    """Env steps, seconds of sampling and seconds of learning of the measured iterations, the first left out."""
    total, measured, sampling, learning = 0, 0, 0.0, 0.0
    started = time.perf_counter()
    for iteration in range(_MOST_ITERATIONS + 1):
        before = time.perf_counter()
        sampled = runner.sample()
        between = time.perf_counter()
        rollouts = sampled if isinstance(sampled, list) else [sampled]
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: total, NUM_MODULE_STEPS_TRAINED_LIFETIME: total}
        learner.update(training_data=RolloutBatch(rollouts), timesteps=timesteps, minibatch_size=minibatch_size)
        after = time.perf_counter()
        steps = sum(rollout.env_steps() for rollout in rollouts)
        total += steps
        if iteration > 0 or after - started > _MEASURED_S:
            measured, sampling, learning = measured + steps, sampling + between - before, learning + after - between
        if measured and after - started > _MEASURED_S:
            break
    return measured, sampling, learning


# ---- from a sweep's reports ----------------------------------------------------------------------
class RateRecorder(Callback):
    """Keeps the rates of a sweep's trials, as they report them, for the plans of later ones.

    Args:
        nodes: resources of the machines that it runs on.
        setup_s: what is known of building a trial.
    """

    def __init__(self, nodes: Sequence[Amounts], setup_s: float) -> None:
        self._nodes, self._setup_s = nodes, setup_s
        self._keys: dict[str, str] = {}
        self._training: dict[str, deque[float]] = {}
        self._evaluating: dict[str, deque[float]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported how fast it trained and, at its end, how fast it was evaluated."""
        trial_id, training = trial_id_of(trial.config), number(result, ENV_STEPS_PER_S)
        if not training > 0:  # the prior's own row, which trains nothing
            return
        if trial_id not in self._keys:
            self._keys[trial_id] = rate_key(TrialSpec.of_config(trial.config), self._nodes)
        for found, rate in (
            (self._training, training),
            (self._evaluating, number(result, EVALUATION_STEPS_PER_S)),
        ):
            if rate > 0:
                found.setdefault(self._keys[trial_id], deque(maxlen=_MOST_REPORTS)).append(rate)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The sweep ended."""
        for key, evaluating in self._evaluating.items():
            if len(training := self._training[key]) >= _ENOUGH_REPORTS:
                speeds = statistics.median(training), statistics.median(evaluating)
                keep_rate(key, Rate(*speeds, self._setup_s, "reports of an earlier sweep", time.time()))
