"""Checkpoints of rsl_rl, rl_games, skrl, Tianshou and plain perceptrons: actions, guesses, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tests.platform import own_tasks
from tests.platform.priors.corpus_checkpoints import (
    BOUNDED,
    CASES,
    HALF,
    MIDDLE,
    OPTIONS,
    A,
    D,
    mlp,
    rl_games,
    rsl_rl,
    save,
    skrl,
    tianshou,
    tianshou_td3,
    under,
)
from torch import nn

from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.export import onnx_model
from rpg_platform.priors.formats import state_dict
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.sources import import_prior, read_source

STATES = 1_000


@pytest.mark.parametrize(
    "case", [name for name, (_, make) in CASES.items() if isinstance(make().options.action_space, Box)]
)
def test_the_environment_gets_the_sources_likeliest_action(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = CASES[case][1]()
    space, obs = made.options.action_space, 3.0 * torch.randn(STATES, D)
    assert isinstance(space, Box)
    options = made.options
    if made.statistics is not None:
        np.savez(tmp_path / "stats.npz", **made.statistics)
        options = replace(options, normalizer=tmp_path / "stats.npz")
    policy = NumpyPolicy(state_dict.read(save(made, tmp_path), options).network)
    with torch.no_grad():
        mean, _ = made.forward(obs)
    wanted = torch.tanh(mean) * HALF + MIDDLE if made.squashed else mean * HALF + MIDDLE if made.scaled else mean
    received = policy.to_env(policy.mode(policy.outputs(obs.numpy())))
    np.testing.assert_allclose(received, np.clip(wanted.numpy(), space.low, space.high), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_guessed_activation_is_named_and_the_users_decides(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    named, make = CASES[case]
    made = make()
    save(made, tmp_path)
    silent = replace(made.options, activation=None)
    if named == "perceptron":  # of no framework, so there is no default to name
        with pytest.raises(PriorImportError, match=r"say which activation its hidden layers have.*--activation relu"):
            state_dict.read(tmp_path / "policy.pt", silent)
    else:
        imported = state_dict.read(tmp_path / "policy.pt", silent)
        guess = imported.facts["activation"]
        assert any(f"{guess} is taken, the default of" in note for note in imported.notes)
    told = state_dict.read(tmp_path / "policy.pt", replace(made.options, activation="silu"))
    assert told.facts["activation"] == "silu"
    assert not any("is taken, the default of" in note for note in told.notes)


def test_tianshous_td3_needs_a_standard_deviation(tmp_path: Path) -> None:
    made = tianshou_td3()
    with pytest.raises(PriorImportError, match=r"what standard deviation before tanh it acts with.*--std 0.1"):
        state_dict.read(save(made, tmp_path), replace(made.options, std=None))


def perceptron_state(outputs: int = A) -> dict[str, Any]:
    return dict(mlp(D, 8, outputs).state_dict())


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "all that is missing, at once": (
        lambda: under("actor.", perceptron_state()),
        {"activation": None},
        r"say which activation .*--activation relu, and what standard deviation it acts with.*--std 0\.1",
    ),
    "halves of what": (
        lambda: perceptron_state(2 * A),
        {},
        r"what the second half of its 6 outputs is: --second-output log_std \(or std\)",
    ),
    "a value beside the mean": (
        lambda: perceptron_state(A + 1),
        {},
        r"gives 4 numbers; 3 action dimensions need 3, or 6",
    ),
    "two standard deviations": (
        lambda: under("policy.", perceptron_state()) | {"log_std": torch.zeros(A), "std": torch.ones(A)},
        {},
        "holds two standard deviations",
    ),
    "two last layers": (
        lambda: {"policy": skrl(True, "state_preprocessor").content["policy"] | under("mean_layer.", nn.Linear(A, A))},
        {},
        "which of .*_layer.* is the policy",
    ),
    "memory": (
        lambda: {
            "model_state_dict": under("actor.", perceptron_state()) | {"memory_a.rnn.weight_ih_l0": torch.ones(2, 2)}
        },
        {},
        "a policy with memory",
    ),
    "images": (
        lambda: rl_games(True, "new").content["model"] | {"a2c_network.actor_cnn.0.weight": torch.ones(2, 2, 3, 3)},
        {},
        "has 'a2c_network.actor_cnn.0.weight', which rl_games' checkpoint as read here has not",
    ),
    "a normaliser of an unknown kind": (
        lambda: {"policy": perceptron_state(), "obs_norm": {"m": torch.zeros(D), "s": torch.ones(D)}},
        {"std": 0.1},
        "has 'obs_norm.m', which may belong to a normaliser.*--normalizer stats.npz",
    ),
    "a standard deviation that belongs to it": (
        lambda: {"policy": perceptron_state(), "log_std": torch.zeros(A)},
        {"std": 0.1},
        "--std is for deterministic policies|has 'log_std'",
    ),
    "two networks": (lambda: {"a": perceptron_state(), "b": perceptron_state()}, {"std": 0.1}, "which of a, b is the"),
    "action values": (
        lambda: under("q_network.", perceptron_state()),
        {"action_space": Discrete(A)},
        "DQN's network of action values",
    ),
    "rl_games' SAC": (
        lambda: {"actor": under("trunk.", perceptron_state(2 * A)), "critic": {}},
        {},
        "the bounds of its log standard deviation stand in its configuration alone",
    ),
    "a negative standard deviation": (
        lambda: {"model_state_dict": under("actor.", perceptron_state()) | {"std": torch.tensor([0.1, -0.1, 1.0])}},
        {},
        "its standard deviation is .*-0.1.*expected positive numbers",
    ),
    "an own standard deviation, and --std": (lambda: rsl_rl("std").content, {"std": 0.1}, "--std is for deterministic"),
    "a kind that the file says": (
        lambda: rsl_rl("std").content,
        {"second_output": "std"},
        "--second-output: the file itself says",
    ),
    "another family": (
        lambda: rsl_rl("std").content,
        {"distribution": "squashed_gaussian", "action_space": BOUNDED},
        "--distribution squashed_gaussian: .* rsl_rl's checkpoint is gaussian",
    ),
    "no bounds to squash to": (
        lambda: perceptron_state(),
        {"std": 0.1, "distribution": "squashed_gaussian"},
        r"expected finite bounds, to which it rescales .* \(a gaussian needs none\)",
    ),
    "a second normaliser": (
        lambda: rsl_rl("std", "obs_norm_state_dict").content,
        {"normalizer": Path("stats.npz")},
        "holds a normaliser of its own, obs_norm_state_dict; stats.npz would be a second one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_true_reason(case: str, tmp_path: Path) -> None:
    content, options, message = REFUSED[case]
    torch.save(content(), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=message):
        state_dict.read(tmp_path / "policy.pt", replace(OPTIONS, **{"activation": "elu", **options}))


def test_tianshous_statistics_may_clip_nothing(tmp_path: Path) -> None:
    made = tianshou(False)
    made.content["obs_rms"].clip_max = None
    torch.save(made.content, tmp_path / "policy.pth")
    spec = state_dict.read(tmp_path / "policy.pth", made.options).network.spec
    assert spec.observation_clip is None
    assert spec.observation_epsilon == pytest.approx(float(np.finfo(np.float32).eps))


def test_a_class_of_a_script_is_named_and_not_cloudpickles_records(tmp_path: Path) -> None:
    class Agent:
        pass

    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Agent"]))
    for content, said in (
        (Agent, "the class Agent, whose code"),
        (Agent(), "an object of the class Agent, whose code"),
    ):
        torch.save(content, tmp_path / "agent.pt", pickle_module=cloudpickle)
        with pytest.raises(PriorImportError, match=said) as refused:
            state_dict.read(tmp_path / "agent.pt", OPTIONS)
        assert "_make_skeleton_class" not in str(refused.value)


def test_a_free_log_std_is_within_the_bounds_of_its_framework(tmp_path: Path) -> None:
    torch.save(skrl(True, "state_preprocessor").content, tmp_path / "agent.pt")
    log_std = state_dict.read(tmp_path / "agent.pt", OPTIONS).network.log_std
    assert log_std is not None
    assert log_std.tolist() == pytest.approx([-0.5, 0.5, 2.0])


def test_a_gaussian_of_unbounded_actions_is_a_prior(tmp_path: Path) -> None:
    """It becomes a bundle, acts unclipped, leaves as ONNX and comes back the same."""
    actor = mlp(2, 8, 1)
    torch.save({"model_state_dict": under("actor.", actor) | {"std": torch.tensor([0.5])}}, tmp_path / "model_7.pt")
    options = ImportOptions(env_id=f"{own_tasks.__name__}:{own_tasks.OpenSlide.__name__}", activation="elu")
    done = import_prior(str(tmp_path / "model_7.pt"), tmp_path / "prior", options)
    bundle = load_bundle(tmp_path / "prior")
    assert done.card.name == "model_7"
    assert bundle.network_spec.action_high == (math.inf,)
    obs = 100.0 * torch.randn(STATES, 2)
    policy = NumpyPolicy(bundle.build())
    with torch.no_grad():
        wanted = actor(obs)
    assert float(wanted.abs().max()) > 10.0
    np.testing.assert_allclose(policy.to_env(policy.mode(policy.outputs(obs.numpy()))), wanted, rtol=1e-5, atol=1e-5)
    onnx_model.save(bundle, tmp_path / "policy.onnx")
    back = read_source(str(tmp_path / "policy.onnx"))
    assert back.action_space == gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    with torch.no_grad():
        torch.testing.assert_close(back.network(obs), bundle.build()(obs))
