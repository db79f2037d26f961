"""Where a trial's processes run, on a cluster of three nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.platform.run.brief import BRIEF

LIMIT_S = 300
RAW: dict[str, Any] = {
    **BRIEF,
    "name": "placed",
    "resources": {
        "env_runners": 1,
        "learners": 1,
        "memory_gb_per_trial": 0.2,
        "custom_per_trial": {"licence": 1},
        "custom_per_env_runner": {"cpu_node": 0.01},
        "custom_per_learner": {"gpu_node": 0.01},
        "placement": "strict_spread",
    },
}
DRIVER = """
import json, sys
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"licence": 1}})
try:
    nodes = {name: cluster.add_node(num_cpus=1, resources={name: 1}).node_id for name in ("cpu_node", "gpu_node")}
    nodes["head"] = cluster.head_node.node_id
    from rpg_platform.planning.cluster import start_ray, waiting_for

    start_ray(cluster.address)
    from rpg_platform.run.run import run_sweep
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.storage.sweep import Sweep

    sweep = Sweep.resolve(SweepSpec.model_validate(json.loads(sys.argv[1])))
    failed = run_sweep(sweep, address=cluster.address).failed
    where = {}
    for actor in ray._private.state.actors().values():
        where.setdefault(actor["ActorClassName"], set()).add(actor["Address"]["NodeID"])
    names = {number: name for name, number in nodes.items()}
    found = {kind: sorted(names[each] for each in there if each in names) for kind, there in where.items()}

    # A trial that asks for what only a node that is gone had says so.
    group = ray.util.placement_group([{"CPU": 1, "cpu_node": 1}, {"CPU": 1, "cpu_node": 1}])
    group.wait(1)
    waits = waiting_for([{"CPU": 1, "cpu_node": 1, "memory": 2e9}] * 2)
    print(json.dumps({"failed": failed, "where": found, "waits": waits}))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_env_runners_and_learners_run_on_nodes_of_their_own(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "RPG_VIDEOS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(RAW | {"storage": str(tmp_path)})],
        cwd=tmp_path,
        env=env | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == 0, done.stdout
    where = found["where"]
    # As RLlib and Tune name the processes of learners and of trials.
    kinds = {"RolloutEnvRunner": "cpu_node", "_WrappedExecutable": "gpu_node", "with_resources": "head"}
    for kind, node in kinds.items():
        assert [there for name, there in where.items() if kind in name] == [[node]], found
    assert found["waits"].startswith(
        "waiting for room on the cluster: a trial asks for 2 x 1 CPU and 2 GB of memory and 1 cpu_node, free are "
    )
    assert "1 of 1 cpu_node" in found["waits"]
