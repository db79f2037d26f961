"""The step that leaves the trust region is shortened to end at its bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from rpg_algorithms.rllib.trust_region import CLOSE, TOLERANCE, TrustRegion

SHAPES: dict[str, Callable[[float], float]] = {
    "of a short step": lambda x: x**2,
    "slower": lambda x: x**1.5,
    "faster": lambda x: x**3,
    "of an outlier": lambda x: math.expm1(min(8 * x, 700.0)) - 8 * x + x**2,
    "infinite far away": lambda x: x**2 if x < 3 else math.inf,
}


class Line:
    """A policy on a line, at a distance from the one that acted."""

    def __init__(self, shape: Callable[[float], float]) -> None:
        self.shape, self.place, self.stride = shape, 0.0, 0.0

    def kl(self) -> float:
        return self.shape(self.place)

    def undo(self, share: float) -> None:
        self.place -= share * self.stride
        self.stride *= 1 - share

    def step(self, stride: float) -> None:
        self.stride = stride
        self.place += stride


@pytest.mark.parametrize("strides", [(30.0,), (1.0,), (0.02, 30.0), (0.01, 0.01, 0.8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_step_ends_at_the_limit_whatever_came_before(strides: tuple[float, ...], shape: str) -> None:
    region, line = TrustRegion(0.1), Line(SHAPES[shape])
    region.begin()
    for stride in strides:
        assert not region.ends(line.kl(), line.undo, line.kl)
        line.step(stride)
    before = line.place - line.stride
    assert line.kl() > TOLERANCE * region.limit
    assert region.ends(line.kl(), line.undo, line.kl)
    assert before < line.place < sum(strides)
    assert CLOSE * region.limit <= line.kl() <= TOLERANCE * region.limit


def test_a_step_that_leads_hardly_too_far_stays_and_what_another_iteration_did_does_too() -> None:
    region, line = TrustRegion(0.1), Line(SHAPES["of a short step"])
    region.begin()
    assert not region.ends(line.kl(), line.undo, line.kl)
    line.step(math.sqrt(0.11))
    assert region.ends(line.kl(), line.undo, line.kl)
    assert line.place == math.sqrt(0.11)
    line.step(30.0)
    region.begin()
    assert region.ends(line.kl(), line.undo, line.kl)  # no step of this iteration is there to shorten
    assert line.place > 30.0


def test_where_no_try_ends_in_the_region_the_step_is_taken_back_and_nothing_mends_nan() -> None:
    region, line = TrustRegion(0.1), Line(lambda x: 0.2 if x > 0.5 else x)
    region.begin()
    assert not region.ends(line.kl(), line.undo, line.kl)
    line.step(0.5)
    region._before = 0.05
    line.shape = lambda _: 0.2  # on this minibatch the KL is above the limit wherever the step ends
    assert region.ends(line.kl(), line.undo, line.kl)
    assert line.place == pytest.approx(0.0)
    line.step(0.5)
    assert region.ends(math.nan, line.undo, line.kl)
    assert line.place == pytest.approx(0.5)
