"""How fast trials are: measured here in seconds, or by an earlier sweep's own reports, and kept for the next plan.

A rate belongs to a task, the settings that cost time, and a machine. It is kept in ``~/.cache/rpg/rates/`` (or under
``$XDG_CACHE_HOME``), a small JSON file each; the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

from ray.tune import Callback

import rpg_platform
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_platform.planning.cluster import Amounts
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.task import get_task, task_label
from rpg_platform.tasks.task import Task

logger = logging.getLogger(__name__)
Source = Literal["measured here", "reports of an earlier sweep"]

_ITERATION_STEPS = 4_096  # env steps of a measured iteration, at most
_MEASURED_S, _MOST_ITERATIONS = 2.0, 5
_EVALUATED_STEPS, _EVALUATED_EPISODES = 50, 64
_ENOUGH_REPORTS, _MOST_REPORTS = 3, 10_000
_COSTS_TIME = ("rollout_length", "minibatch_size", "num_epochs", "start_from_prior", "network")


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast one trial is.

    Attributes:
        env_steps_per_s: of training; NaN where nothing is trained.
        evaluation_steps_per_s: of evaluating.
        setup_s: seconds to build the trial.
        source: where the figures come from.
        at: when, seconds since the epoch.
    """

    env_steps_per_s: float
    evaluation_steps_per_s: float
    setup_s: float
    source: Source
    at: float


def rate_key(trial: TrialSpec, nodes: Sequence[Amounts]) -> str:
    """What has the same rate: the task, the settings that cost time, the resources, the machine or cluster.

    Args:
        trial: one that trains.
        nodes: resources of the machines that it may run on.
    """
    task = trial.model_dump(mode="json")["task"]
    training = trial.training.model_dump(mode="json", include=set(_COSTS_TIME))
    shapes = sorted({(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes})
    what = [
        rpg_platform.__version__,
        task,
        METHODS[trial.method].trains,
        trial.prior if METHODS[trial.method].uses_prior else None,
        training,
        trial.resources.model_dump(mode="json", exclude={"max_concurrent"}),
        _processor(),
        shapes,
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


# ---- kept ---------------------------------------------------------------------------------------
def _file(key: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rpg" / "rates" / f"{key}.json"


def known_rate(key: str) -> Rate | None:
    """The rate that was kept under a key; None if there is none that can be read."""
    try:
        data = json.loads(_file(key).read_text(encoding="utf-8"))
        rate = Rate(**{field.name: data[field.name] for field in dataclasses.fields(Rate)})
        usable = rate.env_steps_per_s > 0 and rate.evaluation_steps_per_s > 0 and rate.setup_s >= 0
        return rate if usable else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep_rate(key: str, rate: Rate, trial: TrialSpec) -> None:
    """Keeps a rate for later plans; what cannot be written is not kept."""
    file = _file(key)
    about = {"task": task_label(trial.task), "method": trial.method, "version": rpg_platform.__version__}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(dataclasses.asdict(rate) | about, indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        logger.debug("the rate could not be kept: %s", error)


# ---- measured -----------------------------------------------------------------------------------
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
    from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
    from rpg_platform.trial.trainable import algorithm_config

    task = get_task(trial.task)
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
    resources = trial.resources
    runners, learners = max(1, resources.env_runners), max(1, resources.learners)
    rate = runners * steps / (sampling + learning * runners / learners)
    of_evaluation = _evaluation_rate(network, task, trial, None if used is None else used.build())
    return Rate(rate, of_evaluation, setup_s, "measured here", time.time())


def _shortened(trial: TrialSpec) -> TrialSpec:
    """The trial in one process, with iterations of a bounded number of env steps, the critic's warm-up left out."""
    envs = min(trial.resources.envs_per_runner, _ITERATION_STEPS)
    rollout = max(1, min(trial.training.rollout_length, _ITERATION_STEPS // envs))
    training = trial.training.model_copy(
        update={
            "critic_warmup_iterations": 0,
            "rollout_length": rollout,
            "minibatch_size": min(trial.training.minibatch_size, rollout * envs),
        }
    )
    one_process = {"env_runners": 0, "learners": 0, "gpus_per_trial": 0, "envs_per_runner": envs}
    resources = trial.resources.model_copy(update=one_process)
    return trial.model_copy(update={"training": training, "resources": resources})


def _iterations(runner: Any, learner: Any, minibatch_size: int | None) -> tuple[float, float, float]:
    """Env steps, seconds of sampling and seconds of learning of the measured iterations, the first left out."""
    from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, NUM_MODULE_STEPS_TRAINED_LIFETIME

    from rpg_algorithms.rllib.rollout import RolloutBatch

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


def _evaluation_rate(network: Any, task: Task, trial: TrialSpec, prior: Any) -> float:
    from rpg_platform.evaluation.play import evaluate

    short = dataclasses.replace(task, max_episode_steps=_EVALUATED_STEPS)
    episodes = min(trial.evaluation.episodes, _EVALUATED_EPISODES)
    started = time.perf_counter()
    played = evaluate(network, short, episodes, trial.evaluation.seed, "sampled", prior)
    return float(played.episode_length.sum()) / (time.perf_counter() - started)


# ---- from a sweep's reports ---------------------------------------------------------------------
class RateRecorder(Callback):
    """Keeps the rates of a sweep's trials, as they report them, for the plans of later ones.

    Args:
        nodes: resources of the machines that it runs on.
        setup_s: what is known of building a trial.
    """

    def __init__(self, nodes: Sequence[Amounts], setup_s: float) -> None:
        self._nodes, self._setup_s = nodes, setup_s
        self._trials: dict[str, TrialSpec] = {}
        self._keys: dict[str, str | None] = {}
        self._training: dict[str, list[float]] = defaultdict(list)
        self._evaluating: dict[str, list[float]] = defaultdict(list)
        self._steps: dict[str, float] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported its rate; the last time with its evaluation."""
        trial_id = str(trial.config["trial"]["trial_id"])
        if trial_id not in self._keys:
            its = self._trials[trial_id] = TrialSpec.model_validate(trial.config["trial"])
            self._keys[trial_id] = None if not METHODS[its.method].trains else rate_key(its, self._nodes)
        key, rate = self._keys[trial_id], float(result.get("env_steps_per_s", math.nan))
        before, now = self._steps.get(trial_id), float(result.get("env_steps", math.nan))
        self._steps[trial_id] = now
        if key is None or not rate > 0 or len(self._training[key]) >= _MOST_REPORTS:
            return
        self._training[key].append(rate)
        evaluating = float(result.get("time_this_iter_s", math.nan)) - (now - (before or 0.0)) / rate
        if result.get("finished") and before is not None and evaluating > 0:
            self._evaluating[key].append(evaluated_steps(self._trials[trial_id], result) / evaluating)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The sweep ended."""
        for key, found in self._training.items():
            if len(found) < _ENOUGH_REPORTS or not self._evaluating[key]:
                continue
            example = next(self._trials[name] for name, its in self._keys.items() if its == key)
            evaluating = statistics.median(self._evaluating[key])
            training = statistics.median(found)
            rate = Rate(training, evaluating, self._setup_s, "reports of an earlier sweep", time.time())
            keep_rate(key, rate, example)


def evaluated_steps(trial: TrialSpec, report: Mapping[str, Any]) -> float:
    """Env steps of the evaluations that a trial's last report is of."""
    settings, steps = trial.evaluation, 0.0
    is_best_final = report.get("eval_best/env_steps", report.get("env_steps")) == report.get("env_steps")
    for mode in ("deterministic", "sampled"):
        steps += settings.episodes * float(report.get(f"eval/{mode}/episode_length_mean", 0.0))
        if not is_best_final:
            steps += settings.episodes * float(report.get(f"eval_best/{mode}/episode_length_mean", 0.0))
        steps += settings.validation_episodes * float(report.get(f"validation/{mode}/episode_length_mean", 0.0))
    return steps
