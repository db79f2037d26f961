"""A sweep of two trials in an object store, one after the other, whose environment waits while a file is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.platform import own_tasks
from tests.platform.servers import MlflowServer

from rpg_platform.storage.sweep_folder import SweepFolder

PER_REPORT = 512
FIRST, SECOND = (f"full-alpha={alpha}-seed=0" for alpha in (0.01, 0.02))
TASK: dict[str, Any] = {"env": "my_world:Faulty", "addons": {"middle": "-abs(next_obs[0])"}}
RAW: dict[str, Any] = {
    "task": TASK,
    "algorithm": "full",
    "weights": {"alpha": {"grid": [0.01, 0.02]}},
    "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1, "anneal_lr": False},
    "resources": {"envs_per_runner": 8, "max_concurrent": 1},
    "evaluation": {"episodes": 1, "validations": 0},
}


def write_sweep(
    cwd: Path, name: str, bucket: str, server: MlflowServer, experiment: str, **sections: Any
) -> SweepFolder:
    """Writes ``NAME.yaml`` and the module that it names into a folder; the environment waits for ``hang`` in it to go.

    Args:
        cwd: the folder.
        name: of the sweep.
        bucket: its storage.
        server: MLflow's.
        experiment: MLflow's.
        sections: ``budget`` and ``checkpoint`` of the specification.

    Returns:
        The folder that the sweep will have.
    """
    here = {
        "name": name,
        "task": TASK | {"kwargs": {"folder": str(cwd)}},
        "storage": bucket,
        "tracking": {"uri": server.uri, "experiment": experiment},
    }
    (cwd / "my_world.py").write_text(Path(own_tasks.__file__).read_text())
    (cwd / f"{name}.yaml").write_text(yaml.safe_dump(RAW | here | sections))
    return SweepFolder(bucket, name)
