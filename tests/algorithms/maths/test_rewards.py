"""Reward transforms: worked by hand, their limits to the bit, and where no gradient flows."""

from __future__ import annotations

import pytest
import torch

from rpg_algorithms.maths.rewards import entropy_term, floored, prior_term, rpg_reward, spg_reward

REWARD = torch.tensor([[1.0, -2.0]])
LOGP = torch.tensor([[-0.5, 2.0]])  # a density may exceed one
PRIOR_LOGP = torch.tensor([[-1.5, 0.25]])


def test_spg_by_hand() -> None:
    # 1 - .2*(-.5) = 1.1;  -2 - .2*2 = -2.4
    assert spg_reward(REWARD, LOGP, 0.2)[0].tolist() == pytest.approx([1.1, -2.4])


def test_rpg_by_hand() -> None:
    # 1 + .4*(-1.5) - .2*(-.5) = 0.5;  -2 + .4*.25 - .2*2 = -2.3
    assert rpg_reward(REWARD, PRIOR_LOGP, LOGP, 0.4, 0.2)[0].tolist() == pytest.approx([0.5, -2.3])


def test_terms_by_hand_add_up() -> None:
    assert entropy_term(LOGP, 0.2)[0].tolist() == pytest.approx([0.1, -0.4])
    assert prior_term(PRIOR_LOGP, 0.4)[0].tolist() == pytest.approx([-0.6, 0.1])
    total = REWARD + prior_term(PRIOR_LOGP, 0.4) + entropy_term(LOGP, 0.2)
    assert torch.equal(rpg_reward(REWARD, PRIOR_LOGP, LOGP, 0.4, 0.2), total)


def test_neutral_weights_change_nothing_to_the_bit() -> None:
    assert torch.equal(spg_reward(REWARD, LOGP, 0.0), REWARD)
    assert torch.equal(rpg_reward(REWARD, PRIOR_LOGP, LOGP, 0.0, 0.0), REWARD)
    assert not torch.equal(spg_reward(REWARD, LOGP, 1e-3), REWARD)


def test_greedy_is_spg_on_the_addon() -> None:
    assert torch.equal(rpg_reward(REWARD, PRIOR_LOGP, LOGP, 0.0, 0.2), spg_reward(REWARD, LOGP, 0.2))
    assert not torch.equal(rpg_reward(REWARD, PRIOR_LOGP, LOGP, 0.1, 0.2), spg_reward(REWARD, LOGP, 0.2))


def test_weights_may_be_tensors_with_a_population_axis() -> None:
    weights = torch.tensor([0.1, 0.4])[:, None, None]
    found = rpg_reward(REWARD, PRIOR_LOGP, LOGP, weights, 2 * weights)
    assert found.shape == (2, 1, 2)
    for i, weight in enumerate((0.1, 0.4)):
        assert torch.allclose(found[i], rpg_reward(REWARD, PRIOR_LOGP, LOGP, weight, 2 * weight))


def test_the_floor_bounds_the_tail_alone() -> None:
    prior_logp = torch.tensor([5.0, 3.0, -10.0, -900.0])
    assert floored(prior_logp, torch.tensor(4.0), 20.0).tolist() == [5.0, 3.0, -10.0, -16.0]
