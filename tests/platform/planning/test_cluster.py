"""What a trial asks for, what holds it, and how many run at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
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


def test_memory_and_custom_resources_are_of_the_process_that_asks_for_them() -> None:
    asked = bundles(
        env_runners=2,
        learners=1,
        gpus_per_trial=1,
        memory_gb_per_trial=1.5,
        custom_per_trial={"licence": 1},
        custom_per_env_runner={"cpu_node": 0.01},
        custom_per_learner={"gpu_node": 0.01},
    )
    runner = {"CPU": 1, "cpu_node": 0.01}
    learner = {"CPU": 1, "GPU": 1, "gpu_node": 0.01}
    assert asked == [{"CPU": 1, "licence": 1, "memory": 1_500_000_000}, runner, runner, learner]
    head = {"CPU": 4.0, "memory": 4e9, "licence": 2.0}
    nodes = [head, {"CPU": 8.0, "cpu_node": 1.0}, {"CPU": 8.0, "GPU": 1.0, "gpu_node": 1.0}]
    assert trials_at_once(asked, nodes, 9) == 1, "by the GPU"
    nodes += [{"CPU": 8.0, "GPU": 4.0, "gpu_node": 1.0}]
    assert trials_at_once(asked, nodes, 9) == 2, "by the licences and the memory"
    for missing, message in (
        ("licence", r"asks for 1 licence \(resources\), the cluster has 0: no trial"),
        ("memory", r"asks for 1\.5 GB of memory \(resources\), the cluster has 0: no trial"),
    ):
        with pytest.raises(CapacityError, match=message):
            check_capacity(asked, [{**head, missing: 0.0}, *nodes[1:]])
    assert this_machine()["memory"] > 1e8


def test_a_strict_placement_is_kept() -> None:
    each, nodes = [{"CPU": 1.0}] * 3, [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 2.0}]
    strategies = ("pack", "spread", "strict_pack", "strict_spread")
    assert [trials_at_once(each, nodes, 9, strategy) for strategy in strategies] == [2, 2, 1, 2]
    with pytest.raises(CapacityError, match=r"3 x 1 CPU \(resources, placement strict_spread\), the nodes have 8 CPU"):
        check_capacity(each, [{"CPU": 8.0}], "strict_spread")
    with pytest.raises(CapacityError, match=r"placement strict_pack\), the nodes have 3 x 2 CPU"):
        check_capacity(each, [{"CPU": 2.0}] * 3, "strict_pack")


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


def connecting(*addresses: str | None, **environment: str) -> list[str]:
    """What a process of its own says of each address in turn: where it then runs, or why not."""
    code = (
        "import sys, ray\n"
        "from rpg_platform.planning.cluster import CapacityError, start_ray, whereabouts\n"
        "for address in sys.argv[1:]:\n"
        "    try:\n"
        "        start_ray(address or None)\n"
        "        print('on', whereabouts())\n"
        "        ray.shutdown()\n"
        "    except CapacityError as error:\n"
        "        print(error)\n"
    )
    return in_a_process(code, *(each or "" for each in addresses), **environment)


def in_a_process(code: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that Python code prints in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_an_address_ray_is_started_here_whatever_was_started_before(tmp_path: Path, unused_port: int) -> None:
    """Also where the temporary folder, which a full disk is moved away from, is too long for the paths of sockets."""
    temporary = tmp_path / "a folder with room" / ("x" * 80)
    (temporary / "ray").mkdir(parents=True)
    # As `ray start --block` leaves it on Ctrl-C.
    (temporary / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{unused_port}")
    own, auto = connecting(None, "auto", TMPDIR=str(temporary))
    assert own == "on this machine, in a Ray of its own"
    assert re.match(rf"--address auto \(\S+:{unused_port}\): no Ray cluster answers there", auto)


def test_a_cluster_at_an_address_is_named_and_one_that_asks_for_a_token_says_so(
    local_ray: None, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    assert connecting(address) == [f"on the Ray cluster at {address}"]
    [said] = connecting(address, RAY_AUTH_MODE="token", HOME=str(tmp_path))
    assert said.startswith(f"--address {address}: ")
    assert "token" in said
    assert not list(tmp_path.iterdir()), "a token was made that the cluster does not know"


def test_a_ray_of_its_own_has_the_cpus_that_the_plan_counts() -> None:
    """Of a process that may use one CPU (``taskset``), whose Ray has the niceness that is asked for."""
    code = (
        "import os, ray\n"
        "from rpg_platform.planning.cluster import cluster_nodes, nodes_of, start_ray\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(nodes_of(None)[0]['CPU'], ray.is_initialized())\n"
        "start_ray(None)\n"
        "print(cluster_nodes()[0]['CPU'], ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))\n"
    )
    assert in_a_process(code, RAY_worker_niceness="3") == ["1.0 False", "1.0 3"]


def test_a_quota_below_one_cpu_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 0.5)
    assert this_machine()["CPU"] == 1
