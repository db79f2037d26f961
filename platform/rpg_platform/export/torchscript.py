"""Writes a policy as TorchScript by tracing the bundle's own network, so there is no second implementation.

``torch.jit.load(file)`` returns a module that maps observations ``[B, D]`` to a dictionary of named tensors
(see ``policy``). The extra file ``card.json`` in the archive is the bundle's card.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.export.policy import Mode, Outputs, Precision, check, output_names, typical_states

CARD = "card.json"
_jit: Any = torch.jit  # mostly untyped


class _Exported(nn.Module):
    """The bundle's network with named outputs and with the action as the environment takes it."""

    low: Tensor
    high: Tensor

    def __init__(self, network: PolicyNetwork, mode: Mode, precision: Precision) -> None:
        super().__init__()
        self.spec, self.names = network.spec, output_names(network.spec, mode)
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.network = network.double() if precision == "float64" else network
        for name, bound in (("low", self.spec.action_low), ("high", self.spec.action_high)):
            self.register_buffer(name, None if bound is None else torch.tensor(bound, dtype=self.dtype))

    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        out = self.network.head(self.network.normalize(obs).to(self.dtype))
        if self.spec.distribution == "categorical":
            logits = out.to(torch.float32)
            found = {"action": logits.argmax(-1) + self.spec.action_start, "logits": logits}
        else:
            mean, log_std = out.chunk(2, dim=-1)
            action = mean
            if self.spec.distribution == "squashed_gaussian":
                action = self.low + 0.5 * (torch.tanh(mean) + 1.0) * (self.high - self.low)
            elif self.low is not None:
                action = torch.minimum(torch.maximum(mean, self.low), self.high)
            found = {"action": action, "mean": mean, "log_std": log_std}
            found = {name: value.to(torch.float32) for name, value in found.items()}
        return {name: found[name] for name in self.names}


def save(bundle: PriorBundle, file: Path, mode: Mode = "distribution", precision: Precision = "float64") -> float:
    """Writes ``file`` and returns its deviation from the bundle (see ``policy.check``).

    Args:
        bundle: the policy.
        file: the file to write or replace.
        mode: ``deterministic`` leaves the distribution's parameters out.
        precision: see ``policy``.

    Raises:
        RuntimeError: the file does not compute what the bundle does.
    """
    module = _Exported(bundle.build(), mode, precision).eval()
    example = torch.from_numpy(typical_states(bundle, 3))
    with _quiet(), torch.no_grad():
        traced = _jit.trace(module, example, strict=False, check_trace=False)  # strict: no dictionaries
        card = json.dumps(bundle.card.model_dump(), sort_keys=True)
        _jit.save(traced, str(file), _extra_files={CARD: card})
    return check(partial(_run, file), bundle, mode, precision)


def _run(file: Path, obs: NDArray[np.float32]) -> Outputs:
    with _quiet(), torch.no_grad():
        return {name: value.numpy() for name, value in _jit.load(str(file))(torch.from_numpy(obs)).items()}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about TorchScript as such, which is asked for
        warnings.simplefilter("ignore", _jit.TracerWarning)  # about numbers that become constants, as intended
        yield
