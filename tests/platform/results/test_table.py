"""Rows and tables: exact figures, and what is missing said rather than hidden."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping

import pytest
from tests.platform.results.trials import evaluated, text_of, trials_of

from rpg_platform.results.report import TrialResult, is_finished
from rpg_platform.results.rows import summarise
from rpg_platform.results.table import rows_to_json, rows_to_markdown
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.tracking.overview import verdict


@pytest.fixture
def trials() -> dict[str, TrialSpec]:
    return trials_of()


@pytest.fixture
def results(trials: Mapping[str, TrialSpec]) -> list[TrialResult]:
    """Prior 5000 - 1000; ω' = 0.05: 4000 and 4200 - 200; ω' = 0.1: one seed 4900 - 600, the other failed."""
    small = sorted(id_ for id_, trial in trials.items() if trial.weights.get("omega_prime") == 0.05)
    large = sorted(id_ for id_, trial in trials.items() if trial.weights.get("omega_prime") == 0.1)
    prior = next(id_ for id_, trial in trials.items() if trial.method == "prior")
    error = "Traceback (most recent call last):\n  File ...\nRuntimeError: reward is NaN at step 4096\n"
    return [
        (trials[prior], evaluated(5000.0, -1000.0, kl=0.0), None),
        (trials[large[0]], evaluated(4900.0, -600.0), None),
        (trials[large[1]], {"env_steps": 4096.0}, error),
        (trials[small[0]], evaluated(4000.0, -200.0, kl=1.0), None),
        (trials[small[1]], evaluated(4200.0, -200.0, kl=2.0), None),
    ]


def test_best_total_comes_first(results: list[TrialResult]) -> None:
    rows = summarise(results)
    assert [row.setting for row in rows] == [
        "rpg omega_prime=0.1 alpha_hat=0.02",  # 4300
        "prior",  # 4000
        "rpg omega_prime=0.05 alpha_hat=0.02",  # (3800 + 4000) / 2
    ]
    assert [row.group for row in summarise(results[::-1])] == [row.group for row in rows]
    assert [row.is_prior for row in rows] == [False, True, False]


def test_means_and_spread_over_seeds(results: list[TrialResult]) -> None:
    row = summarise(results)[2]
    assert row.seeds == (0, 1)
    assert row.spread == "seeds"
    basic = row.deterministic.basic_return
    assert basic.mean == 4100.0
    assert basic.std == pytest.approx(math.sqrt(2) * 100)  # ((-100)² + 100²) / (2 - 1) = 20,000
    assert row.deterministic.addon_return.std == 0.0
    assert row.deterministic.total_return.mean == 3900.0
    assert row.sampled.total_return.mean == 3880.0
    assert (row.kl_to_prior.mean, row.kl_to_prior.n) == (1.5, 2)
    assert row.basic_kept == pytest.approx(4100 / 5000)


def test_one_seed_has_the_spread_of_its_episodes(results: list[TrialResult]) -> None:
    best, prior, _ = summarise(results)
    assert best.seeds == (0,)
    assert best.spread == prior.spread == "episodes"
    assert best.deterministic.total_return.std == 7.0
    assert math.isnan(best.kl_to_prior.std)
    assert prior.basic_kept == 1.0


def test_failures_are_kept_with_their_reason(results: list[TrialResult], trials: dict[str, TrialSpec]) -> None:
    best = summarise(results)[0]
    assert [(each.seed, each.error) for each in best.failures] == [(1, "RuntimeError: reward is NaN at step 4096")]
    trial = next(iter(trials.values()))
    for result, error, reason in (
        (None, None, "made no report"),
        ({"env_steps": 4096.0}, None, "stopped at 4,096 of"),
        (evaluated(1.0, 1.0), "  \n", "failed without a message"),
    ):
        (row,) = summarise([(trial, result, error)])
        assert reason in row.failures[0].error
        assert row.seeds == ()
        assert not is_finished(result, error)


@pytest.mark.parametrize("basic", [-10.0, 0.0, math.nan])
def test_a_share_of_nothing_is_not_stated(trials: dict[str, TrialSpec], basic: float) -> None:
    prior = next(trial for trial in trials.values() if trial.method == "prior")
    other = next(trial for trial in trials.values() if trial.method == "rpg")
    rows = summarise([(prior, evaluated(basic, 1.0), None), (other, evaluated(5.0, 1.0), None)])
    assert [row.basic_kept for row in rows] == [None, None]


def test_nan_is_last_shown_as_nothing_and_null(trials: dict[str, TrialSpec]) -> None:
    first, second = (trial for trial in trials.values() if trial.weights.get("omega_prime") == 0.05)
    other = next(trial for trial in trials.values() if trial.weights.get("omega_prime") == 0.1)
    rows = summarise(
        [
            (other, evaluated(math.nan, math.inf, kl=math.nan), None),
            (first, evaluated(-5000.0, 1.0), None),
            (second, evaluated(math.nan, 1.0), None),
        ]
    )
    assert [row.weights["omega_prime"] for row in rows] == [0.05, 0.1]
    basic = rows[0].deterministic.basic_return
    assert (basic.mean, basic.n) == (-5000.0, 1)
    text = text_of(rows, 100)
    assert "-5000 (1/2)" in text
    assert "only k of n seeds" in " ".join(text.split())
    assert "nan" not in text.lower()
    assert "inf" not in text.lower()
    read = json.loads(rows_to_json(rows), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    unknown = {"mean": None, "std": None, "n": 0, "mean_interval": None, "iqm": None, "iqm_interval": None}
    assert read[1]["deterministic"]["basic_return"] == unknown
    assert read[1]["kl_to_prior"]["mean"] is None


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_is_whole_in_a_pipe(results: list[TrialResult], width: int) -> None:
    text = text_of(summarise(results), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for cell in ("4900 ±7", "-600 ±7", "4300 ±7", "4100 ±141", "3900 ±141", "1.500", "0.200", "98 %", "82 %"):
        assert cell in text, cell
    headings = " ".join(lines[:5]).split()
    for heading in ("#", "setting", "n", "basic", "add-on", "total", "KL", "kept"):
        assert heading in headings
    (prior,) = (line for line in lines if "» prior" in line)
    assert "100 %" in prior
    assert "\x1b" not in text
    joined = " ".join(text.split())
    assert "standard deviation over seeds, or where n = 1 over evaluation episodes" in joined
    assert "3900 [3800,4000]" in joined
    assert "100 [100,100]" not in joined  # the seed that beats the prior is alone
    assert "1 without a result:" in joined
    assert "RuntimeError: reward is NaN at step 4096" in joined
    assert text.index("without a result") > text.index("82 %")


def test_the_caption_names_the_one_spread_there_is(results: list[TrialResult]) -> None:
    two_seeds = " ".join(text_of(summarise(results[3:]), 100).split())
    assert "standard deviation over seeds;" in two_seeds
    assert "marks the prior" not in two_seeds
    one_seed = " ".join(text_of(summarise(results[:2]), 100).split())
    assert "standard deviation over evaluation episodes;" in one_seed


def test_the_sampled_table(results: list[TrialResult]) -> None:
    text = text_of(summarise(results), 100, "sampled")
    assert "4280 ±7" in text
    assert "of the sampled policy" in " ".join(text.split())


def test_a_sweep_without_results_says_so(results: list[TrialResult]) -> None:
    rows = summarise(results[2:3])
    for text in (text_of(rows, 100), rows_to_markdown(rows)):
        assert "No trial has a final evaluation." in text
        assert "reward is NaN" in text
    assert summarise([]) == []
    assert "No trial" in text_of([], 100)
    assert rows_to_json([]) == "[]"


def test_json_holds_both_evaluations(results: list[TrialResult]) -> None:
    best = json.loads(rows_to_json(summarise(results)))[0]
    assert best["weights"] == {"omega_prime": 0.1, "alpha_hat": 0.02}
    figures = {"mean": 4300.0, "std": 7.0, "n": 1, "mean_interval": None, "iqm": 4300.0, "iqm_interval": None}
    assert best["deterministic"]["total_return"] == figures
    assert best["sampled"]["total_return"]["mean"] == 4280.0
    assert best["seeds"] == [0]
    assert best["spread"] == "episodes"
    assert best["failures"][0]["seed"] == 1


def test_markdown(results: list[TrialResult]) -> None:
    lines = rows_to_markdown(summarise(results), metric_name="foot angle").splitlines()
    assert lines[0] == "| # | setting | n | basic | add-on | total | KL | foot angle | kept |"
    assert {line.count("|") for line in lines[:5]} == {10}
    assert lines[2] == (
        "| 1 ★◇ | rpg omega_prime=0.1 alpha_hat=0.02 | 1 | 4900 ±7 | -600 ±7 | 4300 ±7 | 1.500 | 0.200 | 98 % |"
    )
    assert lines[3].startswith("| **2 ◇** | **» prior** | **1** |")
    assert "| 3 ◇ | 3900 [3800,4000] |" in lines
    assert "| # | P > prior % |" in lines  # nothing that was trained is compared with rpg
    assert "| 3 ◇ | 25 [0,50] |" in lines
    assert lines[-1].endswith("RuntimeError: reward is NaN at step 4096")


def test_the_objective_stands_apart_and_is_blank_where_a_report_lacks_it(results: list[TrialResult]) -> None:
    assert "| J |" not in rows_to_markdown(summarise(results))
    small = [
        (trial, {**(report or {}), "eval/objective": j}, error)
        for (trial, report, error), j in zip(results[3:], (-100.0, -300.0), strict=True)
    ]
    rows = summarise([*results[:3], *small])
    assert [row.figure("objective").mean for row in rows][2] == -200.0
    lines = rows_to_markdown(rows).splitlines()
    assert "| J |" not in lines[0]
    assert next(line for line in lines if "| J |" in line).startswith("| # | J | total: mean")
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| 3 ◇ |")][1] == "-200.0"
    assert "no two settings' compare" in "\n".join(lines)


def test_settings_are_told_apart_by_what_differs() -> None:
    trials = trials_of(
        weights={"omega_prime": [[0, 0.2], [100_000, 0.05]], "alpha_hat": 0.02},
        training={"lr": {"grid": [0.0001, 0.0003]}},
        seeds=[0],
    )
    rows = summarise([(trial, evaluated(1.0, 1.0), None) for trial in trials.values()])
    assert sorted(row.setting for row in rows) == [
        "prior",
        "rpg omega_prime=0.2→0.05@100000 alpha_hat=0.02 lr=0.0001",
        "rpg omega_prime=0.2→0.05@100000 alpha_hat=0.02 lr=0.0003",
    ]


def test_reports_need_neither_ray_nor_mlflow() -> None:
    code = "import sys, rpg_platform.results.table; assert not {'ray', 'mlflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True, timeout=240)


def test_several_add_ons_have_a_table_of_their_own(results: list[TrialResult]) -> None:
    assert "foot" not in text_of(summarise(results), 120)
    assert all(row.addon_parts == {"deterministic": {}, "sampled": {}} for row in summarise(results))
    parted: list[TrialResult] = []
    for index, (trial, report, error) in enumerate(results):
        shares = {"foot": -100.0 * index, "energy": -1.5}
        more = {f"eval/deterministic/addon/{name}_return_mean": share for name, share in shares.items()}
        parted.append((trial, None if report is None else report | (more if "done" in report else {}), error))
    rows = summarise(parted)
    by_setting = {row.setting: row.addon_parts["deterministic"]["foot"].mean for row in rows}
    assert by_setting == {
        "prior": 0.0,
        "rpg omega_prime=0.1 alpha_hat=0.02": -100.0,
        "rpg omega_prime=0.05 alpha_hat=0.02": -350.0,  # of two seeds
    }
    shown = text_of(rows, 120)
    assert all(word in shown for word in ("foot", "energy", "-350.0 ±70.7", "their sum is the add-on return"))
    assert "| foot | energy |" in rows_to_markdown(rows)
    assert json.loads(rows_to_json(rows))[0]["addon_parts"]["deterministic"]["energy"]["mean"] == -1.5


def test_the_best_is_not_sold_for_more_than_its_seeds_show(trials: dict[str, TrialSpec]) -> None:
    """The same words as in MLflow's note, by the table's numbers; the prior may be within noise of it too."""
    prior = next(trial for trial in trials.values() if trial.method == "prior")
    of = {w: [t for t in trials.values() if t.weights.get("omega_prime") == w] for w in (0.05, 0.1)}
    results: list[TrialResult] = [(prior, evaluated(3000.0, -1000.0), None)]
    results += [(trial, evaluated(4900.0 + 400 * i, -600.0), None) for i, trial in enumerate(of[0.1])]
    results += [(trial, evaluated(4800.0 + 400 * i, -600.0), None) for i, trial in enumerate(of[0.05])]
    rows = summarise(results)
    assert "★ 1: 2 seeds, within noise of 2, 3." in text_of(rows, 80)
    assert "- ★ 1: 2 seeds, within noise of 2, 3." in rows_to_markdown(rows)
    assert "2 seeds, within noise of ω′ 0.05 · α̂ 0.02; prior, untouched." in verdict(rows)
    assert "★ 1: one seed, which shows little." in text_of(summarise(results[:2]), 80)
