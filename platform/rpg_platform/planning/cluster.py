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

from rpg_platform.logs import for_ray
from rpg_platform.spec.sweep import SweepSpec

Amounts = Mapping[str, float]
"""Resources by Ray's names: ``CPU``, ``GPU``, ``memory`` in bytes, and custom ones."""

_FIRST = ("CPU", "GPU", "memory")
_GB = 1e9
_MEMORY_OF_TASKS = 0.7  # Ray keeps the rest of what is free for its object store
_CONNECT_S = 10.0
_LOCAL = "local"
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
_LONGEST_SOCKET_PATH = 103  # bytes that every Unix has room for


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
    """Connects to the cluster at ``address`` (or ``RAY_ADDRESS``, as in a job), or starts a Ray of its own here.

    Without an address no cluster is looked for: what was last started on this machine is somebody else's, or dead.
    Token authentication stays as the environment sets it (``RAY_AUTH_MODE``); a Ray of its own without it set has none,
    as it listens on this machine alone. Its processes leave the machine usable for others: Ray gives them a niceness of
    15, or what ``RAY_worker_niceness`` says.

    Raises:
        CapacityError: there is no cluster at the address, or it does not let us in.
    """
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    if address == _LOCAL:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        own = {"include_dashboard": False, "_temp_dir": _short_temp_dir(), "num_cpus": _own_cpus()}
        ray.init(_LOCAL, log_to_driver=False, logging_level=logging.ERROR, logging_config=for_ray(), **own)
        return
    head = check_address(address)
    try:
        ray.init(head, log_to_driver=False, logging_level=logging.ERROR, logging_config=for_ray())
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise CapacityError(f"--address {address}: {' '.join(str(error).split())}") from error


def whereabouts() -> str:
    """Says which Ray this process is connected to."""
    import ray
    from ray._private.worker import _global_node

    if _global_node is not None and _global_node.is_head():
        return "this machine, in a Ray of its own"
    return f"the Ray cluster at {ray.get_runtime_context().gcs_address}"


def _short_temp_dir() -> str | None:
    """Where a Ray of its own keeps its files: as Ray has it (None), or /tmp where paths of sockets get too long."""
    from ray._common.utils import get_default_ray_temp_dir

    fits = len(os.fsencode(get_default_ray_temp_dir())) + len(_LONGEST_SOCKET) <= _LONGEST_SOCKET_PATH
    return None if fits else "/tmp/ray"


def start_ray_while_importing(module: str, address: str | None) -> None:
    """Starts Ray, or connects to it, and meanwhile imports a slow module.

    Raises:
        CapacityError: as ``start_ray``.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(importlib.import_module, module)
        start_ray(address)
        loading.result()


def check_address(address: str) -> str:
    """Refuses a cluster that does not answer, for which Ray itself would wait for minutes.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``: the cluster that was last started on this machine.

    Returns:
        The address of its head.

    Raises:
        CapacityError: nothing listens there.
    """
    from ray._private.services import canonicalize_bootstrap_address

    named = address
    if address == "auto":
        address = canonicalize_bootstrap_address(address) or ""
        if not address:
            raise CapacityError("--address auto: no Ray cluster was started on this machine; give its HOST:PORT")
        named = f"auto ({address})"
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise CapacityError(f"--address {named}: expected auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise CapacityError(f"--address {named}: no Ray cluster answers there ({error})") from error
    return address


def nodes_of(address: str | None) -> list[dict[str, float]]:
    """Resources of the cluster at ``address`` (or that ``RAY_ADDRESS`` names), else of this machine, without Ray.

    Raises:
        CapacityError: there is no cluster at that address.
    """
    import ray

    if (address or os.environ.get("RAY_ADDRESS") or _LOCAL) == _LOCAL and not ray.is_initialized():
        return [this_machine()]
    start_ray(address)
    return cluster_nodes()


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each live node of the cluster that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _own_cpus() -> int:
    """CPUs that this process may use: the machine's or the container's as Ray counts them, and by its affinity."""
    from ray._private.utils import get_num_cpus

    return max(1, min(int(get_num_cpus()), len(os.sched_getaffinity(0))))  # a quota of less than one counts as one


def this_machine() -> dict[str, float]:
    """Resources of the Ray that ``start_ray`` starts on this machine; Ray is not started for it."""
    import torch
    from ray._private.utils import estimate_available_memory

    gpus = torch.cuda.device_count()  # of those that CUDA_VISIBLE_DEVICES leaves
    memory = _MEMORY_OF_TASKS * estimate_available_memory()
    return {"CPU": float(_own_cpus()), "memory": memory, **({"GPU": float(gpus)} if gpus else {})}


# ---- what fits -----------------------------------------------------------------------------------
def placement(spec: SweepSpec) -> list[dict[str, float]]:
    """Resource bundles of one trial: its own process, then its env runners, then its learners."""
    resources = spec.resources
    gpus = resources.gpus_per_trial
    main: dict[str, float] = {"CPU": resources.cpus_per_trial, **resources.custom_per_trial}
    runner: dict[str, float] = {"CPU": 1, **resources.custom_per_env_runner}
    learner: dict[str, float] = {"CPU": 1, **resources.custom_per_learner}
    if gpus:
        (learner if resources.learners else main)["GPU"] = gpus
    if resources.memory_gb_per_trial:
        main["memory"] = round(resources.memory_gb_per_trial * _GB)
    return [main, *[runner] * resources.env_runners, *[learner] * resources.learners]


def total(all_: Sequence[Amounts], name: str) -> float:
    """The amount of one resource in all of them together."""
    return sum(each.get(name, 0.0) for each in all_)


def check_capacity(bundles: Sequence[Amounts], nodes: Sequence[Amounts], strategy: str = "pack") -> None:
    """Refuses what no node, or not the whole cluster, could ever hold.

    Args:
        bundles: resources of one trial, each bundle on one node.
        nodes: resources of the cluster's nodes.
        strategy: ``resources.placement``.

    Raises:
        CapacityError: names the resource, what is asked for and what there is.
    """
    for name in asked(bundles):
        for who, holder, wanted, there in (
            ("a trial", "the cluster", total(bundles, name), total(nodes, name)),
            ("a trial's process", "the largest node", _largest(bundles, name), _largest(nodes, name)),
        ):
            if wanted > there:
                raise CapacityError(
                    f"{who} asks for {in_words(name, wanted)} (resources), {holder} has {_number(name, there)}: "
                    "no trial could ever start"
                )
    if trials_at_once(bundles, nodes, 1, strategy) == 0:
        how = "" if strategy in ("pack", "spread") else f", placement {strategy}"
        raise CapacityError(
            f"a trial asks for {_shown(bundles, bundles)} (resources{how}), the nodes have {_shown(nodes, bundles)}: "
            "its processes do not fit on them, no trial could ever start"
        )


def trials_at_once(bundles: Sequence[Amounts], nodes: Sequence[Amounts], wanted: int, strategy: str = "pack") -> int:
    """How many of ``wanted`` trials the nodes hold at once when nothing else runs on them.

    Bundles go, the largest first, to the node with the least room that still takes them.

    Args:
        bundles: resources of one trial.
        nodes: resources of the cluster's nodes.
        wanted: trials that there are.
        strategy: ``resources.placement``: all bundles on one node, or no two on one, if it is a strict one.
    """
    names = asked(bundles)
    if strategy == "strict_pack":
        bundles = [{name: total(bundles, name) for name in names}]
    free = [{name: node.get(name, 0.0) for name in names} for node in nodes]
    scarce_first = [name for name in reversed(names) if name != "memory"]  # custom ones, then GPUs, then CPUs
    largest_first = sorted(bundles, key=lambda b: [b.get(name, 0.0) for name in scarce_first], reverse=True)
    for placed in range(wanted):
        taken: list[dict[str, float]] = []
        for bundle in largest_first:
            room = [f for f in free if all(f[name] + 1e-9 >= bundle.get(name, 0.0) for name in names)]
            if strategy == "strict_spread":
                room = [f for f in room if not any(f is each for each in taken)]
            if not room:
                return placed
            tightest = min(room, key=lambda f: [f[name] for name in scarce_first])
            taken.append(tightest)
            for name in names:
                tightest[name] -= bundle.get(name, 0.0)
    return wanted


def waiting_for(bundles: Sequence[Amounts]) -> str | None:
    """What the trials of this process wait for, where the cluster has no room for any of them; None otherwise.

    Args:
        bundles: resources of one trial.
    """
    import ray

    job = ray.get_runtime_context().get_job_id()  # the end of a placement group's id
    states = {group["state"] for name, group in ray.util.placement_group_table().items() if name.endswith(job)}
    if "PENDING" not in states or states & {"PREPARED", "CREATED"}:
        return None
    free, there = ray.available_resources(), ray.cluster_resources()
    room = " and ".join(
        f"{_number(name, free.get(name, 0.0))} of {in_words(name, there.get(name, 0.0))}" for name in asked(bundles)
    )
    return f"waiting for room on the cluster: a trial asks for {_shown(bundles, bundles)}, free are {room}"


def rounds(trials: int, at_once: int) -> int:
    """In how many rounds ``trials`` run, ``at_once`` of them at a time."""
    return math.ceil(trials / at_once) if at_once else 0


def _largest(all_: Sequence[Amounts], name: str) -> float:
    return max((each.get(name, 0.0) for each in all_), default=0.0)


def asked(bundles: Sequence[Amounts]) -> list[str]:
    """Names of the resources that a trial asks for: Ray's own first."""
    names = {name for each in bundles for name, amount in each.items() if amount}
    return [*(name for name in _FIRST if name in names), *sorted(names.difference(_FIRST))]


def _number(name: str, amount: float) -> str:
    return f"{amount / _GB:g}" if name == "memory" else f"{amount:g}"


def in_words(name: str, amount: float) -> str:
    """An amount of a resource, to read."""
    return f"{_number(name, amount)} {'GB of memory' if name == 'memory' else name}"


def _shown(all_: Sequence[Amounts], bundles: Sequence[Amounts]) -> str:
    """Amounts of what ``bundles`` ask for, equal ones once with their number."""
    names = asked(bundles)
    texts = Counter(" and ".join(in_words(n, each[n]) for n in names if each.get(n)) or "none of it" for each in all_)
    return ", ".join(f"{count} x {text}" if count > 1 else text for text, count in texts.items())
