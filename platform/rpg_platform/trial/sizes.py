"""What a trial takes: how many reports it makes, how large its networks are, and how many bytes its files have.

Whoever plans a sweep and whoever runs a trial ask here, so that both have the same figures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import PolicyNetwork, make_mlp, spec_for_spaces
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec

REPORTS_PER_TRIAL = 200
"""About so many reports does a trial make, however many iterations it has."""

# Bytes, from the files of real trials; a test compares them.
_NUMBER, _CARD, _EPISODE, _REPORT = 4, 4_500, 120, 1_500
_RLLIB_RECORDS, _COPIES_OF_PRIOR = 100_000, 5  # RLlib writes its configuration four times, the prior in it


@dataclass(frozen=True)
class Networks:
    """How many numbers a trial's networks hold.

    Attributes:
        policy: of the policy that is trained (or, if nothing is, played).
        critic: of its critic.
        prior: of the frozen prior that it is measured against.
    """

    policy: int
    critic: int = 0
    prior: int = 0


# ---- reports -------------------------------------------------------------------------------------
def iterations_per_report(trial: TrialSpec) -> int:
    """How many training iterations lie between two reports of a trial."""
    return max(1, math.ceil(_iterations(trial) / REPORTS_PER_TRIAL))


def reports(trial: TrialSpec) -> int:
    """How many reports a trial makes: those of its training, and that of its evaluation."""
    training = math.ceil(_iterations(trial) / iterations_per_report(trial)) if METHODS[trial.method].trains else 0
    return training + 1


def _iterations(trial: TrialSpec) -> int:
    resources = trial.resources
    steps = trial.training.rollout_length * resources.envs_per_runner * max(1, resources.env_runners)
    return math.ceil(trial.env_steps / steps)


# ---- networks ------------------------------------------------------------------------------------
def networks_of(
    trial: TrialSpec, observation_space: gym.Space[Any], action_space: gym.Space[Any], prior: PriorBundle | None
) -> Networks:
    """How large a trial's networks are; no memory is taken for them.

    Args:
        trial: the trial.
        observation_space: of the environment of its task.
        action_space: of the same environment.
        prior: the sweep's prior.

    Raises:
        ValueError: the trial's network does not fit the spaces; names the trial.
    """
    method, network = METHODS[trial.method], trial.training.network
    used = prior if method.uses_prior else None
    of_prior = 0 if used is None else sum(int(array.size) for array in used.weights.values())
    if not method.trains:
        return Networks(of_prior)
    if used is not None and trial.training.start_from_prior:
        spec, policy = used.network_spec, of_prior
    else:
        options = {} if network is None else network.model_dump()
        try:
            spec = spec_for_spaces(observation_space, action_space, **options)
        except ValueError as error:
            raise ValueError(f"{trial.trial_id}: {error}") from error
        policy = _numbers(PolicyNetwork, spec)
    return Networks(policy, _numbers(make_mlp, spec.observation_size, spec.hidden, 1, spec.activation), of_prior)


@functools.cache
def _numbers(make: Callable[..., nn.Module], *arguments: Hashable) -> int:
    """How many numbers a network holds that is made so, its normaliser's among them."""
    with torch.device("meta"):  # shapes alone
        return sum(tensor.numel() for tensor in make(*arguments).state_dict().values())


# ---- files ---------------------------------------------------------------------------------------
def bundle_bytes(networks: Networks) -> int:
    """Size of a policy's bundle."""
    return _NUMBER * networks.policy + _CARD


def checkpoint_bytes(trial: TrialSpec, networks: Networks) -> int:
    """Size of one checkpoint of a trial: the weights, Adam's two moments, the prior, the bundles and the episodes."""
    trains = METHODS[trial.method].trains
    policies = 2 if trains and trial.evaluation.validations else 1
    size = policies * (bundle_bytes(networks) + 2 * trial.evaluation.episodes * _EPISODE)
    if not trains:
        return size + _CARD
    trained = 3 * (networks.policy + networks.critic)
    return size + _NUMBER * (trained + _COPIES_OF_PRIOR * networks.prior) + _RLLIB_RECORDS


def trial_bytes(trial: TrialSpec, networks: Networks) -> int:
    """Size of a trial's folder at its end: the checkpoints that are kept, and the files of its reports."""
    every, count = trial.checkpoint.every_env_steps, reports(trial)
    made = 1 + METHODS[trial.method].trains + (0 if every is None else min(trial.env_steps // every, count))
    settings = len(trial.model_dump_json())  # are in every report
    return min(trial.checkpoint.keep, made) * checkpoint_bytes(trial, networks) + (count + 3) * (settings + _REPORT)
