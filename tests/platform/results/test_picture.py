"""The picture of a sweep, by its pixels: what is marked is there, and only then."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from tests.platform.results.trials import evaluated, trials_of

from rpg_platform.results.picture import MOST_NUMBERED, tradeoff_png
from rpg_platform.results.report import TrialResult
from rpg_platform.results.rows import Evaluation, Row, summarise
from rpg_platform.spec.sections import Objective

GOLD = (217, 154, 0)


def rows_of(seeds: int, kl: float = 9.0, settings: int = 2) -> list[Row]:
    """The prior and settings whose total rises; only one whose KL is at most 2 is feasible."""
    grid = [0.1 * (i + 1) for i in range(settings)]
    trials = trials_of(weights={"omega_prime": {"grid": grid}, "alpha_hat": 0.02}, seeds=seeds)
    objective = Objective.model_validate({"constraints": {"kl_to_prior": {"max": kl}}})
    results: list[TrialResult] = []
    for trial in trials.values():
        w = trial.weights.get("omega_prime", 0.0)
        assert isinstance(w, float)
        report = evaluated(5000.0 - 900 * w + 150 * trial.seed, -1500.0 + 2000 * w - 90 * trial.seed, kl=10 * w)
        results.append((trial, report, None))
    return summarise(results, objective)


def pixels(rows: list[Row]) -> np.ndarray:
    png = tradeoff_png(rows, title="a title")
    assert png is not None
    image = matplotlib.image.imread(io.BytesIO(png), format="png")
    return np.round(255 * image[..., :3]).astype(int)


def count(image: np.ndarray, colour: tuple[int, int, int], *, axes: bool = True) -> int:
    """Pixels of a colour, inside the axes (the left 70 %) or in all of the picture."""
    part = image[:, : int(0.7 * image.shape[1])] if axes else image
    return int((part == colour).all(axis=-1).sum())


def test_the_best_has_a_golden_ring_where_it_stands() -> None:
    free, bound = pixels(rows_of(1)), pixels(rows_of(1, kl=1.5))
    assert count(free, GOLD) > 300
    assert count(bound, GOLD) > 300
    where = [np.argwhere((image[:, :900] == GOLD).all(axis=-1)).mean(axis=0) for image in (free, bound)]
    assert np.abs(where[0] - where[1]).max() > 30  # the constraint moves it to another setting
    none = Objective.model_validate({"constraints": {"episode_length": {"min": 10_000}}})
    trials = [(t, evaluated(1.0, 2.0), None) for t in trials_of(seeds=1).values()]
    assert count(pixels(summarise(trials, none)), GOLD, axes=False) == 0


def test_bars_are_the_interval_over_seeds() -> None:
    """Another interval is another picture; another standard deviation is not."""
    rows = rows_of(3, settings=1)
    assert tradeoff_png(rows) == tradeoff_png([row if row.is_prior else changed(row, std=9.0) for row in rows])
    wide = [row if row.is_prior else changed(row, mean_interval=(1000.0, 9000.0)) for row in rows]
    assert tradeoff_png(rows) != tradeoff_png(wide)
    # One seed has no interval: its bar is its episodes' standard deviation.
    alone = rows_of(1, settings=1)
    assert tradeoff_png(alone) != tradeoff_png([changed(row, std=300.0) for row in alone])


def changed(row: Row, **figures: Any) -> Row:
    """The row with other figures of its basic return."""
    basic = replace(row.deterministic.basic_return, **figures)
    return replace(row, deterministic=Evaluation(row.deterministic | {"basic_return": basic}))


def test_what_breaks_a_constraint_is_pale() -> None:
    rows = rows_of(1, kl=1.5)
    assert [bool(row.violations) for row in rows] == [False, False, True]
    feasible = [replace(row, violations=()) for row in rows]
    yellow = tuple(round(255 * part) for part in matplotlib.colormaps["cividis"](0.92)[:3])  # the larger weight's
    assert count(pixels(feasible), yellow) > count(pixels(rows), yellow) + 50


def test_the_size_is_the_kl() -> None:
    rows = rows_of(1)
    smaller = [
        replace(row, kl_to_prior=replace(row.kl_to_prior, mean=0.1)) if i == 0 else row for i, row in enumerate(rows)
    ]
    assert tradeoff_png(rows) != tradeoff_png(smaller)


def test_nothing_to_draw_and_too_many_to_number() -> None:
    assert tradeoff_png([]) is None
    trial = next(iter(trials_of().values()))
    assert tradeoff_png(summarise([(trial, None, "broke")])) is None
    many = pixels(rows_of(1, settings=MOST_NUMBERED + 1))
    few = pixels(rows_of(1, settings=3))
    assert many.shape == few.shape


@pytest.mark.parametrize("mode", ["deterministic", "sampled"])
def test_same_rows_same_picture(mode: str) -> None:
    rows = rows_of(2)
    first, again = (tradeoff_png(rows, mode=mode) for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    assert (tradeoff_png(rows) == first) == (mode == "deterministic")
