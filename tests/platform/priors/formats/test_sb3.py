"""Stable-Baselines3 models are read as Stable-Baselines3 has them: its own actions, and all that it stores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from tests.platform.priors.sb3_models import RECIPES, Trained, observations, trained

from rpg_algorithms.policies.bundle import PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError


def imported(case: Trained, **options: Any) -> Imported:
    return read(case.path, ImportOptions(std=case.recipe.std, **options))


@pytest.mark.parametrize("name", RECIPES)
def test_deterministic_actions_are_those_of_sb3(name: str, tmp_path: Path) -> None:
    """By way of a bundle on disk and the numpy policy that acts in training and evaluation."""
    case = trained(name)
    source = imported(case)
    card = PriorCard.describe(
        "x", "Drift-v0", source.observation_space, source.action_space, source.network.spec, alpha=source.alpha
    )
    save_bundle(tmp_path, source.network, card)
    policy = NumpyPolicy(load_bundle(tmp_path).build())
    obs = observations(case)
    expected, _ = case.model.predict(case.normalize(obs), deterministic=True)
    outputs = policy.outputs(flatten_observations(case.model.observation_space, obs))
    found = policy.to_env(policy.mode(outputs))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    assert np.std(expected, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_what_else_a_model_says(name: str) -> None:
    case = trained(name)
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
    else:
        learned = model.ent_coef_optimizer is not None
        alpha = math.exp(model.log_ent_coef.item()) if learned else 0.2
        stats = model.get_vec_normalize_env()
        # of the environment's own reward, of which the algorithm saw what VecNormalize made
        divisor = math.sqrt(stats.ret_rms.var + stats.epsilon) if stats is not None and stats.norm_reward else 1.0
        assert source.alpha == pytest.approx(alpha * divisor)


def test_a_perceptron_stays_one_so_that_the_fused_engine_serves_it() -> None:
    hidden = {
        name: imported(trained(name)).network.spec.hidden
        for name in RECIPES
        if imported(trained(name)).network.spec.graph is None
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
    assert imported(trained("a2c")).network.spec.activation == "elu"
    assert imported(trained("sac of a fixed temperature")).network.spec.activation == "tanh"


def test_a_deterministic_policy_needs_a_standard_deviation() -> None:
    for name in ("td3", "ddpg"):
        with pytest.raises(PriorImportError, match=rf"{name} is deterministic: .* --std 0.1"):
            read(trained(name).path, ImportOptions())
        network = imported(trained(name)).network
        obs = torch.from_numpy(observations(trained(name)))
        distribution = network.distribution(obs)
        assert torch.allclose(distribution.log_std.exp(), torch.tensor(trained(name).recipe.std))  # type: ignore[union-attr]
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PriorImportError, match="expected a positive number"):
            read(trained("td3").path, ImportOptions(std=std))
    with pytest.raises(PriorImportError, match="has its own standard deviation"):
        read(trained("sac").path, ImportOptions(std=0.1))


def test_the_activation_is_the_stored_one() -> None:
    case = trained("a2c")
    assert imported(case, activation="elu").network.spec.activation == "elu"
    with pytest.raises(PriorImportError, match="its activation is elu, not relu"):
        imported(case, activation="relu")
    unsaid = trained("ppo")  # the default of its class, which is no statement
    assert imported(unsaid).network.spec.activation == "tanh"


def test_a_deterministic_policy_keeps_the_deviation_of_its_action_noise() -> None:
    case = trained("td3 of action noise")
    obs = torch.from_numpy(observations(case))
    for std, expected in ((None, torch.tensor([0.1, 0.3])), (0.2, torch.tensor(0.2))):
        source = read(case.path, ImportOptions(std=std))
        distribution = source.network.distribution(obs)
        assert torch.allclose(distribution.log_std.exp(), expected.expand(2))  # type: ignore[union-attr]
        assert any("0.1, 0.3, is that of its action noise" in note for note in source.notes) == (std is None)


def test_linear_actions_are_clipped_not_squashed() -> None:
    """So the deviation is in the units of the environment."""
    with pytest.raises(PriorImportError, match=r"ars is deterministic: .* give the standard deviation to act with"):
        read(trained("linear ars").path, ImportOptions())
    notes = imported(trained("maskable ppo")).notes
    assert any("here it acts without them" in note for note in notes)
