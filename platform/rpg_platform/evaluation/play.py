"""Evaluating a policy on a task: exactly N episodes, from fixed seeds, deterministic and sampled.

Every environment plays exactly one episode, episode i from seed ``seed + i``; what it does after its end is ignored.
Short episodes are therefore not counted more often than long ones. An episode that does not end is cut off, see
``longest``, and counted as such.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from rpg_algorithms.addons import part_names
from rpg_algorithms.maths.distributions import make_distribution
from rpg_algorithms.maths.rewards import transformed_reward
from rpg_algorithms.policies.bundle import ReturnStatistics
from rpg_algorithms.policies.comparison import compare
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_algorithms.rllib.vector_env import final_observations, make_vector_env, time_limit, write_infos
from rpg_platform.results.report import (
    BEST,
    FINAL,
    MODES,
    Mode,
    Where,
    cut_key,
    episodes_key,
    mean_key,
    median_key,
    std_key,
)
from rpg_platform.spec.measures import MEASURES, PER_MODE, RETURNS
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import StepFunction, Task

logger = logging.getLogger(__name__)
_STEPS_AT_ONCE = 64
LONGEST_EPISODE = 20_000
"""Steps after which an episode of an environment without a longer time limit is cut off."""


@dataclass(frozen=True)
class Episodes:
    """What N episodes came to, each field ``[N]``.

    Attributes:
        basic_return, addon_return, total_return: undiscounted sums per episode.
        episode_length: steps.
        task_metric: mean over the episode's steps.
        kl_to_prior: mean over the episode's steps of KL(policy || prior), nats, between families estimated (see
            ``rpg_algorithms.policies.comparison``); nan without a prior.
        objective: undiscounted sum of the reward that the policy is trained on, see ``evaluate``; nan where there is
            none.
        cut: 1 where the episode had not ended after the most steps that it may have, and was cut off there; else 0.
        addon_parts: of a task with several add-on rewards, the weighted return of each; they sum to ``addon_return``.
    """

    basic_return: NDArray[np.float64]
    addon_return: NDArray[np.float64]
    total_return: NDArray[np.float64]
    episode_length: NDArray[np.float64]
    task_metric: NDArray[np.float64]
    kl_to_prior: NDArray[np.float64]
    objective: NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.nan))
    cut: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    addon_parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step of N environments; its arrays hold until the next step.

    Attributes:
        obs, actions, next_obs: ``[N, D]``, ``[N, A]`` as the environment received them, ``[N, D]``: of an episode that
            ended its last observation.
        infos: the infos that were asked for, ``[N]`` each.
        outputs: what the policy computed, see ``NumpyPolicy.outputs``.
        sampled: ``[N, A]`` or ``[N]`` actions as the policy chose them, before they were clipped or squashed.
        reward, terminated, done: ``[N]``; an episode is done by its own end or by a time limit.
    """

    obs: NDArray[Any]
    actions: NDArray[Any]
    next_obs: NDArray[Any]
    infos: Mapping[str, NDArray[np.float64]]
    outputs: NDArray[Any]
    sampled: NDArray[Any]
    reward: NDArray[Any]
    terminated: NDArray[np.bool_]
    done: NDArray[np.bool_]

    def given_to(self, function: StepFunction) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Mapping[str, Any]]:
        """The arguments of an add-on reward or a metric."""
        return self.obs, self.actions, self.next_obs, {key: self.infos[key] for key in function.info_keys}


def infos_of(task: Task) -> frozenset[str]:
    """The infos that a task's add-on reward and its metric read."""
    return frozenset((*task.addon.info_keys, *task.metric.info_keys))


def play(acting: NumpyPolicy, envs: Any, keys: frozenset[str], seed: int, mode: Mode) -> Iterator[Step]:
    """Steps environments for ever, each from its own seed; one whose episode ends starts another.

    Args:
        acting: the policy.
        envs: from ``make_vector_env``, which gathers ``keys``.
        keys: from ``infos_of``.
        seed: environment i is reset with ``seed + i``; sampling is seeded with ``seed``.
        mode: act by the distribution's mode, or sample.
    """
    number, space = envs.num_envs, envs.single_observation_space
    rng = np.random.default_rng(seed)
    observed, _ = envs.reset(seed=[seed + i for i in range(number)])
    obs = flatten_observations(space, observed).copy()
    while True:
        outputs = acting.outputs(obs)
        actions = acting.sample(outputs, acting.noise(rng, (number,))) if mode == "sampled" else acting.mode(outputs)
        env_actions = acting.to_env(actions)
        stepped, reward, terminated, truncated, infos = envs.step(env_actions)
        done = terminated | truncated
        # Copies: float32 environments hand out the one buffer that the next step overwrites.
        next_obs = flatten_observations(space, stepped).copy()
        after = next_obs.copy()
        for n, final in final_observations(space, infos, done):
            after[n] = final
        values = {key: np.zeros(number) for key in keys}
        write_infos(values, infos, done)
        yield Step(obs, env_actions, after, values, outputs, actions, reward, terminated, done)
        obs = next_obs


def evaluate(
    policy: PolicyNetwork,
    task: Task,
    episodes: int,
    seed: int,
    mode: Mode,
    prior: PolicyNetwork | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    max_steps: int | None = None,
) -> Episodes:
    """Plays ``episodes`` episodes.

    Args:
        policy: the policy, with its normaliser.
        task: environment, add-on reward and metric.
        episodes: how many, each in an environment of its own.
        seed: episode i is reset with ``seed + i``; sampling is seeded with ``seed``.
        mode: act by the distribution's mode, or sample.
        prior: to measure the KL to.
        weights: of the reward that the policy is trained on (``rewards.transformed_reward``), for the objective of the
            sampled policy; without ``prior_logp_floor``, which bounds single updates and is no part of the objective.
        max_steps: an episode that has not ended after so many steps is cut off; None: as ``longest`` says.
    """
    addon: Any = task.addon
    names, keys = part_names(addon), infos_of(task)
    sums = np.zeros((3, episodes))  # basic, add-on, metric
    parts = np.zeros((len(names), episodes))
    length = np.zeros(episodes)
    playing = np.ones(episodes, bool)
    given = weights if mode == "sampled" else None
    acting, by_log_prob = NumpyPolicy(policy), _ByLogProb(policy, prior, given, episodes)
    with closing(make_vector_env(partial(make_env, task), episodes, "sync", keys)) as envs:
        bound = max_steps or longest(envs.envs[0])
        for step in itertools.islice(play(acting, envs, keys, seed, mode), bound):
            sums[0, playing] += step.reward[playing]
            if names:
                several = np.stack(addon.parts(*step.given_to(addon)))
                parts[:, playing] += several[:, playing]
                added = several.sum(0)
            else:
                added = np.asarray(addon(*step.given_to(addon)))
            sums[1, playing] += added[playing]
            sums[2, playing] += np.asarray(task.metric(*step.given_to(task.metric)))[playing]
            if prior is not None or given is not None:
                by_log_prob.add(acting.complete(step.outputs), step, added, playing)
            length[playing] += 1
            playing &= ~step.done
            if not playing.any():
                break
    by_log_prob.finish()
    kl = by_log_prob.kl / length if prior is not None else np.full(episodes, np.nan)
    objective = by_log_prob.objective if given is not None else np.full(episodes, np.nan)
    addon_return = parts.sum(0) if names else sums[1]
    each = dict(zip(names, parts, strict=True))
    total, cut = sums[0] + addon_return, playing.astype(np.float64)
    if playing.any():
        message = "%s: %d of %d evaluated episodes had not ended after %d steps, and count as far as they went"
        logger.warning(message, task.env_id, int(playing.sum()), episodes, bound)
    return Episodes(sums[0], addon_return, total, length, sums[2] / length, kl, objective, cut, each)


def longest(env: gym.Env[Any, Any]) -> int:
    """Most steps of an evaluated episode: ``LONGEST_EPISODE``, or the environment's own time limit if that is more."""
    return max(LONGEST_EPISODE, time_limit(env) or 0)


class _ByLogProb:
    """Sums over episodes what follows from log-probabilities, many steps at once: torch costs as much for one.

    Attributes:
        kl: ``[N]`` to the prior, summed over the steps; 0 without one.
        objective: ``[N]`` of the reward that the policy is trained on; 0 without its weights.
    """

    def __init__(
        self, policy: PolicyNetwork, prior: PolicyNetwork | None, weights: Mapping[str, float] | None, episodes: int
    ) -> None:
        self.kl, self.objective = np.zeros((2, episodes))
        self._policy, self._prior, self._weights = policy, prior, weights
        self._steps: list[tuple[NDArray[Any], ...]] = []

    def add(self, inputs: NDArray[Any], step: Step, addon: NDArray[Any], playing: NDArray[np.bool_]) -> None:
        """Takes a step: the policy's ``dist_inputs`` ``[N, P]``, add-on rewards, and who still plays, ``[N]`` each."""
        rewards = np.array(step.reward, np.float64), np.array(addon, np.float64)
        self._steps.append((inputs, step.obs, step.sampled, *rewards, playing.copy()))
        if len(self._steps) == _STEPS_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Adds up the steps that were taken since the last time."""
        if not self._steps:
            return
        columns = [np.stack(column) for column in zip(*self._steps, strict=True)]
        self._steps.clear()
        playing = columns.pop()
        with torch.no_grad():
            kl, reward = self._of(*(torch.from_numpy(each.reshape(-1, *each.shape[2:])) for each in columns))
        for total, values in ((self.kl, kl), (self.objective, reward)):
            total += np.where(playing, values.double().numpy().reshape(playing.shape), 0.0).sum(0)

    def _of(
        self, inputs: torch.Tensor, obs: torch.Tensor, sampled: torch.Tensor, basic: torch.Tensor, addon: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec, weights, pair = self._policy.spec, self._weights, None
        kl = reward = torch.zeros(len(inputs))
        if self._prior is not None:
            pair = compare(spec, inputs, self._prior.spec, self._prior(obs))
            kl = pair.kl()
        if weights is not None:
            prior_logp, logp = None, make_distribution(spec.distribution, inputs).log_prob(sampled)
            if pair is not None and "omega_prime" in weights:
                received, prior_logp = pair.log_probs(sampled)
                logp = logp if received is None else received  # of another family: as RPG's learner has it
            reward = transformed_reward(weights, basic, addon, logp, prior_logp)
        return kl, reward


def evaluate_both(
    policy: PolicyNetwork,
    task: Task,
    episodes: int,
    seed: int,
    prior: PolicyNetwork | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    max_steps: int | None = None,
) -> dict[Mode, Episodes]:
    """Deterministic and sampled evaluation, on the same seeds; see ``evaluate``."""
    return {
        mode: evaluate(policy, task, episodes, seed, mode, prior, weights=weights, max_steps=max_steps)
        for mode in MODES
    }


def pooled(results: Sequence[Mapping[Mode, Episodes]]) -> dict[Mode, Episodes]:
    """The episodes of several evaluations together."""

    def joined(mode: Mode, name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(each[mode], name) for each in results])

    found: dict[Mode, Episodes] = {}
    for mode in results[0]:
        arrays = {each.name: joined(mode, each.name) for each in fields(Episodes) if each.name != "addon_parts"}
        names = results[0][mode].addon_parts
        parts = {name: np.concatenate([each[mode].addon_parts[name] for each in results]) for name in names}
        found[mode] = Episodes(**arrays, addon_parts=parts)
    return found


def as_metrics(results: Mapping[Mode, Episodes], where: Where = FINAL) -> dict[str, Any]:
    """Flat metrics: ``eval/<mode>/<measure>_mean`` and ``_std`` over episodes.

    Of the sampled policy alone are ``eval/kl_to_prior`` and, where its weights were given, ``eval/objective``.

    Of several add-on rewards each has ``eval/<mode>/addon/<name>_return_mean`` and ``_std`` too. Where episodes were
    cut off, ``eval/<mode>/cut_episodes`` says how many. Those at a trial's end have the returns' medians and the total
    returns of single episodes too, ``eval/<mode>/total_return_episodes``.
    """
    metrics: dict[str, Any] = {}
    for mode, played in results.items():
        measured = {measure: getattr(played, measure) for measure in PER_MODE}
        measured |= {f"addon/{name}_return": values for name, values in played.addon_parts.items()}
        for measure, values in measured.items():
            found = statistics_of(values)
            metrics |= {mean_key(where, mode, measure): found.mean, std_key(where, mode, measure): found.std}
        if where in (FINAL, BEST):
            medians = {name: float(np.median(getattr(played, name))) for name in RETURNS}
            metrics |= {median_key(where, mode, name): value for name, value in medians.items()}
            metrics[episodes_key(where, mode)] = [float(f"{each:.7g}") for each in played.total_return]
        if played.cut.any():
            metrics[cut_key(where, mode)] = float(played.cut.sum())
    if "sampled" in results:
        for measure in (each.name for each in MEASURES if not each.per_mode):
            value = float(getattr(results["sampled"], measure).mean())
            if measure != "objective" or not math.isnan(value):
                metrics[mean_key(where, "sampled", measure)] = value
    return metrics


def as_card_returns(results: Mapping[Mode, Episodes]) -> dict[str, ReturnStatistics]:
    """What a bundle's card says of its returns: ``basic/deterministic``, ``addon/sampled``, ..."""
    return {
        f"{name}/{mode}": statistics_of(getattr(played, f"{name}_return"))
        for mode, played in results.items()
        for name in ("basic", "addon", "total")
    }


def statistics_of(values: NDArray[np.float64]) -> ReturnStatistics:
    """Mean and sample standard deviation (0 for one episode) of ``[N]`` figures, one an episode."""
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return ReturnStatistics(mean=float(values.mean()), std=std, episodes=len(values))
