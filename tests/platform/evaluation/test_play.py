"""Evaluation against the plainest loop there is: one gymnasium environment, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rpg_algorithms.maths.schedules import weight_at
from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.network import PolicyNetwork, spec_for_spaces
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.rllib.vector_env import make_vector_env
from rpg_platform.bundles import resolve_prior
from rpg_platform.evaluation.play import (
    LONGEST_EPISODE,
    Episodes,
    as_card_returns,
    as_metrics,
    evaluate,
    evaluate_both,
    infos_of,
    longest,
    play,
)
from rpg_platform.results.report import Mode
from rpg_platform.spec.measures import PER_MODE
from rpg_platform.spec.methods import METHODS, training_arguments
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import Linear, Part, Task, WeightedSum

SEED = 10_000


@dataclass(frozen=True)
class Everything:
    """Reads all that an add-on reward may read."""

    info_keys: tuple[str, ...] = ()

    def __call__(self, obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
        moved = next_obs[:, 0] - 2.0 * obs[:, 1]
        acted = actions.sum(-1) if actions.ndim > 1 else actions
        return moved + 0.5 * acted + sum(infos[key] for key in self.info_keys)


HALFCHEETAH = Task(
    "short-halfcheetah",
    "HalfCheetah-v5",
    Everything(("x_velocity",)),
    "m/s",
    Everything(("x_position", "reward_ctrl")),
    "truncated after 30 steps",
    {"max_episode_steps": 30},
)
HOPPER = Task("hopper", "Hopper-v5", Everything(("x_velocity",)), "m", Linear(0, 1.0), "falls early")
CARTPOLE = Task("cartpole", "CartPole-v1", Everything(), "m", Everything(), "Discrete; observations in float32")
TASKS = {task.name: task for task in (HALFCHEETAH, HOPPER, CARTPOLE)}


def policy_for(task: Task, seed: int, log_std: float = -1.0) -> PolicyNetwork:
    """A random policy with a normaliser that matters."""
    env = make_env(task)
    torch.manual_seed(seed)
    network = PolicyNetwork(
        spec_for_spaces(env.observation_space, env.action_space, hidden=(16,), log_std_init=log_std)
    )
    assert network.normalizer is not None
    network.normalizer.update(torch.randn(64, network.spec.observation_size) * 2.0 + 0.3)
    return network.eval()


@torch.no_grad()
def brute_force(
    policy: PolicyNetwork, task: Task, episodes: int, seed: int, mode: Mode, prior: PolicyNetwork | None = None
) -> Episodes:
    """N episodes one after the other, in plain gymnasium and torch."""
    rng = np.random.default_rng(seed)
    discrete = policy.spec.distribution == "categorical"
    draw = rng.gumbel if discrete else rng.standard_normal
    noise = [draw(size=(episodes, policy.spec.action_size)) for _ in range(1000)]
    if not discrete:  # numpy draws float32 otherwise than float64
        rng = np.random.default_rng(seed)
        noise = [rng.standard_normal((episodes, policy.spec.action_size), np.float32) for _ in range(1000)]
    rows = []
    for i in range(episodes):
        env = gym.make(task.env_id, **task.env_kwargs)
        obs, _ = env.reset(seed=seed + i)
        basic = addon = metric = kl = 0.0
        length, ended = 0, False
        while not ended:
            x = torch.as_tensor(obs, dtype=torch.float32)[None]
            own: Any = torch_distribution(policy, x)
            if discrete:
                scores = own.logits[0].numpy() + (0.0 if mode == "deterministic" else noise[length][i])
                action: Any = int(np.argmax(scores))
            else:
                scale = 0.0 if mode == "deterministic" else own.scale[0].numpy()
                action = np.clip(own.loc[0].numpy() + scale * noise[length][i], -1.0, 1.0).astype(np.float32)
            after, reward, terminated, truncated, info = env.step(action)
            basic += float(reward)
            step = (np.float32(obs)[None], np.asarray(action)[None], np.float32(after)[None])
            values = [
                float(f(*step, {key: np.array([info[key]]) for key in f.info_keys})[0])
                for f in (task.addon, task.metric)
            ]
            addon, metric = addon + values[0], metric + values[1]
            if prior is not None:
                kl += float(torch.distributions.kl_divergence(own, torch_distribution(prior, x)).sum())
            length, obs, ended = length + 1, after, terminated or truncated
        rows.append((basic, addon, basic + addon, length, metric / length, kl / length if prior else np.nan))
    return Episodes(*(np.array(column) for column in zip(*rows, strict=True)))


HALFCHEETAH_METHODS: dict[str, tuple[dict[str, float], Callable[..., Any]]] = {
    "rpg": ({"omega_prime": 0.2, "alpha_hat": 0.05}, lambda r, added, own, prior: added + 0.2 * prior - 0.05 * own),
    "kl": ({"kl_coefficient": 0.3}, lambda r, added, own, prior: added - 0.3 * (own - prior)),
    "greedy": ({"alpha_hat": 0.05}, lambda r, added, own, prior: added - 0.05 * own),
    "spg": ({"alpha": 0.1}, lambda r, added, own, prior: r - 0.1 * own),
    "full": ({"alpha": 0.1, "omega": 2.0}, lambda r, added, own, prior: 2.0 * r + added - 0.1 * own),
}


def test_the_objective_is_the_sum_of_the_reward_that_each_method_trains_on() -> None:
    """On a whole HalfCheetah episode that leaves the prior's ways, from torch's own distributions, step by step."""
    task, bundle = get_task("halfcheetah-foot-angle"), load_bundle(resolve_prior("halfcheetah-spg"))
    prior, policy = bundle.build(), bundle.build()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    keys = infos_of(task)
    with closing(make_vector_env(partial(make_env, task), 1, "sync", keys)) as envs:
        terms = []
        for step in islice(play(NumpyPolicy(policy), envs, keys, SEED, "sampled"), 1000):
            obs, sampled = torch.from_numpy(step.obs), torch.from_numpy(step.sampled)
            with torch.no_grad():
                own, its = (torch_distribution(each, obs).log_prob(sampled).sum() for each in (policy, prior))
            terms.append(
                (float(step.reward[0]), float(task.addon(*step.given_to(task.addon))[0]), float(own), float(its))
            )
    assert step.done.all()
    found = {}
    for method, (given, reward) in HALFCHEETAH_METHODS.items():
        config = METHODS[method].make_config().training(prior=bundle, **training_arguments(method, given))
        weights = {name: weight_at(value, 0) for name, value in config.reward_weights().items()}
        of_prior = prior if METHODS[method].uses_prior else None
        played = evaluate_both(policy, task, 1, SEED, of_prior, weights=weights)
        expected = sum(reward(*each) for each in terms)
        assert played["sampled"].objective[0] == pytest.approx(expected, rel=1e-5), method
        assert np.isnan(played["deterministic"].objective).all()
        found[method] = as_metrics(played)["eval/objective"]
    assert min(float(np.min(np.diff(sorted(found.values())))), 1.0) == 1.0, "no two rewards are one"
    assert "eval/objective" not in as_metrics(evaluate_both(policy, task, 1, SEED, prior))


def torch_distribution(policy: PolicyNetwork, obs: torch.Tensor) -> torch.distributions.Distribution:
    inputs = policy(obs)
    if policy.spec.distribution == "categorical":
        return torch.distributions.Categorical(logits=inputs)
    mean, log_std = inputs.chunk(2, dim=-1)
    return torch.distributions.Normal(mean, log_std.exp())


@pytest.mark.parametrize("mode", ["deterministic", "sampled"])
@pytest.mark.parametrize("name", TASKS)
def test_equals_the_plainest_loop(name: str, mode: Mode) -> None:
    task = TASKS[name]
    policy, prior = policy_for(task, 3), policy_for(task, 2, log_std=-0.5)
    found = evaluate(policy, task, 4, SEED, mode, prior)
    expected = brute_force(policy, task, 4, SEED, mode, prior)
    assert found.episode_length.tolist() == expected.episode_length.tolist()
    if task is not HALFCHEETAH:
        assert len(set(found.episode_length.tolist())) > 1  # unequal lengths: each still counts once
    assert found.addon_parts == {}
    assert not found.cut.any()
    assert np.isnan(found.objective).all()
    for field in fields(Episodes)[:6]:
        np.testing.assert_allclose(getattr(found, field.name), getattr(expected, field.name), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("mode", ["deterministic", "sampled"])
def test_repeats_to_the_bit_and_follows_its_seed(mode: Mode) -> None:
    policy = policy_for(HOPPER, 1)
    first, again, other = (evaluate(policy, HOPPER, 3, seed, mode) for seed in (SEED, SEED, SEED + 50))
    np.testing.assert_array_equal(first.total_return, again.total_return)
    assert not np.array_equal(first.total_return, other.total_return)


def test_an_episode_without_an_end_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_for(HOPPER, 1)
    whole, cut = (evaluate(policy, HOPPER, 3, SEED, "sampled", max_steps=most) for most in (None, 14))
    assert whole.episode_length.tolist() == [13, 14, 17]  # the second ends just in time
    assert cut.episode_length.tolist() == np.minimum(whole.episode_length, 14).tolist()
    assert cut.cut.tolist() == [0, 0, 1]
    [said] = caplog.messages
    assert said.startswith("Hopper-v5: 1 of 3 evaluated episodes had not ended after 14 steps")
    assert as_metrics({"sampled": cut})["eval/sampled/cut_episodes"] == cut.cut.sum()
    assert not any("cut" in key for key in as_metrics({"sampled": whole}))
    assert longest(make_env(HOPPER)) == LONGEST_EPISODE
    assert longest(make_env(replace(HOPPER, max_episode_steps=10**6))) == 10**6


def test_modes_differ_and_episode_i_starts_from_seed_plus_i() -> None:
    policy = policy_for(HOPPER, 1)
    three, two = (
        evaluate(policy, HOPPER, 3, SEED, "deterministic"),
        evaluate(policy, HOPPER, 2, SEED + 1, "deterministic"),
    )
    np.testing.assert_allclose(three.total_return[1:], two.total_return, rtol=1e-4)
    sampled = evaluate(policy, HOPPER, 3, SEED, "sampled")
    assert not np.allclose(sampled.total_return, three.total_return)


def test_kl_to_itself_is_zero_and_to_another_is_not() -> None:
    policy = policy_for(HALFCHEETAH, 1)
    same = evaluate(policy, HALFCHEETAH, 2, SEED, "sampled", policy_for(HALFCHEETAH, 1))
    np.testing.assert_allclose(same.kl_to_prior, 0.0, atol=1e-5)
    other = evaluate(policy, HALFCHEETAH, 2, SEED, "sampled", policy_for(HALFCHEETAH, 2))
    assert (other.kl_to_prior > 0.01).all()
    assert np.isnan(evaluate(policy, HALFCHEETAH, 2, SEED, "sampled").kl_to_prior).all()


def episodes(*totals: float, kl: float = 0.0) -> Episodes:
    total = np.array(totals)
    ones = np.ones_like(total)
    return Episodes(total - 1.0, ones, total, 10.0 * ones, 0.5 * ones, kl * ones)


def test_metrics_by_hand() -> None:
    metrics = as_metrics({"deterministic": episodes(1.0, 3.0), "sampled": episodes(5.0, 5.0, 8.0, kl=0.25)})
    assert metrics["eval/deterministic/total_return_mean"] == 2.0
    assert metrics["eval/deterministic/total_return_std"] == pytest.approx(2.0**0.5)  # over n - 1
    assert metrics["eval/deterministic/basic_return_mean"] == 1.0
    assert metrics["eval/sampled/total_return_mean"] == 6.0
    assert metrics["eval/sampled/total_return_std"] == pytest.approx(3.0**0.5)
    assert metrics["eval/sampled/episode_length_mean"] == 10.0
    assert metrics["eval/kl_to_prior"] == 0.25
    assert metrics["eval/sampled/total_return_median"] == 5.0
    assert metrics["eval/sampled/total_return_episodes"] == [5.0, 5.0, 8.0]
    assert len(metrics) == 2 * (2 * len(PER_MODE) + 3 + 1) + 1
    assert as_metrics({"deterministic": episodes(4.0)})["eval/deterministic/total_return_std"] == 0.0


def test_card_returns_by_hand() -> None:
    returns = as_card_returns({"deterministic": episodes(1.0, 3.0), "sampled": episodes(5.0)})
    assert set(returns) == {f"{a}/{b}" for a in ("basic", "addon", "total") for b in ("deterministic", "sampled")}
    assert (returns["total/deterministic"].mean, returns["total/deterministic"].episodes) == (2.0, 2)
    assert returns["total/deterministic"].std == pytest.approx(2.0**0.5)
    assert (returns["basic/sampled"].mean, returns["basic/sampled"].std) == (4.0, 0.0)


def test_both_modes_on_the_same_seeds() -> None:
    policy = policy_for(HALFCHEETAH, 1)
    both = evaluate_both(policy, HALFCHEETAH, 2, SEED)
    for mode, played in both.items():
        np.testing.assert_array_equal(played.total_return, evaluate(policy, HALFCHEETAH, 2, SEED, mode).total_return)


def test_several_add_ons_each_apart() -> None:
    """Each part is what evaluating it alone gives, times its weight; together they are the add-on return."""
    parts = {"moved": Part(Everything(("x_velocity",)), 0.5), "still": Part(Linear(0, 1.0), -2.0)}
    several = replace(HALFCHEETAH, addon=WeightedSum(parts))
    policy = policy_for(HALFCHEETAH, 1)
    both = evaluate_both(policy, several, 2, SEED)
    for mode, played in both.items():
        assert list(played.addon_parts) == ["moved", "still"]
        for name, part in parts.items():
            alone = evaluate(policy, replace(HALFCHEETAH, addon=part.function), 2, SEED, mode)
            np.testing.assert_allclose(played.addon_parts[name], part.weight * alone.addon_return, rtol=1e-5)
            np.testing.assert_array_equal(played.basic_return, alone.basic_return)
        np.testing.assert_allclose(played.addon_return, sum(played.addon_parts.values()))
        np.testing.assert_allclose(played.total_return, played.basic_return + played.addon_return)
    metrics = as_metrics(both)
    moved = both["sampled"].addon_parts["moved"]
    assert metrics["eval/sampled/addon/moved_return_mean"] == pytest.approx(moved.mean())
    assert metrics["eval/sampled/addon/moved_return_std"] == pytest.approx(moved.std(ddof=1))
    assert sum("addon/" in name for name in metrics) == 2 * 2 * 2
    single = evaluate(policy, replace(HALFCHEETAH, addon=WeightedSum({"moved": parts["moved"]})), 2, SEED, "sampled")
    np.testing.assert_allclose(single.addon_return, moved)
    assert single.addon_parts == {}  # of one there is nothing to tell apart
