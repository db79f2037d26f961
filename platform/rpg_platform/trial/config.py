"""From a trial's specification to the RLlib configuration that it trains with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.rllib.module import NetworkConfig
from rpg_platform.spec.methods import METHODS, Argument, training_arguments
from rpg_platform.spec.sections import Training
from rpg_platform.spec.space import ConditionedRange
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.tasks.environments import register
from rpg_platform.tasks.task import Task

if TYPE_CHECKING:
    from rpg_algorithms import SPGConfig

METRIC = "metric"
"""Name under which the algorithm averages the task's metric."""
_ANNEALING_POINTS = 11


def algorithm_config(
    trial: TrialSpec, task: Task, prior: PriorBundle | None, start: PriorBundle | None = None
) -> SPGConfig:
    """The RLlib configuration that a trial trains with.

    Args:
        trial: the trial; its method must be one that trains.
        task: its task.
        prior: its prior, where the method uses one.
        start: the policy that it starts from instead of the prior.

    Raises:
        ValueError: the method trains nothing, or a setting does not fit.
    """
    weights = training_arguments(trial.method, trial.weights)
    settings, resources = trial.training, trial.resources
    config: SPGConfig = METHODS[trial.method].make_config()
    assert settings.critic_warmup_iterations is not None  # a trial's settings are concrete
    envs = resources.envs_per_runner * max(1, resources.env_runners)
    config.environment(register(task))
    config.env_runners(
        num_env_runners=resources.env_runners,
        num_envs_per_env_runner=resources.envs_per_runner,
        custom_resources_per_env_runner=resources.custom_per_env_runner,
    )
    config.learners(
        num_learners=resources.learners,
        num_gpus_per_learner=resources.gpus_per_trial if resources.learners else 0,
        custom_resources_per_learner=resources.custom_per_learner,
    )
    if resources.custom_per_learner:  # the bundle has a CPU; an env runner that took it must not keep the learner out
        config.learners(num_cpus_per_learner=0)
    # Environments that raise are made anew; so is the process of an env runner that died, without a minute's pause.
    config.fault_tolerance(restart_failed_sub_environments=True, delay_between_env_runner_restarts_s=1.0)
    config.debugging(seed=trial.seed, log_level="ERROR")
    if METHODS[trial.method].algorithm == "rpg":
        config.training(prior_logp_floor=settings.prior_logp_floor)
    config.training(
        **{name: _weight(value) for name, value in weights.items()},
        prior=prior,
        start_from_prior=settings.start_from_prior,
        start=start,
        critic_warmup_iterations=settings.critic_warmup_iterations,
        addon_reward=task.addon,
        step_metrics={METRIC: task.metric},
        lr=_learning_rate(settings, trial.env_steps),
        gamma=settings.gamma,
        lambda_=settings.lambda_,
        clip_param=settings.clip_param,
        vf_loss_coeff=settings.vf_loss_coeff,
        grad_clip=settings.grad_clip,
        target_kl=settings.target_kl,
        normalize_advantages=settings.normalize_advantages,
        scale_rewards=settings.scale_rewards,
        num_epochs=settings.num_epochs,
        minibatch_size=settings.minibatch_size,
        train_batch_size_per_learner=settings.rollout_length * envs // max(1, resources.learners),
    )
    if settings.network is not None:
        config.rl_module(model_config=NetworkConfig(**settings.network.model_dump()))
    return config


def _learning_rate(settings: Training, env_steps: int) -> float | list[list[float]]:
    """As RLlib takes it: a number, or points of env steps and rate, between which it is linear."""
    if not settings.anneal_lr:
        return settings.lr
    shares = [0.0, 1.0] if settings.anneal_power == 1 else np.linspace(0, 1, _ANNEALING_POINTS).tolist()
    return [[round(env_steps * t), settings.lr * (1 - t) ** settings.anneal_power] for t in shares]


def _weight(value: Argument) -> Any:
    return Conditioned(value.low, value.high) if isinstance(value, ConditionedRange) else value


def check_trials(sweep: Sweep, trials: Iterable[TrialSpec]) -> None:
    """Lets RLlib refuse a setting here rather than in every trial's process.

    Trials that differ in numbers alone are checked once: the specification bounds every number.

    Args:
        sweep: what they are trials of.
        trials: those to check.

    Raises:
        ValueError: names the trial and what does not fit.
    """
    one_each = {_shape(trial): trial for trial in reversed(list(trials)) if METHODS[trial.method].trains}
    for trial in reversed(one_each.values()):
        try:
            algorithm_config(trial, sweep.task, *sweep.bundles_for(trial)).validate()
        except ValueError as error:
            raise ValueError(f"{trial.trial_id}: {error}") from error


def _shape(trial: TrialSpec) -> tuple[object, ...]:
    """What RLlib's checks can tell two trials apart by: everything but the values of real numbers."""
    training = trial.training.model_dump()
    values = [(name, "real" if type(value) is float else repr(value)) for name, value in training.items()]
    weights = [(name, type(value).__name__) for name, value in trial.weights.items()]
    return (trial.method, tuple(weights), tuple(values))
