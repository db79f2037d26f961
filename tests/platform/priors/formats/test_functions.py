"""``module:name``: the user's own policies, traced into a graph or a perceptron that names no code."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from tests.platform.priors.graph_modules import CASES, CONTINUOUS, DISCRETE, assert_same_policy, expected_inputs, states

from rpg_algorithms import PriorCard, load_bundle, save_bundle
from rpg_platform.priors.formats import functions
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError

HEAD = """
import torch
from torch import nn
from tests.platform.priors.graph_modules import CASES, OBSERVATIONS, ACTIONS, A, D, Free, Deterministic
from rpg_algorithms.policies.network import PolicyNetwork, spec_for_spaces
"""
Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Read:
    """Imports ``name`` of a module that holds ``code``."""
    monkeypatch.syspath_prepend(tmp_path)
    stem = f"own_{abs(hash(request.node.name))}"
    count = itertools.count()

    def run(code: str, name: str = "make", options: ImportOptions = CONTINUOUS) -> Imported:
        module = f"{stem}_{next(count)}"
        (tmp_path / f"{module}.py").write_text(HEAD + code)
        importlib.invalidate_caches()
        return functions.read(f"{module}:{name}", options)

    return run


@pytest.mark.parametrize("case", ["free", "normalised", "residual", "sliced", "attention", "one tensor", "logits"])
def test_modules_become_policies_that_name_no_code(case: str, read: Read, tmp_path: Path) -> None:
    result = read(f"def make():\n    return CASES[{case!r}].module()\n", options=CASES[case].options)
    module, obs = CASES[case].module(), states()
    assert_same_policy(result.network, expected_inputs(module, obs), obs)
    assert (result.network.spec.graph is None) == (CASES[case].plain is not None)
    assert (result.format, result.facts["gave"]) == ("function", type(module).__name__)
    options = CASES[case].options
    card = PriorCard.describe("own", "Own-v0", options.observation_space, options.action_space, result.network.spec)
    save_bundle(tmp_path / "bundle", result.network, card)
    text = (tmp_path / "bundle" / "card.json").read_text()
    assert "own_" not in text
    assert "__torch__" not in text
    assert torch.equal(load_bundle(tmp_path / "bundle").build()(obs), result.network(obs))


def test_objects_classes_and_other_spellings(read: Read) -> None:
    obs = states()
    own = "class Own(Free):\n    def __init__(self):\n        torch.manual_seed(0)\n        super().__init__()\n"
    assert_same_policy(read(own, "Own").network, expected_inputs_of("Own"), obs)
    assert_same_policy(read("torch.manual_seed(0)\nown = Free()\n", "own").network, expected_inputs_of("own"), obs)
    double = read("torch.manual_seed(0)\nown = Free().double()\n", "own")
    assert double.network.spec.graph is None
    assert_same_policy(double.network, expected_inputs_of("own", double=True), obs)


def expected_inputs_of(name: str, double: bool = False) -> torch.Tensor:
    module = [m for key, m in sys.modules.items() if key.startswith("own_") and hasattr(m, name)][-1]
    torch.manual_seed(0)
    made = getattr(module, name)
    made = made() if isinstance(made, type) else made
    return expected_inputs(made, states().double() if double else states()).float()


def test_a_policy_network_is_taken_as_it_is(read: Read) -> None:
    code = """
def make():
    torch.manual_seed(0)
    network = PolicyNetwork(spec_for_spaces(OBSERVATIONS, ACTIONS, hidden=(5,)))
    network.normalizer.update(torch.randn(20, D))
    return network.train()
"""
    network = read(code).network
    assert network.spec.hidden == (5,)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert float(network.normalizer.count) == 20


@pytest.mark.parametrize("tanh", [True, False])
def test_deterministic_modules_get_a_standard_deviation(tanh: bool, read: Read) -> None:
    code = f"def make():\n    return Deterministic({tanh})\n"
    with pytest.raises(PriorImportError, match=r"returns actions alone"):
        read(code)
    network = read(code, options=dataclasses.replace(CONTINUOUS, std=0.1)).network
    assert network.spec.distribution == ("squashed_gaussian" if tanh else "gaussian")


BODY = "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
BODY += "        self.linear = nn.Linear(D, 2 * A)\n"
BODY += "    def forward(self, obs):\n        out = self.linear(obs)\n"
REFUSED: dict[str, tuple[str, str]] = {
    "decides by the data": (
        BODY + "        return out * 2 if out.mean() > 0 else out\n",
        r"(mean|log_std) at observation \d+ of 1000 differs by \S+ from what was traced: its control flow depends",
    ),
    "decides by a size": (
        BODY + "        return out * 2 if len(out) > 100 else out\n",
        r"differs by \S+ from what was traced",
    ),
    "random": (
        BODY + "        return out + torch.rand(2 * A)\n",
        r"torch\.rand is not an operation that a graph can hold",
    ),
    "has a state": (
        BODY + "        self.count = getattr(self, 'count', 0) + 1\n        return out * self.count\n",
        r"differs by \S+ from what was traced",
    ),
    "raises": (
        BODY + "        raise KeyError('nothing')\n",
        r"cannot be traced with observations \[7, 6\]: KeyError: 'nothing'",
    ),
    "wrong size": (
        BODY.replace("nn.Linear(D, 2 * A)", "nn.Linear(D + 1, 2 * A)") + "        return out\n",
        r"cannot be traced with observations \[7, 6\]: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "returns a number": (BODY + "        return 3.0\n", r"cannot be traced|forward returns"),
    "sorts": (
        BODY + "        return torch.sort(out, dim=1)[0]\n",
        r"torch\.sort is not an operation that a graph can hold",
    ),
    "in place on its input": (
        BODY + "        obs[:, 0] = 1.0\n        return self.linear(obs)\n",
        r"torch\.(copy_|fill_)",
    ),
    "is not there": ("Other = 1\n", r"has no 'Own'.*did you mean|has no 'Own'"),
    "is no policy": ("Own = 1\n", r"gave int; expected a PolicyNetwork, or a torch\.nn\.Module"),
    "gives no policy": ("def Own():\n    return [1]\n", r"gave list; expected a PolicyNetwork"),
    "fails": (
        "def Own():\n    raise RuntimeError('no weights here')\n",
        r"Own\(\) failed: RuntimeError: no weights here",
    ),
    "exits": ("def Own():\n    raise SystemExit(3)\n", r"Own\(\) failed: SystemExit: 3"),
    "does not import": ("import nothing_of_that_name\n", r"nothing_of_that_name"),
    "is not finite": (
        "def Own():\n    network = PolicyNetwork(spec_for_spaces(OBSERVATIONS, ACTIONS))\n"
        "    network.log_std.data.fill_(torch.nan)\n    return network\n",
        r"values that are not finite in log_std",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_policy_is_refused(what: str, read: Read) -> None:
    code, message = REFUSED[what]
    torch.manual_seed(0)
    with pytest.raises(PriorImportError, match=message):
        read(code, "Own")


def test_the_environment_is_needed(read: Read) -> None:
    with pytest.raises(PriorImportError, match=r"a module holds no observation and action space"):
        read("own = Free()\n", "own", ImportOptions())
    options = dataclasses.replace(DISCRETE, observation_space=gym.spaces.Dict())
    with pytest.raises(PriorImportError, match=r"observation space Dict\(\): expected Box or Discrete"):
        read("own = Free()\n", "own", options)


def test_one_hot_observations(read: Read) -> None:
    options: Any = dataclasses.replace(DISCRETE, observation_space=gym.spaces.Discrete(6))
    result = read("torch.manual_seed(0)\nown = CASES['logits'].module()\n", "own", options)
    assert result.network.spec.observation_size == 6
