"""One trial without a sweep around it: every method trains, reports, evaluates, and leaves a bundle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.utils.schedules.scheduler import Scheduler
from tests.platform import own_tasks
from tests.platform.trial.small import PRIOR, STEPS_PER_ITERATION, WEIGHTS, trial_spec

import rpg_platform
from rpg_algorithms import RPGConfig, SPGConfig, load_bundle
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.evaluation.episode_file import read_episodes
from rpg_platform.evaluation.play import evaluate_both
from rpg_platform.results.report import MODES, cut_episodes
from rpg_platform.spec.measures import PER_MODE
from rpg_platform.spec.methods import METHODS, MethodName
from rpg_platform.spec.sweep import StartFrom, TrialSpec
from rpg_platform.spec.task import get_task
from rpg_platform.storage.trial_state import read_state
from rpg_platform.tasks.environments import make_env
from rpg_platform.trial.config import algorithm_config
from rpg_platform.trial.trainable import CustomizationTrial, running_code

# What the card of the policy says of its alpha: the entropy temperature that it was trained at.
ALPHA = {"rpg": 0.02, "kl": 0.1, "greedy": None, "full": 0.02, "spg": 0.1, "ppo": None, "repeat-entropy": None}
Make = Callable[[TrialSpec], CustomizationTrial]


@pytest.fixture(scope="module")
def prior() -> PriorBundle:
    return load_bundle(resolve_prior(PRIOR))


@pytest.fixture
def make(local_ray: None, prior: PriorBundle) -> Any:
    """Makes trials in this process, as Tune makes them in theirs; ends them."""
    made: list[CustomizationTrial] = []

    def _make(spec: TrialSpec) -> CustomizationTrial:
        trainable = tune.with_parameters(CustomizationTrial, prior=prior)
        made.append(trainable(config={"trial": spec.model_dump(mode="json")}))
        return made[-1]

    yield _make
    for trial in made:
        trial.stop()


def run(trial: CustomizationTrial) -> list[dict[str, Any]]:
    results = [trial.train()]
    while not results[-1]["done"]:
        results.append(trial.train())
    return results


def state_of(trial: CustomizationTrial) -> dict[str, torch.Tensor]:
    trial.build()
    assert trial.algo is not None
    module = trial.algo.get_module()
    assert module is not None
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_every_method_is_tried() -> None:
    assert set(WEIGHTS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_reports_and_leaves_a_bundle(
    method: MethodName, make: Make, prior: PriorBundle, tmp_path: Path
) -> None:
    trial = make(trial_spec(method))
    results = run(trial)
    last = results[-1]
    iterations = 0 if method == "prior" else 2
    assert [r["env_steps"] for r in results] == ([0] if method == "prior" else [512, 1024, 1024])
    assert last["nonfinite_values"] == 0
    assert last["code"] == f"rpg {rpg_platform.__version__} from {Path(rpg_platform.__file__).parent}" == running_code()
    for mode in ("deterministic", "sampled"):
        basic, addon, total = (last[f"eval/{mode}/{name}_return_mean"] for name in ("basic", "addon", "total"))
        assert total == pytest.approx(basic + addon)
        assert last[f"eval/{mode}/episode_length_mean"] == 1000
        assert last[f"eval/{mode}/addon_return_mean"] == pytest.approx(
            -10 * 1000 * last[f"eval/{mode}/task_metric_mean"]
        )
    with_prior = METHODS[method].uses_prior
    assert math.isfinite(last["eval/kl_to_prior"]) == with_prior
    assert ("eval/objective" in last) == (method != "prior"), "the prior is trained on nothing"
    if method in ("ppo", "greedy"):  # at alpha and alpha_hat 0 it is a return
        name = {"ppo": "basic", "greedy": "addon"}[method]
        assert last["eval/objective"] == pytest.approx(last[f"eval/sampled/{name}_return_mean"])
    if iterations:
        check_training_report(method, last, with_prior)

    trial.save_checkpoint(str(tmp_path))
    bundle = load_bundle(tmp_path / "bundle")  # checks its hash
    card = bundle.card
    stated = card.returns["basic/deterministic"]
    assert (stated.mean, stated.episodes) == (last["eval/deterministic/basic_return_mean"], 2)
    # The bundle is the policy: evaluated anew, it does what the trial reported.
    again = evaluate_both(bundle.build(), trial.task, 2, trial.trial.evaluation.seed)
    assert again["deterministic"].basic_return.mean() == pytest.approx(stated.mean, rel=1e-6)
    if method == "prior":
        assert card.name == prior.card.name
        np.testing.assert_array_equal(bundle.weights["mlp.0.weight"], prior.weights["mlp.0.weight"])
        return
    assert card.alpha == ALPHA[method]
    assert ("alpha_unknown" in card.made_by) == (method == "repeat-entropy"), "its loss has an entropy term too"
    assert card.parents == ([prior.card.content_hash] if with_prior else [])
    assert card.env_id == "HalfCheetah-v5"
    assert {k: card.made_by[k] for k in ("method", "weights", "seed", "env_steps", "sweep")} == {
        "method": method,
        "weights": WEIGHTS[method],
        "seed": 0,
        "env_steps": 1024,
        "sweep": "small",
    }
    env = make_env(trial.task)
    bundle.check_spaces(env.observation_space, env.action_space, "here")
    moved = not np.array_equal(bundle.weights["mlp.0.weight"], prior.weights["mlp.0.weight"])
    assert moved  # the second iteration trains the policy too


def check_training_report(method: MethodName, last: dict[str, Any], with_prior: bool) -> None:
    for name in (
        "entropy",
        "clip_fraction",
        "approx_kl",
        "policy_loss",
        "vf_loss",
        "explained_variance",
        "env_steps_per_s",
    ):
        assert math.isfinite(last[name]), name
    assert last["learning_rate"] == pytest.approx(0.0, abs=4e-4)
    assert ("kl_to_prior" in last) == with_prior
    rewarded = METHODS[method].algorithm == "rpg"
    assert ("reward_prior_term" in last) == rewarded
    if rewarded:
        assert (last["reward_prior_term"] == 0) == (method == "greedy")
        assert "reward_basic_term" not in last  # RPG never sees the basic reward
    assert (last["reward_entropy_term"] == 0) == (method in ("greedy", "ppo"))
    assert (last["reward_addon_term"] == 0) == (method in ("spg", "ppo", "repeat-entropy"))


@pytest.mark.parametrize("power", [1, 2.5])
def test_the_learning_rate_falls_to_zero_as_asked(power: float) -> None:
    trial = trial_spec("spg", training={"lr": 1e-3, "anneal_power": power}, budget={"env_steps": 100_000})
    rate = Scheduler(algorithm_config(trial, get_task(trial.task), None).lr, framework="torch")
    for share in (0.0, 0.15, 0.5, 0.93, 1.0):
        found = float(rate.update(timestep=int(100_000 * share)))
        assert found == pytest.approx(1e-3 * (1 - share) ** power, abs=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].algorithm is not None])
def test_configuration_is_the_specification(method: MethodName, prior: PriorBundle) -> None:
    trial = trial_spec(
        method,
        training={"lr": 2e-4, "gamma": 0.97, "lambda_": 0.91, "clip_param": 0.15, "grad_clip": 0.6, "num_epochs": 3}
        | {"rollout_length": 32, "minibatch_size": 64, "target_kl": 0.02, "critic_warmup_iterations": 3}
        | {"vf_loss_coeff": 0.4, "scale_rewards": False, "normalize_advantages": "batch"},
        budget={"env_steps": 4096},
        seeds=[5],
    )
    with_prior = METHODS[method].uses_prior
    config = algorithm_config(trial, get_task(trial.task), prior if with_prior else None)
    config.validate()
    assert type(config) is (RPGConfig if METHODS[method].algorithm == "rpg" else SPGConfig)
    assert config.lr == [[0, 2e-4], [4096, 0.0]]
    found = {
        name: getattr(config, name) for name in ("gamma", "lambda_", "clip_param", "grad_clip", "num_epochs", "seed")
    }
    assert found == {"gamma": 0.97, "lambda_": 0.91, "clip_param": 0.15, "grad_clip": 0.6, "num_epochs": 3, "seed": 5}
    assert (config.target_kl, config.vf_loss_coeff, config.scale_rewards) == (0.02, 0.4, False)
    assert (config.normalize_advantages, config.minibatch_size, config.total_train_batch_size) == ("batch", 64, 256)
    assert config.critic_warmup_iterations == (3 if with_prior else 0)
    assert config.entropy_coeff == (0.1 if method == "repeat-entropy" else 0.0)
    expected = {
        "rpg": {"omega_prime": 0.1, "alpha_hat": 0.02, "addon_weight": 1.0},
        "kl": {"omega_prime": 0.1, "alpha_hat": 0.1, "addon_weight": 1.0},
        "greedy": {"omega_prime": 0.0, "alpha_hat": 0.0, "addon_weight": 1.0},
        "full": {"alpha": 0.02, "basic_weight": 1.0, "addon_weight": 1.0},
        "spg": {"alpha": 0.1, "basic_weight": 1.0, "addon_weight": 0.0},
        "ppo": {"alpha": 0.0, "basic_weight": 1.0, "addon_weight": 0.0},
        "repeat-entropy": {"alpha": 0.1, "basic_weight": 1.0, "addon_weight": 0.0},
    }
    assert config.reward_weights() == expected[method]


def test_prior_has_no_configuration(prior: PriorBundle) -> None:
    with pytest.raises(ValueError, match="method='prior' trains nothing"):
        algorithm_config(trial_spec("prior"), get_task("halfcheetah-foot-angle"), prior)


def test_restored_trial_continues_where_it_was(make: Make, tmp_path: Path) -> None:
    spec = trial_spec("rpg", budget={"env_steps": 3 * STEPS_PER_ITERATION})
    first = make(spec)
    first.train()
    assert first.train()["env_steps"] == 1024
    first.save_checkpoint(str(tmp_path))
    assert read_state(tmp_path)["env_steps"] == 1024
    second = make(spec)
    fresh = state_of(second)
    second.load_checkpoint(str(tmp_path))
    saved, restored = state_of(first), state_of(second)
    assert all(torch.equal(saved[name], restored[name]) for name in saved)
    assert any(not torch.equal(fresh[name], restored[name]) for name in saved)
    trained, last = run(second)  # one iteration is left, not three, and the evaluation
    assert trained["env_steps"] == last["env_steps"] == 1536
    assert any(not torch.equal(restored[name], tensor) for name, tensor in state_of(second).items())


def test_training_is_saved_before_its_evaluation_which_a_restore_alone_repeats(make: Make, tmp_path: Path) -> None:
    """Of an environment without an end; and a checkpoint at the budget trains no more, and reports what it had."""
    endless = {"env": f"{own_tasks.__name__}:Slide", "kwargs": {"length": 0, "bounded": False}, "addons": {"a": "1"}}
    evaluation = {"episodes": 2, "validations": 1, "validation_episodes": 1, "max_steps": 30}
    spec = trial_spec("ppo", task=endless, evaluation=evaluation, checkpoint={"every_env_steps": None})
    first = make(spec)
    early, trained = first.train(), first.train()
    assert (early["should_checkpoint"], trained["should_checkpoint"]) == (False, True)
    assert (trained["env_steps"], trained["done"], "eval/sampled/basic_return_mean" in trained) == (1024, False, False)
    assert trained["validation/deterministic/cut_episodes"] == 1
    first.save_checkpoint(str(tmp_path))
    second = make(spec)
    second.load_checkpoint(str(tmp_path))
    before = state_of(second)
    [last] = run(second)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(second).items())
    assert (last["finished"], last["should_checkpoint"], last["env_steps"]) == (True, False, 1024)
    for mode in MODES:
        assert (last[f"eval/{mode}/episode_length_mean"], last[f"eval/{mode}/cut_episodes"]) == (30, 2)
    assert last["vf_loss"] == trained["vf_loss"]  # what the end of training reported
    assert cut_episodes(last) == 8  # of the final policy and the best, which is the same


def test_a_trial_of_a_population_takes_over_another_and_then_goes_on_as_itself(make: Make, tmp_path: Path) -> None:
    """The other's policy, optimizer and counters, its own weights from then on; its own checkpoints after that."""
    better, own, later = (str(tmp_path / name) for name in ("better", "own", "later"))
    for folder in (better, own, later):
        Path(folder).mkdir()
    long = {"env_steps": 6 * STEPS_PER_ITERATION}
    donor = make(trial_spec("rpg", budget=long))
    donor.step(), donor.step()
    donor.save_checkpoint(better)
    paused = make(trial_spec("rpg", budget=long, seeds=[1]))
    paused.step()
    paused.save_checkpoint(own)
    until, after = STEPS_PER_ITERATION, 2 * STEPS_PER_ITERATION
    spec = trial_spec(
        "rpg",
        budget=long,
        seeds=[1],
        weights={"omega_prime": [[0, 0.1], [after, 0.1], [after + 1, 0.5]], "alpha_hat": 0.02},
    ).model_copy(update={"starts_from": StartFrom(checkpoint=better, until_env_steps=until)})
    taken = make(TrialSpec.model_validate(spec.model_dump(mode="json")))
    taken.load_checkpoint(own)  # as Tune does when it goes on
    assert state_of(taken).keys() == state_of(donor).keys()
    assert all(torch.equal(value, state_of(donor)[name]) for name, value in state_of(taken).items())
    assert taken.step()["env_steps"] == 3 * STEPS_PER_ITERATION
    assert taken.algo is not None
    assert tuple(map(tuple, taken.algo.config.reward_weights()["omega_prime"])) == spec.weights["omega_prime"]
    taken.save_checkpoint(later)
    restored = make(TrialSpec.model_validate(spec.model_dump(mode="json")))
    restored.load_checkpoint(later)
    assert all(torch.equal(value, state_of(taken)[name]) for name, value in state_of(restored).items())


def test_reused_process_is_as_good_as_a_fresh_one(make: Make) -> None:
    reused, fresh = make(trial_spec("greedy", seeds=[3])), make(trial_spec("rpg", seeds=[1]))
    run(reused)
    assert reused.reset_config({"trial": trial_spec("rpg", seeds=[1]).model_dump(mode="json")})
    assert run(reused)[-1]["eval/sampled/total_return_mean"] == run(fresh)[-1]["eval/sampled/total_return_mean"]
    kept, expected = state_of(reused), state_of(fresh)
    assert [name for name in expected if not torch.equal(kept[name], expected[name])] == []


# ---- the best checkpoint -------------------------------------------------------------------------
def ruinous(**evaluation: Any) -> TrialSpec:
    """Four iterations: the first trains the critic alone, so the policy is still the prior; the others wreck it."""
    training = {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 5, "critic_warmup_iterations": 1}
    return trial_spec(
        "greedy",
        budget={"env_steps": 4 * STEPS_PER_ITERATION},
        training=training | {"lr": 0.02, "anneal_lr": False, "grad_clip": None, "clip_param": 10.0},
        evaluation={"episodes": 3, "validations": 4, "validation_episodes": 2, "validation_seed": 77, **evaluation},
    )


def test_best_checkpoint_survives_a_restart_and_is_evaluated_beside_the_final(
    make: Make, prior: PriorBundle, tmp_path: Path
) -> None:
    first = make(ruinous())
    reports = [first.train(), first.train()]
    first.save_checkpoint(str(tmp_path / "middle"))
    assert load_bundle(tmp_path / "middle" / "bundle_best").card.made_by["env_steps"] == 512
    second = make(ruinous())  # another process, in effect
    second.load_checkpoint(str(tmp_path / "middle"))
    reports += run(second)
    assert [r["env_steps"] for r in reports] == [512, 1024, 1536, 2048, 2048]
    assert all(r["validation/best_env_steps"] == 512 for r in reports)
    validated = [r["validation/deterministic/total_return_mean"] for r in reports]
    assert validated[0] == max(validated)

    task = first.task
    on_validation_seeds = evaluate_both(prior.build(), task, 2, 77)["deterministic"].total_return.mean()
    assert validated[0] == pytest.approx(on_validation_seeds, rel=1e-6)
    last = reports[-1]
    of_prior = evaluate_both(prior.build(), task, 3, 10_000)
    for mode in MODES:
        best, final = (last[f"{prefix}/{mode}/total_return_mean"] for prefix in ("eval_best", "eval"))
        assert best == pytest.approx(of_prior[mode].total_return.mean(), rel=1e-6)
        assert final < best - 1000
    choosing = evaluate_both(second.policy(), task, 2, 2_000_000)  # half of the three that are shown, rounded up
    for mode in MODES:
        total = last[f"eval_selection/{mode}/total_return_mean"]
        assert total == pytest.approx(choosing[mode].total_return.mean(), rel=1e-6)
        assert total != last[f"eval/{mode}/total_return_mean"]
    assert last["eval_best/env_steps"] == 512
    assert last["eval_best/kl_to_prior"] == pytest.approx(0.0, abs=1e-6) != last["eval/kl_to_prior"]
    assert {k.removeprefix("eval_best/") for k in last if k.startswith("eval_best/")} - {"env_steps"} == {
        k.removeprefix("eval/") for k in last if k.startswith("eval/")
    }
    check_last_checkpoint(second, last, tmp_path / "last")


def check_last_checkpoint(trial: CustomizationTrial, last: dict[str, Any], folder: Path) -> None:
    """Both bundles, each with its own returns and age, and every episode behind the report."""
    trial.save_checkpoint(str(folder))
    kept = read_episodes(folder)
    for which, name, prefix, env_steps in (
        ("final", "bundle", "eval", 2048),
        ("best", "bundle_best", "eval_best", 512),
    ):
        card = load_bundle(folder / name).card
        assert card.made_by["env_steps"] == env_steps
        assert card.returns["total/deterministic"].mean == last[f"{prefix}/deterministic/total_return_mean"]
        episodes = kept[which]  # type: ignore[index]
        assert (episodes.env_steps, episodes.seed) == (env_steps, 10_000)
        for mode, measure in itertools.product(MODES, PER_MODE):
            values = getattr(episodes.results[mode], measure)
            assert values.shape == (3,)
            assert values.mean() == last[f"{prefix}/{mode}/{measure}_mean"]


def test_final_policy_that_is_the_best_is_not_evaluated_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []

    def counted(policy: Any, task: Any, episodes: int, *rest: Any, **more: Any) -> Any:
        played.append(episodes)
        return evaluate_both(policy, task, episodes, *rest, **more)

    monkeypatch.setattr("rpg_platform.trial.trainable.evaluate_both", counted)
    # One validation, at the end: the final policy is all there is.
    trial = make(trial_spec("rpg", evaluation={"episodes": 1, "validations": 1, "validation_episodes": 1}))
    *early, _, last = run(trial)
    assert not any(key.startswith(("validation/", "eval")) for report in early for key in report)
    assert played == [1, 1]  # what is shown, and what settings are chosen by
    assert last["eval_best/env_steps"] == last["env_steps"]
    assert all(last[key.replace("eval/", "eval_best/")] == last[key] for key in last if key.startswith("eval/"))


def test_without_validation_there_is_no_best(make: Make, tmp_path: Path) -> None:
    trained, prior = make(trial_spec("rpg")), make(trial_spec("prior", evaluation={"episodes": 2, "validations": 5}))
    for trial in (trained, prior):  # of a prior there is one checkpoint
        results = run(trial)
        assert not any(key.startswith(("validation/", "eval_best/")) for report in results for key in report)
        folder = tmp_path / trial.trial.method
        trial.save_checkpoint(str(folder))
        assert not (folder / "bundle_best").exists()
        assert set(read_episodes(folder)) == {"final"}
    assert read_episodes(tmp_path / "prior")["final"].env_steps == 0
