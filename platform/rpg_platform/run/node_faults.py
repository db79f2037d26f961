"""Failures of trials that are their node's: a lost node costs no retry, and one whose disk is full is avoided."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial

from rpg_platform.tracking.tune_trial import NODE_DIED
from rpg_platform.trial.room import DiskFullError

_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node


@contextlib.contextmanager
def node_faults() -> Iterator[None]:
    """Within it, a trial that loses its node starts again without a retry being used, and one with no room elsewhere.

    Tune counts every lost node but those that an autoscaler has announced to drain, and has no hook between counting a
    failure and judging it. A trial that reported nothing since it lost a node before may be what ends its nodes, by
    taking all their memory: then it does count.
    """
    counted = Trial.handle_error
    lost: WeakKeyDictionary[Trial, object] = WeakKeyDictionary()
    avoided: WeakKeyDictionary[Trial, set[str]] = WeakKeyDictionary()

    def handle(trial: Trial, exc: Any = None) -> None:
        error = exc.as_instanceof_cause() if isinstance(exc, RayTaskError) else exc
        before, reported = trial.run_metadata.num_failures, (trial.last_result or {}).get("timestamp")
        counted(trial, exc)
        if is_lost_node(error) and (trial not in lost or lost[trial] != reported):
            lost[trial] = reported
            trial.run_metadata.num_failures = before
            trial.run_metadata.invalidate_cache()
        elif isinstance(error, DiskFullError):
            _avoid_node(trial, avoided.setdefault(trial, set()))

    Trial.handle_error = handle
    try:
        yield
    finally:
        Trial.handle_error = counted


def is_lost_node(error: Any) -> bool:
    """Whether an actor ended because its node died, or can't be reached."""
    return isinstance(error, ActorUnavailableError) or (isinstance(error, RayActorError) and NODE_DIED in str(error))


def _avoid_node(trial: Trial, avoided: set[str]) -> None:
    """Keeps a trial from the nodes of the machine that it last ran on, if there are others for it.

    Called while Tune still has the trial as running: it keeps books of the waiting ones by their requests.

    Args:
        trial: what failed.
        avoided: nodes that it is kept from already; grows.
    """
    address = (trial.last_result or {}).get("node_ip")
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    now = avoided | {node["NodeID"] for node in nodes if node["NodeManagerAddress"] == address}
    if now > avoided and any(node["NodeID"] not in now for node in nodes):
        avoided |= now
        request, selector = trial.placement_group_factory, {_NODE_ID: f"!in({','.join(sorted(now))})"}
        trial.placement_group_factory = PlacementGroupFactory(
            request.bundles, request.strategy, bundle_label_selector=[selector] * len(request.bundles)
        )
