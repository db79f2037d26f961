"""Objectives, losses and diagnostics: worked by hand, by finite differences, and where gradient must not flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rpg_algorithms.maths.distributions import DiagonalGaussian
from rpg_algorithms.maths.objectives import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate_objective,
    explained_variance,
    kl_estimate,
    policy_gradient_objective,
    ppo_loss,
    value_loss,
)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_policy_gradient_objective_by_hand() -> None:
    logp, advantage = leaf(-1.0, -2.0), leaf(3.0, -1.0)
    objective = policy_gradient_objective(logp, advantage)
    assert objective.item() == pytest.approx((-3.0 + 2.0) / 2)
    objective.backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([1.5, -0.5])
    assert advantage.grad is None
    weighted = policy_gradient_objective(logp, advantage, torch.tensor([2.0, 0.5]))
    assert weighted.item() == pytest.approx(-6.0 + 1.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [  # clip 0.2; d objective / d logp = ratio * A where it is not clipped
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.2),
        (1.5, 2.0, 2.4, 0.0),  # no reward for going further than 1.2
        (0.5, 2.0, 1.0, 1.0),  # but the way back is open
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -3.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, value: float, slope: float) -> None:
    logp, advantages = leaf(math.log(ratio) - 1.0), leaf(advantage)
    objective = clipped_surrogate_objective(logp, torch.tensor([-1.0]), advantages.detach(), 0.2)
    assert objective.item() == pytest.approx(value)
    objective.sum().backward()
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(slope)


def test_surrogates_gradient_on_policy_is_the_policy_gradients() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    action, advantage = torch.randint(3, (6,)), torch.randn(6, dtype=torch.float64)
    logp = torch.log_softmax(logits, -1)[torch.arange(6), action]
    (a,) = torch.autograd.grad(policy_gradient_objective(logp, advantage), logits, retain_graph=True)
    surrogate = clipped_surrogate_objective(logp, logp.detach(), advantage, 0.2).mean()
    (b,) = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(a, b, atol=1e-15)


def test_value_loss_by_hand() -> None:
    value, target = leaf(1.0, 4.0), torch.tensor([0.0, 1.0])
    assert value_loss(value, target).tolist() == [1.0, 9.0]
    clipped = value_loss(value, target, clip=5.0)
    assert clipped.tolist() == [1.0, 5.0]
    clipped.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [2.0, 0.0]  # a clipped error does not pull


def test_ppo_loss_by_hand() -> None:
    surrogate, critic, entropy = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 8.0]), torch.tensor([0.5, 1.5])
    # (.5*4 - 1 - .1*.5 + .5*8 - 3 - .1*1.5) / 2 = (2 - 1 - .05 + 4 - 3 - .15) / 2
    assert ppo_loss(surrogate, critic, entropy, 0.5, 0.1).item() == pytest.approx(0.9)
    assert ppo_loss(surrogate, critic, entropy, 0.5, 0.0).item() == pytest.approx(1.0)
    assert ppo_loss(surrogate, critic, None, 0.5, 0.0).item() == pytest.approx(1.0)


def test_losss_gradient_is_its_finite_difference() -> None:
    inputs = torch.randn(5, 4, dtype=torch.float64)
    action, advantage = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    logp_old = DiagonalGaussian.from_inputs(inputs + 0.1).log_prob(action)

    def loss(dist_inputs: Tensor, value: Tensor) -> Tensor:
        distribution = DiagonalGaussian.from_inputs(dist_inputs)
        surrogate = clipped_surrogate_objective(distribution.log_prob(action), logp_old, advantage, 0.3)
        return ppo_loss(surrogate, value_loss(value, advantage + 1.0), distribution.entropy(), 0.7, 0.05)

    value = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (inputs.requires_grad_(), value))


def test_kl_estimators_are_unbiased_and_positive() -> None:
    torch.manual_seed(0)
    p = DiagonalGaussian(torch.zeros(200_000, 2), torch.full((200_000, 2), -0.2))
    q = DiagonalGaussian(torch.full((200_000, 2), 0.3), torch.zeros(200_000, 2))
    action = p.sample()
    exact = p.kl(q)[0].item()
    estimate = kl_estimate(p.log_prob(action), q.log_prob(action))
    assert (estimate >= 0).all()
    assert estimate.mean().item() == pytest.approx(exact, abs=0.003)
    # approximate_kl is of the acting policy, whose samples they are, to the new one.
    assert approximate_kl(q.log_prob(action), p.log_prob(action)).item() == pytest.approx(exact, abs=0.003)
    assert q.kl(p)[0].item() != pytest.approx(exact, abs=0.01)  # the other direction is another number


def test_kl_estimate_has_a_low_variance_between_close_policies() -> None:
    torch.manual_seed(0)
    p = DiagonalGaussian(torch.zeros(100_000, 2), torch.zeros(100_000, 2))
    q = DiagonalGaussian(torch.full((100_000, 2), 0.1), torch.full((100_000, 2), -0.05))
    action = p.sample()
    logp, prior_logp = p.log_prob(action), q.log_prob(action)
    assert kl_estimate(logp, prior_logp).std() < 0.3 * (logp - prior_logp).std()


def test_equal_policies_have_no_kl() -> None:
    logp = torch.randn(100)
    assert approximate_kl(logp, logp).item() == 0.0
    assert torch.equal(kl_estimate(logp, logp), torch.zeros(100))
    assert clip_fraction(logp, logp, 1e-6).item() == 0.0


def test_clip_fraction_by_hand() -> None:
    ratio = torch.tensor([1.0, 1.19, 1.21, 0.79, 0.81])
    assert clip_fraction(ratio.log(), torch.zeros(5), 0.2).item() == pytest.approx(2 / 5)


def test_explained_variance() -> None:
    target = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(target, target).item() == 1.0
    assert explained_variance(torch.full((3,), 7.0), target).item() == pytest.approx(0.0)
    assert explained_variance(-target, target).item() == pytest.approx(-3.0)  # 1 - Var[2x] / Var[x]
    assert math.isnan(explained_variance(target, torch.ones(3)).item())
