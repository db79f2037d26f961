"""Training leaves torch's compiler out of its process, and loses nothing by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from rpg_algorithms.rllib.compiler import leave_out_compiler, step

TRAIN = """
import sys, torch
from pathlib import Path
from tests.algorithms.registry import CASES, built
for engine in ("fused", "eager"):
    folder = Path(sys.argv[1], engine)
    config = CASES["rpg-gaussian"].build_config(folder, critic_warmup_iterations=1, update_engine=engine)
    with built(config.debugging(seed=1)) as algorithm:
        algorithm.train(), algorithm.train()  # the critic alone, then both
        algorithm.set_state(algorithm.get_state())
print("torch._dynamo" in sys.modules, torch.are_deterministic_algorithms_enabled())
import torch._inductor.config as compiler
print(compiler.deterministic)
torch.use_deterministic_algorithms(False)
print(compiler.deterministic, torch.are_deterministic_algorithms_enabled())
"""


def test_a_training_does_not_import_the_compiler_and_leaves_it_its_option(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parents[3]), *(each for each in sys.path if each)])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "True", "False", "False"]


def test_a_step_is_the_optimizers_own_to_the_bit() -> None:
    leave_out_compiler()
    moved = []
    for take in (step, torch.optim.Adam.step):
        weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 7))
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
        for power in (2, 3):
            optimizer.zero_grad(set_to_none=True)
            (weight**power).sum().backward()
            take(optimizer)
        moved.append((weight.detach(), *optimizer.state[weight].values()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*moved, strict=True))
