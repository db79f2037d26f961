"""A sweep on one and on two worker hosts of one core each: env steps/s in all, and what the network carries for it.

    python -m benchmarks.hosts

The hosts are network namespaces of this machine (Linux, root): a head without trials, and workers that are pinned to a
core each. They share a disk, which is the storage, so checkpoints do not pass the network; their size is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import machine, publish
from tests.deploy.hosts import Hosts, hosts
from tests.deploy.machines import Machines

TRIALS, ENV_STEPS = 4, 150_000
SECTION = "Hosts"
_LIMIT_S = 1800


@dataclass(frozen=True)
class Ran:
    """What a sweep on so many worker hosts came to.

    Attributes:
        workers: how many hosts.
        seconds: from the first trial's first report to the last one's end of training.
        env_steps_per_s: of all trials together, in that time.
        control_bytes: what passed between the head and its workers while the sweep ran, a trial.
        checkpoint_bytes: what a trial left in the storage.
    """

    workers: int
    seconds: float
    env_steps_per_s: float
    control_bytes: float
    checkpoint_bytes: float


def run_on(workers: int, folder: Path) -> Ran:
    """Starts the hosts, runs the sweep on them, and ends them."""
    storage = folder / "storage"
    spec = {
        "name": "hosts",
        "task": "halfcheetah-foot-angle",
        "algorithm": "spg",
        "weights": {"alpha": 0.1},
        "seeds": TRIALS,
        "budget": {"env_steps": ENV_STEPS},
        "evaluation": {"episodes": 1, "validations": 0},
        "storage": str(storage),
    }
    (folder / "hosts.yaml").write_text(json.dumps(spec), encoding="utf-8")
    with hosts(1 + workers, folder) as made:
        machines = Machines(made, folder)
        machines.environment |= {
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        machines.up(1, "deploy/rpg-node head --node-ip-address=$HEAD --num-cpus=0")
        for i in range(workers):
            at = f"--node-ip-address={made.address(2 + i)}"
            machines.up(2 + i, f"exec taskset -c {i} deploy/rpg-node worker $HEAD --num-cpus=1 {at}")
        before = carried(made, workers)
        line = f"python -m rpg_platform.cli sweep {folder / 'hosts.yaml'} --address auto"
        running = machines.start(1, line)
        if running.wait(_LIMIT_S):
            raise RuntimeError(machines.log(1)[-3000:])
        passed = carried(made, workers) - before
    reports = [_reports(file) for file in sorted((storage / "hosts").glob("spg-*/result.json"))]
    began = min(each[0]["timestamp"] - each[0]["time_this_iter_s"] for each in reports)
    ended = max(each[-2]["timestamp"] for each in reports)  # the last one is the evaluation's
    left = sum(file.stat().st_size for file in (storage / "hosts").glob("spg-*/**/*") if file.is_file())
    return Ran(workers, ended - began, TRIALS * ENV_STEPS / (ended - began), passed / TRIALS, left / TRIALS)


def _reports(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def carried(made: Hosts, workers: int) -> int:
    """Bytes that have passed the cables of the workers, both ways."""
    total = 0
    for host in range(2, 2 + workers):
        command = [*made.command(host), "ip", "-j", "-s", "link", "show", "net"]
        [link] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
        total += sum(int(link["stats64"][way]["bytes"]) for way in ("rx", "tx"))
    return total


def render(ran: list[Ran]) -> str:
    """The section of RESULTS.md."""
    first = ran[0].env_steps_per_s
    lines = [
        f"{machine()}.",
        "",
        f"{TRIALS} trainings of {ENV_STEPS:,} env steps on HalfCheetah-v5, a worker host for each core, the head on "
        "both: hosts are network namespaces.",
        "",
        "| worker hosts | seconds of training | env steps/s in all | ratio | network, a trial | storage, a trial |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {each.workers} | {each.seconds:.0f} | {each.env_steps_per_s:,.0f} | "
            f"{each.env_steps_per_s / first:.2f} × | {each.control_bytes / 1e6:.1f} MB | "
            f"{each.checkpoint_bytes / 1e6:.1f} MB |"
            for each in ran
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    given = parser.parse_args()
    ran = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="rpg", dir="/tmp") as folder:  # short: Ray's sockets lie in it
            ran.append(run_on(workers, Path(folder)))
            time.sleep(1.0)
    publish(SECTION, render(ran), given.dry_run)


if __name__ == "__main__":
    main()
