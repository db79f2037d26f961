"""CleanRL's state dictionaries: what is said, what is refused, and that nothing of a file is executed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tests.platform.priors.corpus_checkpoints import (
    A,
    ContinuousAgent,
    D,
    DeterministicActor,
    DiscreteAgent,
    SacActor,
    cleanrl_options,
    enlarged,
)
from tests.platform.priors.payloads import Payload, refusal
from torch import nn

from rpg_platform.priors.formats import state_dict
from rpg_platform.priors.imported import ImportOptions, PriorImportError

NAMED = cleanrl_options(env_id="own")
OBSERVATIONS, ACTIONS = NAMED.observation_space, NAMED.action_space


def saved(folder: Path, **options: Any) -> Path:
    torch.save(enlarged(ContinuousAgent()), folder / "agent.cleanrl_model", **options)
    return folder / "agent.cleanrl_model"


def test_what_a_ppo_does_not_store_is_said(tmp_path: Path) -> None:
    path, stats = saved(tmp_path), tmp_path / "stats.npz"
    np.savez(stats, mean=np.zeros(D), var=np.ones(D))
    options = replace(NAMED, normalizer=stats)
    normalised, guess = state_dict.read(path, options).notes
    assert normalised == "observations are normalised as in stats.npz, and clipped to ±10"
    assert "tanh is taken, the default of CleanRL; --activation says otherwise" in guess
    assert state_dict.read(path, replace(options, activation="tanh")).notes == (normalised,)
    assert "give them with --normalizer" in state_dict.read(path, NAMED).notes[0].replace("\n", " ")


def test_a_deterministic_policy_needs_a_standard_deviation(tmp_path: Path) -> None:
    torch.save((DeterministicActor().state_dict(), {}), tmp_path / "td3.cleanrl_model")
    with pytest.raises(PriorImportError, match=r"a deterministic policy has no density.* --std 0.1"):
        state_dict.read(tmp_path / "td3.cleanrl_model", NAMED)
    network = state_dict.read(tmp_path / "td3.cleanrl_model", replace(NAMED, std=0.2)).network
    assert network.log_std is not None
    assert network.log_std.tolist() == pytest.approx([math.log(0.2)] * A)


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
        (
            DiscreteAgent().state_dict(),
            {"action_space": Discrete(4)},
            r"its network gives 3 numbers; actions in Discrete\(4\) need 4",
        ),
        (SacActor().state_dict(), {"action_space": Box(-np.inf, 1, (A,))}, r"expected finite bounds, .* needs none"),
        (ContinuousAgent().state_dict(), {"observation_space": Box(-1, 1, (7,))}, r"takes 5 numbers, .* has 7"),
        (nn.Linear(2, 2).state_dict(), NAMED, "of weight, bias; expected the policy of CleanRL, rsl_rl"),
        (ContinuousAgent(), NAMED, r"not a state dictionary. A whole pickled module cannot be read without executing"),
        (
            {"actor.0.weight": torch.zeros(8, D, 8, 8), "actor.0.bias": torch.zeros(8)},
            NAMED,
            "only perceptrons are read",
        ),
        (
            {"actor.0.weight": torch.full((3, D), torch.nan), "actor.0.bias": torch.zeros(3)},
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
        ({"mean": np.zeros(3), "var": np.ones(3)}, "3 means and 3 variances, its network takes 5"),
        ({"mean": np.zeros(D), "var": np.ones(D), "clip": np.ones(2)}, "clip has 2 values, expected one"),
        ({"mean": np.full(D, np.nan), "var": np.ones(D)}, "expected finite numbers"),
    ],
)
def test_refuses_statistics(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    path = saved(tmp_path)
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
    path, marker, stats = saved(tmp_path), tmp_path / "executed", tmp_path / "stats.npz"
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
        path = saved(tmp_path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(PriorImportError, match=path.name):
                state_dict.read(path, NAMED)
