"""Stable-Baselines3 archives of other years: their spaces, layouts and names, and what the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.platform.priors.archives import with_data, with_parts
from tests.platform.priors.sb3_zips import (
    POLICIES,
    box,
    discrete,
    dumps,
    layers,
    linear,
    model_zip,
    policy_state,
    stub,
    vecnormalize,
)
from torch import Tensor

from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.imported import Imported, ImportOptions

OLD = ["gym 0.12", "gym 0.17", "gym 0.21"]
ACTIVATIONS = {"on policy": torch.tanh, "sac": torch.relu, "td3": torch.relu}


def imported(data: bytes, folder: Path, **options: Any) -> Imported:
    (folder / "model.zip").write_bytes(data)
    return read(folder / "model.zip", ImportOptions(**options))


def perceptron(state: dict[str, Tensor], prefix: str, activation: Any, x: Tensor) -> Tensor:
    """Linear layers with the activation after each."""
    for i in range(0, 20, 2):
        if f"{prefix}{i}.weight" in state:
            x = activation(x @ state[f"{prefix}{i}.weight"].T + state[f"{prefix}{i}.bias"])
    return x


def affine(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


@pytest.mark.parametrize("age", [*OLD, "gymnasium"])
@pytest.mark.parametrize("kind", POLICIES)
def test_every_age_is_read_alike(kind: str, age: str, tmp_path: Path) -> None:
    """Against the arithmetic of its weights, written here once more."""
    version = None if age == "gym 0.12" else "1.2.0"
    source = imported(model_zip(kind, age=age, version=version), tmp_path, std=0.5 if kind == "td3" else None)
    state, x = policy_state(kind), torch.randn(50, 3)
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)
    assert source.action_space == gym.spaces.Box(low, high)
    assert source.observation_space == gym.spaces.Box(-1.0, np.inf, (3,))
    if kind == "sac":
        features = perceptron(state, "actor.latent_pi.", torch.relu, x)
        expected = torch.cat((affine(state, "actor.mu", features), affine(state, "actor.log_std", features)), -1)
    elif kind == "td3":
        expected = perceptron({k: v for k, v in state.items() if ".4." not in k}, "actor.mu.", torch.relu, x)
        expected = torch.cat((affine(state, "actor.mu.4", expected), torch.full((50, 2), np.log(0.5))), -1)
    else:
        features = perceptron(state, "mlp_extractor.policy_net.", torch.tanh, x)
        expected = torch.cat((affine(state, "action_net", features), state["log_std"].expand(50, 2)), -1)
    assert torch.allclose(source.network(x), expected, atol=1e-6)
    assert source.network.spec.distribution == ("squashed_gaussian" if kind in ("sac", "td3") else "gaussian")
    assert source.alpha == (pytest.approx(np.exp(-1.0)) if kind == "sac" else None)
    assert source.facts["version"] == (version or "")
    told = [note for note in source.notes if "gymnasium's predecessor" in note]
    assert len(told) == (age != "gymnasium")
    if told:
        assert f"(Stable-Baselines3 {version or 'of unknown version'})" in told[0]
        assert "rpg priors check" in told[0]


@pytest.mark.parametrize("age", [*OLD, "gymnasium"])
def test_old_spaces_and_normalisers(age: str, tmp_path: Path) -> None:
    state = policy_state("ppo", observed=6, acted=4)
    del state["log_std"]
    data = model_zip("ppo", state, discrete(6, age), discrete(4, age), age=age)
    source = imported(data, tmp_path)
    assert source.observation_space == gym.spaces.Discrete(6)
    assert source.action_space == gym.spaces.Discrete(4)
    assert source.network.spec.distribution == "categorical"
    (tmp_path / "vecnormalize.pkl").write_bytes(vecnormalize(3, age, epsilon=0.25, clip_obs=1.5))
    network = imported(model_zip("a2c", age=age), tmp_path).network
    expected = (torch.tensor([[0.5, 1.5, 9.0]]) - torch.arange(3.0)) / 4.25**0.5
    assert torch.allclose(network.normalize(torch.tensor([[0.5, 1.5, 9.0]])), expected.clamp(-1.5, 1.5), atol=1e-6)


def test_architectures_of_before_1_8(tmp_path: Path) -> None:
    """Shared layers, which policy and value had in common, and a policy without layers of its own."""
    g = torch.Generator().manual_seed(1)
    kwargs = {"net_arch": [8, {"pi": [4], "vf": [4]}], "activation_fn": stub("torch.nn.modules.activation", "ReLU")}
    shared = layers("mlp_extractor.shared_net.", (3, 8), g)
    own = layers("mlp_extractor.policy_net.", (8, 4), g)
    for state, last in ((shared | own | linear("action_net", 4, 2, g), 4), (shared | linear("action_net", 8, 2, g), 8)):
        state["log_std"] = torch.zeros(2)
        source = imported(model_zip("ppo", state, policy_kwargs=kwargs, age="gym 0.21"), tmp_path)
        assert source.network.spec.hidden == ((8, 4) if last == 4 else (8,))
        x = torch.randn(9, 3)
        features = perceptron(
            state,
            "mlp_extractor.policy_net.",
            torch.relu,
            perceptron(state, "mlp_extractor.shared_net.", torch.relu, x),
        )
        assert torch.allclose(source.network(x)[:, :2], affine(state, "action_net", features), atol=1e-6)


def test_the_first_releases(tmp_path: Path) -> None:
    """Before 0.7 the policy was called otherwise; before 0.9 the variables' file was."""
    renamed = model_zip("ppo", age="gym 0.17", version=None)
    data = with_data(renamed, policy_class=dumps(stub("stable_baselines3.ppo.policies", "PPOPolicy"), 2))
    assert imported(data, tmp_path).format == "sb3/ppo"
    sac = model_zip("sac", age="gym 0.17", version=None)
    assert imported(sac, tmp_path).alpha == pytest.approx(np.exp(-1.0))
    without = with_parts(sac, lambda name, part: None if name == "tensors.pth" else part)
    assert imported(without, tmp_path).alpha is None


# what an old environment gave, what -v5 gives
SIZES = {
    (111, 8): "Ant-v2 and Ant-v3; Ant-v5 gives 105, or 27",
    (27, 8): "Ant-v4; Ant-v5 gives 105, and these 27",
    (376, 17): "Humanoid and HumanoidStandup up to -v4; Humanoid-v5 and HumanoidStandup-v5 give 348",
    (11, 2): "Reacher up to -v4; Reacher-v5 gives 10",
    (11, 1): "InvertedDoublePendulum up to -v4; InvertedDoublePendulum-v5 gives 9",
    (17, 6): None,  # HalfCheetah and Walker2d are as they were
    (11, 3): None,  # Hopper
}


@pytest.mark.parametrize("sizes", SIZES)
def test_observation_sizes_that_changed_are_named(sizes: tuple[int, int], tmp_path: Path) -> None:
    observed, acted = sizes
    spaces = box([-np.inf] * observed, [np.inf] * observed), box([-1.0] * acted, [1.0] * acted)
    data = model_zip("ppo", policy_state("ppo", observed, acted), *spaces)
    notes = imported(data, tmp_path).notes
    told = [note for note in notes if f"observes {observed} numbers" in note]
    if SIZES[sizes] is None:
        assert told == []
        return
    assert SIZES[sizes] in told[0]
    fitting = gym.spaces.Box(-np.inf, np.inf, (observed,))
    other = gym.spaces.Box(-np.inf, np.inf, (observed + 1,))
    assert imported(data, tmp_path, observation_space=other).notes == notes
    assert told[0] not in imported(data, tmp_path, observation_space=fitting).notes  # it is where it belongs


def test_the_sizes_are_those_of_the_environments() -> None:
    for (observed, acted), name in {(105, 8): "Ant", (348, 17): "Humanoid", (10, 2): "Reacher"}.items():
        env = gym.make(f"{name}-v5")
        assert (env.observation_space.shape, env.action_space.shape) == ((observed,), (acted,))
        env.close()
