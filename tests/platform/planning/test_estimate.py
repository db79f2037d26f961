"""What a plan says beforehand, by hand-worked figures and against what a real sweep then is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.platform.disks import written
from tests.platform.planning.planned import RATE, TWO, planned, resolved, spec

from rpg_platform.planning.estimate import DEFAULT_EPISODE, make_plan
from rpg_platform.planning.preflight import plan_of
from rpg_platform.planning.words import head_lines
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.trial.sizes import networks_of, reports, trial_bytes


# ---- arithmetic ----------------------------------------------------------------------------------
def test_counts_and_times(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [(m.method, m.settings, m.trials, m.left) for m in plan.methods] == [
        ("prior", 1, 1, 1),
        ("rpg", 2, 6, 6),
        ("greedy", 1, 3, 3),
    ]
    assert (plan.trials, plan.env_steps, plan.at_once, plan.rounds) == (10, 900_000, 2, 5)
    # 10 episodes of 1,000 steps in 2 modes for the final and the best policy, 5 in 2 modes to choose by, and
    # 2 validations of 5 in 2 modes: 70,000 a trial.
    assert plan.evaluation_steps == 9 * 70_000 + 30_000
    # A trained trial: 2 s + 100 s + 17.5 s; the prior: 2 s + 7.5 s. Two at a time, the prior first.
    assert plan.trial_s == pytest.approx(119.5)
    assert plan.wall_s == pytest.approx(5 * 119.5 + 12)
    assert plan.cpu_hours == pytest.approx((9 * 119.5 + 9.5) / 3600)
    assert plan.evaluation_share == pytest.approx((9 * 17.5 + 7.5) / (9 * 119.5 + 9.5))
    assert json.loads(json.dumps(plan.as_json()))["trials"] == 10


def test_what_is_finished_costs_nothing_more(tmp_path: Path) -> None:
    done = {
        "prior": TrialState("x", 0, {"finished": True}),
        "greedy-seed=0": TrialState("x", 100_000, {"finished": True}),
        "greedy-seed=1": TrialState("x", 60_000, {}),
    }
    plan = planned(tmp_path, states=done)
    assert (plan.trials, plan.left, plan.env_steps) == (10, 8, 900_000)
    assert plan.env_steps_left == 7 * 100_000 + 40_000
    assert [(m.method, m.left) for m in plan.methods] == [("prior", 0), ("rpg", 6), ("greedy", 2)]
    assert "10, 8 left: the prior, rpg 2 settings x 3 seeds, greedy 1 setting x 3 seeds" in head_lines(plan)[0]


def test_constraints_validate_in_both_modes_and_the_prior_too(tmp_path: Path) -> None:
    bound = {"constraints": {"kl_to_prior": {"max": 3}, "basic_return": {"min_fraction_of_prior": 0.9}}}
    plan = planned(tmp_path, spec(objective=bound))
    assert plan.evaluation_steps == 9 * (50_000 + 2 * 5_000 * 3) + 30_000


def test_an_adaptive_search_has_as_many_settings_as_samples(tmp_path: Path) -> None:
    weights = {"omega_prime": {"loguniform": [0.01, 1]}, "alpha_hat": 0.02}
    wanted = spec(search="optuna", samples=4, weights=weights, scheduler="asha")
    chosen = {f"rpg-omega_prime=0.3-alpha_hat=0.02-seed={seed}": 100_000 for seed in range(2)}
    states = {name: TrialState("x", steps, {"finished": True}) for name, steps in chosen.items()}
    plan = planned(tmp_path, wanted, states=states)
    assert [(m.method, m.trials, m.left) for m in plan.methods] == [("prior", 1, 1), ("greedy", 3, 3), ("rpg", 12, 10)]
    text = "\n".join(head_lines(plan))
    assert "rpg 4 settings x 3 seeds, settings by optuna search" in text
    assert "at most about" in text


def test_the_rate_is_that_of_the_heaviest_trial(tmp_path: Path) -> None:
    asked: list[TrialSpec] = []
    planned(tmp_path, spec(training={"num_epochs": {"grid": [2, 20, 5]}}), rate_of=asked.append)
    assert [trial.training.num_epochs for trial in asked] == [20]
    planned(tmp_path, spec(algorithm="prior", weights={}, baselines=[]), rate_of=asked.append)
    assert len(asked) == 1


def test_a_task_without_a_time_limit_is_said_to_have_none(tmp_path: Path) -> None:
    endless = {"env": "gymnasium.envs.classic_control:PendulumEnv", "addons": {"small": {"expression": "-action[0]"}}}
    bounded = {"max_steps": 1_000}
    plan = planned(
        tmp_path, spec(task=endless, prior=None, algorithm="ppo", weights={}, baselines=[], evaluation=bounded)
    )
    assert plan.assumed_episode == DEFAULT_EPISODE
    assert "(the task sets no time limit; episodes of 1,000 steps are assumed)" in head_lines(plan)[1]
    limited = endless | {"max_episode_steps": 200}
    plan = planned(tmp_path, spec(task=limited, prior=None, algorithm="ppo", weights={}, baselines=[]))
    assert plan.assumed_episode is None
    assert plan.evaluation_steps == 3 * 70 * 200


# ---- against a real sweep ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepOutcome, str]]:
    """What a small sweep came to, and what it printed; its rates stay known."""
    folder = tmp_path_factory.mktemp("planned")
    wanted = spec(
        weights={"omega_prime": 0.1, "alpha_hat": 0.02},
        baselines=[],
        seeds=1,
        budget={"env_steps": 2048},
        training={"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 1},
        evaluation={"episodes": 3, "validations": 2, "validation_episodes": 1},
        checkpoint={"every_env_steps": 1024},
    )
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield run_sweep(resolved(folder / "results", wanted), console=Console(file=text, width=200)), text.getvalue()


def reported(outcome: SweepOutcome) -> list[dict[str, Any]]:
    """The reports of the sweep's one training."""
    file = Path(outcome.sweep.folder.uri) / outcome.results[1][0].trial_id / "result.json"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_trials_folder_has_the_planned_size(swept: tuple[SweepOutcome, str]) -> None:
    """Within a tenth for a checkpoint, a quarter for a trial, and a factor of two for the whole storage."""
    outcome, _ = swept
    sweep, trained = outcome.sweep, outcome.results[1][0]
    plan = make_plan(sweep, TWO, lambda trial: RATE)
    folder = Path(sweep.folder.uri) / trained.trial_id
    checkpoints = sorted(folder.glob("checkpoint_*"))
    assert len(checkpoints) == 2
    assert written(checkpoints[-1]) == pytest.approx(plan.checkpoint_bytes, rel=0.1)
    networks = networks_of(trained, sweep.observation_space, sweep.action_space, sweep.prior)
    assert written(folder) == pytest.approx(trial_bytes(trained, networks), rel=0.25)
    everything = written(Path(sweep.storage))
    assert everything / 2 < plan.storage_bytes < everything * 2
    assert len(reported(outcome)) == reports(trained)


def test_a_sweep_begins_with_its_plan_and_leaves_its_rate(swept: tuple[SweepOutcome, str]) -> None:
    outcome, text = swept
    assert text.index("2: the prior, rpg 1 setting x 1 seed") < text.index("(driver)")
    assert "known after the first reports" in text
    rate = plan_of(outcome.sweep, TWO).rate  # as another sweep of this kind finds it
    assert rate is not None
    assert rate.source == "reports of an earlier sweep"
    speeds = [report["env_steps_per_s"] for report in reported(outcome)]
    assert min(speeds) <= rate.env_steps_per_s <= max(speeds)
    assert rate.evaluation_steps_per_s == reported(outcome)[-1]["evaluation_steps_per_s"] > 100
