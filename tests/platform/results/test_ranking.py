"""What is best: constraints by hand, the order, and the Pareto set against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from rpg_platform.results.ranking import needed, needs_prior, order_key, pareto_set, violations
from rpg_platform.spec.sections import Constraints, Objective

NAN, INF = math.nan, math.inf


def broken(figures: dict[str, float], prior: dict[str, float] | None = None, **constraints: Any) -> list[str]:
    return [str(each) for each in violations(Constraints.model_validate(constraints), figures, prior)]


def test_constraints_by_hand() -> None:
    assert broken({"kl_to_prior": 3.0}, kl_to_prior={"max": 3}) == []
    assert broken({"kl_to_prior": 3.3}, kl_to_prior={"max": 3}) == ["kl_to_prior at most 3, is 3.3 (10 % beyond)"]
    assert broken({"addon_return": -220.0}, addon_return={"min": -200}) == [
        "addon_return at least -200, is -220 (10 % beyond)"
    ]
    both = {"kl_to_prior": {"max": 0}, "task_metric": {"min": 1, "max": 2}}
    assert broken({"kl_to_prior": 0.5, "task_metric": 4.0}, **both) == [
        "kl_to_prior at most 0, is 0.5 (50 % beyond)",
        "task_metric at most 2, is 4 (100 % beyond)",
    ]


@pytest.mark.parametrize(
    ("prior", "enough", "too_little"),
    [(5000.0, 4500.0, 4499.0), (0.0, 0.0, -1.0), (-100.0, -110.0, -111.0)],
    ids=["positive", "none", "negative"],
)
def test_a_share_of_the_prior(prior: float, enough: float, too_little: float) -> None:
    share = {"basic_return": {"min_fraction_of_prior": 0.9}}
    of_prior = {"basic_return": prior}
    assert broken({"basic_return": enough}, of_prior, **share) == []
    [words] = broken({"basic_return": too_little}, of_prior, **share)
    assert words.startswith(f"basic_return at least {enough:g} (90 % of the prior's {prior:g}), is {too_little:g}")
    assert broken(of_prior, of_prior, basic_return={"min_fraction_of_prior": 1}) == []


def test_the_unknown_satisfies_nothing() -> None:
    for figures in ({}, {"kl_to_prior": NAN}):
        (found,) = violations(Constraints.model_validate({"kl_to_prior": {"max": 3}}), figures)
        assert (found.excess, str(found)) == (INF, "kl_to_prior at most 3, unknown")
    share = {"basic_return": {"min_fraction_of_prior": 0.9}}
    assert broken({"basic_return": 1e9}, None, **share) != []
    assert broken({"basic_return": 1e9}, {"basic_return": NAN}, **share) != []
    assert broken({"total_return": INF}, total_return={"min": 0}) == []


def test_order() -> None:
    """Feasible before infeasible, better before worse, nearer before farther, unknown last."""

    def key(value: float, *excess: float) -> tuple[object, ...]:
        constraints = Constraints.model_validate({"kl_to_prior": {"max": 1}, "episode_length": {"max": 1}})
        names = ("kl_to_prior", "episode_length")
        figures = dict.fromkeys(names, 0.0) | {n: 1 + e for n, e in zip(names, excess, strict=False)}
        return order_key(value, violations(constraints, figures))

    best_first = [key(5.0), key(-3.0), key(NAN), key(-9.0, 0.1), key(2.0, 0.5, 0.2), key(1.0, 0.2, 0.5), key(9.0, INF)]
    shuffled = [best_first[i] for i in (3, 6, 0, 5, 2, 4, 1)]
    assert sorted(shuffled) == best_first


def test_what_an_objective_looks_at() -> None:
    plain = Objective()
    assert (needed(plain), needs_prior(plain)) == ({"total_return"}, False)
    constraints = {"kl_to_prior": {"max": 3}, "basic_return": {"min_fraction_of_prior": 0.9}}
    bound = Objective.model_validate({"maximize": "addon_return", "constraints": constraints})
    assert (needed(bound), needs_prior(bound)) == ({"addon_return", "kl_to_prior", "basic_return"}, True)
    kl = Objective.model_validate({"constraints": {"kl_to_prior": {"max": 3}, "basic_return": {"min": 0}}})
    assert not needs_prior(kl)


def brute_force(points: list[tuple[float, ...]]) -> list[bool]:
    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    return [not any(dominates(other, point) for other in points) for point in points]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pareto_set_is_that_of_all_pairs(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpg_platform.results.ranking._AT_ONCE", 7)
    generator = np.random.default_rng(3)
    sizes = set()
    for n, values in itertools.product((1, 2, 9, 40), (3, 1000)):
        points = generator.integers(0, values, (n, dimensions)).astype(float)  # few values: many ties
        expected = brute_force([tuple(point) for point in points])
        assert pareto_set(points).tolist() == expected
        sizes.add(sum(expected))
    assert len(sizes) > 1


def test_pareto_set_by_hand() -> None:
    """Basic return, add-on return, -KL; the last setting has no KL."""
    points = [(5.0, 1.0, 0.0), (4.0, 2.0, -1.0), (4.0, 2.0, -2.0), (3.0, 3.0, -5.0), (3.0, 3.0, -5.0), (6.0, 0.0, NAN)]
    assert pareto_set(points).tolist() == [True, True, False, True, True, True]
    assert pareto_set([(1.0, NAN), (1.0, -1e9)]).tolist() == [False, True]
    assert pareto_set(np.empty((0, 3))).tolist() == []
    with pytest.raises(ValueError, match=r"points: expected \[points, dimensions\], got shape \(2,\)"):
        pareto_set([1.0, 2.0])
