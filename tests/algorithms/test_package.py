"""The package's door: its public names come when they are used, and its inner modules need no Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rpg_algorithms

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
{program}
"""


def run_without(blocked: set[str], program: str) -> str:
    """Runs a program in which the blocked packages cannot be imported; returns what it wrote to stderr."""
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked, program=program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stderr


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("rpg_algorithms", {"ray", "mlflow", "torch", "numpy", "gymnasium"}),
        ("rpg_algorithms.addons", {"ray", "mlflow", "torch"}),
        ("rpg_algorithms.maths.rewards", {"ray", "mlflow"}),
        ("rpg_algorithms.policies.bundle", {"ray", "mlflow"}),
        ("rpg_algorithms.policies.comparison", {"ray", "mlflow"}),
        ("rpg_algorithms.policies.numpy_policy", {"ray", "mlflow"}),
        ("rpg_algorithms.rllib.vector_env", {"ray", "mlflow", "torch"}),
    ],
)
def test_a_module_loads_only_what_it_needs(module: str, blocked: set[str]) -> None:
    assert run_without(blocked, f"import {module}") == ""


def test_the_block_is_one() -> None:
    assert "ray is blocked" in run_without({"ray"}, "from rpg_algorithms import SPG")


@pytest.mark.parametrize("name", rpg_algorithms.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rpg_algorithms, name).__name__ == name
    assert name in dir(rpg_algorithms)


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'rpg_algorithms' has no attribute 'ppo'"):
        rpg_algorithms.ppo  # type: ignore[attr-defined]  # noqa: B018
