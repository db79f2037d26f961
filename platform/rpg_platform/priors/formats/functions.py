"""Makes priors of the user's own code, ``module:name``: for whatever no other reader reads.

Naming a module on the command line is the decision to run it. The name is a function without arguments, a class or an
object; what it gives is

- a ``PolicyNetwork``, taken as it is, or
- a ``torch.nn.Module`` that maps observations ``[B, D]`` to (mean, log_std) or to logits (see ``outputs``). It is
  traced, and the trace goes through the same translation as a TorchScript file, so that a bundle never names code. The
  result is held against the module on random observations.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.priors.files.archive import open_archive
from rpg_platform.priors.formats import torchscript
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.graph_policy import TOLERANCE, differences
from rpg_platform.priors.network.outputs import GraphFile, Meaning
from rpg_platform.tasks.user_code import UserCodeError, load

STATES = 1_000
_BATCHES = [*[1] * 250, *[2] * 125, 500]  # a decision by the data, or by the batch's size, shows in one of them
_MAGNITUDES = (0.0, 0.1, 1.0, 10.0)  # of observations, in turn
_BY_MAGNITUDE = [slice(start, None, len(_MAGNITUDES)) for start in range(len(_MAGNITUDES))]
_TRACED_WITH = 7  # a batch size that no network has for a width by chance
_EXPECTED = "expected a PolicyNetwork, or a torch.nn.Module that maps observations [B, D] to (mean, log_std) or logits"


def read(name: str | Path, options: ImportOptions) -> Imported:
    """Reads the policy that ``module:name`` gives.

    Raises:
        PriorImportError: it cannot be imported or called, gives something else, or is no graph (its control flow
            depends on the data).
    """
    name = str(name)
    made = _made(name)
    if isinstance(made, PolicyNetwork):
        network = copy.deepcopy(made).cpu().requires_grad_(False).eval()
        bad = [key for key, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise PriorImportError(f"{name}: values that are not finite in {', '.join(bad[:5])}")
        return Imported(network, "function", None, None, facts={"gave": "PolicyNetwork"})
    if not isinstance(made, nn.Module):
        raise PriorImportError(f"{name}: gave {type(made).__name__}; {_EXPECTED}")
    module = made.cpu().eval()
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    size = GraphFile(name, "a module", options).observation_size
    states = _states(size, options)
    names = _fields(module, states[:_TRACED_WITH], dtype)
    archive = open_archive(_traced(module, size, dtype, name), name)
    imported, meaning = torchscript.read_archive(archive, options, "a module", names)
    _compare(module, imported.network, meaning, states, dtype, name)
    facts = {**imported.facts, "gave": type(made).__qualname__[:200]}
    return Imported(imported.network, "function", None, None, facts=facts, notes=imported.notes)


def _made(name: str) -> Any:
    try:
        found = load(name)
    except UserCodeError as error:
        raise PriorImportError(str(error)) from error
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:  # whatever their code does
        raise PriorImportError(f"{name}() failed: {type(error).__name__}: {str(error)[:500]}") from error


def _traced(module: nn.Module, size: int, dtype: torch.dtype, name: str) -> bytes:
    """Traces the module into a TorchScript archive."""
    example = torch.randn(_TRACED_WITH, size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the comparison finds better
            traced = torch.jit.trace(module, example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, buffer)
    except (Exception, SystemExit) as error:  # whatever their code does
        message = str(error).strip().splitlines()[:3]
        raise PriorImportError(
            f"{name}: cannot be traced with observations [{_TRACED_WITH}, {size}]: {type(error).__name__}: "
            f"{' '.join(message)[:500]}; {_EXPECTED}"
        ) from error
    return buffer.getvalue()


def _states(size: int, options: ImportOptions) -> Tensor:
    """Draws observations ``[STATES, D]`` of several magnitudes, some of them from the observation space."""
    generator = torch.Generator().manual_seed(2)
    magnitudes = torch.tensor(_MAGNITUDES).repeat(STATES // len(_MAGNITUDES))
    states = magnitudes[:, None] * torch.randn(STATES, size, generator=generator)
    space = copy.deepcopy(options.spaces[0])
    if space is not None:
        space.seed(3)
        for row in range(0, STATES, 10):
            sample = np.asarray(space.sample())
            if sample.size == size:
                states[row] = torch.from_numpy(np.clip(sample, -10.0, 10.0).astype(np.float32).reshape(-1))
    return states


def _fields(module: nn.Module, states: Tensor, dtype: torch.dtype) -> tuple[str, ...] | None:
    """Returns the names of a named tuple that the module returns, which a trace loses; None of anything else."""
    try:
        with torch.no_grad():
            result = module(states.to(dtype))
    except (Exception, SystemExit):  # whatever their code does: tracing it says what
        return None
    return getattr(result, "_fields", None) if isinstance(result, tuple) else None


def _outputs(module: nn.Module, states: Tensor, dtype: torch.dtype, places: Sequence[int], name: str) -> list[Tensor]:
    """Runs the module and returns those of its outputs that make the policy, each ``[B, …]`` in float32."""
    try:
        with torch.no_grad():
            result = module(states.to(dtype))
    except (Exception, SystemExit) as error:  # whatever their code does
        raise PriorImportError(
            f"{name}: fails with observations {list(states.shape)}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    outputs = list(result.values()) if isinstance(result, dict) else result
    outputs = [each for each in (outputs if isinstance(outputs, list | tuple) else [outputs]) if each is not None]
    tensors = [outputs[place].detach().to(torch.float32) for place in places]
    return [each.expand(len(states), *each.shape[-1:]) for each in tensors]


def _compare(
    module: nn.Module, network: PolicyNetwork, meaning: Meaning, states: Tensor, dtype: torch.dtype, name: str
) -> None:
    """Raises PriorImportError unless module and network give the same distributions."""
    ends = np.cumsum(_BATCHES).tolist()
    batches = [states[end - size : end] for size, end in zip(_BATCHES, ends, strict=True)]
    parts = [_outputs(module, rows, dtype, meaning.places, name) for rows in batches]
    outputs = [torch.cat(each) for each in zip(*parts, strict=True)]
    with torch.no_grad():
        inputs = network(states)
    spec = network.spec
    if spec.distribution == "categorical":
        probabilities = outputs[0] if meaning.probabilities else outputs[0].softmax(-1)
        pairs = [("probabilities", probabilities, inputs.softmax(-1))]
    else:
        mean, *second = outputs if len(outputs) == 2 or meaning.second is None else outputs[0].chunk(2, dim=-1)
        own_mean, own_log_std = inputs.chunk(2, dim=-1)
        if meaning.squashed:
            low, high = (torch.tensor(bound) for bound in (spec.action_low, spec.action_high))
            own_mean = low + 0.5 * (torch.tanh(own_mean) + 1.0) * (high - low)
        pairs = [("action" if meaning.second is None else "mean", mean, own_mean)]
        for each in second:
            log_std = each.log() if meaning.second == "std" else each
            pairs.append(("log_std", log_std.expand_as(own_log_std), own_log_std))
    for what, wanted, got in pairs:
        difference = torch.cat([differences(wanted[rows], got[rows]) for rows in _BY_MAGNITUDE])
        if float(difference.max()) > TOLERANCE:
            row = torch.cat([torch.arange(STATES)[rows] for rows in _BY_MAGNITUDE])[difference.amax(1).argmax()]
            raise PriorImportError(
                f"{name}: {what} at observation {int(row)} of {len(states)} differs by {float(difference.max()):.3g} "
                "from what was traced: its control flow depends on the data, or it is random"
            )
