"""Settings over seeds: intervals, comparisons, constraints, the Pareto set and what is best, in data, text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tests.platform.results.trials import evaluated, text_of, trials_of

from rpg_platform.results.endings import ending
from rpg_platform.results.names import at_words, short_name
from rpg_platform.results.report import TrialResult, with_earlier
from rpg_platform.results.rows import Row, summarise
from rpg_platform.results.statistics import (
    bootstrap_interval,
    improvement_interval,
    iqm,
    mean,
    probability_of_improvement,
)
from rpg_platform.results.table import rows_to_json, rows_to_markdown
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.tracking.run_tags import marks_of

BASELINES = ["greedy", {"kl": {"kl_coefficient": {"grid": [0.1, 0.3]}}}]
WITHIN = {"kl_to_prior": {"max": 3}, "basic_return": {"min_fraction_of_prior": 0.9}}


def sweep(basic: Mapping[str, Sequence[float]], **changes: Any) -> list[TrialResult]:
    """Results with these basic returns over seeds, by the start of the trials' ids; add-on -500, KL 1."""
    seeds = max(map(len, basic.values()))
    trials = trials_of(
        **{"seeds": seeds, "baselines": BASELINES, "weights": {"omega_prime": 0.1, "alpha_hat": 0.02}} | changes
    )
    return [
        (trial, evaluated(values[trial.seed], -500.0, kl=0.0 if trial.method == "prior" else 1.0), None)
        for trial in trials.values()
        for values in [next((v for start, v in basic.items() if trial.trial_id.startswith(start)), ())]
        if trial.seed < len(values)
    ]


def by_method(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.method: row for row in rows}


def with_best(report: Mapping[str, Any], more: float, env_steps: float) -> dict[str, Any]:
    """The report, its best checkpoint better by ``more`` in every mean."""
    best = {
        key.replace("eval/", "eval_best/"): value + more * key.endswith("_mean")
        for key, value in report.items()
        if key.startswith("eval/")
    }
    return {**report, **best, "eval_best/env_steps": env_steps}


# ---- over seeds ----------------------------------------------------------------------------------
def test_mean_and_iqm_with_intervals_over_seeds() -> None:
    basic = [5000.0, 5100.0, 4900.0, 5050.0, 1000.0]  # one seed that failed to learn
    (row,) = summarise(sweep({"rpg": basic}, baselines=[]))
    total = row.deterministic.total_return
    scores = np.array(basic)[:, None] - 500.0
    assert total.n == 5
    assert total.mean == pytest.approx(3710.0)
    assert total.iqm == pytest.approx((5000 + 4900 + 5050) / 3 - 500)
    for found, statistic in ((total.mean_interval, mean), (total.iqm_interval, iqm)):
        assert found == pytest.approx(bootstrap_interval(scores, statistic))
    assert row.sampled.total_return.iqm == pytest.approx(total.iqm - 20.0)
    assert (row.deterministic.addon_return.iqm, row.deterministic.addon_return.mean_interval) == (
        -500.0,
        (-500.0, -500.0),
    )


def test_one_seed_has_no_interval_and_a_missing_figure_is_left_out() -> None:
    results = sweep({"rpg": [5000.0, 5200.0, 5100.0], "greedy": [4000.0]})
    one = next(i for i, (trial, _, _) in enumerate(results) if (trial.method, trial.seed) == ("rpg", 1))
    results[one] = (results[one][0], results[one][1] | {"eval/deterministic/total_return_mean": math.nan}, None)  # type: ignore[operator]
    rows = by_method(summarise(results))
    assert rows["greedy"].deterministic.total_return.mean_interval is None
    assert rows["greedy"].deterministic.total_return.iqm_interval is None
    total = rows["rpg"].deterministic.total_return
    assert (total.n, total.mean, total.mean_interval) == (2, 4550.0, (4500.0, 4600.0))
    assert rows["greedy"].improvement[0].interval is None


# ---- improvement ---------------------------------------------------------------------------------
def test_improvement_is_over_the_prior_and_the_best_setting_of_each_other_method() -> None:
    basic = {
        "prior": [5000.0],
        "rpg": [5100.0, 4900.0, 5200.0],
        "greedy": [4800.0, 4700.0, 5150.0],
        "kl-kl_coefficient=0.1": [5000.0, 4600.0, 4700.0],
        "kl-kl_coefficient=0.3": [4900.0, 5300.0, 5150.0],
    }
    rows = {row.group: row for row in summarise(sweep(basic))}
    rpg = next(row for row in rows.values() if row.method == "rpg")
    x = np.array(basic["rpg"])[:, None] - 500
    expected = {"prior": basic["prior"], "greedy": basic["greedy"], "kl": basic["kl-kl_coefficient=0.3"]}
    assert [each.over for each in rpg.improvement] == ["prior", "kl", "greedy"]  # the prior, then as they rank
    for each in rpg.improvement:
        y = np.array(expected[each.over])[:, None] - 500
        assert each.probability == probability_of_improvement(x, y)
        assert each.interval == improvement_interval(x, y)
        assert (each.n, each.n_other) == (3, len(y))
    assert rpg.improvement[0].probability == 2 / 3
    assert rpg.improvement[1].setting == "kl kl_coefficient=0.3"
    worse = rows["kl-kl_coefficient=0.1"]
    assert [each.over for each in worse.improvement] == ["prior", "rpg", "greedy"]  # never over its own method
    assert worse.improvement[0].probability == pytest.approx(0.5 / 3)  # one seed ties with the prior
    prior = rows["prior"]
    assert [(each.over, each.n) for each in prior.improvement] == [("kl", 1), ("rpg", 1), ("greedy", 1)]


def test_improvement_is_in_the_objective() -> None:
    """Deterministic total: both seeds above the prior; sampled add-on: one of them."""
    results = []
    for trial, report, error in sweep({"prior": [5000.0], "rpg": [5100.0, 5200.0]}, baselines=[]):
        trained = trial.method != "prior"
        sampled = {"addon_return": -505.0 - 10 * trial.seed * trained, "total_return": -1e3 * trained}
        worse = {f"eval/sampled/{name}_mean": value for name, value in sampled.items()}
        results.append((trial, (report or {}) | worse, error))
    found = (
        by_method(summarise(results, objective))["rpg"].improvement[0].probability
        for objective in (Objective(), Objective(maximize="addon_return", mode="sampled"))
    )
    assert tuple(found) == (1.0, 0.25)  # a tie and a loss


# ---- the objective -------------------------------------------------------------------------------
@pytest.fixture
def tradeoff() -> list[TrialResult]:
    """(basic, add-on, KL): the further from the prior, the higher the total; the last is dominated."""
    trials = trials_of(
        weights={"omega_prime": {"grid": [0.1, 0.2, 0.3, 0.4]}, "alpha_hat": 0.02},
        seeds=1,
        objective={"constraints": WITHIN},
    )
    figures = {0.4: (4800, -700, 1.0), 0.3: (4600, -400, 2.5), 0.2: (4400, 0, 2.9), 0.1: (4590, -450, 4.0)}
    return [
        (
            trial,
            evaluated(
                *(map(float, figures.get(trial.weights.get("omega_prime"), (5000, -1500))[:2])),  # type: ignore[arg-type]
                kl=figures.get(trial.weights.get("omega_prime"), (0, 0, 0.0))[2],
            ),
            None,
        )  # type: ignore[arg-type]
        for trial in trials.values()
    ]


def weights(rows: Sequence[Row]) -> list[float]:
    return [row.weights.get("omega_prime", 0) for row in rows]


def test_constraints_decide_what_is_best(tradeoff: list[TrialResult]) -> None:
    rows = summarise(tradeoff)  # 0.2 keeps 88 % of the prior's basic return; 0.1 has too large a KL
    assert weights(rows) == [0.3, 0.4, 0, 0.2, 0.1]
    assert [row.is_best for row in rows] == [True, False, False, False, False]
    assert [[str(each) for each in row.violations] for row in rows[3:]] == [
        ["basic_return at least 4500 (90 % of the prior's 5000), is 4400 (2.2 % beyond)"],
        ["kl_to_prior at most 3, is 4 (33 % beyond)"],
    ]
    unconstrained = summarise(tradeoff, Objective())
    assert weights(unconstrained) == [0.2, 0.3, 0.1, 0.4, 0]
    assert [row.is_best for row in unconstrained] == [True, False, False, False, False]
    assert not any(row.violations for row in unconstrained)


def test_objective_of_another_return_and_mode(tradeoff: list[TrialResult]) -> None:
    assert weights(summarise(tradeoff, Objective(maximize="basic_return"))) == [0, 0.4, 0.3, 0.1, 0.2]
    sampled = Objective.model_validate({"mode": "sampled", "constraints": {"basic_return": {"min": 4585}}})
    rows = summarise(tradeoff, sampled)  # ten less each, so that 0.1 breaks it
    assert weights(rows)[:3] == [0.3, 0.4, 0]
    assert [len(row.violations) for row in rows] == [0, 0, 0, 1, 1]
    assert "4600 ±7" not in text_of(rows, 110)
    assert "4590 ±7" in text_of(rows, 110)


def test_pareto_set_of_basic_addon_and_kl(tradeoff: list[TrialResult]) -> None:
    assert [row.is_pareto for row in summarise(tradeoff)] == [True, True, True, True, False]
    # Without a KL it cannot be closer to the prior than any other.
    blind = [(trial, report | {"eval/kl_to_prior": math.nan}, error) for trial, report, error in tradeoff]  # type: ignore[operator]
    assert [row.is_pareto for row in summarise([*tradeoff[:-1], blind[-1]])].count(True) == 4
    assert sorted(w for w, row in zip(weights(summarise(blind)), summarise(blind), strict=True) if row.is_pareto) == [
        0, 0.2, 0.3, 0.4
    ]  # fmt: skip


def test_marks_in_text(tradeoff: list[TrialResult]) -> None:
    rows = summarise(tradeoff)
    lines = text_of(rows, 110).splitlines()
    assert max(map(len, lines)) <= 110
    for start in (
        "1 ★◇  rpg omega_prime=0.3",
        "2 ◇   rpg omega_prime=0.4",
        "3 ◇   » prior",
        "4 ◇✗  rpg omega_prime=0.2",
    ):
        assert any(line.strip().startswith(start) for line in lines), start
    assert any(line.strip().startswith("5 ✗   rpg omega_prime=0.1") for line in lines)
    joined = " ".join(" ".join(lines).split())
    assert "★ best: highest deterministic total return within the constraints." in joined
    assert "◇ Pareto front of basic and add-on return." in joined
    assert "✗ 5: kl_to_prior at most 3, is 4 (33 % beyond)" in joined
    assert "No trained setting" not in joined
    assert "- ✗ 5: kl_to_prior at most 3, is 4 (33 % beyond)" in rows_to_markdown(rows)


def test_when_nothing_trained_is_feasible_the_nearest_is_named(tradeoff: list[TrialResult]) -> None:
    strict = Objective.model_validate({"constraints": {"kl_to_prior": {"max": 0.5}}})
    rows = summarise(tradeoff, strict)
    assert weights(rows) == [0, 0.4, 0.3, 0.2, 0.1]
    assert [row.is_best for row in rows] == [True, False, False, False, False]  # nothing beats the prior, within them
    text = text_of(rows, 110)
    assert "No trained setting satisfies the constraints; 2 comes nearest." in text
    assert "✗ 2: kl_to_prior at most 0.5, is 1 (100 % beyond)" in text
    impossible = Objective.model_validate({"constraints": {"episode_length": {"min": 5000}}})
    rows = summarise(tradeoff, impossible)
    assert not any(row.is_best for row in rows)
    assert "★" not in text_of(rows, 110)


def test_many_infeasible_settings_are_not_all_spelled_out() -> None:
    trials = trials_of(
        weights={"omega_prime": {"grid": [0.1 + i / 100 for i in range(30)]}, "alpha_hat": 0.02}, seeds=1
    )
    strict = Objective.model_validate({"constraints": {"kl_to_prior": {"max": 0.5}}})
    rows = summarise([(trial, evaluated(4000.0, -500.0), None) for trial in trials.values()], strict)
    text = text_of(rows, 110)
    assert text.count("kl_to_prior at most 0.5") == 8
    assert "✗ 23 more, see --json" in text


# ---- best checkpoints ----------------------------------------------------------------------------
def test_best_checkpoints_stand_beside_the_final_policies() -> None:
    results = sweep({"prior": [5000.0], "rpg": [4900.0, 4700.0]}, baselines=[])
    plain = summarise(results)
    assert all(row.best_checkpoint is None for row in plain)
    assert "best checkpoint" not in text_of(plain, 110)
    grown = [
        (t, r if t.method == "prior" else with_best(r or {}, 60.0, 100_000 * (1 + t.seed)), e) for t, r, e in results
    ]
    rows = by_method(summarise(grown))
    assert rows["prior"].best_checkpoint is None
    best = rows["rpg"].best_checkpoint
    assert best is not None
    assert best.deterministic.total_return.mean == rows["rpg"].deterministic.total_return.mean + 60
    assert best.sampled.basic_return.mean_interval == pytest.approx((4750.0, 4950.0))
    assert (best.env_steps.mean, best.env_steps.n) == (150_000, 2)
    text = text_of(summarise(grown), 110)
    assert "4360 [4260,4460] @150k" in text
    assert "chosen on validation seeds" in " ".join(text.split())


# ---- several add-on rewards ----------------------------------------------------------------------
def test_each_of_several_addons_stands_apart() -> None:
    results = sweep({"prior": [5000.0], "rpg": [4900.0, 4700.0]}, baselines=[])
    parts = {
        f"eval/{mode}/addon/{name}_return{end}": value
        for mode in ("deterministic", "sampled")
        for name, value in (("foot", -350.0), ("speed-limit", -150.0))
        for end in ("_mean", "_std")
    }
    rows = summarise([(trial, {**(report or {}), **parts}, error) for trial, report, error in results])
    found = by_method(rows)["rpg"].addon_parts["deterministic"]
    assert {name: (each.mean, each.n) for name, each in found.items()} == {"foot": (-350, 2), "speed-limit": (-150, 2)}
    text = text_of(rows, 110)
    assert "speed-limit" in text
    assert "-350.0 ±0.0" in text
    assert "Each add-on" not in text_of(summarise(results), 110)
    assert json.loads(rows_to_json(rows))[0]["addon_parts"]["sampled"]["foot"]["mean"] == -350.0


# ---- JSON ----------------------------------------------------------------------------------------
def test_json_holds_all_of_it(tradeoff: list[TrialResult]) -> None:
    trial, report, _ = tradeoff[1]
    rows = summarise([(trial, with_best(report or {}, 1.0, 5.0), None), tradeoff[0], *tradeoff[2:]])
    read = json.loads(rows_to_json(rows), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    best, last = read[0], read[-1]
    assert (best["is_best"], best["is_pareto"], best["violations"]) == (True, True, [])
    assert best["objective"] == {"maximize": "total_return", "mode": "deterministic", "constraints": {
        "kl_to_prior": {"max": 3.0}, "basic_return": {"min_fraction_of_prior": 0.9}
    }}  # fmt: skip
    assert last["violations"] == [
        {"constraint": "kl_to_prior at most 3", "value": 4.0, "bound": 3.0, "excess": pytest.approx(1 / 3)}
    ]
    over = {"over": "prior", "setting": "prior", "probability": 1.0, "interval": None, "n": 1, "n_other": 1}
    assert best["improvement"] == [over | {"is_cross_fitted": False}]
    [checkpoint] = [row["best_checkpoint"] for row in read if row["best_checkpoint"]]
    assert checkpoint["env_steps"]["mean"] == 5.0
    seeds = json.loads(rows_to_json(summarise(sweep({"rpg": [1.0, 3.0]}, baselines=[]))))[0]
    assert seeds["deterministic"]["basic_return"]["mean_interval"] == [1.0, 3.0]


def test_order_of_trials_does_not_matter(tradeoff: list[TrialResult]) -> None:
    assert rows_to_json(summarise(tradeoff[::-1])) == rows_to_json(summarise(tradeoff))


def test_trials_of_older_specifications_have_the_default_objective(tradeoff: list[TrialResult]) -> None:
    raw = tradeoff[0][0].model_dump(mode="json")
    del raw["objective"]
    assert TrialSpec.model_validate(raw).objective == Objective()


# ---- an extended budget --------------------------------------------------------------------------
def test_a_settings_figures_are_all_of_one_budget() -> None:
    """Its last that most seeds were evaluated at; whatever is of less than the budget says so wherever it is named."""
    trials = list(trials_of(budget={"env_steps": 500_000}, seeds=3).values())
    prior, first = trials[0], [trial for trial in trials if trial.group == trials[1].group]
    others = [trial for trial in trials[1:] if trial not in first]
    small = [evaluated(100.0 + seed, -10.0) for seed in range(3)]  # of 200,000 env steps
    large = evaluated(900.0, -10.0) | {"env_steps": 500_000.0, "finished": True}
    begun = {"env_steps": 250_000.0, "finished": False}
    begins = [(prior, evaluated(50.0, -10.0) | {"env_steps": 0.0}, None), *((each, large, None) for each in others)]
    stopped: list[TrialResult] = [
        (first[0], with_earlier(large, first[0], [small[0]]), None),
        (first[1], with_earlier(begun, first[1], [small[1]]), None),
        (first[2], with_earlier(small[2], first[2], []), "the node died"),
    ]
    rows = summarise([*begins, *stopped])
    [row] = [row for row in rows if row.group == first[0].group]
    assert (row.seeds, row.evaluated_at, row.deterministic.basic_return.mean) == ((0, 1, 2), 200_000, 101.0)
    assert [each.trial_id for each in row.failures] == [first[2].trial_id]  # one that was stopped failed in nothing
    assert [ending(report, error) for _, report, error in stopped] == ["finished", "unfinished", "failed"]
    assert [at_words(row) for row in rows] == ["", " @200k", ""]  # the others are at the budget
    assert short_name(row) == "ω′ 0.05 · α̂ 0.02 @200k"
    for text in (text_of(rows, 160), rows_to_markdown(rows)):
        assert "rpg omega_prime=0.05 alpha_hat=0.02 @200k" in text
        assert "its extension to 500,000 has not been evaluated yet" in " ".join(text.split())
    assert marks_of(stopped, [])[first[1].trial_id] == {
        "mlflow.runName": "ω′ 0.05 · α̂ 0.02 · seed 1 @200k",
        "evaluated_at": "200000 env steps",
    }

    # All seeds have got there: the mark is taken back, in MLflow too; and a sweep that was never extended has none.
    ended: list[TrialResult] = [(t, with_earlier(large, t, [s]), None) for t, s in zip(first, small, strict=True)]
    [row] = [row for row in summarise([*begins, *ended]) if row.group == first[0].group]
    assert (row.seeds, row.evaluated_at, row.deterministic.basic_return.mean) == ((0, 1, 2), 500_000, 900.0)
    assert at_words(row) == ""
    assert marks_of(ended, [])[first[1].trial_id]["mlflow.runName"] == "ω′ 0.05 · α̂ 0.02 · seed 1"
    assert marks_of(begins, []) == {}
