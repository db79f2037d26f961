"""An adaptive search's table: it sees means over seeds, forgets nothing, and finds what it looks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from tests.platform.resolved import resolved

from rpg_platform.results.ranking import pareto_set
from rpg_platform.search.proposals import Proposals
from rpg_platform.search.start import table_of
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.trials import count_trials

Landscape = Callable[[Mapping[str, Any]], Mapping[str, float]]
SPACES = {"omega_prime": {"loguniform": [0.01, 1.0]}, "alpha_hat": {"uniform": [0.0, 1.0]}}


def sweep(**changes: Any) -> SweepSpec:
    raw: dict[str, Any] = {
        "name": "asked",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": SPACES,
        "samples": 12,
        "seeds": 2,
        "search": {"method": "optuna", "startup": 4},
        "budget": {"env_steps": 100_000},
    }
    return SweepSpec.model_validate(raw | changes)


def report(**figures: float) -> dict[str, Any]:
    """The last report of a trial that finished."""
    every = {"basic_return": 0.0, "addon_return": 0.0, "total_return": 0.0} | figures
    flat = {f"eval/deterministic/{name}_mean": value for name, value in every.items() if name != "kl_to_prior"}
    return {"finished": True, "eval/kl_to_prior": every.get("kl_to_prior", 0.0), **flat}


def hill(weights: Mapping[str, Any]) -> dict[str, float]:
    """Highest at omega_prime 0.1, alpha_hat 0.7."""
    x, y = math.log10(weights["omega_prime"]) + 1, weights["alpha_hat"] - 0.7
    return {"total_return": -(x**2) - 4 * y**2}


def table(spec: SweepSpec, kept: Sequence[Mapping[str, Any]] = ()) -> tuple[Proposals, list[Mapping[str, Any]]]:
    written = list(kept)
    made = table_of(resolved(spec, "/nowhere"), kept, lambda number, proposal: written.insert(number, proposal))
    assert made is not None
    return made, written


def finish(proposals: Proposals, trials: Sequence[TrialSpec], landscape: Landscape = hill) -> None:
    for trial in trials:
        noise = 0.5 if trial.seed % 2 else -0.5  # nothing in the mean over two seeds
        figures = {name: value + noise for name, value in landscape(trial.weights).items()}
        proposals.end(trial.trial_id, report(**figures))


def run(proposals: Proposals, landscape: Landscape = hill) -> list[Mapping[str, Any]]:
    while (trials := proposals.propose()) is not None:
        finish(proposals, trials, landscape)
    return [trials[0].weights for trials in proposals.trials]


def test_a_proposal_is_one_trial_a_seed_and_is_seen_as_their_mean() -> None:
    spec = sweep(seeds=[3, 5, 8], objective={"constraints": {"kl_to_prior": {"max": 2.0}}})
    proposals, _ = table(spec)
    first = proposals.propose()
    assert first is not None
    assert [trial.seed for trial in first] == [3, 5, 8]
    assert first[0].trial_id == f"rpg-omega_prime={first[0].weights['omega_prime']:.6g}-alpha_hat=" + (
        f"{first[0].weights['alpha_hat']:.6g}-seed=3"
    )
    for trial, value in zip(first[:2], (1.0, 2.0), strict=True):
        proposals.end(trial.trial_id, report(total_return=value, kl_to_prior=3.0))
    [outcome] = proposals.outcomes()
    assert outcome.state == "running", "two of three seeds are no result"
    proposals.end(first[2].trial_id, report(total_return=6.0, kl_to_prior=3.0))
    [outcome] = proposals.outcomes()
    assert (outcome.state, outcome.values, outcome.violation) == ("finished", (3.0,), 0.5)


def test_what_failed_and_what_was_ended_early_is_told_as_that() -> None:
    proposals, _ = table(sweep(samples=3))
    failed, nan, stopped = (proposals.propose() or [] for _ in range(3))
    proposals.end(failed[0].trial_id, None)
    proposals.end(failed[1].trial_id, report(total_return=1e9))
    finish(proposals, nan, lambda weights: {"total_return": math.nan})
    early = {"stopped_by": "asha", "rung/1000/total_return": 2.0, "rung/3000/total_return": 7.0}
    proposals.end(stopped[0].trial_id, early)
    proposals.end(stopped[1].trial_id, {"stopped_by": "asha", "rung/1000/total_return": 4.0, "rung/prior/x": 0.0})
    assert [(o.state, o.values, o.rung) for o in proposals.outcomes()] == [
        ("failed", (), 0),
        ("failed", (), 0),
        ("stopped", (3.0,), 1000),
    ]


def test_a_constraint_relative_to_the_prior_waits_for_the_prior() -> None:
    proposals, _ = table(sweep(objective={"constraints": {"basic_return": {"min_fraction_of_prior": 0.9}}}))
    trials = proposals.propose() or []
    for trial in trials:
        proposals.end(trial.trial_id, report(basic_return=81.0))
    assert proposals.outcomes()[0].state == "running"
    proposals.end("prior", report(basic_return=100.0))
    assert proposals.outcomes()[0].violation == pytest.approx(0.1)


@pytest.mark.parametrize("objectives", [[], ["basic_return", "addon_return", "kl_to_prior"]])
def test_a_table_rebuilt_goes_on_as_it_would_have(objectives: list[str]) -> None:
    def landscape(weights: Mapping[str, Any]) -> dict[str, float]:
        return hill(weights) | {"basic_return": weights["alpha_hat"], "kl_to_prior": weights["omega_prime"]}

    spec = sweep(search={"method": "optuna", "startup": 3, "objectives": objectives})
    continued, written = table(spec)
    whole = run(continued, landscape)
    assert len(whole) == len({str(w) for w in whole}) == 12
    for kept in (1, 5, 8):
        rebuilt, more = table(spec, written[:kept])
        for trials in rebuilt.trials:
            finish(rebuilt, trials, landscape)
        assert run(rebuilt, landscape) == whole
        assert more == written
    other, _ = table(sweep(search_seed=1))
    assert run(other, landscape) != whole


def test_settings_that_still_run_are_kept_away_from() -> None:
    proposals, _ = table(sweep(samples=40))
    for _ in range(20):
        finish(proposals, proposals.propose() or [])
    pending = [(proposals.propose() or [])[0].weights for _ in range(8)]
    assert len({str(each) for each in pending}) == 8
    assert [o.state for o in proposals.outcomes()][20:] == ["running"] * 8


def test_more_samples_and_seeds_extend_what_was_proposed() -> None:
    first, written = table(sweep(samples=5))
    before = run(first)
    more, _ = table(sweep(samples=9, seeds=3), written)
    assert [trials[0].weights for trials in more.trials] == before
    assert [len(trials) for trials in more.trials] == [3] * 5
    assert more.to_come == 4


def test_choices_are_tried_once_each_and_then_it_ends() -> None:
    spaces = {"omega_prime": {"choice": [0.1, [[0, 0.2], [1000, 0.1]]]}, "alpha_hat": {"choice": [0.1, 0.2]}}
    spec = sweep(weights=spaces, samples=4, baselines=["greedy"])
    proposals, written = table(spec)
    found = run(proposals, lambda weights: {"total_return": 1.0})
    assert len({str(each) for each in found}) == len(found) == 4
    rebuilt, _ = table(spec, written)
    assert [trials[0] for trials in rebuilt.trials] == [trials[0] for trials in proposals.trials], "schedules too"
    assert count_trials(spec) == len(expand(spec)) + 4 * 2 == 1 + 2 + 8


def test_it_finds_the_top_of_a_hill_sooner_than_chance() -> None:
    def best(search: Any, seed: int) -> float:
        spec = sweep(samples=40, seeds=2, search=search, search_seed=seed)
        if search == "random":
            return max(hill(trial.weights)["total_return"] for trial in expand(spec)[1:])
        return max(hill(weights)["total_return"] for weights in run(table(spec)[0]))

    seeds = range(5)
    searched = [best({"method": "optuna", "startup": 8}, seed) for seed in seeds]
    by_chance = [best("random", seed) for seed in seeds]
    assert sum(searched) > sum(by_chance)
    assert sum(s > c for s, c in zip(searched, by_chance, strict=True)) >= 4
    assert min(searched) > -0.01


def trade_off(weights: Mapping[str, Any]) -> dict[str, float]:
    """The more of the prior is kept, the higher the basic and the lower the add-on return."""
    x, waste = weights["alpha_hat"], abs(math.log10(weights["omega_prime"]) + 1)
    return {"basic_return": x - waste, "addon_return": 1 - x**2 - waste, "kl_to_prior": 1 - x}


def area(points: Sequence[tuple[float, ...]]) -> float:
    """What at least one of the points is better than, of the unit square."""
    total, height = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > height:
            total, height = total + x * (y - height), y
    return total


@pytest.mark.parametrize("seed", range(3))
def test_it_trades_off_several_objectives_within_constraints(seed: int) -> None:
    spec = sweep(
        samples=60,
        search_seed=seed,
        search={"method": "optuna", "objectives": ["basic_return", "addon_return"]},
        objective={"constraints": {"kl_to_prior": {"max": 0.5}}},
    )
    proposals, _ = table(spec)
    while (trials := proposals.propose()) is not None:
        for trial in trials:
            proposals.end(trial.trial_id, report(**trade_off(trial.weights)))
    outcomes = proposals.outcomes()
    assert sum(each.violation == 0 for each in outcomes[30:]) > 20, "half of all settings satisfy the constraint"
    values = [each.values for each in outcomes if each.violation == 0]
    drawn = [trade_off(trial.weights) for trial in expand(sweep(samples=60, search_seed=seed, search="random"))[1:]]
    chance = [(each["basic_return"], each["addon_return"]) for each in drawn if each["kl_to_prior"] <= 0.5]
    assert area(values) > 1.1 * area(chance)
    assert sum(pareto_set(values)) >= 5
