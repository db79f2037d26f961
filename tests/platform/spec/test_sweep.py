"""The models: their defaults, their JSON, and that every shipped specification is valid and survives both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rpg_platform.bundles import SHIPPED
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sections import Constraints, Range, Section
from rpg_platform.spec.space import SearchSpace
from rpg_platform.spec.sweep import (
    SECTION_KEYS,
    Baseline,
    Budget,
    Checkpoint,
    Evaluation,
    Network,
    Objective,
    Resources,
    SweepSpec,
    Tracking,
    Training,
    TrainingSpace,
    TrialSpec,
)
from rpg_platform.spec.yaml_file import dump_spec, load_spec, parse_spec
from rpg_platform.tasks.registry import TASKS

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "tune_configs").rglob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "name": "x",
    "task": "hopper-height",
    "prior": "./prior",
    "algorithm": "rpg",
    "weights": {"omega_prime": 0.1, "alpha_hat": 0.02},
    "budget": {"env_steps": 100_000},
}


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.model_validate({**MINIMAL, **changes})


# ---- what is shipped ----------------------------------------------------------------------------
def test_all_that_should_be_shipped_is() -> None:
    names = {str(file.relative_to(ROOT / "tune_configs")) for file in CONFIGS}
    tasks = {name.partition("-")[0] for name in TASKS}
    assert names >= {"quickstart.yaml", "paper_baselines.yaml", "repeat_entropy.yaml"}
    assert names >= {f"{task}.yaml" for task in tasks} | {f"priors/{task}.yaml" for task in tasks}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT / "tune_configs")))
def test_shipped_specifications(file: Path) -> None:
    loaded = load_spec(file, check_files=False)
    assert SweepSpec.model_validate(json.loads(loaded.model_dump_json())) == loaded
    assert parse_spec(dump_spec(loaded), check_files=False) == loaded
    assert expand(loaded)
    assert loaded.description


RUN_AS_THEY_ARE = (
    *("quickstart", "halfcheetah", "halfcheetah_conditioned", "hopper", "hopper_conditioned"),
    *("paper_baselines", "repeat_entropy", "priors/hopper"),
)


@pytest.mark.parametrize("name", RUN_AS_THEY_ARE)
def test_shipped_specifications_that_run_in_a_fresh_clone(name: str) -> None:
    """Their priors are shipped with the package, or they need none, so the default checks pass."""
    loaded = load_spec(ROOT / "tune_configs" / f"{name}.yaml")
    assert loaded.prior is None or loaded.prior in SHIPPED


def test_each_task_has_the_prior_that_its_sweep_asks_for() -> None:
    for file in CONFIGS:
        sweep = load_spec(file, check_files=False)
        if sweep.prior is None or file.parent.name == "priors":
            continue
        source = load_spec(ROOT / "tune_configs" / "priors" / f"{sweep.task.partition('-')[0]}.yaml")
        assert source.name == Path(sweep.prior).name
        assert source.task == sweep.task
        assert sweep.training.candidates("gamma") == source.training.candidates("gamma"), f"{file}: gamma"


def test_the_quickstart_sweeps_both_weights() -> None:
    trials = expand(load_spec(ROOT / "tune_configs" / "quickstart.yaml", check_files=False))
    assert sum(trial.method == "rpg" for trial in trials) >= 6
    assert len({trial.weights["omega_prime"] for trial in trials if trial.weights}) >= 2
    assert len({trial.weights["alpha_hat"] for trial in trials if trial.weights}) >= 2


# ---- the models ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "section", [Training, Network, Budget, Resources, Objective, Constraints, Range, Evaluation, Checkpoint, Tracking]
)
def test_every_field_has_a_sentence_and_a_default(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        assert (field.description or "").endswith("."), name
        assert section is Budget or not field.is_required(), name


def test_every_section_is_known_to_the_hints() -> None:
    assert set(SECTION_KEYS) <= set(SweepSpec.model_fields)
    assert set(SECTION_KEYS["training"]) == set(Training.model_fields)


def test_defaults() -> None:
    minimal = spec()
    assert minimal.seeds == (0,)
    assert minimal.training == TrainingSpace(Training(critic_warmup_iterations=6), {})  # a quarter of 100,000 env steps
    assert (minimal.training.fixed.gamma, minimal.training.fixed.lambda_) == (0.98, 0.92)
    assert minimal.evaluation == Evaluation(episodes=20, seed=10_000)
    assert minimal.resources == Resources(envs_per_runner=8, env_runners=0, learners=0)
    assert minimal.objective == Objective(maximize="total_return", mode="deterministic", constraints=Constraints())
    assert minimal == spec(objective={"constraints": None})
    assert (minimal.checkpoint.every_env_steps, minimal.checkpoint.keep) == (100_000, 2)


def test_a_full_specification_survives_json_and_yaml() -> None:
    full = spec(
        prior="/priors/a prior",
        description="Ünïcode, 'quotes' and\nlines: # not a comment",
        weights={"omega_prime": {"loguniform": [1e-5, 1]}, "alpha_hat": [[0, 0.2], [100_000, 1e-7]]},
        samples=3,
        search_seed=7,
        baselines=["greedy", {"kl": {"kl_coefficient": {"grid": [0.1, [[0, 1], [5, 0]]]}}}],
        seeds=[3, 1],
        training={"lr": {"choice": [1e-3, 1e-4]}, "target_kl": {"grid": [None, 0.02]}, "gamma": 0.9},
        objective={
            "maximize": "addon_return",
            "mode": "sampled",
            "constraints": {"kl_to_prior": {"max": 3}, "basic_return": {"min": -1.5, "min_fraction_of_prior": 0.9}},
        },
        tracking={"uri": "http://localhost:5000", "experiment": "yes"},
        storage="s3://bucket/path",
    )
    assert full.baselines == (
        Baseline("greedy"),
        Baseline("kl", {"kl_coefficient": SearchSpace("grid", (0.1, ((0, 1.0), (5, 0.0))))}),
    )
    assert full.training.searched["target_kl"] == SearchSpace("grid", (None, 0.02))
    assert SweepSpec.model_validate(json.loads(full.model_dump_json())) == full
    assert SweepSpec.model_validate(full.model_dump()) == full
    assert parse_spec(dump_spec(full), check_files=False) == full
    for trial in expand(full):
        assert TrialSpec.model_validate(json.loads(json.dumps(trial.model_dump(mode="json")))) == trial


def test_specifications_are_made_in_python_too() -> None:
    """From live objects as well as from what YAML gives."""
    made = SweepSpec(
        name="x",
        task="hopper-height",
        prior="./prior",
        algorithm="rpg",
        weights={"omega_prime": SearchSpace("grid", (0.1, 0.2)), "alpha_hat": 0.02},
        baselines=(Baseline("greedy"),),
        training=TrainingSpace(Training(lr=1e-3)),
        budget=Budget(env_steps=100_000),
    )
    read = spec(
        weights={"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02}, baselines=["greedy"], training={"lr": 1e-3}
    )
    assert made == read


def test_specifications_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().name = "other"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": {"omega_prime": True, "alpha_hat": 0.1}}, "expected a number or a schedule, got true"),
        ({"weights": {"omega_prime": 10**400, "alpha_hat": 0.1}}, "expected a finite number, got .inf"),
        ({"seeds": 0}, "a number of seeds is from 1 to 1000, got 0"),
        ({"budget": {"env_steps": "many"}}, "should be a valid integer"),
    ],
)
def test_python_values_are_checked_like_yaml(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec(**changes)


def test_a_trial_takes_no_search_space() -> None:
    trial = expand(spec())[1].model_dump(mode="json")
    with pytest.raises(ValidationError, match="expected a number or a schedule, got a mapping"):
        TrialSpec.model_validate({**trial, "weights": {"omega_prime": {"grid": [0.1]}}})
