"""Who goes on at a rung, against cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rpg_platform.search.judge import Judge, Verdict
from rpg_platform.search.rules import Key, asha_goes_on, median_goes_on
from rpg_platform.spec.checks import expand
from rpg_platform.spec.search import Scheduler
from rpg_platform.spec.sweep import SweepSpec, TrialSpec


def key(value: float, excess: float = 0.0) -> Key:
    return (excess > 0, False, excess, -value)


def passed(values: list[float], factor: int) -> list[bool]:
    return [asha_goes_on(key(v), [key(o) for o in values[:i]], factor) for i, v in enumerate(values)]


def test_asha_by_hand() -> None:
    # One of three: of 1, 2, 3, 4, 5 known settings the best 1 goes on, of 6 the best 2, of 9 the best 3.
    assert passed([5, 4, 6, 5.5, 1, 5.7, 5.6, 5.8, 5.75], 3) == [
        *(True, False, True, False, False, True, False, True),
        True,  # 6 and 5.8 are better: third of nine
    ]
    assert passed([1, 1, 1], 3) == [True, True, True], "a tie is not worse"
    assert passed([4, 3, 2, 1], 2) == [True, False, False, False]


def test_a_setting_that_breaks_a_constraint_comes_after_all_that_do_not() -> None:
    assert asha_goes_on(key(1), [key(9, excess=0.1)], 3)
    assert not asha_goes_on(key(9, excess=0.1), [key(1)], 3)


def test_median_by_hand() -> None:
    others = [key(v) for v in (1, 2, 3, 4)]
    assert [median_goes_on(key(v), others, 3) for v in (0, 1.5, 2.5, 5)] == [False, False, True, True]
    assert median_goes_on(key(0), others[:2], 3), "too few to compare with"


@pytest.mark.parametrize(
    ("scheduler", "start", "rungs"),
    [
        ({"asha": {}}, 0, (100_000, 300_000)),  # 900,000 / 9, then times 3
        ({"asha": {"first_rung_env_steps": 50_000, "reduction_factor": 4}}, 0, (50_000, 200_000, 800_000)),
        ({"asha": {}}, 90_000, (180_000, 360_000)),  # laid out over the 810,000 after the warm-up
        ({"median": {}}, 0, (180_000, 360_000, 540_000, 720_000)),
        ({"median": {"grace_env_steps": 500_000, "every_env_steps": 200_000}}, 0, (500_000, 700_000)),
    ],
)
def test_rungs_in_env_steps(scheduler: dict[str, Any], start: int, rungs: tuple[int, ...]) -> None:
    assert Scheduler.model_validate(scheduler).rungs(900_000, start) == rungs


# ---- over seeds ---------------------------------------------------------------------------------
def sweep(**changes: Any) -> SweepSpec:
    raw: dict[str, Any] = {
        "name": "judged",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.1, 0.2, 0.3]}, "alpha_hat": 0.02},
        "seeds": 2,
        "budget": {"env_steps": 900_000},
        "training": {"critic_warmup_iterations": 0},
        "scheduler": {"asha": {"reduction_factor": 2, "first_rung_env_steps": 100_000}},
    }
    return SweepSpec.model_validate(raw | changes)


def judged(spec: SweepSpec, verdicts: tuple[Verdict, ...] = ()) -> tuple[Judge, list[list[TrialSpec]], list[Verdict]]:
    kept: list[Verdict] = []
    assert spec.scheduler is not None
    judge = Judge(spec.scheduler, spec.objective, spec.seeds, kept.append, verdicts)
    trials = [trial for trial in expand(spec) if trial.rungs]
    return judge, [trials[i : i + 2] for i in range(0, len(trials), 2)], kept


def at(rung: int, value: float, **more: float) -> dict[str, float]:
    return {f"rung/{rung}/total_return": value, **{f"rung/{rung}/{name}": v for name, v in more.items()}}


def test_a_setting_is_judged_by_the_mean_of_its_seeds_once_all_have_come() -> None:
    judge, (first, second, third), kept = judged(sweep())
    assert first[0].rungs == (100_000, 200_000, 400_000, 800_000)
    judge.report(first[0], at(100_000, 10))
    assert not kept, "one seed is no setting"
    judge.report(first[0], at(100_000, 10) | at(200_000, 100))  # it is ahead
    judge.report(first[1], at(100_000, 20))
    assert [(v.rung, v.goes_on, v.figures["total_return"]) for v in kept] == [(100_000, True, 15)]
    # One of its seeds is better than any other setting's, the mean is not.
    judge.report(second[0], at(100_000, 28))
    judge.report(second[1], at(100_000, 0))
    assert judge.stopping(second[0].group) == kept[-1]
    assert (kept[-1].goes_on, kept[-1].figures["total_return"]) == (False, 14)
    judge.report(third[0], at(100_000, 16))
    judge.report(third[1], at(100_000, 16))
    assert judge.stopping(third[0].group) is None


def test_verdicts_outlive_the_driver() -> None:
    judge, (first, second, _), kept = judged(sweep())
    for trial, value in ((second[0], 1), (second[1], 1), (first[0], 5), (first[1], 5)):
        judge.report(trial, at(100_000, value))
    assert [v.goes_on for v in kept] == [True, True]
    written = tuple(Verdict.from_json(each.to_json()) for each in kept)
    resumed, (again, worse, third), more = judged(sweep(), written)
    # The first comer would not pass now; it has passed. Nothing is judged twice.
    for trial, value in ((worse[0], 1), (worse[1], 1), (again[0], 5), (again[1], 5)):
        resumed.report(trial, at(100_000, value))
    assert not more
    assert resumed.stopping(worse[0].group) is None
    for trial in third:
        resumed.report(trial, at(100_000, 3))
    assert [v.goes_on for v in more] == [False], "compared with those that an earlier driver has judged"


def test_a_trial_ends_at_the_rung_and_not_before_it_comes_there() -> None:
    judge, (first, second, _), kept = judged(sweep())
    for trial, value in ((first[0], 5), (first[1], 5), (second[0], 1), (second[1], 1)):
        judge.report(trial, at(100_000, value))
    assert [v.goes_on for v in kept] == [True, False]
    late = second[0].model_copy(update={"seed": 9, "trial_id": f"{second[0].group}-seed=9"})  # of an extension
    assert not judge.stops(late, {"env_steps": 99_000.0})
    assert judge.stops(late, {"env_steps": 100_000.0})
    assert not judge.stops(late, {"env_steps": 900_000.0}), "all that is left is its evaluation"
    assert not judge.stops(first[0], {"env_steps": 500_000.0})


def test_constraints_count_and_a_seed_that_failed_is_not_waited_for() -> None:
    constraints = {"constraints": {"kl_to_prior": {"max": 3}, "basic_return": {"min_fraction_of_prior": 0.9}}}
    judge, (first, second, third), kept = judged(sweep(objective=constraints))
    prior = {"rung/prior/basic_return": 100.0, "rung/prior/total_return": 50.0}
    for trial in first:
        judge.report(trial, at(100_000, 10, kl_to_prior=2, basic_return=95) | prior)
    for trial in second:  # higher, but too far from the prior
        judge.report(trial, at(100_000, 99, kl_to_prior=4, basic_return=95) | prior)
    judge.lose(third[0])
    judge.report(third[1], at(100_000, 99, kl_to_prior=2, basic_return=89) | prior)  # below 90 % of the prior's
    assert [(v.group, v.goes_on) for v in kept] == [
        (first[0].group, True),
        (second[0].group, False),
        (third[0].group, False),
    ]


def test_a_figure_that_is_not_finite_comes_last() -> None:
    judge, (first, second, _), kept = judged(sweep())
    for trial, value in ((first[0], 1.0), (first[1], 1.0), (second[0], math.nan), (second[1], 50.0)):
        judge.report(trial, at(100_000, value))
    assert [v.goes_on for v in kept] == [True, False]
    assert kept[1].figures["total_return"] is None
