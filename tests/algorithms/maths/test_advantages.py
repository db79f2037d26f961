"""Advantages, recurrences and running returns: worked by hand, and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rpg_algorithms.maths.advantages import (
    generalized_advantages,
    linear_recurrence,
    running_returns,
    spread,
    standardize,
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)[:, None]


def advantages_by_hand(terminated: Tensor, truncated: Tensor) -> list[float]:
    return generalized_advantages(
        reward_t=column(1.0, 2.0, 3.0),
        value_t=column(0.5, 1.0, -1.0),
        value_tp1=column(1.0, -1.0, 2.0),
        terminated_t=terminated,
        done_t=terminated | truncated,
        gamma=0.9,
        lambda_=0.5,
    )[:, 0].tolist()


def test_an_episode_under_way_bootstraps_from_the_last_value() -> None:
    # delta = 1 + .9*1 - .5 = 1.4;  2 - .9 - 1 = 0.1;  3 + .9*2 + 1 = 5.8
    # A_2 = 5.8;  A_1 = 0.1 + .45*5.8 = 2.71;  A_0 = 1.4 + .45*2.71 = 2.6195
    assert advantages_by_hand(flags(0, 0, 0), flags(0, 0, 0)) == pytest.approx([2.6195, 2.71, 5.8])


def test_termination_does_not_bootstrap_and_cuts() -> None:
    # delta_1 = 2 - 1 = 1 without V(s_2);  A_1 = 1 cut from A_2 = 5.8;  A_0 = 1.4 + .45*1 = 1.85
    assert advantages_by_hand(flags(0, 1, 0), flags(0, 0, 0)) == pytest.approx([1.85, 1.0, 5.8])


def test_truncation_bootstraps_and_cuts() -> None:
    # delta_1 = 0.1 with V(s_2) = -1 of the final observation;  A_1 = 0.1 cut;  A_0 = 1.4 + .45*.1 = 1.445
    assert advantages_by_hand(flags(0, 0, 0), flags(0, 1, 0)) == pytest.approx([1.445, 0.1, 5.8])


def test_termination_and_truncation_in_one_step_is_termination() -> None:
    assert advantages_by_hand(flags(0, 1, 0), flags(0, 1, 0)) == advantages_by_hand(flags(0, 1, 0), flags(0, 0, 0))


def test_the_last_row_may_terminate() -> None:
    # delta_2 = 3 + 1 = 4;  A_1 = .1 + .45*4 = 1.9;  A_0 = 1.4 + .45*1.9 = 2.255
    assert advantages_by_hand(flags(0, 0, 1), flags(0, 0, 0)) == pytest.approx([2.255, 1.9, 4.0])


def test_values_after_a_termination_do_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    reward, value = torch.randn(6, 2, generator=rng), torch.randn(6, 2, generator=rng)
    next_value = torch.randn(6, 2, generator=rng)
    terminated = torch.zeros(6, 2, dtype=torch.bool)
    terminated[3, 0] = True
    before = generalized_advantages(reward, value, next_value, terminated, terminated, 0.9, 0.9)
    next_value[3, 0] = 1e6
    value[4:, 0] = -1e3
    after = generalized_advantages(reward, value, next_value, terminated, terminated, 0.9, 0.9)
    assert torch.equal(before[:4], after[:4])
    next_value[3, 1] = 1e6  # the other column's did not terminate there
    other = generalized_advantages(reward, value, next_value, terminated, terminated, 0.9, 0.9)
    assert (other[:4, 1] - before[:4, 1]).abs().min() > 1e3


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_limits_of_lambda(lambda_: float) -> None:
    reward, value, next_value = torch.randn(3, 5, 1, dtype=torch.float64).unbind(0)
    value[1:] = next_value[:-1]
    done = torch.zeros(5, 1, dtype=torch.bool)
    found = generalized_advantages(reward, value, next_value, done, done, 0.9, lambda_)
    if lambda_ == 0.0:  # one-step errors
        expected = reward + 0.9 * next_value - value
    else:  # discounted rewards and the last value, minus the baseline
        returns, future = [], next_value[-1]
        for t in reversed(range(5)):
            future = reward[t] + 0.9 * future
            returns.append(future)
        expected = torch.stack(returns[::-1]) - value
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 513])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 4)])
def test_linear_recurrence_is_the_loop(length: int, trailing: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(length)
    x = torch.randn(length, *trailing, generator=rng, dtype=torch.float64)
    decay = torch.rand(length, *trailing, generator=rng, dtype=torch.float64)
    decay *= torch.rand(length, *trailing, generator=rng) > 0.1
    expected = x.clone()
    for t in reversed(range(length - 1)):
        expected[t] = x[t] + decay[t] * expected[t + 1]
    before = (x.clone(), decay.clone())
    assert torch.allclose(linear_recurrence(decay, x), expected, atol=1e-12, rtol=1e-12)
    assert torch.equal(x, before[0])  # nothing was changed in place
    assert torch.equal(decay, before[1])


def test_linear_recurrence_in_float32_keeps_long_sums() -> None:
    steps = 2048
    x = torch.ones(steps, 1)
    # sum of gamma^k over 2048 steps at 0.99: (1 - .99^2048) / .01
    found = linear_recurrence(torch.full((steps, 1), 0.99), x)
    assert found[0].item() == pytest.approx((1 - 0.99**steps) / 0.01, rel=1e-5)


def test_running_returns_by_hand_and_across_calls() -> None:
    # G_0 = 1 + .5*8 = 5;  G_1 = 2 + .5*5 = 4.5 ends;  G_2 = 3 starts anew;  G_3 = 4 + .5*3 = 5.5 ends: carry 0
    reward, done = column(1.0, 2.0, 3.0, 4.0), flags(0, 1, 0, 1)
    returns, carry = running_returns(reward, done, 0.5, torch.tensor([8.0], dtype=torch.float64))
    assert returns[:, 0].tolist() == pytest.approx([5.0, 4.5, 3.0, 5.5])
    assert carry.tolist() == [0.0]
    # In two calls: the same numbers.
    first, middle = running_returns(reward[:3], done[:3], 0.5, torch.tensor([8.0], dtype=torch.float64))
    second, _ = running_returns(reward[3:], done[3:], 0.5, middle)
    assert torch.cat((first, second))[:, 0].tolist() == pytest.approx(returns[:, 0].tolist())
    assert middle.tolist() == [3.0]


def test_standardize() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3, unbiased variance (4 + 1 + 0 + 9) / 3
    expected = (np.array([[1, 2], [3, 6]]) - 3.0) / np.sqrt(14.0 / 3.0)
    assert standardize(x).numpy() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(standardize(torch.full((4,), 2.0)), torch.zeros(4))  # constant advantages carry no signal


# --- the scale of returns


def test_the_spread_is_a_deviation_that_tails_hardly_move() -> None:
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert spread(3.0 * normal + 7.0).item() == pytest.approx(3.0, rel=0.02)
    falls = torch.cat((normal, torch.full((4_000,), -500.0)))  # 2 %: their standard deviation is 70
    assert spread(falls).item() == pytest.approx(falls.std().item() / 10, rel=1e-3)
    assert spread(torch.cat((normal, torch.full((4_000,), -50.0)))).item() == pytest.approx(1.05, abs=0.05)
    # A bonus so rare that no quantile sees it still counts, and what never changes has no spread.
    bonus = torch.zeros(1000)
    bonus[0] = 100.0
    assert spread(bonus).item() == pytest.approx(bonus.std(correction=0).item() / 10)
    assert spread(torch.full((100,), 3.0)).item() == 0.0
