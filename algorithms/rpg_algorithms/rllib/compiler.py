"""Leaves torch's compiler out of processes that compile nothing: its import takes longer than to build a trial.

For three calls torch imports its compiler (``torch._dynamo`` and ``torch._inductor``: a thousand modules, 70 MB) though
none of them compiles: an optimizer's bookkeeping, which is hidden from the compiler; its step, which tells the compiler
where to break a graph; and ``use_deterministic_algorithms``, which RLlib calls for a seed, and which sets an option of
the compiler too. Each trial, env runner and learner makes one of them at least.
"""

from __future__ import annotations

import inspect
import os
import sys

import torch

_with_compiler = torch.use_deterministic_algorithms


def _use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    if "torch._inductor.config" in sys.modules:
        _with_compiler(mode, warn_only=warn_only)
        return
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(mode))  # what the option is when the compiler is imported
    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


def leave_out_compiler() -> None:
    """Makes the bookkeeping and the choice of deterministic algorithms do without the import, in this process.

    Who compiles imports the compiler as ever, and finds its option set.
    """
    torch.use_deterministic_algorithms = _use_deterministic_algorithms
    for method in vars(torch.optim.Optimizer).values():
        hidden = getattr(method, "__wrapped__", None)
        if hidden is not None and not hasattr(hidden, "__dynamo_disable"):
            hidden.__dynamo_disable = hidden  # where torch keeps what the compiler would make of it


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` without the import; it runs no hooks.

    Args:
        optimizer: one whose step is not differentiable; each parameter's gradient is in its ``grad``.
    """
    inspect.unwrap(type(optimizer).step)(optimizer)
