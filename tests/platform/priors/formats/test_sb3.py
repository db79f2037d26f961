"""Stable-Baselines3 models are read as Stable-Baselines3 has them: held to its own probabilities and actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from numpy.typing import NDArray
from tests.platform.priors.sb3_models import CENTRE, RECIPES, SPREAD, Trained

from rpg_algorithms.policies.bundle import PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError

STATES = 1_000
Array = NDArray[Any]
Models = Callable[[str], Trained]


STOCHASTIC = [name for name, recipe in RECIPES.items() if recipe.std is None and recipe.own_std is None]


def imported(case: Trained, **options: Any) -> Imported:
    return read(case.path, ImportOptions(std=case.recipe.std, **options))


def states(case: Trained, n: int = STATES) -> Array:
    """Observations as the environment gives them."""
    space, rng = case.model.observation_space, np.random.default_rng(1)
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=n)
    plain = 1.5 * rng.standard_normal((n, len(SPREAD)))
    return (plain if case.recipe.env.get("plain") else CENTRE + SPREAD * plain).astype(np.float32)


def own_log_probs(case: Trained, obs: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled actions (before tanh) and their log-probabilities by Stable-Baselines3."""
    policy, seen = case.model.policy, torch.as_tensor(case.normalize(obs))
    policy.set_training_mode(False)
    with torch.no_grad():
        if hasattr(policy, "actor"):
            mean, log_std, features = policy.actor.get_action_dist_params(seen)
            distribution = policy.actor.action_dist
            if not case.model.use_sde:
                distribution = distribution.proba_distribution(mean, log_std)
                unsquashed = distribution.distribution.sample()
                return unsquashed, distribution.log_prob(torch.tanh(unsquashed), unsquashed)
            distribution = distribution.proba_distribution(mean, log_std, **features)
            unsquashed = distribution.distribution.sample()
            return unsquashed, distribution.log_prob(torch.tanh(unsquashed))
        distribution = policy.get_distribution(seen)
        if case.recipe.family == "squashed_gaussian":
            unsquashed = distribution.distribution.sample()
            return unsquashed, policy.evaluate_actions(seen, torch.tanh(unsquashed))[1]
        actions = distribution.distribution.sample()
        return actions, policy.evaluate_actions(seen, actions)[1]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_log_probabilities_are_those_of_sb3(name: str, sb3_model: Models) -> None:
    torch.manual_seed(0)
    case = sb3_model(name)
    network = imported(case).network
    squashed = case.recipe.family == "squashed_gaussian"
    obs = states(case, 50 * STATES if squashed else STATES)
    actions, expected = own_log_probs(case, obs)
    own = torch.from_numpy(flatten_observations(case.model.observation_space, obs))
    assert network.spec.distribution == case.recipe.family
    with torch.no_grad():
        found = network.distribution(own).log_prob(actions)
    if squashed:  # its log(1 - tanh² + 1e-6) differs from the exact one where actions come close to the bounds
        inside = (torch.tanh(actions).abs() < 0.8).all(-1).nonzero()[:STATES, 0]
        found, expected = found[inside], expected[inside]
    assert len(found) == STATES
    assert (found - expected).abs().max() < 1e-5
    assert expected.std() > 0.01  # there is something to get wrong


@pytest.mark.parametrize("name", RECIPES)
def test_deterministic_actions_are_those_of_sb3(name: str, sb3_model: Models, tmp_path: Path) -> None:
    """By way of a bundle on disk and the numpy policy that acts in training and evaluation."""
    case = sb3_model(name)
    source = imported(case)
    card = PriorCard.describe(
        "x", "Drift-v0", source.observation_space, source.action_space, source.network.spec, alpha=source.alpha
    )
    save_bundle(tmp_path, source.network, card)
    policy = NumpyPolicy(load_bundle(tmp_path).build())
    obs = states(case)
    expected, _ = case.model.predict(case.normalize(obs), deterministic=True)
    outputs = policy.outputs(flatten_observations(case.model.observation_space, obs))
    found = policy.to_env(policy.mode(outputs))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    assert np.std(expected, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_what_else_a_model_says(name: str, sb3_model: Models) -> None:
    case = sb3_model(name)
    source, model = imported(case), case.model
    assert source.format == f"sb3/{type(model).__name__.lower()}"
    assert source.observation_space == model.observation_space
    assert source.action_space == model.action_space
    assert source.env_id is None
    assert source.facts["version"] == sb3.__version__
    assert source.facts["saved_with"]["Gymnasium"] == gym.__version__
    assert source.facts["num_timesteps"] == model.num_timesteps
    spec = source.network.spec
    normalized = case.recipe.normalize is not None and case.recipe.normalize.get("norm_obs", True)
    assert spec.normalize_observations == (normalized or name == "crossq")  # whose first layer is a normaliser
    assert any("vecnormalize.pkl, found beside it" in note for note in source.notes) == (
        case.recipe.normalize is not None
    )
    if normalized:
        assert source.network.normalizer is not None
        assert float(source.network.normalizer.count) == pytest.approx(model.get_vec_normalize_env().obs_rms.count)
    assert any("gSDE" in note for note in source.notes) == bool(case.recipe.settings.get("use_sde"))
    if not hasattr(model, "ent_coef_optimizer"):
        assert source.alpha is None
    elif model.ent_coef_optimizer is None:
        assert source.alpha == pytest.approx(0.2)
    else:
        assert source.alpha == pytest.approx(math.exp(model.log_ent_coef.item()))


def test_a_perceptron_stays_one_so_that_the_fused_engine_serves_it(sb3_model: Models) -> None:
    hidden = {
        name: imported(sb3_model(name)).network.spec.hidden
        for name in RECIPES
        if imported(sb3_model(name)).network.spec.graph is None
    }
    assert hidden == {
        "ppo": (64, 64),
        "ppo of discrete actions": (32, 16),
        "ppo of discrete observations": (64, 64),
        "ppo without hidden layers": (),
        "a2c": (8, 16),
        "sac": (32, 16),
        "sac of a fixed temperature": (32, 16),
        "td3": (32, 16),
        "td3 of action noise": (32, 16),
        "ddpg": (32, 16),
        "tqc": (32, 16),
        "crossq": (32, 16),
        "crossq of normalised observations": (32, 16),
        "maskable ppo": (32, 16),
        "ars": (32, 16),
        "linear ars": (),
    }
    assert imported(sb3_model("a2c")).network.spec.activation == "elu"
    assert imported(sb3_model("sac of a fixed temperature")).network.spec.activation == "tanh"


def test_a_deterministic_policy_needs_a_standard_deviation(sb3_model: Models) -> None:
    for name in ("td3", "ddpg"):
        with pytest.raises(PriorImportError, match=rf"{name} is deterministic: .* --std 0.1"):
            read(sb3_model(name).path, ImportOptions())
        network = imported(sb3_model(name)).network
        obs = torch.from_numpy(states(sb3_model(name)))
        distribution = network.distribution(obs)
        assert torch.allclose(distribution.log_std.exp(), torch.tensor(sb3_model(name).recipe.std))  # type: ignore[union-attr]
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PriorImportError, match="expected a positive number"):
            read(sb3_model("td3").path, ImportOptions(std=std))
    with pytest.raises(PriorImportError, match="has its own standard deviation"):
        read(sb3_model("sac").path, ImportOptions(std=0.1))


def test_the_activation_is_the_stored_one(sb3_model: Models) -> None:
    case = sb3_model("a2c")
    assert imported(case, activation="elu").network.spec.activation == "elu"
    with pytest.raises(PriorImportError, match="its activation is elu, not relu"):
        imported(case, activation="relu")
    unsaid = sb3_model("ppo")  # the default of its class, which is no statement
    assert imported(unsaid).network.spec.activation == "tanh"


def test_a_deterministic_policy_keeps_the_deviation_of_its_action_noise(sb3_model: Models) -> None:
    case = sb3_model("td3 of action noise")
    obs = torch.from_numpy(states(case))
    for std, expected in ((None, torch.tensor([0.1, 0.3])), (0.2, torch.tensor(0.2))):
        source = read(case.path, ImportOptions(std=std))
        distribution = source.network.distribution(obs)
        assert torch.allclose(distribution.log_std.exp(), expected.expand(2))  # type: ignore[union-attr]
        assert any("0.1, 0.3, is that of its action noise" in note for note in source.notes) == (std is None)


def test_linear_actions_are_clipped_not_squashed(sb3_model: Models) -> None:
    """So the deviation is in the units of the environment."""
    with pytest.raises(PriorImportError, match=r"ars is deterministic: .* give the standard deviation to act with"):
        read(sb3_model("linear ars").path, ImportOptions())
    notes = imported(sb3_model("maskable ppo")).notes
    assert any("here it acts without them" in note for note in notes)
