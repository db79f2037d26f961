"""Nodes that came back and get no trial: Ray has lost count of their CPUs until they say something."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.tune import Callback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 15.0
_OF_A_GROUP = "bundle_group_"  # what a node has besides while a placement group's bundle lies on it


class NodeWaker(Callback):
    """Has each node that looks taken, though no trial is on it, do a trifle.

    Ray (2.60) takes a trial's CPUs off its account of a node before it asks the node for them. If the node does not
    answer, as one that just came back after its network was cut, it does not put them back, and places no trial there
    until the node reports a change of its own. A task that takes a thousandth of a CPU for a moment is one.
    """

    def __init__(self) -> None:
        self._looked, self._asked = 0.0, dict[str, Any]()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what was asked stays here."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        try:
            free = available_resources_per_node()
            for node in ray.nodes():
                if node["Alive"] and looks_taken(node["Resources"], free.get(node["NodeID"], {})):
                    self._wake(node["NodeID"])
        except Exception as error:  # of a head that is away for a moment
            logger.debug("nodes could not be looked at: %s", error)

    def _wake(self, node: str) -> None:
        if node in self._asked and not ray.wait([self._asked[node]], timeout=0)[0]:
            return  # it is busy indeed
        on = NodeAffinitySchedulingStrategy(node, soft=False)
        self._asked[node] = ray.remote(num_cpus=0.001, max_retries=0)(nothing).options(scheduling_strategy=on).remote()


def looks_taken(there: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether a node counts as having given away CPUs, none of them to a placement group.

    Args:
        there: all its resources.
        free: what Ray says is free of them.
    """
    return free.get("CPU", 0.0) < there.get("CPU", 0.0) and not any(name.startswith(_OF_A_GROUP) for name in free)


def nothing() -> None:
    """Does nothing."""
