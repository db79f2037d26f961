"""The running scale of rewards: what one batch does to it, what it forgets, and what it leaves out."""

from __future__ import annotations

import math

import pytest
import torch

from rpg_algorithms.policies.running import RunningScale


def merged(*spreads: float, samples: int = 4_096) -> tuple[float, list[float]]:
    scale = RunningScale()
    ratios = [scale.merge(torch.tensor(spread, dtype=torch.float64), samples) for spread in spreads]
    return float(scale.value), ratios


def test_the_first_spread_is_the_scale_and_the_mean_is_geometric() -> None:
    assert merged(20.0) == (pytest.approx(20.0), [1.0])
    value, ratios = merged(10.0, 40.0)
    assert value == pytest.approx(20.0)
    assert ratios[1] == pytest.approx(10.0 / 20.0)  # what the critic's values are multiplied by


def test_one_wild_batch_moves_it_little_and_it_follows_what_stays() -> None:
    calm = [20.0] * 50
    assert merged(*calm, 2_000.0)[0] < 25.0
    assert merged(*calm, *[200.0] * 100)[0] == pytest.approx(200.0, rel=0.1)


def test_a_batch_without_spread_tells_nothing() -> None:
    value, ratios = merged(0.0, 0.0, 5.0, 0.0)
    assert value == pytest.approx(5.0)
    assert ratios == [1.0, 1.0, 1.0, 1.0]
    assert math.isclose(float(RunningScale().value), 1.0)
