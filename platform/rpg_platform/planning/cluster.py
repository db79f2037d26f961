"""The cluster: connecting to it, what a trial asks of it, whether it can ever hold one, and how many at once."""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rpg_platform.spec.sweep import SweepSpec

Amounts = Mapping[str, float]
"""Resources by Ray's names, ``CPU`` and ``GPU``."""

_RESOURCES = ("CPU", "GPU")
_CONNECT_S = 10.0


class CapacityError(ValueError):
    """There is no such cluster, or it could never start a trial; the message names what is asked and what there is."""


# ---- connecting ----------------------------------------------------------------------------------
def quiet() -> None:
    """Keeps Ray's and RLlib's own chatter out of the way of the progress view; warnings of ours stay."""
    for name in ("ray.rllib", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the progress view says why, MLflow has all of it
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")


def start_ray(address: str | None) -> None:
    """Connects to the cluster at ``address`` (or to the one that a job runs in), or starts Ray on this machine.

    Token authentication stays as the environment sets it (``RAY_AUTH_MODE``); a local Ray without it set has none, as
    it listens on this machine alone.

    Raises:
        CapacityError: there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:  # "auto" where there is none
        raise CapacityError(f"--address {address}: {error}") from error


def start_ray_while_importing(module: str, address: str | None) -> None:
    """Starts Ray, or connects to it, and meanwhile imports a slow module.

    Raises:
        CapacityError: as ``start_ray``.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(importlib.import_module, module)
        start_ray(address)
        loading.result()


def check_address(address: str) -> None:
    """Refuses a cluster that does not answer, for which Ray itself would wait for minutes.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``, which is not looked at.

    Raises:
        CapacityError: nothing listens there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        if address not in ("auto", "local"):
            raise CapacityError(f"--address {address}: expected auto or HOST:PORT")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise CapacityError(f"--address {address}: no Ray cluster answers there ({error})") from error


def nodes_of(address: str | None) -> list[dict[str, float]]:
    """Resources of the cluster at ``address`` (or that ``RAY_ADDRESS`` names), else of this machine, without Ray.

    Raises:
        CapacityError: there is no cluster at that address.
    """
    import ray

    if address is None and not os.environ.get("RAY_ADDRESS") and not ray.is_initialized():
        return [this_machine()]
    start_ray(address)
    return cluster_nodes()


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each live node of the cluster that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def this_machine() -> dict[str, float]:
    """Resources of a Ray that is started on this machine; Ray is not started for it."""
    import torch
    from ray._private.utils import get_num_cpus

    gpus = torch.cuda.device_count()  # of those that CUDA_VISIBLE_DEVICES leaves
    return {"CPU": float(get_num_cpus()), **({"GPU": float(gpus)} if gpus else {})}


# ---- what fits -----------------------------------------------------------------------------------
def placement(spec: SweepSpec) -> list[dict[str, float]]:
    """Resource bundles of one trial: its own process, then its env runners, then its learners."""
    resources = spec.resources
    gpus = resources.gpus_per_trial
    main: dict[str, float] = {"CPU": resources.cpus_per_trial}
    learner: dict[str, float] = {"CPU": 1}
    if gpus:
        (learner if resources.learners else main)["GPU"] = gpus
    return [main, *[{"CPU": 1.0}] * resources.env_runners, *[learner] * resources.learners]


def total(all_: Sequence[Amounts], name: str) -> float:
    """The amount of one resource in all of them together."""
    return sum(each.get(name, 0.0) for each in all_)


def check_capacity(bundles: Sequence[Amounts], nodes: Sequence[Amounts]) -> None:
    """Refuses what no node, or not the whole cluster, could ever hold.

    Args:
        bundles: resources of one trial, each bundle on one node.
        nodes: resources of the cluster's nodes.

    Raises:
        CapacityError: names the resource, what is asked for and what there is.
    """
    for name in _RESOURCES:
        for who, holder, asked, there in (
            ("a trial", "the cluster", total(bundles, name), total(nodes, name)),
            ("a trial's process", "the largest node", _largest(bundles, name), _largest(nodes, name)),
        ):
            if asked > there:
                raise CapacityError(
                    f"{who} asks for {asked:g} {name} (resources), {holder} has {there:g}: no trial could ever start"
                )
    if trials_at_once(bundles, nodes, 1) == 0:
        raise CapacityError(
            f"a trial asks for {_shown(bundles)} (resources), the nodes have {_shown(nodes)}: "
            "its processes do not fit on them, no trial could ever start"
        )


def trials_at_once(bundles: Sequence[Amounts], nodes: Sequence[Amounts], wanted: int) -> int:
    """How many of ``wanted`` trials the nodes hold at once when nothing else runs on them.

    Bundles go, the largest first, to the node with the least room that still takes them.
    """
    free = [{name: node.get(name, 0.0) for name in _RESOURCES} for node in nodes]
    largest_first = sorted(bundles, key=lambda b: (b.get("GPU", 0.0), b.get("CPU", 0.0)), reverse=True)
    for placed in range(wanted):
        for bundle in largest_first:
            room = [f for f in free if all(f[name] + 1e-9 >= bundle.get(name, 0.0) for name in _RESOURCES)]
            if not room:
                return placed
            tightest = min(room, key=lambda f: (f["GPU"], f["CPU"]))
            for name in _RESOURCES:
                tightest[name] -= bundle.get(name, 0.0)
    return wanted


def rounds(trials: int, at_once: int) -> int:
    """In how many rounds ``trials`` run, ``at_once`` of them at a time."""
    return math.ceil(trials / at_once) if at_once else 0


def _largest(all_: Sequence[Amounts], name: str) -> float:
    return max((each.get(name, 0.0) for each in all_), default=0.0)


def _shown(all_: Sequence[Amounts]) -> str:
    texts = Counter(" and ".join(f"{each[name]:g} {name}" for name in _RESOURCES if each.get(name)) for each in all_)
    return ", ".join(f"{count} x {text}" if count > 1 else text for text, count in texts.items())
