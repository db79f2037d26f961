"""What a plan says beforehand, against what a real sweep then is; and what it refuses."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.planning import rates
from rpg_platform.planning.cluster import CapacityError
from rpg_platform.planning.estimate import PlanError, SweepPlan, all_trials, check_writable, heaviest, make_plan
from rpg_platform.planning.preflight import head_lines, period
from rpg_platform.planning.rates import Rate, evaluated_steps, keep_rate, known_rate, measure, rate_key
from rpg_platform.run import disk_guard as disk
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import TrialState

PRIOR = "halfcheetah-spg"
RATE = Rate(1_000.0, 4_000.0, 2.0, "measured here", 1.8e9)
TWO = [{"CPU": 2.0}]


def spec(**changes: Any) -> SweepSpec:
    """Two settings of RPG and one of greedy, at three seeds, of 100,000 env steps each; and the prior."""
    return SweepSpec.model_validate(
        {
            "name": "planned",
            "task": "halfcheetah-foot-angle",
            "prior": PRIOR,
            "algorithm": "rpg",
            "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
            "baselines": ["greedy"],
            "seeds": 3,
            "budget": {"env_steps": 100_000},
            "evaluation": {"episodes": 10, "validations": 2, "validation_episodes": 5},
            **changes,
        }
    )


def planned(storage: Path, wanted: SweepSpec | None = None, **options: Any) -> SweepPlan:
    given = wanted or spec()
    prior = None if given.prior is None else load_bundle(resolve_prior(given.prior))
    states = options.get("states") or {}
    arguments = {"tracking_is_local": True, "rate": RATE} | options
    nodes = arguments.pop("nodes", TWO)
    return make_plan(given, all_trials(given, states), prior, nodes, str(storage), **arguments)


# ---- arithmetic ----------------------------------------------------------------------------------
def test_counts_and_times(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [(m.method, m.settings, m.trials, m.left) for m in plan.methods] == [
        ("prior", 1, 1, 1),
        ("rpg", 2, 6, 6),
        ("greedy", 1, 3, 3),
    ]
    assert (plan.trials, plan.env_steps, plan.at_once, plan.rounds) == (10, 900_000, 2, 5)
    # 10 episodes of 1,000 steps in 2 modes for the final and the best policy, and 2 validations of 5: 50,000 a trial.
    assert plan.evaluation_steps == 9 * 50_000 + 20_000
    # A trained trial: 2 s + 100 s + 12.5 s; the prior: 2 s + 5 s. Two at a time, the prior first: 7 + 4 and 5 of them.
    assert plan.trial_s == pytest.approx(114.5)
    assert plan.wall_s == pytest.approx(5 * 114.5 + 12)
    assert plan.cpu_hours == pytest.approx((9 * 114.5 + 7) / 3600)
    assert plan.evaluation_share == pytest.approx((9 * 12.5 + 5) / (9 * 114.5 + 7))
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
    assert plan.evaluation_steps == 9 * (40_000 + 2 * 5_000 * 3) + 20_000


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


def test_the_heaviest_trial_is_the_one_that_is_measured() -> None:
    training = {"num_epochs": {"grid": [2, 20, 5]}}
    found = heaviest(all_trials(spec(training=training)), load_bundle(resolve_prior(PRIOR)))
    assert found is not None
    assert found.training.num_epochs == 20
    assert heaviest(all_trials(spec(algorithm="prior", weights={}, baselines=[])), None) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (600, "10 min"), (3 * 3600 + 60, "3 h 01 min"), (86_400 * 5, "5.0 days")],
)
def test_periods(seconds: float, text: str) -> None:
    assert period(seconds) == text


# ---- refusals ------------------------------------------------------------------------------------
def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="asks for 3 CPU"):
        planned(tmp_path, spec(resources={"cpus_per_trial": 3}))
    huge = {"start_from_prior": False, "network": {"hidden": [8192] * 16}}
    with pytest.raises(PlanError, match=r"are free, and the sweep needs .* TB .*make room"):
        planned(tmp_path, spec(training=huge, seeds=300))


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="file is a file, expected a folder"):
        check_writable(str(tmp_path / "file" / "results"))
    with pytest.raises(PlanError, match="cannot be written to"):
        check_writable("/proc/results" if os.geteuid() else "/sys/kernel/results")
    check_writable(str(tmp_path / "not" / "there" / "yet"))
    check_writable("s3://bucket/sweeps")


# ---- rates ---------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rpg" / "rates"


def test_a_rate_belongs_to_what_costs_time(cache: Path) -> None:
    trials = {trial.trial_id: trial for trial in all_trials(spec())}
    one, other, greedy = (
        trials[f"{name}-seed=0"]
        for name in ("rpg-omega_prime=0.1-alpha_hat=0.02", "rpg-omega_prime=0.2-alpha_hat=0.02", "greedy")
    )
    key = rate_key(one, TWO)
    assert key == rate_key(other, TWO) == rate_key(greedy, TWO)
    assert key != rate_key(one, [{"CPU": 64.0}])
    assert key != rate_key(all_trials(spec(training={"num_epochs": 3}))[1], TWO)
    keep_rate(key, RATE, one)
    assert known_rate(key) == RATE
    (cache / f"{key}.json").write_text('{"env_steps_per_s": "fast"}')
    assert known_rate(key) is None


def test_without_a_rate_the_times_are_unknown(tmp_path: Path) -> None:
    plan = planned(tmp_path, rate=None)
    assert (plan.rate, plan.wall_s, plan.cpu_hours) == (None, None, None)
    assert "known after the first reports" in head_lines(plan)[2]


def test_measuring_starts_no_ray_and_counts_remote_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MEASURED_S", 0.2)
    trial = all_trials(spec(resources={"envs_per_runner": 4}, training={"rollout_length": 64, "num_epochs": 1}))[1]
    prior = load_bundle(resolve_prior(PRIOR))
    rate = measure(trial, prior)
    assert 200 < rate.env_steps_per_s < 200_000
    assert 200 < rate.evaluation_steps_per_s < 500_000
    assert 0 < rate.setup_s < 60


# ---- against a real sweep ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepSpec, SweepOutcome, str, list[Path]]:
    folder = tmp_path_factory.mktemp("planned")
    wanted = spec(
        weights={"omega_prime": 0.1, "alpha_hat": 0.02},
        baselines=[],
        seeds=1,
        budget={"env_steps": 2048},
        training={"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 1},
        evaluation={"episodes": 3, "validations": 2, "validation_episodes": 1},
        checkpoint={"every_env_steps": 1024},
        storage=str(folder / "results"),
    )
    text = io.StringIO()
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        outcome = run_sweep(Sweep.resolve(wanted), console=Console(file=text, width=200))
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
    return wanted, outcome, text.getvalue(), list((folder / "cache" / "rpg" / "rates").iterdir())


def test_a_trials_folder_has_the_planned_size(swept: tuple[SweepSpec, SweepOutcome, str, list[Path]]) -> None:
    """Within a tenth for a checkpoint, a quarter for a trial, and a factor of two for the whole storage."""
    wanted, outcome, _, _ = swept
    plan = planned(Path(outcome.sweep.folder.uri).parent, wanted)
    [_, trained] = outcome.results
    folder = Path(outcome.sweep.folder.uri) / trained[0].trial_id
    checkpoints = sorted(folder.glob("checkpoint_*"))
    assert len(checkpoints) == 2
    assert disk.written(checkpoints[-1]) == pytest.approx(plan.checkpoint_bytes, rel=0.1)
    prior = load_bundle(resolve_prior(PRIOR))
    from rpg_platform.spec.task import get_task
    from rpg_platform.tasks.environments import make_env

    expected = disk.trial_bytes(trained[0], disk.parameters(trained[0], make_env(get_task(trained[0].task)), prior))
    assert disk.written(folder) == pytest.approx(expected, rel=0.25)
    everything = disk.written(Path(outcome.sweep.folder.uri).parent)
    assert everything / 2 < plan.storage_bytes < everything * 2
    lines = (folder / "result.json").read_text().splitlines()
    assert len(lines) == disk.reports(trained[0])


def test_a_sweep_begins_with_its_plan_and_leaves_its_rate(
    swept: tuple[SweepSpec, SweepOutcome, str, list[Path]], cache: Path
) -> None:
    wanted, outcome, text, [kept] = swept
    assert text.index("2: the prior, rpg 1 setting x 1 seed") < text.index("(driver)")
    assert "known after the first reports" in text
    reports = [
        json.loads(line)
        for line in (Path(outcome.sweep.folder.uri) / outcome.results[1][0].trial_id / "result.json")
        .read_text()
        .splitlines()
    ]
    rate = json.loads(kept.read_text())
    assert rate["source"] == "reports of an earlier sweep"
    assert min(r["env_steps_per_s"] for r in reports) <= rate["env_steps_per_s"]
    assert rate["env_steps_per_s"] <= max(r["env_steps_per_s"] for r in reports)
    assert rate["evaluation_steps_per_s"] > 100
    cache.mkdir(parents=True)
    (cache / kept.name).write_bytes(kept.read_bytes())
    plan = planned(Path(outcome.sweep.folder.uri).parent, wanted, rate=None)  # as another sweep of this kind finds it
    assert plan.rate is not None
    assert plan.rate.env_steps_per_s == rate["env_steps_per_s"]
    played = evaluated_steps(outcome.results[1][0], outcome.results[1][1] or {})
    assert played in (2 * 3 * 1000 + 1000, 4 * 3 * 1000 + 1000)
