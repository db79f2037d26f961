"""Cloned priors, customised by RPG: each policy beats its clone on the add-on return, and keeps what the clone did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.platform.priors.clone.demonstrators import play, save, shipped, swing_up

from rpg_algorithms import RPGConfig
from rpg_algorithms.policies.bundle import PriorBundle, load_bundle
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.evaluation.play import Episodes, evaluate_both
from rpg_platform.priors.clone.clone import CloneSettings, clone_prior
from rpg_platform.priors.environment import bare_task
from rpg_platform.results.report import Mode
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.environments import register
from rpg_platform.tasks.task import Linear, Task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
TURN = Task("pendulum-turn", "Pendulum-v1", Linear(2, 0.2), "rad/s", Linear(2, 1.0), "swing up anticlockwise")


def customised(
    prior: PriorBundle, task: Task, iterations: int, **training: Any
) -> tuple[PolicyNetwork, dict[str, Any]]:
    """The policy that RPG makes of a prior, and the last iteration's statistics."""
    settings: dict[str, Any] = {
        "lr": 4e-4,
        "gamma": 0.98,
        "lambda_": 0.92,
        "clip_param": 0.1,
        "num_epochs": 10,
        "critic_warmup_iterations": 5,
    }
    algorithm = (
        RPGConfig()
        .environment(register(task))
        .env_runners(num_envs_per_env_runner=8)
        .training(prior=prior, addon_reward=task.addon, **(settings | training))
        .debugging(seed=0, log_level="ERROR")
        .build_algo()
    )
    try:
        for _ in range(iterations):
            result = algorithm.train()
        module = algorithm.get_module()
        assert module is not None
        return module.policy, result["learners"]["default_policy"]
    finally:
        algorithm.stop()


def means(played: Mapping[Mode, Episodes], measure: str) -> NDArray[np.float64]:
    """Deterministic and sampled."""
    return np.array([getattr(played[mode], measure).mean() for mode in ("deterministic", "sampled")])


def test_a_squashed_prior_with_a_standard_deviation_of_the_state(tmp_path: Path) -> None:
    file = save(tmp_path / "swing-up.npz", play("Pendulum-v1", swing_up(0.2), 60, 200))
    settings = CloneSettings("squashed_gaussian", hidden=(64, 64), state_dependent_std=True, epochs=40)
    clone_prior(str(file), tmp_path / "prior", bare_task("Pendulum-v1"), settings)
    prior = load_bundle(tmp_path / "prior")
    before = evaluate_both(prior.build(), TURN, 20, 10_000)
    assert means(before, "basic_return").min() > -400  # a random policy's is about -1,200
    policy, statistics = customised(
        prior, TURN, 60, lr=3e-4, omega_prime=0.3, alpha_hat=0.3, train_batch_size_per_learner=2048, minibatch_size=128
    )
    after = evaluate_both(policy, TURN, 20, 10_000, prior.build())
    assert (means(after, "addon_return") > means(before, "addon_return") + 1.5).all()
    assert (means(after, "basic_return") > -400).all()
    assert statistics["kl_to_prior_estimated"] == 0.0
    assert 0.005 < after["sampled"].kl_to_prior.mean() < 1.0


def test_a_clone_of_the_shipped_prior(tmp_path: Path) -> None:
    file = save(tmp_path / "run.npz", play("HalfCheetah-v5", shipped(), 16, 1000))
    task = get_task("halfcheetah-foot-angle")
    clone_prior(str(file), tmp_path / "prior", task, CloneSettings(hidden=(128, 128), epochs=80))
    prior = load_bundle(tmp_path / "prior")
    before = evaluate_both(prior.build(), task, 8, 10_000)
    policy, _ = customised(
        prior, task, 40, omega_prime=0.1, alpha_hat=0.02, train_batch_size_per_learner=4096, minibatch_size=256
    )
    after = evaluate_both(policy, task, 8, 10_000, prior.build())
    assert (means(after, "addon_return") > 0.8 * means(before, "addon_return")).all()  # they are negative
    assert (means(after, "total_return") > means(before, "total_return")).all()
    assert (means(after, "basic_return") > 0.5 * means(before, "basic_return")).all()
