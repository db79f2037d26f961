"""Choosing the best of a trial's policies: when, on which seeds, by what; and the single episodes on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rpg_algorithms.policies.bundle import PriorCard, load_bundle
from rpg_algorithms.policies.network import PolicyNetwork, spec_for_spaces
from rpg_platform.evaluation.episode_file import EvaluatedPolicy, read_episodes, write_episodes
from rpg_platform.evaluation.play import Episodes, evaluate, evaluate_both
from rpg_platform.evaluation.validation import Best, Validation
from rpg_platform.spec.sections import Evaluation, Objective
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import Linear, Task

SEED = 500
SETTINGS = Evaluation(episodes=4, seed=10_000, validations=3, validation_episodes=2, validation_seed=SEED)
FOOT = Linear(7, -1.0, absolute=True)
TASK = Task("short", "HalfCheetah-v5", FOOT, "rad", FOOT, "40 steps", {"max_episode_steps": 40})


def policy(seed: int) -> PolicyNetwork:
    env = make_env(TASK)
    torch.manual_seed(seed)
    spec = spec_for_spaces(env.observation_space, env.action_space, hidden=(8,), log_std_init=-1.0)
    network = PolicyNetwork(spec)
    with torch.no_grad():
        for parameter in network.mlp.parameters():
            parameter.mul_(3.0)  # so that the policies differ
    return network.eval()


POLICIES = [policy(seed) for seed in range(8)]
PRIOR = policy(100)


def validation(objective: dict[str, Any] | None = None, settings: Evaluation = SETTINGS) -> Validation:
    return Validation(settings, Objective.model_validate(objective or {}), 1000, TASK, PRIOR)


def figure(network: PolicyNetwork, measure: str, mode: Any = "deterministic", seed: int = SEED) -> float:
    return float(getattr(evaluate(network, TASK, 2, seed, mode, PRIOR), measure).mean())


def chosen(rule: Validation, policies: list[PolicyNetwork] = POLICIES) -> int:
    """Which of the policies, given one after the other, is kept."""
    for i, network in enumerate(policies):
        rule.consider(network, 100 * i)
    assert rule.best is not None
    index = rule.best.env_steps // 100
    assert same(rule.best.network, policies[index])
    return index


def same(one: PolicyNetwork, other: PolicyNetwork) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- when ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("validations", "budget", "per_report", "expected"),
    [
        (3, 1000, 100, [400, 700, 1000]),
        (1, 1000, 300, [1200]),
        (5, 1000, 500, [500, 1000]),  # at most once a report
        (1000, 10, 3, [3, 6, 9, 12]),
        (3, 1001, 1, [334, 668, 1001]),  # 3 does not divide 1001: the end counts all the same
        (0, 1000, 100, []),
    ],
)
def test_times_are_spread_over_the_budget_and_the_last_is_the_end(
    validations: int, budget: int, per_report: int, expected: list[int]
) -> None:
    settings = Evaluation(validations=validations)
    rule = Validation(settings, Objective(), budget, TASK, None)
    ends = range(per_report, budget + per_report, per_report)
    assert [end for end in ends if rule.due(end - per_report, end)] == expected
    assert not Validation(settings, Objective(), 0, TASK, None).due(0, 0)  # the prior trains nothing


# ---- by what -------------------------------------------------------------------------------------
def test_best_is_the_highest_on_the_validation_seeds() -> None:
    totals = [figure(each, "total_return") for each in POLICIES]
    assert len(set(totals)) == len(POLICIES)
    best = int(np.argmax(totals))
    assert chosen(validation()) == best
    # It is those seeds that decide: the evaluation's would have chosen otherwise.
    elsewhere = [figure(each, "total_return", seed=SETTINGS.seed + 20) for each in POLICIES]
    assert int(np.argmax(elsewhere)) != best
    moved = Evaluation.model_validate(SETTINGS.model_dump() | {"validation_seed": SETTINGS.seed + 20})
    assert chosen(validation(settings=moved)) == int(np.argmax(elsewhere))


@pytest.mark.parametrize("measure", ["basic_return", "addon_return"])
@pytest.mark.parametrize("mode", ["deterministic", "sampled"])
def test_objective_says_of_what(measure: str, mode: str) -> None:
    values = [figure(each, measure, mode) for each in POLICIES]
    assert chosen(validation({"maximize": measure, "mode": mode})) == int(np.argmax(values))


def test_constraints_come_first() -> None:
    totals = [figure(each, "total_return") for each in POLICIES]
    kls = [figure(each, "kl_to_prior", "sampled") for each in POLICIES]
    limit = float(np.sort(kls)[1])  # two satisfy it
    able = [i for i, kl in enumerate(kls) if kl <= limit]
    best = max(able, key=lambda i: totals[i])
    assert best != int(np.argmax(totals))
    assert chosen(validation({"constraints": {"kl_to_prior": {"max": limit}}})) == best
    # Where none satisfies it the nearest is kept.
    assert chosen(validation({"constraints": {"kl_to_prior": {"max": 1e-6}}})) == int(np.argmin(kls))


def test_a_share_of_the_prior_is_of_the_prior_on_the_same_seeds() -> None:
    addon, basic = ([figure(each, name) for each in POLICIES] for name in ("addon_return", "basic_return"))
    of_prior, third = figure(PRIOR, "basic_return"), float(np.sort(basic)[-3])
    share = 1 + (third - 0.01 - of_prior) / abs(of_prior)
    best = max((i for i, value in enumerate(basic) if value >= third), key=lambda i: addon[i])
    assert best != int(np.argmax(addon))
    constrained = {"maximize": "addon_return", "constraints": {"basic_return": {"min_fraction_of_prior": share}}}
    assert chosen(validation(constrained)) == best


def test_metrics_and_the_copy_that_is_kept() -> None:
    rule, network = validation(), policy(3)
    metrics = rule.consider(network, 100)
    assert metrics["validation/deterministic/total_return_mean"] == figure(network, "total_return")
    assert metrics["validation/best_env_steps"] == 100
    assert not any("sampled" in name or "kl" in name for name in metrics)  # nothing asks for it
    assert "validation/objective" not in metrics
    reward = {"alpha": [[0, 0.0], [200, 1.0]], "basic_weight": 0.0, "addon_weight": 0.0}  # 0.5 at step 100
    half, whole = (validation().consider(network, step, reward)["validation/objective"] for step in (100, 1000))
    assert whole == pytest.approx(2 * half) != 0.0
    constrained = validation({"constraints": {"kl_to_prior": {"max": 1}}}).consider(network, 100)
    assert constrained["validation/kl_to_prior"] == figure(network, "kl_to_prior", "sampled")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()  # training goes on
    assert rule.best is not None
    assert same(rule.best.network, policy(3))


# ---- on disk -------------------------------------------------------------------------------------
def card(best: Best) -> PriorCard:
    env = make_env(TASK)
    return PriorCard.describe(
        "x", TASK.env_id, env.observation_space, env.action_space, best.network.spec, made_by={"at": best.env_steps}
    )


def test_restored_choice_goes_on_as_the_uninterrupted_one(tmp_path: Path) -> None:
    objective = {"constraints": {"basic_return": {"min_fraction_of_prior": 1.2}, "kl_to_prior": {"max": 2}}}
    for cut in (1, 4, 7):
        whole, before, after = (validation(objective) for _ in range(3))
        expected = chosen(whole)
        chosen(before, POLICIES[:cut])
        folder = tmp_path / str(cut)
        before.save(folder, card)
        after.load(folder)
        assert before.best is not None
        assert after.best is not None
        assert same(after.best.network, before.best.network)
        assert load_bundle(folder / "bundle_best").card.made_by == {"at": before.best.env_steps}
        for i in range(cut, len(POLICIES)):
            after.consider(POLICIES[i], 100 * i)
        assert after.best.env_steps == 100 * expected


def test_nothing_kept_leaves_nothing(tmp_path: Path) -> None:
    rule = validation()
    rule.save(tmp_path, card)
    assert list(tmp_path.iterdir()) == []
    rule.consider(POLICIES[0], 1)
    rule.load(tmp_path)  # a checkpoint from before the first validation
    assert rule.best is None


def test_episodes_survive_the_disk(tmp_path: Path) -> None:
    results = evaluate_both(POLICIES[0], TASK, 3, 7)  # no prior: the KL is NaN
    written = {"final": EvaluatedPolicy(5, 7, results), "best": EvaluatedPolicy(2, 7, results)}
    write_episodes(tmp_path, "a-trial", written)  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "evaluation", tmp_path / "evaluation" / "evaluation.json"):
        read = read_episodes(place)
        assert set(read) == {"final", "best"}
        assert (read["best"].env_steps, read["final"].env_steps, read["final"].seed) == (2, 5, 7)
        for mode, episodes in results.items():
            for field in fields(Episodes):
                found = getattr(read["final"].results[mode], field.name)
                np.testing.assert_array_equal(found, getattr(episodes, field.name))
    text = (tmp_path / "evaluation" / "evaluation.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    lengths = results["sampled"].episode_length
    odd = replace(results["sampled"], basic_return=np.array([math.inf, 1.0, 2.0]))
    write_episodes(tmp_path, "a-trial", {"final": EvaluatedPolicy(5, 7, {"sampled": odd})})
    again = read_episodes(tmp_path)["final"].results["sampled"]
    np.testing.assert_array_equal(again.basic_return, [math.nan, 1.0, 2.0])
    np.testing.assert_array_equal(again.episode_length, lengths)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, r"no evaluation\.json there; expected the last checkpoint of a finished trial"),
        (lambda file: file.write_text("{"), "not the episodes of a trial: JSONDecodeError"),
        (lambda file: file.write_text("[1]"), "not the episodes of a trial: TypeError"),
        (lambda file: file.write_text('{"format": 2}'), "format is 2, this version reads 1"),
        (lambda file: file.write_text('{"format": 1}'), "not the episodes of a trial: KeyError: 'policies'"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "not the episodes of a trial: UnicodeDecodeError"),
    ],
    ids=["missing", "cut off", "a list", "of another format", "empty", "binary"],
)
def test_other_files_are_refused(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write(tmp_path / "evaluation.json")
    with pytest.raises(ValueError, match=message):
        read_episodes(tmp_path)
