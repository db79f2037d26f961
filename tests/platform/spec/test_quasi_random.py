"""Quasi-random settings: a function of the specification, each sequence the beginning of a longer one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from rpg_platform.spec.checks import expand
from rpg_platform.spec.quasi_random import points
from rpg_platform.spec.sweep import SweepSpec


def weights(**changes: Any) -> list[dict[str, Any]]:
    raw: dict[str, Any] = {
        "name": "even",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"loguniform": [0.01, 1.0]}, "alpha_hat": {"uniform": [0.01, 0.05]}},
        "samples": 16,
        "search": "quasi_random",
        "budget": {"env_steps": 100_000},
    }
    return [dict(trial.weights) for trial in expand(SweepSpec.model_validate(raw | changes))[1:]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**31 - 1))
def test_more_points_leave_the_earlier_ones(dimensions: int, few: int, more: int, seed: int) -> None:
    longer = points(dimensions, few + more, seed)
    assert len(longer) == few + more
    assert longer[:few] == points(dimensions, few, seed)
    assert all(0 <= u < 1 for point in longer for u in point)


def test_more_samples_leave_the_earlier_settings_and_another_seed_gives_others() -> None:
    assert weights(samples=23)[:16] == weights()
    assert weights(search_seed=1) != weights()


def test_the_settings_fill_the_space_more_evenly_than_independent_draws() -> None:
    def unevenness(settings: list[dict[str, Any]]) -> float:
        unit = [(math.log(w["omega_prime"] / 0.01) / math.log(100), (w["alpha_hat"] - 0.01) / 0.04) for w in settings]
        return float(qmc.discrepancy(np.clip(unit, 0, 1)))

    seeds = range(5)
    even = [unevenness(weights(search_seed=seed)) for seed in seeds]
    drawn = [unevenness(weights(search_seed=seed, search="random")) for seed in seeds]
    assert max(even) < min(drawn)


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_choices_come_once_each(samples: int) -> None:
    spaces = {"omega_prime": {"choice": [0.1, 0.2, 0.3]}, "alpha_hat": {"choice": [0.01, 0.02]}}
    found = weights(weights=spaces, samples=samples)
    assert len({tuple(each.items()) for each in found}) == len(found) == samples
