"""CleanRL's state dictionaries against CleanRL's own agents, written out as its single files have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tests.platform.priors.payloads import Payload, refusal
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.priors.formats import state_dict
from rpg_platform.priors.imported import ImportOptions, PriorImportError

STATES, D, A = 1_000, 4, 2
OBSERVATIONS = Box(-np.inf, np.inf, (D,), np.float32)
ACTIONS = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
NAMED = ImportOptions(env_id="own", observation_space=OBSERVATIONS, action_space=ACTIONS)


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class ContinuousAgent(nn.Module):
    """ppo_continuous_action.py."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(D, 16, 16, 1)
        self.actor_mean = mlp(D, 16, 16, A)
        self.actor_logstd = nn.Parameter(torch.tensor([[-0.5, 0.25]]))


class DiscreteAgent(nn.Module):
    """ppo.py."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(D, 16, 16, 1)
        self.actor = mlp(D, 16, 16, 3)


class SacActor(nn.Module):
    """sac_continuous_action.py."""

    action_scale: Tensor
    action_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 16), nn.Linear(16, 16)
        self.fc_mean, self.fc_logstd = nn.Linear(16, A), nn.Linear(16, A)
        self.register_buffer("action_scale", torch.tensor((ACTIONS.high - ACTIONS.low) / 2.0))
        self.register_buffer("action_bias", torch.tensor((ACTIONS.high + ACTIONS.low) / 2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), -5 + 0.5 * (2 - -5) * (log_std + 1)


class DeterministicActor(nn.Module):
    """td3_continuous_action.py and ddpg_continuous_action.py."""

    action_scale: Tensor
    action_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(D, 16), nn.Linear(16, 16), nn.Linear(16, A)
        self.register_buffer("action_scale", torch.tensor((ACTIONS.high - ACTIONS.low) / 2.0))
        self.register_buffer("action_bias", torch.tensor((ACTIONS.high + ACTIONS.low) / 2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.tanh(self.fc_mu(x)) * self.action_scale + self.action_bias


@pytest.fixture
def observations() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(STATES, D) * 3.0


def saved(agent: nn.Module, folder: Path, scale: float = 2.0, **options: Any) -> Path:
    """Its state dictionary, weights enlarged so that log standard deviations come near their bounds."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(scale)
    torch.save(agent.state_dict(), folder / "agent.cleanrl_model", **options)
    return folder / "agent.cleanrl_model"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_ppo_continuous(zipped: bool, tmp_path: Path, observations: Tensor) -> None:
    agent = ContinuousAgent()
    path = saved(agent, tmp_path, _use_new_zipfile_serialization=zipped)
    stats = tmp_path / "stats.npz"
    mean, var = np.array([1.0, -1.0, 0.0, 2.0]), np.array([4.0, 1.0, 0.25, 9.0])
    np.savez(stats, mean=mean, var=var)
    options = ImportOptions(env_id="own", observation_space=OBSERVATIONS, action_space=ACTIONS, normalizer=stats)
    imported = state_dict.read(path, options)
    # gymnasium's NormalizeObservation, then CleanRL's TransformObservation to [-10, 10]
    seen = ((observations - torch.tensor(mean)) / torch.tensor(var + 1e-8).sqrt()).clip(-10, 10).float()
    with torch.no_grad():
        action_mean = agent.actor_mean(seen)
        probs = Normal(action_mean, torch.exp(agent.actor_logstd.expand_as(action_mean)))
        action = probs.sample()
        expected = probs.log_prob(action).sum(1)
        ours = imported.network.distribution(observations).log_prob(action)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5)
    clipped = NumpyPolicy(imported.network).to_env(action.numpy())
    np.testing.assert_allclose(clipped, np.clip(action.numpy(), ACTIONS.low, ACTIONS.high))
    assert imported.network.spec.graph is None
    normalised, guess = imported.notes
    assert normalised == "observations are normalised as in stats.npz, and clipped to ±10"
    assert "tanh is taken, the default of CleanRL; --activation says otherwise" in guess
    assert state_dict.read(path, replace(options, activation="tanh")).notes == (normalised,)
    assert "give them with --normalizer" in state_dict.read(path, NAMED).notes[0].replace("\n", " ")


def test_ppo_discrete(tmp_path: Path, observations: Tensor) -> None:
    agent = DiscreteAgent()
    options = ImportOptions(env_id="own", observation_space=OBSERVATIONS, action_space=Discrete(3))
    imported = state_dict.read(saved(agent, tmp_path), options)
    with torch.no_grad():
        probs = Categorical(logits=agent.actor(observations))
        action = probs.sample()
        ours = imported.network.distribution(observations).log_prob(action)
        assert torch.allclose(ours, probs.log_prob(action), rtol=1e-5, atol=1e-5)
    with pytest.raises(PriorImportError, match=r"its network gives 3 numbers; actions in Discrete\(4\) need 4"):
        state_dict.read(
            tmp_path / "agent.cleanrl_model",
            ImportOptions(env_id="own", observation_space=OBSERVATIONS, action_space=Discrete(4)),
        )


def test_sac(tmp_path: Path, observations: Tensor) -> None:
    """CleanRL's density is that of the scaled action, with 1e-6 in its logarithm; ours that of tanh(u), exact."""
    actor = SacActor()
    imported = state_dict.read(saved(actor, tmp_path), NAMED)
    with torch.no_grad():
        mean, log_std = actor(observations)
        assert float(log_std.min()) < -4.0
        assert float(log_std.max()) > 1.0
        torch.manual_seed(1)
        x_t = Normal(mean, log_std.exp()).sample()
        y_t = torch.tanh(x_t)
        expected = Normal(mean, log_std.exp()).log_prob(x_t) - torch.log(actor.action_scale * (1 - y_t.pow(2)) + 1e-6)
        ours = imported.network.distribution(observations).log_prob(x_t) - actor.action_scale.log().sum()
    inside = (y_t.abs() < 0.9).all(-1)  # where CleanRL's 1e-6 does not matter
    assert int(inside.sum()) > 100
    # 1e-6 / (1 - 0.9^2) / 0.5 of relative error a dimension is CleanRL's own
    torch.testing.assert_close(ours[inside], expected.sum(1)[inside], rtol=1e-5, atol=3e-5)
    env_actions = NumpyPolicy(imported.network).to_env(x_t.numpy())
    np.testing.assert_allclose(env_actions, (y_t * actor.action_scale + actor.action_bias).numpy(), atol=1e-6)
    assert imported.action_space == ACTIONS
    with torch.no_grad():
        outputs = imported.network(observations)
    assert torch.allclose(outputs, torch.cat((mean, log_std), -1), rtol=1e-5, atol=1e-5)


def test_td3_needs_a_standard_deviation(tmp_path: Path, observations: Tensor) -> None:
    """CleanRL saves actor and critics as a tuple; the mode is the actor's own action."""
    actor = DeterministicActor()
    path = tmp_path / "td3.cleanrl_model"
    torch.save((actor.state_dict(), nn.Linear(2, 1).state_dict(), nn.Linear(2, 1).state_dict()), path)
    with pytest.raises(PriorImportError, match=r"a deterministic policy has no density.* --std 0.1"):
        state_dict.read(path, NAMED)
    imported = state_dict.read(path, ImportOptions(None, observation_space=OBSERVATIONS, action_space=ACTIONS, std=0.2))
    policy = NumpyPolicy(imported.network)
    mode = policy.to_env(policy.mode(policy.outputs(observations.numpy())))
    with torch.no_grad():
        np.testing.assert_allclose(mode, actor(observations).numpy(), rtol=1e-5, atol=1e-6)
    assert imported.network.log_std is not None
    assert imported.network.log_std.tolist() == pytest.approx([math.log(0.2)] * A)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            ContinuousAgent().state_dict(),
            ImportOptions(),
            r"holds no observation and action spaces.*--env ID or --task NAME",
        ),
        (ContinuousAgent().state_dict(), {"std": 0.1}, "--std is for deterministic policies"),
        (ContinuousAgent().state_dict(), {"activation": "step"}, "activation 'step' is not read; expected one of relu"),
        (ContinuousAgent().state_dict(), {"action_space": Box(-1, 1, (5,))}, "need 5|for 5 action"),
        (SacActor().state_dict(), {"action_space": Box(-np.inf, 1, (2,))}, r"expected finite bounds, .* needs none"),
        (ContinuousAgent().state_dict(), {"observation_space": Box(-1, 1, (7,))}, r"takes 4 numbers, .* has 7"),
        (nn.Linear(2, 2).state_dict(), NAMED, "of weight, bias; expected the policy of CleanRL, rsl_rl"),
        (ContinuousAgent(), NAMED, r"not a state dictionary. A whole pickled module cannot be read without executing"),
        (
            {"actor.0.weight": torch.zeros(8, 4, 8, 8), "actor.0.bias": torch.zeros(8)},
            NAMED,
            "only perceptrons are read",
        ),
        (
            {"actor.0.weight": torch.full((3, 4), torch.nan), "actor.0.bias": torch.zeros(3)},
            NAMED,
            "'actor.0.weight' has values that are not finite",
        ),
    ],
)
def test_refuses(content: Any, options: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "agent.pt")
    if isinstance(options, dict):
        options = ImportOptions(**{"observation_space": OBSERVATIONS, "action_space": ACTIONS} | options)
    with pytest.raises(PriorImportError, match=message):
        state_dict.read(tmp_path / "agent.pt", options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(D)}, "holds mean; expected mean and var"),
        ({"mean": np.zeros(D), "var": np.zeros(3)}, "expected one shape"),
        ({"mean": np.zeros(D), "var": -np.ones(D)}, "var > 0"),
        ({"mean": np.zeros(3), "var": np.ones(3)}, "3 means and 3 variances, its network takes 4"),
        ({"mean": np.zeros(D), "var": np.ones(D), "clip": np.ones(2)}, "clip has 2 values, expected one"),
        ({"mean": np.full(D, np.nan), "var": np.ones(D)}, "expected finite numbers"),
    ],
)
def test_refuses_statistics(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    path = saved(ContinuousAgent(), tmp_path)
    options = ImportOptions(observation_space=OBSERVATIONS, action_space=ACTIONS, normalizer=tmp_path / "stats.npz")
    with pytest.raises(PriorImportError, match=message):
        state_dict.read(path, options)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("around", [lambda x: x, lambda x: {**ContinuousAgent().state_dict(), "actor_extra": x}])
def test_nothing_is_executed(zipped: bool, around: Callable[[Any], Any], tmp_path: Path) -> None:
    path, marker = tmp_path / "agent.pt", tmp_path / "executed"
    torch.save(around(Payload(marker)), path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload works"
    marker.unlink()
    assert "agent.pt" in (refusal(state_dict.read, path, NAMED) or "agent.pt was read")
    assert not marker.exists()


def test_no_statistics_are_executed(tmp_path: Path) -> None:
    path, marker, stats = saved(ContinuousAgent(), tmp_path), tmp_path / "executed", tmp_path / "stats.npz"
    np.savez(stats, mean=np.array([Payload(marker)] * D, dtype=object), var=np.ones(D))
    _ = np.load(stats, allow_pickle=True)["mean"]
    assert marker.exists(), "the payload works"
    marker.unlink()
    options = ImportOptions(observation_space=OBSERVATIONS, action_space=ACTIONS, normalizer=stats)
    with pytest.raises(PriorImportError, match="mean"):
        state_dict.read(path, options)
    assert not marker.exists()


def test_truncated_files(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = saved(ContinuousAgent(), tmp_path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(PriorImportError, match=path.name):
                state_dict.read(path, NAMED)
