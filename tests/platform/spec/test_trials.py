"""From a specification to its trials: products, draws, seeds, names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rpg_platform.spec.checks import expand
from rpg_platform.spec.errors import SpecError
from rpg_platform.spec.sweep import Network, SweepSpec, TrialSpec
from rpg_platform.spec.trials import count_trials

ROOT = Path(__file__).parents[3]
WEIGHTS = {"omega_prime": 0.1, "alpha_hat": 0.02}
RANDOM = {"omega_prime": {"loguniform": [0.01, 1.0]}, "alpha_hat": {"uniform": [0.01, 0.05]}}


def plan(**changes: Any) -> list[TrialSpec]:
    return expand(spec(**changes))


def spec(**changes: Any) -> SweepSpec:
    minimal: dict[str, Any] = {
        "name": "x",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": WEIGHTS,
        "budget": {"env_steps": 100_000},
    }
    return SweepSpec.model_validate({**minimal, **changes})


def ids(trials: list[TrialSpec]) -> list[str]:
    return [trial.trial_id for trial in trials]


# ---- products -----------------------------------------------------------------------------------
def test_one_setting_is_the_prior_and_one_trial() -> None:
    prior, trial = plan()
    assert (prior.trial_id, prior.group, prior.method, prior.env_steps, prior.weights) == (
        "prior",
        "prior",
        "prior",
        0,
        {},
    )
    assert prior.prior == trial.prior == "./prior"
    assert trial.trial_id == "rpg-omega_prime=0.1-alpha_hat=0.02-seed=0"
    assert trial.group == "rpg-omega_prime=0.1-alpha_hat=0.02"
    assert (trial.sweep, trial.task, trial.method, trial.env_steps) == ("x", "hopper-height", "rpg", 100_000)
    assert trial.weights == WEIGHTS


COMPARED: dict[str, Any] = {
    "weights": {"alpha_hat": {"grid": [0.02, 0.05]}, "omega_prime": {"grid": [0.1, 0.2]}},
    "baselines": ["greedy", {"kl": {"kl_coefficient": {"grid": [0.1, 1.0]}}}],
    "seeds": [3, 1],
}
TURNS = [
    "rpg-omega_prime=0.1-alpha_hat=0.02",
    "greedy",
    "kl-kl_coefficient=0.1",
    "rpg-omega_prime=0.1-alpha_hat=0.05",
    "kl-kl_coefficient=1",
    "rpg-omega_prime=0.2-alpha_hat=0.02",
    "rpg-omega_prime=0.2-alpha_hat=0.05",
]


def test_methods_take_turns_at_one_seed_after_the_other() -> None:
    """A sweep that is stopped has compared what it has trained."""
    assert ids(plan(**COMPARED)) == ["prior", *(f"{turn}-seed={seed}" for seed in (3, 1) for turn in TURNS)]


def test_a_scheduler_has_the_seeds_of_a_setting_together() -> None:
    """It judges a setting by all of its seeds: seed by seed, every setting would be trained to its end first."""
    trials = ids(plan(**COMPARED, scheduler="asha"))
    assert trials == ["prior", *(f"{turn}-seed={seed}" for turn in TURNS for seed in (3, 1))]


def test_training_settings_are_searched_for_every_method() -> None:
    trials = plan(training={"lr": {"grid": [1e-3, 1e-4]}, "gamma": 0.9}, baselines=["greedy"])
    assert ids(trials)[1:] == [
        "rpg-omega_prime=0.1-alpha_hat=0.02-lr=0.001-seed=0",
        "greedy-lr=0.001-seed=0",
        "rpg-omega_prime=0.1-alpha_hat=0.02-lr=0.0001-seed=0",
        "greedy-lr=0.0001-seed=0",
    ]
    assert [trial.training.lr for trial in trials[1:]] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert {trial.training.gamma for trial in trials} == {0.9}


def test_the_prior_is_one_row_however_often_it_is_asked_for() -> None:
    assert ids(plan(baselines=["prior"], seeds=2)) == ids(plan(seeds=2))
    assert ids(plan(algorithm="prior", weights={}, seeds=3)) == ["prior"]


def test_without_a_prior_there_is_no_row_for_it() -> None:
    assert ids(plan(prior=None, algorithm="ppo", weights={})) == ["ppo-seed=0"]


# ---- what a method does not use -----------------------------------------------------------------
def test_from_scratch_methods_get_no_prior_no_warmup_and_a_network() -> None:
    trials = plan(baselines=["ppo", {"full": {"alpha": 0.02}}], training={"critic_warmup_iterations": 5})
    rpg, ppo, full = trials[1:]
    assert (rpg.prior, rpg.training.start_from_prior, rpg.training.network) == ("./prior", True, None)
    assert (full.prior, full.training.start_from_prior, full.training.critic_warmup_iterations) == ("./prior", True, 5)
    assert (ppo.prior, ppo.training.start_from_prior, ppo.training.network) == (None, False, Network())
    assert (rpg.training.critic_warmup_iterations, ppo.training.critic_warmup_iterations) == (5, 0)


def test_full_without_a_prior_starts_from_scratch() -> None:
    [full] = plan(prior=None, algorithm="full", weights={"alpha": 0.02})
    assert (full.prior, full.training.start_from_prior, full.training.network) == (None, False, Network())


def test_a_network_of_its_own_when_not_started_from_the_prior() -> None:
    trials = plan(training={"start_from_prior": False, "network": {"hidden": [64]}})
    assert trials[1].training.network == Network(hidden=(64,))


def test_a_search_over_the_start_is_not_repeated_where_there_is_no_prior_to_start_from() -> None:
    trials = plan(training={"critic_warmup_iterations": {"grid": [0, 5]}}, baselines=["ppo"])
    assert [trial.trial_id for trial in trials if trial.method == "ppo"] == ["ppo-seed=0"]
    assert sum(trial.method == "rpg" for trial in trials) == 2


# ---- draws --------------------------------------------------------------------------------------
def test_draws_are_within_bounds_and_the_same_for_each_seed() -> None:
    trials = plan(weights=RANDOM, samples=20, seeds=3)[1:]
    assert len(trials) == 60
    by_seed = [[trial.weights for trial in trials if trial.seed == seed] for seed in range(3)]
    assert by_seed[0] == by_seed[1] == by_seed[2]
    drawn = [trial.weights for trial in trials]
    omegas = [float(weights["omega_prime"]) for weights in drawn if isinstance(weights["omega_prime"], float)]
    assert len(omegas) == 60
    assert all(0.01 <= omega <= 1.0 for omega in omegas)
    assert 15 < sum(omega < 0.1 for omega in omegas) < 45  # half of a loguniform's draws are below the middle decade
    assert len(set(omegas)) == 20


def test_draws_depend_on_the_search_seed_alone() -> None:
    first = plan(weights=RANDOM, samples=5)
    assert plan(weights=RANDOM, samples=5) == first
    assert plan(weights=RANDOM, samples=5, budget={"env_steps": 200_000})[1].weights == first[1].weights
    assert ids(plan(weights=RANDOM, samples=5, search_seed=1)) != ids(first)


def test_more_samples_keep_the_earlier_ones() -> None:
    assert ids(plan(weights=RANDOM, samples=9))[:6] == ids(plan(weights=RANDOM, samples=5))


def test_every_grid_point_gets_the_same_draws() -> None:
    trials = plan(weights={"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": RANDOM["alpha_hat"]}, samples=4)[1:]
    assert len(trials) == 8
    low, high = ([t.weights["alpha_hat"] for t in trials if t.weights["omega_prime"] == w] for w in (0.1, 0.2))
    assert low == high


def test_methods_that_search_the_same_name_share_its_draws() -> None:
    trials = plan(weights=RANDOM, samples=4, baselines=[{"greedy": {"alpha_hat": RANDOM["alpha_hat"]}}])
    rpg, greedy = ([t.weights["alpha_hat"] for t in trials if t.method == method] for method in ("rpg", "greedy"))
    assert rpg == greedy


def test_a_method_without_random_settings_is_not_repeated() -> None:
    trials = plan(weights=RANDOM, samples=4, baselines=["greedy"])
    assert sum(trial.method == "greedy" for trial in trials) == 1


def test_choice_draws_without_repeating() -> None:
    choice = {"omega_prime": {"choice": [0.1, 0.2, 0.3]}, "alpha_hat": {"choice": [0.01, 0.02]}}
    trials = plan(weights=choice, samples=6)[1:]
    assert len(set(ids(trials))) == 6
    with pytest.raises(SpecError, match="samples: 7 draws, but rpg has only 6 distinct settings to draw"):
        plan(weights=choice, samples=7)


def test_a_baseline_with_fewer_settings_gets_each_of_them_once() -> None:
    trials = plan(weights=RANDOM, samples=5, training={"lr": {"choice": [1e-3, 1e-4]}}, baselines=["greedy"])
    assert sum(trial.method == "rpg" for trial in trials) == 5
    assert {trial.training.lr for trial in trials if trial.method == "greedy"} == {1e-3, 1e-4}
    assert sum(trial.method == "greedy" for trial in trials) == 2


def test_another_process_draws_the_same() -> None:
    """No draw hangs on the interpreter's hash seed."""
    code = (
        "from rpg_platform.spec.checks import expand; from rpg_platform.spec.sweep import SweepSpec;"
        f"spec = SweepSpec.model_validate({spec(weights=RANDOM, samples=3).model_dump()!r});"
        "print([trial.trial_id for trial in expand(spec)])"
    )
    path = f"{ROOT / 'algorithms'}:{ROOT / 'platform'}"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(ids(plan(weights=RANDOM, samples=3)))


# ---- names --------------------------------------------------------------------------------------
def test_names_are_safe_short_and_unique() -> None:
    many: dict[str, Any] = {
        name: {"uniform": [0.1, 0.9]}
        for name in ("lr", "gamma", "lambda_", "clip_param", "vf_loss_coeff", "grad_clip", "target_kl")
    }
    schedules = {"grid": [0.5, [[0, 0.2], [50_000, 0.1]], [[0, 0.2], [90_000, 0.1]]]}
    trials = plan(weights={**RANDOM, "addon_weight": schedules}, training=many, samples=30, seeds=2)
    assert len(trials) == 1 + 30 * 3 * 2
    assert len(set(ids(trials))) == len(trials)
    assert len({trial.group for trial in trials}) == 1 + 30 * 3
    for trial in trials:
        assert re.fullmatch(r"[A-Za-z0-9._=+-]{1,140}", trial.trial_id)
        assert trial.trial_id in (trial.group, f"{trial.group}-seed={trial.seed}")


def test_schedules_that_read_alike_are_told_apart() -> None:
    schedules = {"grid": [[[0, 0.2], [50_000, 0.1]], [[0, 0.2], [90_000, 0.1]], [[0, 0.3], [9, 0]]]}
    first, second, third = ids(plan(weights={"omega_prime": schedules, "alpha_hat": 0.02}))[1:]
    assert re.fullmatch(r"rpg-omega_prime=0\.2to0\.1-alpha_hat=0\.02-[0-9a-f]{8}-seed=0", first)
    assert re.fullmatch(r"rpg-omega_prime=0\.2to0\.1-alpha_hat=0\.02-[0-9a-f]{8}-seed=0", second)
    assert first != second
    assert third == "rpg-omega_prime=0.3to0-alpha_hat=0.02-seed=0"


def test_names_do_not_depend_on_the_order_of_keys() -> None:
    assert ids(plan(weights=dict(reversed(WEIGHTS.items())))) == ids(plan(weights=WEIGHTS))


# ---- refused ------------------------------------------------------------------------------------
def test_a_specification_made_in_python_is_checked_before_it_is_expanded() -> None:
    with pytest.raises(SpecError) as refused:
        plan(weights={"omega_prime": 0.1}, task="hoper-height", samples=3)
    assert refused.value.messages == (
        "task: unknown task 'hoper-height'; did you mean 'hopper-height'?",
        "weights: method 'rpg' takes either omega_prime with alpha_hat, or omega with alpha_hat; given: omega_prime",
        "samples: 3 given, but nothing is random: there is no choice, uniform or loguniform",
    )


def test_no_more_trials_than_anybody_can_run() -> None:
    huge = spec(weights=RANDOM, samples=10_000, seeds=1000)
    assert count_trials(huge) == 10_000_001
    with pytest.raises(SpecError, match="asks for 10000001 trials"):
        expand(huge)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("samples", [1, 4])
def test_the_count_is_that_of_the_trials(seeds: int, samples: int) -> None:
    counted = spec(
        weights={**RANDOM, "addon_weight": {"grid": [0.5, 1, 2]}},
        samples=samples,
        seeds=seeds,
        baselines=["greedy", "ppo"],
    )
    assert count_trials(counted) == len(expand(counted)) == 1 + (3 * samples + 2) * seeds
