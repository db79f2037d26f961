"""What a trial asks for, what holds it, and how many run at once."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from rpg_platform.planning.cluster import (
    CapacityError,
    check_address,
    check_capacity,
    cluster_nodes,
    placement,
    rounds,
    this_machine,
    trials_at_once,
)
from rpg_platform.spec.sweep import SweepSpec


def bundles(**resources: Any) -> list[dict[str, float]]:
    raw = {"name": "x", "task": "hopper-height", "algorithm": "ppo", "budget": {"env_steps": 100_000}}
    return placement(SweepSpec.model_validate({**raw, "resources": resources}))


def test_placement() -> None:
    assert bundles() == [{"CPU": 1}]
    assert bundles(cpus_per_trial=2.5, gpus_per_trial=0.5) == [{"CPU": 2.5, "GPU": 0.5}]
    assert bundles(env_runners=2) == [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}]
    assert bundles(env_runners=1, learners=2, gpus_per_trial=1) == [
        {"CPU": 1},
        {"CPU": 1},
        {"CPU": 1, "GPU": 1},
        {"CPU": 1, "GPU": 1},
    ]


def test_what_never_fits_is_refused() -> None:
    check_capacity([{"CPU": 4}, {"CPU": 2}], [{"CPU": 4}, {"CPU": 2}])
    with pytest.raises(CapacityError, match=r"a trial asks for 7 CPU .*, the cluster has 6: no trial could ever start"):
        check_capacity([{"CPU": 4}, {"CPU": 3}], [{"CPU": 4}, {"CPU": 2}])
    with pytest.raises(CapacityError, match=r"a trial's process asks for 5 CPU .*, the largest node has 4"):
        check_capacity([{"CPU": 5}], [{"CPU": 4}, {"CPU": 2}])
    with pytest.raises(CapacityError, match=r"asks for 1 GPU .*, the cluster has 0"):
        check_capacity([{"CPU": 1, "GPU": 1}], [{"CPU": 4}])
    # In sum and one by one it would do, but two processes of 3 CPUs need two nodes that have them.
    with pytest.raises(CapacityError, match=r"asks for 2 x 3 CPU .*, the nodes have 4 CPU, 2 x 2 CPU: .* do not fit"):
        check_capacity([{"CPU": 3}, {"CPU": 3}], [{"CPU": 4}, {"CPU": 2}, {"CPU": 2}])


@pytest.mark.parametrize(
    ("each", "nodes", "wanted", "at_once"),
    [
        ([{"CPU": 1.0}], [{"CPU": 2.0}], 7, 2),
        ([{"CPU": 1.0}], [{"CPU": 2.0}], 1, 1),
        ([{"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 3.0}, {"CPU": 3.0}], 9, 3),  # a trial may span two nodes
        ([{"CPU": 2.0}], [{"CPU": 3.0}, {"CPU": 3.0}], 9, 2),  # a process may not
        ([{"CPU": 1.0, "GPU": 0.25}], [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], 100, 4),
        ([{"CPU": 0.1}], [{"CPU": 1.0}], 100, 10),
    ],
)
def test_trials_at_once(each: list[dict[str, float]], nodes: list[dict[str, float]], wanted: int, at_once: int) -> None:
    assert trials_at_once(each, nodes, wanted) == at_once


def test_rounds() -> None:
    assert [rounds(trials, 3) for trials in (0, 1, 3, 4)] == [0, 1, 1, 2]


def test_a_cluster_is_read_as_ray_has_it(local_ray: None) -> None:
    assert [node["CPU"] for node in cluster_nodes()] == [ray.cluster_resources()["CPU"]]


def test_a_cluster_that_is_not_there_is_refused_at_once(unused_port: int) -> None:
    with pytest.raises(CapacityError, match=rf"--address 127.0.0.1:{unused_port}: no Ray cluster answers there"):
        check_address(f"127.0.0.1:{unused_port}")
    with pytest.raises(CapacityError, match="expected auto or HOST:PORT"):
        check_address("head")
    check_address("auto")


def test_this_machine_needs_no_ray() -> None:
    assert this_machine()["CPU"] >= 1
