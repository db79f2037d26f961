"""Does the speed learn? Returns after 300,000 env steps over 4 seeds, beside Stable-Baselines3's.

python -m benchmarks.learning
"""

from __future__ import annotations

import argparse
import os
import statistics
from concurrent.futures import ThreadPoolExecutor

from benchmarks.contenders import BATCH
from benchmarks.speed import NAMES, Run, machine, publish, run_contender

SEEDS, ENV_STEPS = 4, 300_000
CONTENDERS = ("spg", "sb3_ppo")


def measure(seeds: int, env_steps: int, env: str) -> dict[str, list[float]]:
    """Contender → final training return of each seed: the mean of the last episodes (100 at most)."""
    iterations = -(-env_steps // BATCH)
    cores = os.cpu_count() or 1

    def one(job: tuple[int, str, int]) -> Run:
        number, name, seed = job
        return run_contender(name, env, iterations, seed, number % cores)

    jobs = [(i, name, seed) for i, (seed, name) in enumerate((s, n) for s in range(seeds) for n in CONTENDERS)]
    with ThreadPoolExecutor(cores) as pool:
        runs = list(pool.map(one, jobs))
    finals: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for run in runs:
        finals[run["contender"]].append([r for r in run["returns"] if r == r][-1])
    return finals


def render(finals: dict[str, list[float]], env_steps: int, env: str) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{machine()}.",
        "",
        f"{env}, {env_steps:,} env steps, settings as above, mean training return of the last episodes:",
        "",
        "| | mean over seeds | each seed |",
        "| --- | ---: | --- |",
    ]
    for name, values in finals.items():
        each = ", ".join(f"{v:,.0f}" for v in values)
        lines.append(f"| {NAMES[name]} | {statistics.mean(values):,.0f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--env-steps", type=int, default=ENV_STEPS)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    finals = measure(arguments.seeds, arguments.env_steps, arguments.env)
    section = render(finals, arguments.env_steps, arguments.env)
    publish("Learning", section, arguments.dry_run)


if __name__ == "__main__":
    main()
