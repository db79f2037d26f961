"""What is chosen is judged by figures that did not choose it; only what a user could have is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.platform.results.trials import evaluated, text_of, trials_of

from rpg_platform.results.choosing import Scored, choosing, improvements, judged_interval, ranked
from rpg_platform.results.collapse import collapse_bound, collapsed
from rpg_platform.results.difference import choosing_words, within_noise
from rpg_platform.results.leader import Standing
from rpg_platform.results.report import TrialResult
from rpg_platform.results.rows import Row, summarise
from rpg_platform.results.statistics import probability_of_improvement
from rpg_platform.results.table import rows_to_json, rows_to_markdown
from rpg_platform.spec.methods import METHODS, deployable
from rpg_platform.spec.sections import Objective

TRUTH, SETTINGS = 5000.0, 8
EQUAL: dict[str, Any] = {
    "weights": {"omega_prime": {"grid": [0.1 * (1 + i) for i in range(SETTINGS)]}, "alpha_hat": 0.02},
    "baselines": ["greedy"],
}


def with_selection(report: dict[str, Any], basic: float, addon: float = -500.0) -> dict[str, Any]:
    """The report, its policy's selection episodes with these returns."""
    other = evaluated(basic, addon, kl=report["eval/kl_to_prior"])
    return report | {k.replace("eval/", "eval_selection/"): v for k, v in other.items() if k.startswith("eval/")}


def simulated(rng: np.random.Generator, seeds: int, of_seeds: float, of_episodes: float) -> list[TrialResult]:
    """A sweep whose settings, the prior and greedy too, are equally good; noise by training seeds and by episodes."""
    results: list[TrialResult] = []
    for trial in trials_of(**EQUAL, seeds=seeds).values():
        policy = TRUTH + 500 + (0 if trial.method == "prior" else of_seeds * rng.normal())
        shown, chosen = policy + of_episodes * rng.normal(size=2)
        results.append((trial, with_selection(evaluated(shown, -500.0), chosen), None))
    return results


def starred(rows: list[Row]) -> Row:
    return next(row for row in rows if row.is_best)


def equals(rng: np.random.Generator, seeds: int, of_seeds: float, of_episodes: float) -> list[Scored]:
    """The same without a prior, as settings are compared: eight of a method, and another method's one."""

    def one(i: int) -> Scored:
        policy = TRUTH + of_seeds * rng.normal(size=seeds)
        by, shown = policy + of_episodes * rng.normal(size=(2, seeds))
        method = "greedy" if i == SETTINGS else "rpg"
        figures = {seed: {"total_return": float(value)} for seed, value in enumerate(by)}
        return Scored(str(i), str(i), method, False, True, figures, dict(enumerate(map(float, shown))))

    return [one(i) for i in range(SETTINGS + 1)]


@pytest.mark.parametrize("seeds", [4, 7])
def test_of_equal_settings_the_chosen_one_is_judged_as_equal(seeds: int) -> None:
    """The figure and P(X > Y) of the best of eight equals are honest; choosing and judging on one set are not."""
    rng, objective = np.random.default_rng(seeds), Objective()
    judged, control = [], []
    for _ in range(200):
        settings = equals(rng, seeds, 100.0, 20.0)
        cost = choosing(settings, objective)
        assert cost is not None
        assert cost.interval is not None
        leader = next(place.of for place in ranked(settings, objective) if place.of.method == "rpg")
        [over] = improvements([leader, *(each for each in settings if each is not leader)], objective)[leader.group]
        judged.append((cost.interval[0] <= TRUTH <= cost.interval[1], cost.judged, over.probability))
        alone = judged_interval([leader.scores()])  # Student's t, of the seeds that chose it
        chance = probability_of_improvement(*(np.array(e.scores())[:, None] for e in (leader, settings[-1])))
        control.append((alone[0] <= TRUTH <= alone[1], np.mean(leader.scores()), chance))
    covered, figure, probability = np.mean(judged, axis=0)
    assert 0.93 < covered < 0.995
    assert figure == pytest.approx(TRUTH, abs=4 * 120 / math.sqrt(seeds * 200))
    assert probability == pytest.approx(0.5, abs=0.05)
    covered, figure, probability = np.mean(control, axis=0)
    assert covered < 0.9
    assert figure > TRUTH + 100 / math.sqrt(seeds)
    assert probability > 0.6


def test_of_equal_policies_other_episodes_judge() -> None:
    """One seed, and only episodes are noisy: what is shown of ★ is the truth, unless the same episodes chose it."""
    rng = np.random.default_rng(1)
    sweeps = [simulated(rng, 1, 0.0, 100.0) for _ in range(40)]

    def without(report: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in report.items() if not key.startswith("eval_selection/")}

    def mean(given: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
        made = [summarise([(trial, given(dict(report or {})), None) for trial, report, _ in sweep]) for sweep in sweeps]
        return float(np.mean([starred(rows).deterministic.total_return.mean for rows in made]))

    assert mean(dict) == pytest.approx(TRUTH, abs=3 * 100 / math.sqrt(40))
    assert mean(without) > TRUTH + 100


def test_the_selection_episodes_rank_and_the_others_are_shown() -> None:
    trials = trials_of(seeds=1)
    chosen = {"prior": 4000.0, "0.05": 4600.0, "0.1-": 4500.0}
    shown = {"prior": 5000.0, "0.05": 4700.0, "0.1-": 4900.0}

    def at(figures: dict[str, float], name: str) -> float:
        return next(value for part, value in figures.items() if part in name)

    results: list[TrialResult] = [
        (trial, with_selection(evaluated(at(shown, name), -500.0), at(chosen, name)), None)
        for name, trial in trials.items()
    ]
    rows = summarise(results)
    assert [row.deterministic.total_return.mean for row in rows] == [4200.0, 4400.0, 4500.0]
    assert starred(rows).weights["omega_prime"] == 0.05
    assert "Ranked by other episodes than those shown" in " ".join(text_of(rows, 110).split())
    standing = Standing(Objective())
    standing.add(trials.values())
    for trial, report, _ in results:
        standing.heard(trial.trial_id, report or {})
    leader = standing.leader()
    assert leader is not None
    assert (leader.group, leader.figures["total_return"]) == (rows[0].group, 4200.0)
    # The constraint is of what chooses too: 4,600 of 4,000 keeps all, where 4,700 of 5,000 does not.
    strict = Objective.model_validate({"constraints": {"basic_return": {"min_fraction_of_prior": 1}}})
    assert starred(summarise(results, strict)).weights["omega_prime"] == 0.05
    # One trial of an older version: all are ranked by what they have in common, and the table says so.
    old = {key: value for key, value in (results[0][1] or {}).items() if not key.startswith("eval_selection/")}
    mixed = summarise([(results[0][0], old, None), *results[1:]])
    assert starred(mixed).is_prior
    assert not any(row.chosen_apart for row in mixed)
    assert "Chosen and judged on the same episodes" in " ".join(text_of(mixed, 110).split())
    assert "Chosen and judged on the same episodes" in rows_to_markdown(mixed)


def test_what_the_hidden_reward_trained_is_never_best() -> None:
    assert deployable(METHODS) == {"rpg", "kl", "greedy", "prior"}
    assert deployable(["spg", "ppo"]) == {"spg", "ppo"}, "who makes a prior knows the reward"
    assert deployable(["full", "prior"]) == {"prior"}
    trials = trials_of(seeds=1, baselines=[{"full": {"alpha": 0.1}}, {"ppo": {}}])
    basic = {"prior": 5000.0, "full": 9000.0, "ppo": 8000.0, "rpg": 5200.0}
    results: list[TrialResult] = [(t, evaluated(basic[t.method], -500.0), None) for t in trials.values()]
    for rule in (Objective(), Objective(maximize="basic_return"), Objective(mode="sampled")):
        rows = summarise(results, rule)
        assert [row.method for row in rows][:2] == ["full", "ppo"], "they are compared all the same"
        assert starred(rows).method == "rpg"
        assert {row.method for row in within_noise(rows)} <= {"rpg", "prior"}
    standing = Standing(Objective())
    standing.add(trials.values())
    for trial, report, _ in results:
        standing.heard(trial.trial_id, report or {})
        assert (leader := standing.leader()) is None or "rpg" in leader.group
    text = " ".join(text_of(summarise(results), 110).split())
    assert "1 ◇△ full" in text
    assert "△ is trained on the basic reward, an upper bound: never ★." in text


def test_what_the_choice_costs_is_said() -> None:
    rng = np.random.default_rng(3)
    few = summarise(simulated(rng, 2, 100.0, 20.0))
    assert starred(few).choosing is not None
    assert "to say by how much takes 4 training seeds" in str(choosing_words(few))
    rows = summarise(simulated(rng, 6, 100.0, 20.0))
    cost = starred(rows).choosing
    assert cost is not None
    assert cost.settings == SETTINGS + 2
    assert cost.shown == starred(rows).deterministic.total_return.mean
    said = choosing_words(rows)
    assert f"choosing flatters it by {cost.optimism:,.4g}" in str(said)
    assert f"{said}" in " ".join(text_of(rows, 2000).split())
    assert json.loads(rows_to_json(rows))[0]["choosing"]["judged"] == cost.judged
    assert choosing_words(summarise([])) is None


def test_collapsed_episodes_and_medians() -> None:
    prior = [3300.0, 3500.0, 3700.0]
    assert collapse_bound(prior) == 3300 - 1750
    assert collapse_bound([-300.0, -100.0]) == -300 - 200, "the range, where that is more than half the mean"
    assert collapsed([prior, [1549.0, 1551.0, math.nan]], prior) == 2
    assert collapsed([prior, None], prior) is None
    assert collapsed([prior], None) is None
    trials = trials_of(seeds=[0, 1, 2])
    results: list[TrialResult] = []
    for trial in trials.values():
        fallen = trial.seed == 1 and "0.05" in trial.trial_id
        episodes = [-900.0, 3400.0, 3600.0] if fallen else prior
        report = evaluated(4000.0, -500.0)
        for mode in ("deterministic", "sampled"):
            report[f"eval/{mode}/total_return_episodes"] = episodes
            for name in ("basic_return", "addon_return", "total_return"):
                report[f"eval/{mode}/{name}_median"] = float(np.median(episodes))
        results.append((trial, report, None))
    rows = {row.weights.get("omega_prime"): row for row in summarise(results)}
    assert rows[0.05].collapsed == {"deterministic": 1, "sampled": 1}
    assert rows[0.1].collapsed == {"deterministic": 0, "sampled": 0}
    assert rows[0.05].medians["deterministic"]["total_return"] == 3500.0
    ordered = summarise(results)
    number = 1 + ordered.index(next(row for row in ordered if row.weights.get("omega_prime") == 0.05))
    line = f"Collapsed episodes (total return far below the prior's worst): {number}: 1 of 60."
    assert line in text_of(ordered, 200)
    assert line in rows_to_markdown(ordered)
    whole = [each for each in results if "0.05" not in each[0].trial_id]
    assert "Collapsed" not in text_of(summarise(whole), 200)
    assert json.loads(rows_to_json(ordered))[number - 1]["collapsed"]["deterministic"] == 1
