"""Defines what an exported policy of any format computes, and checks an export against its bundle.

The policy takes one array and returns named ones:

    obs      float32 [B, D]   raw observations, flattened (one-hot for a Discrete space); the normaliser is inside
    action   float32 [B, A]   the deterministic action as the environment takes it: clipped, or tanh to its bounds
             int64 [B]        for a Discrete space: the likeliest action, counted from the space's start
    mean, log_std   float32 [B, A]   of the Gaussian, before clipping or tanh
    logits   float32 [B, K]   of the categorical

Precision ``float64`` normalises exactly as the bundle does, computes the network in float64 and rounds
once, at the end: each output is the float32 next to the bundle's exact value, on every machine and for every batch
size. ``float32`` is for runtimes without float64. It is only as exact as float32 sums, which large inputs that cancel
each other make far less exact than 1e-6; the bundle's own float32 arithmetic is no better.

Dimension letters: B batch, D observation size, A action dimensions, K actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import NetworkSpec

Mode = Literal["distribution", "deterministic"]
Precision = Literal["float64", "float32"]
Outputs = Mapping[str, NDArray[Any]]

INPUT = "obs"
TOLERANCE: Mapping[Precision, float] = {"float64": 1e-6, "float32": 1e-3}
_CHECKED_STATES = 64


def output_names(spec: NetworkSpec, mode: Mode) -> tuple[str, ...]:
    """Returns the names of the outputs, in their order."""
    if mode == "deterministic":
        return ("action",)
    return ("action", "logits") if spec.distribution == "categorical" else ("action", "mean", "log_std")


def exact(bundle: PriorBundle, obs: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Returns the reference: the outputs of the bundle's policy at ``obs`` ``[B, D]``, computed in float64."""
    network = bundle.build()
    spec = network.spec
    with torch.no_grad():
        normalized = network.normalize(torch.from_numpy(obs)).double()
        out = copy.deepcopy(network).double().head(normalized).numpy()
    if spec.distribution == "categorical":
        return {"action": out.astype(np.float32).argmax(-1) + spec.action_start, "logits": out}
    mean, log_std = out[:, : spec.action_size], out[:, spec.action_size :]
    action = mean
    if spec.action_low is not None and spec.action_high is not None:
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        squashed = spec.distribution == "squashed_gaussian"
        action = low + 0.5 * (np.tanh(mean) + 1.0) * (high - low) if squashed else np.clip(mean, low, high)
    return {"action": action, "mean": mean, "log_std": log_std}


def typical_states(bundle: PriorBundle, n: int, seed: int = 0) -> NDArray[np.float32]:
    """Draws ``[n, D]`` observations like those that the normaliser has seen; without one, standard normal ones."""
    states = np.random.default_rng(seed).standard_normal((n, bundle.network_spec.observation_size))
    if "normalizer.mean" in bundle.weights:
        states = bundle.weights["normalizer.mean"] + np.sqrt(bundle.weights["normalizer.var"]) * states
    return states.astype(np.float32)


def check(
    run: Callable[[NDArray[np.float32]], Outputs], bundle: PriorBundle, mode: Mode, precision: Precision
) -> float:
    """Returns the largest deviation of an exported policy from its bundle, |difference| / (1 + |value|).

    Args:
        run: the exported policy.
        bundle: the bundle that was exported.
        mode: which outputs the policy has.
        precision: the precision in which it computes.

    Raises:
        RuntimeError: the policy deviates by more than ``TOLERANCE``; this is a defect of the export.
    """
    obs = typical_states(bundle, _CHECKED_STATES)
    expected, found = exact(bundle, obs), run(obs)
    worst = 0.0
    for name in output_names(bundle.network_spec, mode):
        wanted, got = expected[name], np.asarray(found[name])
        if got.shape != wanted.shape:
            raise RuntimeError(f"the exported policy's {name!r} is {got.shape}, expected {wanted.shape}")
        if name == "action" and bundle.network_spec.distribution == "categorical":
            logits = expected["logits"]  # if two are equal but for rounding, either may be chosen
            chosen = logits[np.arange(len(obs)), got - bundle.network_spec.action_start]
            got, wanted = chosen, logits.max(-1)
        worst = max(worst, float(np.max(np.abs(got - wanted) / (1.0 + np.abs(wanted)))))
    if not worst <= TOLERANCE[precision]:
        raise RuntimeError(f"the exported policy deviates from {bundle!r} by {worst:.1e}; please report it")
    return worst
