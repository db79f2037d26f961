"""Measures how fast a trial trains and is evaluated, in seconds, without Ray."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, NUM_MODULE_STEPS_TRAINED_LIFETIME

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
from rpg_algorithms.rllib.rollout import RolloutBatch
from rpg_platform.evaluation.play import evaluate
from rpg_platform.planning.rates import Rate
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.task import get_task
from rpg_platform.trial.config import algorithm_config

_ITERATION_STEPS = 4_096  # env steps of a measured iteration, at most
_MEASURED_S, _MOST_ITERATIONS = 2.0, 5
_EVALUATED_STEPS, _EVALUATED_EPISODES = 50, 64


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
