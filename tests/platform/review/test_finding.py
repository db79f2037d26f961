"""The weight that a rule asks for, on responses whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_platform.review.choice import parse_rule
from rpg_platform.review.finding import FIRST, Array, NothingFoundError, find_weight

TOLD = Conditioned(0.02, 1.6, "omega_prime")
SEEDS, EPISODES = 3, 20
PRIOR = {name: np.full((1, EPISODES), value) for name, value in (("basic_return", 7000.0), ("addon_return", -3000.0))}


def response(weight: float) -> dict[str, Array]:
    """More of the weight keeps more and adds less, a straight line in ``u``; seeds and episodes lie around it."""
    u = TOLD.told(weight)
    apart = 20.0 * np.random.default_rng(0).normal(size=(2, SEEDS, EPISODES))
    basic, addon = 6300.0 + 500.0 * u + apart[0], -1500.0 - 700.0 * u + apart[1]
    return {"basic_return": basic, "addon_return": addon, "total_return": 8000.0 - 900.0 * (u - 0.3) ** 2 + apart[0]}


def test_the_bound_of_a_constraint_is_found() -> None:
    looked: list[float] = []
    rule = parse_rule("max addon_return where basic_return >= 0.93 * prior")
    found = find_weight(TOLD, rule, response, PRIOR, lambda weight, _: looked.append(weight))
    off = float(response(0.1)["basic_return"].mean()) - (6300.0 + 500.0 * TOLD.told(0.1))
    u = (0.93 * 7000.0 - 6300.0 - off) / 500.0
    assert TOLD.told(found.value) == pytest.approx(u, abs=0.01)
    assert found.interval[0] < found.value < found.interval[1]
    assert TOLD.told(found.interval[1]) - TOLD.told(found.interval[0]) < 0.2
    assert found.figures["basic_return"] == pytest.approx(0.93 * 7000.0, abs=5)
    assert list(found.at) == looked
    assert len(looked) <= FIRST + 12


def test_the_top_of_a_curve_is_found_between_the_first_weights() -> None:
    found = find_weight(TOLD, parse_rule("max total_return"), response, PRIOR)
    assert TOLD.told(found.value) == pytest.approx(0.3, abs=0.05)


def test_what_no_weight_satisfies_is_said_with_the_nearest() -> None:
    rule = parse_rule("max addon_return where basic_return >= 1 * prior")
    with pytest.raises(
        NothingFoundError, match=r"no omega_prime from 0.02 to 1.6 .* nearest is 1.6: basic_return at least"
    ):
        find_weight(TOLD, rule, response, PRIOR)
