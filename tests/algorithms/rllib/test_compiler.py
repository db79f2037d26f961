"""Training leaves torch's compiler out of its process, and loses nothing by it."""

from __future__ import annotations

import sys
from pathlib import Path

import ray
import torch
from tests.algorithms.registry import CASES, built

from rpg_algorithms.rllib.compiler import leave_out_compiler, step


def train(folder: str) -> list[bool]:
    """Trains, then imports the compiler: whether it was there, then its option, beside torch's, set and set back."""
    for engine in ("fused", "eager"):
        config = CASES["rpg-gaussian"].build_config(
            Path(folder, engine), critic_warmup_iterations=1, update_engine=engine
        )
        with built(config.debugging(seed=1)) as algorithm:
            algorithm.train()  # the critic alone
            algorithm.train()
            algorithm.set_state(algorithm.get_state())
    found = ["torch._dynamo" in sys.modules]
    from torch._inductor import config as compiler

    found += [torch.are_deterministic_algorithms_enabled(), compiler.deterministic]
    torch.use_deterministic_algorithms(False)
    return [*found, torch.are_deterministic_algorithms_enabled(), compiler.deterministic]


def test_a_training_does_not_import_the_compiler_and_leaves_it_its_option(local_ray: None, tmp_path: Path) -> None:
    """In a process that has run nothing else, as no other task has its environment."""
    fresh = ray.remote(train).options(runtime_env={"env_vars": {"OF_THIS_TEST": "1"}})
    assert ray.get(fresh.remote(str(tmp_path)), timeout=240) == [False, True, True, False, False]


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
