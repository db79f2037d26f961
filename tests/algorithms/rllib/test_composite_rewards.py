"""An add-on reward of several parts: evaluated once, its sum is trained on, and each part's return is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.algorithms.environments import WalkEnv
from tests.algorithms.registry import built

from rpg_algorithms import Rollout, SPGConfig
from rpg_algorithms.addons import AddonReward, CompositeReward, part_names, resolve_addon

N, T = 3, 45


class Composite:
    info_keys = ("position",)

    def __init__(self, short: bool = False) -> None:
        self.calls, self.short = 0, short

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("near", "push")

    def parts(self, obs: Any, actions: Any, next_obs: Any, infos: Any) -> list[Any]:
        self.calls += 1
        push = -0.5 * np.square(actions).sum(-1)
        return [infos["position"] + next_obs[:, 1], push[:-1] if self.short else push]

    def __call__(self, obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
        raise AssertionError("the parts are enough")


def configure(addon: Any) -> SPGConfig:
    return (
        SPGConfig()
        .environment(WalkEnv, env_config={"length": 20})
        .env_runners(num_envs_per_env_runner=N)
        .training(
            addon_reward=addon,
            addon_weight=1.0,
            step_metrics={"height": lambda obs, actions, next_obs, infos: next_obs[:, 1]},
            train_batch_size_per_learner=N * T,
            minibatch_size=45,
            num_epochs=1,
        )
    )


def test_is_an_add_on_reward_like_others() -> None:
    composite = Composite()
    assert isinstance(composite, CompositeReward)
    assert resolve_addon(composite) is composite
    assert part_names(composite) == ("near", "push")

    def plain(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
        return next_obs[:, 0]

    assert part_names(resolve_addon(plain)) == part_names(None) == ()
    assert isinstance(resolve_addon(plain), AddonReward)
    assert not isinstance(resolve_addon(plain), CompositeReward)


def returns_by_hand(rollouts: list[Rollout]) -> dict[str, float]:
    """Each part's return of the episodes that ended, from the rows of the rollouts: every episode has 20 steps."""
    obs = np.concatenate([r.obs for r in rollouts] + [rollouts[-1].last_obs[None]])
    actions = np.clip(np.concatenate([r.actions for r in rollouts]), -1.0, 1.0)
    totals: dict[str, list[float]] = {"near": [], "push": [], "sum": []}
    for n in range(N):
        for start in range(0, len(actions) - 19, 20):
            push = -0.5 * np.square(actions[start : start + 20, n, 0]).sum()
            # Positions after each step; that of the last one is not the next row's, which is after the reset.
            positions = obs[start, n, 0] + 0.1 * np.cumsum(actions[start : start + 20, n, 0])
            near = positions.sum() + np.arange(1, 21).sum() / 10
            for name, value in (("near", near), ("push", push), ("sum", near + push)):
                totals[name].append(float(value))
    return {name: float(np.mean(values)) for name, values in totals.items()}


@pytest.mark.usefixtures("local_ray")
def test_each_part_is_reported_once_and_they_sum_to_the_whole() -> None:
    addon, rollouts = Composite(), []
    config = configure(addon).callbacks(on_sample_end=lambda *, samples, **_: rollouts.extend(samples))
    with built(config) as algorithm:
        runner_addon = algorithm.env_runner._addon
        algorithm.env_runner.sample()
        result = algorithm.train()["env_runners"]
    assert runner_addon.calls == 2  # once a rollout
    expected = returns_by_hand(rollouts)
    assert result["episode_addon_near_return_mean"] == pytest.approx(expected["near"], rel=1e-4)
    assert result["episode_addon_push_return_mean"] == pytest.approx(expected["push"], rel=1e-4)
    assert result["episode_addon_return_mean"] == pytest.approx(expected["sum"], rel=1e-4)
    assert result["episode_height_mean"] == pytest.approx(1.05)  # mean of 0.1 to 2.0, still a mean
    assert expected["push"] < -0.1 < expected["near"]


@pytest.mark.usefixtures("local_ray")
def test_a_part_of_another_shape_is_refused() -> None:
    with (
        built(configure(Composite(short=True))) as algorithm,
        pytest.raises(ValueError, match=r"shape \(134,\) for 135"),
    ):
        algorithm.train()
