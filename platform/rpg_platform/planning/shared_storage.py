"""Whether every node of a cluster sees the storage: each trial writes its checkpoints from the node that it runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpg_platform.planning.preflight import PlanError
from rpg_platform.storage.location import LocationError
from rpg_platform.storage.probe import answer, ask, confirm, end, is_answered

_ANSWER_S = 120.0  # a node may have to build the job's environment first
_HEAD = "node:__internal_head__"  # where drivers run, though it may have no CPU for trials
_OF_A_JOB = "runtime_resources"
"""The folder of a Ray session in which a job's uploads are unpacked."""


def check_shared(storage: str) -> list[str]:
    """Has every node read what the driver writes to the storage and what every other node wrote.

    Asked are the head and all nodes on which trials may run; others have nothing of a sweep.

    Args:
        storage: an absolute local path, or a URI.

    Returns:
        Warnings: nodes that have not answered in time.

    Raises:
        PlanError: a node does not see the storage or can't run our code, the driver itself cannot write to it, or it
            lies where Ray removes it.
    """
    import ray

    _check_lasts(storage)
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and (_is_used(node) or node["NodeID"] == here)]
    if len(nodes) < 2 and "://" not in storage:  # of which `preflight.check_writable` knows
        return []
    with _nothing_left(storage):
        try:
            name = ask(storage)
        except (OSError, LocationError) as error:
            raise PlanError(f"storage={storage!r} cannot be written to: {error}") from error
        try:
            answered, late = _answers(storage, name, nodes)
            _, later = _round(storage, confirm, name, answered, [node["NodeID"] for node in answered])
        finally:
            with contextlib.suppress(OSError):
                end(storage, name)
    at = sorted(node["NodeManagerAddress"] for node in (*late, *later))
    return [f"Node {each} has not said whether it sees the storage: trials on it may fail" for each in at]


def _is_used(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU")) or _HEAD in node["Resources"]


def _check_lasts(storage: str) -> None:
    """Refuses a storage inside the folder that Ray unpacked for this job: it is removed some time after the job."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if folder.name == _OF_A_JOB and "://" not in storage and Path(storage).is_relative_to(folder):
            raise PlanError(
                f"storage={storage!r} lies in what Ray unpacked for this job, and removes after it. Give a path that "
                "every node sees, or a URI such as s3://bucket/sweeps"
            )


def _answers(storage: str, name: str, nodes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes that have answered the driver's question, and those that have not."""
    answered, late = _round(storage, answer, name, nodes)
    unseen = [node for node in answered if not is_answered(storage, name, node["NodeID"])]
    if unseen:
        _refuse(storage, {"the driver does not see what it has written there": unseen})
    return answered, late


def _round(
    storage: str, question: Any, name: str, nodes: list[dict[str, Any]], *more: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Asks each node; returns those that have no fault to tell, and those that have not answered.

    Raises:
        PlanError: names the nodes that tell a fault, and the fault.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    task = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {
        task.options(scheduling_strategy=On(n["NodeID"], soft=False)).remote(storage, name, n["NodeID"], *more): n
        for n in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    fine, silent = [], [asked[each] for each in late]
    faults: dict[str, list[dict[str, Any]]] = {}
    for each in ready:
        try:
            why = ray.get(each)
        except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            raise PlanError(
                f"node {asked[each]['NodeManagerAddress']} can't run trials: {last}. Each node needs what "
                "requirements/runtime.lock lists, and this package, of itself or brought by the job"
            ) from error
        except ray.exceptions.RayError:  # it has gone, or starts no process
            silent.append(asked[each])
            continue
        if why is None:
            fine.append(asked[each])
        else:
            faults.setdefault(why, []).append(asked[each])
    if faults:
        _refuse(storage, faults)
    return fine, silent


def _refuse(storage: str, faults: dict[str, list[dict[str, Any]]]) -> None:
    said = "; ".join(
        f"node {', '.join(sorted(node['NodeManagerAddress'] for node in at))}: {why}" for why, at in faults.items()
    )
    raise PlanError(
        f"storage={storage!r} is not shared by all nodes, and trials write their checkpoints from their nodes. "
        f"{said}. Give a folder that every node mounts at this path, or a URI such as s3://bucket/sweeps"
    )


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
