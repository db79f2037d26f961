"""What a trial is said to take, against real trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from tests.platform.disks import written
from tests.platform.trial.small import PRIOR, STEPS_PER_ITERATION, trial_spec

from rpg_algorithms.policies.bundle import PriorBundle, load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.trial.sizes import (
    REPORTS_PER_TRIAL,
    Networks,
    bundle_bytes,
    checkpoint_bytes,
    iterations_per_report,
    networks_of,
    reports,
)
from rpg_platform.trial.trainable import CustomizationTrial

LARGE = {"hidden": [1024, 512], "state_dependent_std": True, "activation": "tanh"}


@pytest.fixture(scope="module")
def prior() -> PriorBundle:
    return load_bundle(resolve_prior(PRIOR))


def sizes(trial: TrialSpec, prior: PriorBundle) -> Networks:
    return networks_of(trial, *spaces_of(get_task(trial.task)), prior)


@pytest.mark.parametrize(
    "trial",
    [
        trial_spec("rpg", evaluation={"episodes": 3, "validations": 2, "validation_episodes": 1}),
        trial_spec("kl", training={"start_from_prior": False, "network": LARGE, "rollout_length": 64}),
        trial_spec("ppo"),
        trial_spec("prior"),
    ],
    ids=["from the prior", "beside the prior", "without a prior", "the prior"],
)
def test_a_checkpoint_has_the_size_that_is_said_before(
    trial: TrialSpec, local_ray: None, prior: PriorBundle, tmp_path: Path
) -> None:
    """Its networks exactly, its bytes within a tenth, its bundle within a tenth, its reports exactly."""
    said = sizes(trial, prior)
    trainable = tune.with_parameters(CustomizationTrial, prior=prior)(config=trial.as_config())
    try:
        count = 1
        while not trainable.step()["done"]:
            count += 1
        assert said == networks_in(trainable)
        trainable.save_checkpoint(str(tmp_path))
    finally:
        trainable.stop()
    assert count == reports(trial)
    assert written(tmp_path / "bundle") == pytest.approx(bundle_bytes(said), rel=0.1)
    small = 20_000 if trial.method == "prior" else 0  # no weights to speak of: a few cards
    assert written(tmp_path) == pytest.approx(checkpoint_bytes(trial, said), rel=0.1, abs=small)


def networks_in(trial: CustomizationTrial) -> Networks:
    """Counted in the modules that were trained."""
    if trial.algo is None:
        return Networks(numbers(trial.policy()))
    module: Any = trial.algo.learner_group._learner.module["default_policy"]  # type: ignore[union-attr]
    return Networks(numbers(module.policy), numbers(module.critic), numbers(module.prior) if module.prior else 0)


def numbers(network: Any) -> int:
    return sum(tensor.numel() for tensor in network.state_dict().values())


def test_networks_that_no_memory_could_hold_are_counted(prior: PriorBundle) -> None:
    huge = trial_spec("ppo", training={"network": {"hidden": [8192] * 16}, "rollout_length": 64})
    assert sizes(huge, prior).policy > 15 * 8192**2
    assert sizes(huge, prior).prior == 0


@pytest.mark.parametrize(
    ("iterations", "each", "count"), [(1, 1, 1), (200, 1, 200), (201, 2, 101), (1_000, 5, 200), (1_001, 6, 167)]
)
def test_a_trial_makes_about_two_hundred_reports(iterations: int, each: int, count: int) -> None:
    trial = trial_spec("ppo", budget={"env_steps": iterations * STEPS_PER_ITERATION})
    assert (iterations_per_report(trial), reports(trial)) == (each, count + 1)  # and that of the evaluation
    assert count <= REPORTS_PER_TRIAL
    assert reports(trial_spec("prior")) == 1
