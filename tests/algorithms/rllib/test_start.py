"""A training starts from a policy that it is given; what it keeps is the prior all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.algorithms.environments import WalkEnv
from tests.algorithms.registry import ENVS, STEPS, addon, learner_of, make_prior, same

from rpg_algorithms import Conditioned, RPGConfig, load_bundle

pytestmark = pytest.mark.usefixtures("local_ray")


def residual(prior: Path, start: Path, **settings: object) -> RPGConfig:
    config = RPGConfig().environment(WalkEnv).env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS)
    config.training(train_batch_size_per_learner=ENVS * STEPS, minibatch_size=32, num_epochs=1)
    weights = {"omega_prime": 0.2, "alpha_hat": 0.05}
    return config.training(**{**weights, "prior": prior, "start": start, "addon_reward": addon, **settings})


@pytest.mark.parametrize("omega_prime", [0.2, Conditioned(0.1, 1.0)])
def test_it_starts_there_and_keeps_the_prior(tmp_path: Path, omega_prime: float | Conditioned) -> None:
    prior, start = make_prior(tmp_path / "prior"), make_prior(tmp_path / "start", seed=1)
    algorithm = residual(prior, start, omega_prime=omega_prime, critic_warmup_iterations=1).build_algo()
    try:
        module = learner_of(algorithm).actor_critic
        obs = torch.randn(20, 2)
        told = torch.cat((obs, torch.full((20, len(module.policy.spec.context)), 0.3)), dim=1)
        assert torch.equal(module.policy(told), load_bundle(start).build()(obs))
        assert module.prior is not None
        assert same(module.prior.state_dict(), load_bundle(prior).build().state_dict())
        algorithm.train()  # the critic alone
        algorithm.train()
        assert not torch.equal(module.policy(told), load_bundle(start).build()(obs))
        its, kept = module.policy.normalizer, load_bundle(start).build().normalizer
        assert its is not None
        assert kept is not None
        assert same(its.state_dict(), kept.state_dict())
    finally:
        algorithm.stop()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    prior, start = make_prior(tmp_path / "prior"), make_prior(tmp_path / "start", seed=1)
    with pytest.raises(ValueError, match="start='random': it takes the place of the prior's weights"):
        residual(prior, start, start_from_prior=False).validate()
    other = make_prior(tmp_path / "other", hidden=(8, 4))
    with pytest.raises(ValueError, match=r"expected the prior's network, but it has hidden \[8, 4\] \(the prior's: "):
        residual(prior, other).validate()
    slider = make_prior(tmp_path / "slider", context=(Conditioned(0.1, 1.0, "omega_prime"),))
    with pytest.raises(ValueError, match=r"start 'random' is a policy for a range of omega_prime.*fold it at"):
        residual(prior, slider).validate()
