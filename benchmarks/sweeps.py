"""Sweep speed: 8 trials under Tune against 8 Stable-Baselines3 runs, both at full concurrency, and the time to start.

Run by ``make bench`` on an otherwise idle machine. Every trial trains the same work as in ``benchmarks.speed``.

    python -m benchmarks.sweeps
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.contenders import BATCH, EPOCHS, GAMMA, LAMBDA, MINIBATCH, RATE, STEPS, WIDTH
from benchmarks.speed import machine, publish

HERE = Path(__file__).resolve().parent
TRIALS, ITERATIONS = 8, 60


def spec(folder: Path, trials: int, iterations: int) -> Path:
    """A sweep of ``trials`` SPG trainings on HalfCheetah-v5 with the benchmark's settings."""
    network = {"hidden": [WIDTH, WIDTH], "activation": "tanh", "log_std_init": 0.0}
    content = {
        "name": "bench",
        "task": "halfcheetah-foot-angle",
        "algorithm": "spg",
        "weights": {"alpha": 0.01},
        "seeds": trials,
        "budget": {"env_steps": iterations * BATCH},
        "training": {
            "lr": RATE,
            "gamma": GAMMA,
            "lambda_": LAMBDA,
            "clip_param": 0.2,
            "rollout_length": STEPS,
            "minibatch_size": MINIBATCH,
            "num_epochs": EPOCHS,
            "grad_clip": 0.5,
            "network": network,
        },
        "evaluation": {"episodes": 1, "validations": 0},  # the peers do without
    }
    file = folder / "bench.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML
    return file


def our_sweep(trials: int, iterations: int) -> dict[str, float]:
    """Runs the sweep with the command a user types; times from the trials' own reports.

    Returns:
        ``aggregate``: env steps of all trials over the time from the first trial's start to the last's last training
        report; ``wall``: the same over the whole command; ``first_s``: seconds from the command to the first report.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file = spec(folder, trials, iterations)
        command = [sys.executable, "-m", "rpg_platform.cli", "sweep", str(file), "--storage", str(folder / "results")]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        started = time.time()
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=1800)
        wall = time.time() - started
        reports = [
            [json.loads(line) for line in result.read_text().splitlines()]
            for result in (folder / "results" / "bench").glob("*/result.json")
        ]
    assert len(reports) == trials
    first = min(r[0]["timestamp"] for r in reports)
    begun = min(r[0]["timestamp"] - r[0]["time_this_iter_s"] for r in reports)
    ended = max(r[-1]["timestamp"] for r in reports)
    steps = sum(r[-1]["env_steps"] for r in reports)
    return {"aggregate": steps / (ended - begun), "wall": steps / wall, "first_s": first - started}


def sb3_runs(trials: int, iterations: int) -> dict[str, float]:
    """As many Stable-Baselines3 runs, each a process, as many at once as there are cores."""

    def one(seed: int) -> tuple[float, float]:
        command = [sys.executable, "-m", "benchmarks.contenders", "sb3_ppo", "--iterations", str(iterations)]
        begun = time.time()
        subprocess.run([*command, "--seed", str(seed)], check=True, capture_output=True, timeout=1800)
        return begun, time.time()

    started = time.time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(trials)))
    wall = time.time() - started
    return {"wall": trials * iterations * BATCH / wall}


def render(ours: dict[str, float], sb3: dict[str, float], trials: int, iterations: int) -> str:
    """The section of RESULTS.md."""
    steps = f"{iterations * BATCH:,}"
    rows = [
        ("`rpg sweep`, whole command (start of Ray, MLflow, evaluation)", ours["wall"]),
        ("`rpg sweep`, from the first trial's start to the last's end", ours["aggregate"]),
        ("Stable-Baselines3 PPO, one process a run", sb3["wall"]),
    ]
    table = "\n".join(f"| {name} | {rate:,.0f} | {rate / sb3['wall']:.2f} × |" for name, rate in rows)
    return (
        f"{machine()}.\n\n{trials} trainings of {steps} env steps on HalfCheetah-v5, settings as above, as many at "
        f"once as there are cores.\n\n| | env steps/s in all | ratio |\n| --- | ---: | ---: |\n{table}\n\n"
        f"From the command `rpg sweep` to the first trial's first iteration: {ours['first_s']:.1f} s.\n"
    )


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    ours: Any = our_sweep(arguments.trials, arguments.iterations)
    section = render(ours, sb3_runs(arguments.trials, arguments.iterations), arguments.trials, arguments.iterations)
    publish("Sweeps", section, arguments.dry_run)


if __name__ == "__main__":
    main()
