"""Which outputs of a network are its policy: never a value or a state, and nothing unsaid."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.platform.priors.graph_modules import CONTINUOUS, DISCRETE, OBSERVATIONS, A, D, K, states
from tests.platform.priors.onnx_files import constant, model_of, node

from rpg_platform.priors.formats.onnx import read
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.outputs import role_of

ONE = ImportOptions(observation_space=OBSERVATIONS, action_space=gym.spaces.Box(-1.0, 1.0, (1,)))
NUMBERS = np.random.default_rng(0).standard_normal((D, 100))


def told(options: ImportOptions = CONTINUOUS, **changes: Any) -> ImportOptions:
    return dataclasses.replace(options, **changes)


def imported(outputs: dict[str, Any], options: ImportOptions, folder: Path) -> Imported:
    """A model with these outputs: of so many columns, or an operator of so many, or a constant."""
    nodes, weights = [], []
    for place, (name, what) in enumerate(outputs.items()):
        if isinstance(what, list):
            nodes.append(node("Identity", f"w{place}", name))
            weights.append(constant(f"w{place}", what))
            continue
        op, size = what if isinstance(what, tuple) else ("Identity", what)
        weights.append(constant(f"w{place}", NUMBERS[:, place * 10 : place * 10 + size]))
        nodes += [node("MatMul", f"obs w{place}", f"x{place}"), node(op, f"x{place}", name)]
    (folder / "policy.onnx").write_bytes(model_of(nodes, weights, list(outputs)).SerializeToString())
    return read(folder / "policy.onnx", options)


DETERMINISTIC = r"returns actions alone, .*: a deterministic policy has no density.*--std 0\.1"
UNSURE = r"as a value has, and no name.*: --second-output log_std \(or std\) .*, --std 0\.1 leaves it out"
REFUSED: dict[str, tuple[dict[str, Any], ImportOptions, str]] = {
    **{
        f"action, {name}": ({"action": A, name: A}, CONTINUOUS, DETERMINISTIC)
        for name in ("value", "critic_out", "state_value", "v", "h_out", "lstm_state", "hidden", "log_prob", "entropy")
    },
    "value of one action": ({"action": 1, "value": 1}, ONE, DETERMINISTIC),
    "value that is told to be a log std": ({"action": A, "value": A}, told(second_output="log_std"), DETERMINISTIC),
    "one number for many": ({"12": A, "15": 1}, CONTINUOUS, rf"'15' has one number for 3 actions, {UNSURE}"),
    "one number for one": ({"12": 1, "15": 1}, ONE, rf"'15' has one number per observation, {UNSURE}"),
    "positive": ({"12": A, "15": ("Softplus", A)}, CONTINUOUS, r"'15' is positive.*: --second-output std or"),
    "a positive constant": ({"12": A, "15": [0.5] * A}, CONTINUOUS, r"'15' is positive.*: --second-output std or"),
    "several": (
        {"12": A, "15": A, "18": A},
        CONTINUOUS,
        r"returns 12 \[B, 3\] and 15 \[B, 3\] and 18 \[B, 3\]; .*names",
    ),
    "actions of another environment": ({"action": 2 * A}, CONTINUOUS, r"returns action \[B, 6\]; expected mean and"),
    "no action": ({"value": 1, "state_out": 8}, CONTINUOUS, r"none of which is an action; expected mean and log_std"),
    "std for a mean with its own in one": ({"12": 2 * A}, told(std=0.1), r"--std is for deterministic policies"),
    "a Q-network": ({"q_values": K}, DISCRETE, r"expected logits \[B, 4\]; the values of a Q-network are no policy"),
    "two kinds of logits": ({"12": K, "15": K}, DISCRETE, r"returns 12 \[B, 4\] and 15 \[B, 4\]; expected logits"),
    "probabilities unsaid": ({"12": ("Sigmoid", K)}, DISCRETE, r"'12' is positive, .*logits or probabilities"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_be_something_else_is_refused_until_told(what: str, tmp_path: Path) -> None:
    outputs, options, message = REFUSED[what]
    with pytest.raises(PriorImportError, match=rf"policy\.onnx: .*{message}"):
        imported(outputs, options, tmp_path)


# The columns of NUMBERS that are the mean and the log standard deviation, or the latter itself; and the note.
READ: dict[str, tuple[dict[str, Any], ImportOptions, slice | float | list[float], str]] = {
    "action, value": (
        {"action": A, "value": 1},
        told(std=0.3),
        np.log(0.3),
        r"'action' for actions.*left out: 'value'",
    ),
    "first alone": ({"12": A, "15": A}, told(std=0.3), np.log(0.3), r"'12' for actions: a gaussian.*left out: '15'"),
    "own std left": ({"mu": A, "log_std": A}, told(std=0.3), np.log(0.3), r"'mu' for actions.*left out: 'log_std'"),
    "three": (
        {"mu": A, "log_std": A, "value": 1},
        CONTINUOUS,
        slice(10, 13),
        r"'log_std' for the log st.*out: 'value'",
    ),
    "one action": ({"mu": 1, "sigma_log": 1, "value": 1}, ONE, slice(10, 11), r"'sigma_log' for the log.*: 'value'"),
    "unnamed": (
        {"12": A, "15": A, "18": 1},
        CONTINUOUS,
        slice(10, 13),
        r"'15' for the log standard.*--second-output std",
    ),
    "told, one number": ({"12": A, "15": 1}, told(second_output="log_std"), slice(10, 11), r"takes .*'15' for the log"),
    "a constant of one action": ({"12": 1, "15": [-0.5]}, ONE, -0.5, r"takes .*'15' for the log"),
    "a constant for all": ({"12": A, "15": [-0.5]}, CONTINUOUS, -0.5, r"takes .*'15' for the log"),
    "a named std": ({"mean": A, "std": [0.5] * A}, CONTINUOUS, np.log(0.5), r"'std' for the standard deviation"),
}


@pytest.mark.parametrize("what", READ)
def test_what_is_taken_is_the_sources_and_said(what: str, tmp_path: Path) -> None:
    outputs, options, columns, note = READ[what]
    result = imported(outputs, options, tmp_path)
    obs, a = states(50), result.network.spec.action_size
    products = obs @ torch.from_numpy(NUMBERS).float()
    with torch.no_grad():
        mean, log_std = result.network(obs).chunk(2, dim=-1)
    torch.testing.assert_close(mean, products[:, :a], atol=1e-5, rtol=1e-5)
    expected = products[:, columns] if isinstance(columns, slice) else torch.tensor(columns, dtype=torch.float32)
    torch.testing.assert_close(log_std, expected.expand_as(log_std), atol=1e-5, rtol=1e-5)
    assert any(re.search(note, each) for each in result.notes), result.notes


def test_names_say_what_they_are() -> None:
    expected = {
        "mean": "mean mu mus action_mean mean_actions loc",
        "action": "action actions continuous_actions deterministic_continuous_actions act",
        "log_std": "log_std logstd logStd action_log_std log_sigma",
        "std": "std sigma stddev action_std /actor/std/Exp_output_0",
        "logits": "logits action_logits",
        "probabilities": "probs action_probabilities",
        "log_prob": "log_prob logp action_log_probs",
        "value": "value values critic q_value /value_net/Gemm_output_0 state_values v vf baseline",
        "memory": "state_outs state_ins hidden_state h_out hn c_in cell lstm rnn_state",
        "other": "entropy",
    }
    for role, names in expected.items():
        assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)
    assert {role_of(name) for name in ("output", "23", "add_5", "/actor/6/Gemm_output_0", "linear_2", "y", None)} == {
        None
    }
