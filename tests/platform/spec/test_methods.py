"""The table of methods: which weights each takes, and which arguments they become."""

from __future__ import annotations

import pytest

from rpg_platform.spec.methods import METHODS, WEIGHTS, MethodName, training_arguments, weight_faults
from rpg_platform.spec.space import WeightValue

FALLING = ((0, 0.2), (1000, 0.05))


def test_the_table_is_complete() -> None:
    assert all(name == method.name and method.summary for name, method in METHODS.items())
    assert {name for method in METHODS.values() for name in method.takes} == set(WEIGHTS)


@pytest.mark.parametrize(
    ("method", "weights", "algorithm", "arguments"),
    [
        (
            "rpg",
            {"omega_prime": 0.1, "alpha_hat": 0.02},
            "rpg",
            {"omega_prime": 0.1, "alpha_hat": 0.02, "addon_weight": 1.0},
        ),
        (
            "rpg",
            {"omega": 1.0, "alpha_hat": 0.02, "addon_weight": 2.0},
            "rpg",
            {"omega": 1.0, "alpha_hat": 0.02, "addon_weight": 2.0},
        ),
        ("kl", {"kl_coefficient": 0.1}, "rpg", {"kl_coefficient": 0.1, "addon_weight": 1.0}),
        ("greedy", {}, "rpg", {"omega_prime": 0.0, "alpha_hat": 0.0, "addon_weight": 1.0}),
        ("greedy", {"alpha_hat": 0.02}, "rpg", {"omega_prime": 0.0, "alpha_hat": 0.02, "addon_weight": 1.0}),
        ("full", {"alpha": 0.02}, "spg", {"alpha": 0.02, "basic_weight": 1.0, "addon_weight": 1.0}),
        ("full", {"alpha": 0.02, "omega": 0.5}, "spg", {"alpha": 0.02, "basic_weight": 0.5, "addon_weight": 1.0}),
        ("spg", {"alpha": 0.1}, "spg", {"alpha": 0.1, "basic_weight": 1.0, "addon_weight": 0.0}),
        ("ppo", {}, "spg", {"alpha": 0.0, "entropy_coeff": 0.0, "basic_weight": 1.0, "addon_weight": 0.0}),
        (
            "repeat-entropy",
            {"alpha": 0.1},
            "spg",
            {"alpha": 0.1, "entropy_coeff": 0.1, "basic_weight": 1.0, "addon_weight": 0.0},
        ),
        (
            "repeat-entropy",
            {"alpha": 0.1, "entropy_coeff": 0.01},
            "spg",
            {"alpha": 0.1, "entropy_coeff": 0.01, "basic_weight": 1.0, "addon_weight": 0.0},
        ),
        ("prior", {}, None, {}),
        ("kl", {"kl_coefficient": FALLING}, "rpg", {"kl_coefficient": [[0, 0.2], [1000, 0.05]], "addon_weight": 1.0}),
    ],
)
def test_weights_become_arguments(
    method: MethodName, weights: dict[str, WeightValue], algorithm: str | None, arguments: dict[str, object]
) -> None:
    assert training_arguments(method, weights) == arguments
    made_by = METHODS[method].config
    assert (made_by and made_by.removeprefix("rpg_algorithms:").removesuffix("Config").lower()) == algorithm


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_every_method_is_accepted_and_less_or_more_is_not(method: MethodName) -> None:
    row = METHODS[method]
    for way in row.ways:
        assert weight_faults(method, way) == []
        assert weight_faults(method, [*way, *row.optional]) == []
        foreign = next(name for name in WEIGHTS if name not in row.takes)
        assert [name for name, _ in weight_faults(method, [*way, foreign])] == [foreign]
        for name in way:
            assert [name for name, _ in weight_faults(method, [w for w in way if w != name])] == [None]


def test_two_ways_at_once() -> None:
    [(name, message)] = weight_faults("rpg", ["omega_prime", "omega", "alpha_hat"])
    assert name == "omega"
    assert message.startswith("cannot be given together with omega_prime")


def test_refused_arguments_name_the_weight() -> None:
    with pytest.raises(ValueError, match=r"weights\.alpha: method 'rpg' does not take it"):
        training_arguments("rpg", {"alpha": 0.1})
    with pytest.raises(ValueError, match=r"weights: method 'rpg' takes either .*; given: omega_prime"):
        training_arguments("rpg", {"omega_prime": 0.1})
