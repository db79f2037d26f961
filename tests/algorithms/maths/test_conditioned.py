"""Ranges of customization weights: what a policy is told, the grid, the draws, and the scale as a function of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from rpg_algorithms import Conditioned
from rpg_algorithms.maths.advantages import spread
from rpg_algorithms.maths.conditioned import (
    SHORTEST_PART,
    features,
    features_size,
    grid,
    inputs,
    inputs_size,
    multiplying,
    spreads,
    told,
)
from rpg_algorithms.policies.running import ToldScale
from rpg_algorithms.policies.told import Draws, FoldedRows, np_features

RANGES = {
    "two decades": Conditioned(0.02, 1.6, "w"),
    "narrow": Conditioned(0.30001, 0.300123456, "w"),
    "from zero": Conditioned(0.0, 0.7, "w"),
    "whole numbers": Conditioned(1, 50, "w"),
    "tiny": Conditioned(1e-12, 3e-7, "w"),
}


@pytest.mark.parametrize("name", RANGES)
def test_told_and_weight_are_inverse_and_increasing(name: str) -> None:
    r = RANGES[name]
    u = np.linspace(-1, 1, 201)
    weights = np.array([r.weight(float(x)) for x in u])
    assert (np.diff(weights) > 0).all()
    assert (weights[0], weights[-1]) == (r.low, r.high)  # to the bit
    assert [r.told(float(w)) for w in weights] == pytest.approx(u, abs=1e-9)
    assert (r.told(r.low), r.told(r.high)) == pytest.approx((-1, 1), abs=1e-12)
    if r.low > 0:  # equal steps are equal factors
        assert r.weight(0.0) == pytest.approx(math.sqrt(r.low * r.high), rel=1e-12)
    else:  # the middle of the range stays far below the middle of the values, and zero is zero
        assert r.weight(0.0) == pytest.approx(r.high / 11, rel=1e-12)
    # The learner's tensor is the same curve, times the factor.
    tensor = r.scaled(3.0).scaled(0.5).reward_weight(torch.from_numpy(u).float())
    assert tensor.numpy() == pytest.approx(1.5 * weights, rel=1e-5, abs=1e-8 * r.high)
    assert (tensor >= 1.5 * r.low * (1 - 1e-6)).all()


def test_what_is_no_range_is_refused() -> None:
    for low, high in ((0.2, 0.1), (0.1, 0.1), (-0.1, 0.1)):
        with pytest.raises(ValueError, match=r"omega_prime=Conditioned\(.*expected 0 <= low < high"):
            Conditioned(low, high).check("omega_prime")
    wrong: list[Any] = [math.nan, math.inf, None, "0.3", True]
    for high in wrong:
        with pytest.raises(ValueError, match=r"alpha_hat=.*expected two finite numbers"):
            Conditioned(0.1, high).check("alpha_hat")
    with pytest.raises(ValueError, match="its name is 'omega', expected 'alpha_hat' or none"):
        Conditioned(0.1, 0.2, "omega").named("alpha_hat")


def test_weights_must_be_the_policys_own_and_in_range() -> None:
    ranges = (Conditioned(0.1, 1.0, "omega_prime"), Conditioned(0.0, 0.1, "alpha_hat"))
    assert told(ranges, {"alpha_hat": 0.1, "omega_prime": 0.1}) == pytest.approx([-1, 1])  # the policy's order
    for weights, message in (
        ({"omega_prime": 0.2}, "alpha_hat missing; the policy needs omega_prime, alpha_hat"),
        ({"omega_prime": 0.2, "alpha_hat": 0.1, "beta": 1.0}, "beta unknown; the policy needs omega_prime, alpha_hat"),
        ({"omega_prime": 0.09, "alpha_hat": 0.1}, r"omega_prime=0.09: the policy was trained from 0.1 to 1$"),
        ({"omega_prime": 0.2, "alpha_hat": -0.01}, r"alpha_hat=-0.01: the policy was trained from 0 to 0.1$"),
        ({"omega_prime": math.nan, "alpha_hat": 0.1}, "omega_prime=nan: the policy was trained"),
    ):
        with pytest.raises(ValueError, match=message):
            told(ranges, weights)
    assert told((), {}).shape == (0,)
    with pytest.raises(ValueError, match="weights: beta given; the policy is of one setting"):
        told((), {"beta": 0.1})


@pytest.mark.parametrize("name", RANGES)
def test_a_grid_has_the_ends_and_every_setting_of_it_is_in_range(name: str) -> None:
    r = RANGES[name]
    values = [row["w"] for row in grid((r,), 9)]
    assert len(values) == 9
    assert (values[0], values[-1]) == (r.low, r.high)
    assert values == sorted(values)
    for value in values:
        r.told(value)
    other = Conditioned(0.0123456, 0.0987654, "v")  # rounded to four digits, both ends lie outside
    rows = grid((r, other), 3)
    assert len(rows) == 9
    assert {row["v"] for row in rows} >= {other.low, other.high}
    for row in rows:
        told((r, other), row)
    assert [len(grid((r, other), each)) for each in (2, 3, 5)] == [4, 9, 25]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_cover_the_cube_more_evenly_than_chance(count: int) -> None:
    def unevenness(points: np.ndarray) -> float:
        return float(qmc.discrepancy((points + 1) / 2, method="CD"))

    def angles(points: np.ndarray) -> np.ndarray:
        assert (np.abs(points) <= 1).all()
        assert points.dtype == np.float32
        return np.arcsin(points.astype(np.float64)) / (np.pi / 2)

    for taken, share in ((16, 0.7), (100, 0.4), (500, 0.2)):  # chance falls with the root of it, ours about linearly
        ours = [Draws(count, np.random.default_rng(seed)).take(taken) for seed in range(8)]
        chance = [np.random.default_rng(seed).uniform(-1, 1, (taken, count)) for seed in range(8)]
        assert np.mean([unevenness(angles(points)) for points in ours]) < share * np.mean(
            [unevenness(p) for p in chance]
        )
    # In pieces it is the same sequence, and another seed's is another.
    draws = Draws(count, np.random.default_rng(0))
    pieces = np.concatenate([draws.take(n) for n in (1, 0, 7, 492)])
    assert pieces == pytest.approx(ours[0], abs=1e-6)
    assert np.abs(ours[0] - ours[1]).min() > 1e-4


def test_draws_are_denser_towards_the_ends() -> None:
    u = Draws(2, np.random.default_rng(0)).take(3000)
    for column in u.T:  # a third of the angles is beyond a sine of 0.866, a third within 0.5
        assert (np.abs(column) > math.sqrt(0.75)).mean() == pytest.approx(1 / 3, abs=0.01)
        assert (np.abs(column) < 0.5).mean() == pytest.approx(1 / 3, abs=0.01)
        assert [column.min(), column.max()] == pytest.approx([-1, 1], abs=1e-3)


def test_inputs_make_a_layer_linear_in_what_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    obs, u = torch.randn(7, 5, generator=generator), torch.rand(7, 3, generator=generator)
    found = inputs(obs, u, (0, 2))
    assert found.shape == (7, inputs_size(5, 3, 2))
    weight = torch.randn(3, inputs_size(5, 3, 2), generator=generator)
    for k in range(7):
        matrix = weight[:, :5] + u[k, 0] * weight[:, 8:13] + u[k, 2] * weight[:, 13:18]
        expected = matrix @ obs[k] + weight[:, 5:8] @ u[k]
        assert (weight @ found[k]).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    std = torch.randn(2, generator=generator), torch.randn(2, features_size(3), generator=generator)
    folded = FoldedRows(weight.T.numpy(), np.ones(3, np.float32), 5, (0, 2), (std[0].numpy(), std[1].numpy()))
    some = torch.cat((u.flip(0)[:3], u[3:]))
    for row in (u, u.clone(), u.flip(0), some, u[:1], u[:4]):  # folded, as before, anew, anew in part, for fewer rows
        seen = obs[: len(row)]
        layer, (hidden, log_std) = inputs(seen, row, (0, 2)) @ weight.T + 1, folded(seen.numpy(), row.numpy())
        assert hidden == pytest.approx(layer.numpy(), abs=1e-5)
        assert log_std == pytest.approx((std[0] + features(row) @ std[1].T).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "free", "fixed"),  # the standard deviation: a parameter, or the network's
    [
        (("omega_prime", "alpha_hat"), (0,), (0, 1)),
        (("alpha_hat", "omega"), (1,), (0, 1)),
        (("alpha",), (0,), (0,)),
        (("kl_coefficient",), (0,), (0,)),
    ],
)
def test_a_temperature_moves_the_bias_alone_where_it_has_a_standard_deviation_and_company(
    names: tuple[str, ...], free: tuple[int, ...], fixed: tuple[int, ...]
) -> None:
    ranges = [Conditioned(0.1, 1.0, name) for name in names]
    assert (multiplying(ranges, True), multiplying(ranges, False)) == (free, fixed)


def test_features_are_the_entries_and_their_products() -> None:
    u = torch.tensor([[2.0, 3.0, 5.0]])
    assert features(u).tolist() == [[2, 3, 5, 4, 6, 10, 9, 15, 25]]
    assert np_features(u.numpy()).tolist() == features(u).tolist()
    assert [features_size(k) for k in (1, 2, 3)] == [features(torch.zeros(1, k)).shape[1] for k in (1, 2, 3)]


# --- the scale


def episodes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u, spread and length of episodes whose spread is exp(1 + 2 u0 - u1 + u0^2 / 2) but for noise."""
    generator = torch.Generator().manual_seed(seed)
    u = 2 * torch.rand(count, 2, generator=generator) - 1
    log = truth(u) + 0.1 * torch.randn(count, generator=generator)
    return u, log.exp(), torch.randint(100, 1000, (count,), generator=generator)


def truth(u: torch.Tensor) -> torch.Tensor:
    return 1 + 2 * u[:, 0] - u[:, 1] + u[:, 0] ** 2 / 2


def test_the_scale_fits_a_function_of_the_weights_and_forgets() -> None:
    scale, probe = ToldScale(2), 2 * torch.rand(500, 2) - 1
    assert (scale.at(probe) == 1).all()
    assert scale.merge(ToldScale.sums(*episodes(60, 0)), probe) == 1.0  # values of nothing have no scale to follow
    for seed in range(1, 10):
        scale.merge(ToldScale.sums(*episodes(60, seed)), probe)
    assert scale.at(probe).log().numpy() == pytest.approx(truth(probe).numpy(), abs=0.15)
    # Another problem: the old spreads, ten times as large, are forgotten within a few horizons.
    before, factors = scale.at(probe), []
    for seed in range(20):
        u, spreads_, lengths = episodes(60, seed)
        factors.append(scale.merge(ToldScale.sums(u, spreads_ / 10, lengths), probe))
    assert (before / scale.at(probe)).log().mean().item() == pytest.approx(math.log(10), abs=0.1)
    # All factors together: how much smaller the scale is now, in the geometric mean.
    assert math.prod(factors) == pytest.approx((before / scale.at(probe)).log().mean().exp().item(), rel=1e-6)
    assert float(scale.moments[0, 0]) < 1.5 * ToldScale.HORIZON


def test_the_scale_of_two_learners_is_that_of_one() -> None:
    probe, (u, spreads_, lengths) = torch.rand(9, 2), episodes(60, 0)
    one, two = ToldScale(2), ToldScale(2)
    one.merge(ToldScale.sums(u, spreads_, lengths), probe)
    halves = [ToldScale.sums(u[half], spreads_[half], lengths[half]) for half in (slice(0, 17), slice(17, 60))]
    two.merge(halves[0] + halves[1], probe)
    assert two.at(probe).numpy() == pytest.approx(one.at(probe).numpy(), rel=1e-9)
    # Spreads of zero tell nothing.
    before = one.at(probe)
    assert one.merge(ToldScale.sums(u, torch.zeros(60), lengths), probe) == 1.0
    assert torch.equal(one.at(probe), before)
    # A few steps at one weight do not make a slope.
    few = ToldScale(2)
    few.merge(ToldScale.sums(torch.tensor([[0.5, -0.9]]), torch.tensor([7.0]), torch.tensor([64])), probe)
    assert few.at(probe).log().numpy() == pytest.approx(math.log(7), abs=0.15)


def test_spreads_are_those_of_single_episodes() -> None:
    """Two environments; the first one's episode ends after 40 of 100 steps, the second one's at 95."""
    returns = torch.randn(100, 2).cumsum(0)
    done = torch.zeros(100, 2, dtype=torch.bool)
    done[39, 0] = done[94, 1] = done[99, 0] = True
    u = torch.tensor([[0.1], [0.2]]).expand(100, 2, 1).clone()
    u[40:, 0] = 0.3
    u[95:, 1] = 0.4
    found = spreads(returns, done, u)
    assert found[0][:, 0].tolist() == pytest.approx([0.1, 0.3, 0.2])  # 5 steps are left out
    assert found[2].tolist() == [40, 60, 95]
    expected = [spread(returns[:40, 0]), spread(returns[40:, 0]), spread(returns[:95, 1])]
    assert found[1].tolist() == pytest.approx([float(x) for x in expected])


@pytest.mark.parametrize("length", [1, 5, 15])
def test_short_episodes_have_a_scale_too(length: int) -> None:
    """Where no episode is as long as ``SHORTEST_PART``, those that were told about the same stand together."""
    t, n = 60, 8
    generator, draws, scale = torch.Generator().manual_seed(0), Draws(1, np.random.default_rng(0)), ToldScale(1)
    done = (torch.arange(1, t + 1) % length == 0)[:, None].expand(t, n)
    for _ in range(40):
        per_episode = torch.from_numpy(draws.take(t * n // length)[:, 0]).view(t // length, n)
        u = per_episode.repeat_interleave(length, 0)[..., None]
        returns = torch.randn(t, n, generator=generator) * (1 + 2 * u[..., 0]).exp()
        told_, found, lengths = spreads(returns, done, u)
        assert int(lengths.sum()) == t * n
        assert int(lengths.min()) >= SHORTEST_PART
        assert len(lengths) >= t * n // (SHORTEST_PART + length)
        scale.merge(ToldScale.sums(told_, found, lengths), u)
    probe = torch.linspace(-0.9, 0.9, 7)[:, None]
    assert scale.at(probe).log().numpy() == pytest.approx(1 + 2 * probe[:, 0].numpy(), abs=0.4)
    tiny = spreads(returns[:3], done[:3], u[:3])  # less than one part in all
    assert tiny[2].tolist() == [24]
