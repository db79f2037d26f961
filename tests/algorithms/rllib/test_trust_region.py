"""The step that leaves the trust region is shortened to end at its bound."""

from __future__ import annotations

import math

import pytest

from rpg_algorithms.rllib.trust_region import TOLERANCE, TrustRegion


class Line:
    """A policy on a line, whose KL to the one at 0 grows as the ``power`` of its distance."""

    def __init__(self, power: float) -> None:
        self.power, self.place, self.stride, self.looks = power, 0.0, 0.0, 0

    def kl(self) -> float:
        self.looks += 1
        return self.place**self.power

    def undo(self, share: float) -> None:
        self.place -= share * self.stride
        self.stride *= 1 - share

    def step(self, stride: float) -> None:
        self.stride = stride
        self.place += stride


@pytest.mark.parametrize("strides", [(30.0,), (0.05, 30.0), (0.1, 0.1, 0.5)])
@pytest.mark.parametrize("power", [2.0, 1.5, 3.0])  # 2 is a short step's; a long one's KL may grow otherwise
def test_the_last_step_ends_at_the_limit_whatever_came_before(strides: tuple[float, ...], power: float) -> None:
    region, line = TrustRegion(0.1), Line(power)
    region.begin()
    for stride in strides:
        assert not region.is_left(line.kl(), line.undo, line.kl)
        line.step(stride)
    assert line.kl() > TOLERANCE * region.limit
    before = line.place - line.stride
    assert region.is_left(line.kl(), line.undo, line.kl)
    assert before < line.place < sum(strides)
    assert line.kl() <= 2 * region.limit
    if power == 2.0:
        assert line.place == pytest.approx(math.sqrt(region.limit))


def test_a_step_that_leads_hardly_too_far_stays_and_what_another_iteration_did_does_too() -> None:
    region, line = TrustRegion(0.1), Line(2.0)
    region.begin()
    assert not region.is_left(line.kl(), line.undo, line.kl)
    line.step(math.sqrt(0.11))
    assert region.is_left(line.kl(), line.undo, line.kl)
    assert line.place == math.sqrt(0.11)
    line.step(30.0)
    region.begin()
    assert region.is_left(line.kl(), line.undo, line.kl)  # no step of this iteration is there to shorten
    assert line.place > 30.0
