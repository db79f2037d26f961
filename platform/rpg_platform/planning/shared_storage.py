"""Whether every node of a cluster sees the storage: each trial writes its checkpoints from the node that it runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpg_platform.planning.preflight import PlanError
from rpg_platform.storage.location import LocationError
from rpg_platform.storage.probe import answer, ask, end, is_answered

_ANSWER_S = 120.0  # a node may have to build the job's environment first


def check_shared(storage: str) -> list[str]:
    """Writes a file to the storage, and has each other node read it and write one of its own.

    Args:
        storage: an absolute local path, or a URI.

    Returns:
        Warnings: nodes that have not answered in time.

    Raises:
        PlanError: a node does not see the storage, or the driver itself cannot write to it.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU")]
    if not others and "://" not in storage:  # of which `preflight.check_writable` knows
        return []
    with _nothing_left(storage):
        try:
            name = ask(storage)
        except (OSError, LocationError) as error:
            raise PlanError(f"storage={storage!r} cannot be written to: {error}") from error
        try:
            return _answers(storage, name, others)
        finally:
            with contextlib.suppress(OSError):
                end(storage, name)


def _answers(storage: str, name: str, nodes: list[dict[str, Any]]) -> list[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    ask_node = ray.remote(num_cpus=0, max_retries=0)(answer)
    asked = {
        ask_node.options(scheduling_strategy=On(n["NodeID"], soft=False)).remote(storage, name, n["NodeID"]): n
        for n in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    silent = [asked[each] for each in late]
    faults: dict[str, list[str]] = {}
    for each in ready:
        try:
            why = ray.get(each)
        except ray.exceptions.RayError:  # it has gone, or starts no process
            silent.append(asked[each])
            continue
        if why is None and not is_answered(storage, name, asked[each]["NodeID"]):
            why = "the driver does not see what it has written there"
        if why is not None:
            faults.setdefault(why, []).append(asked[each]["NodeManagerAddress"])
    if faults:
        said = "; ".join(f"node {', '.join(sorted(at))}: {why}" for why, at in faults.items())
        raise PlanError(
            f"storage={storage!r} is not shared by all nodes, and trials write their checkpoints from their nodes. "
            f"{said}. Give a folder that every node mounts at this path, or a URI such as s3://bucket/sweeps"
        )
    at = sorted(node["NodeManagerAddress"] for node in silent)
    return [f"Node {each} has not said whether it sees the storage: trials on it may fail" for each in at]


@contextlib.contextmanager
def _nothing_left(storage: str) -> Iterator[None]:
    """Removes the folders of a local storage that are new and empty, where the sweep is refused."""
    path = Path(storage)
    new = [] if "://" in storage else [each for each in (path, *path.parents) if not each.exists()]
    try:
        yield
    except PlanError:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise
