"""Speed against the peers: every contender in a process of its own, pinned to one core, interleaved in rounds.

Run by ``make bench`` on an otherwise idle machine. Writes ``benchmarks/RESULTS.md``'s speed section and ``speed.png``;
every ratio is of medians of the same run.

    python -m benchmarks.speed --rounds 3 --iterations 30
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.contenders import BATCH, CONTENDERS
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
TITLE = "Speed"
RESULTS, PICTURE = HERE / "RESULTS.md", HERE / "speed.png"
ENVS = ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")
NAMES = {
    "spg": "SPG (this project)",
    "rpg": "RPG (this project)",
    "conditioned": "RPG for a range of weights (this project)",
    "rllib_ppo": "RLlib PPO",
    "sb3_ppo": "Stable-Baselines3 PPO",
    "sbx_ppo": "SBX PPO (JAX)",
}
PEERS = ("sb3_ppo", "sbx_ppo", "rllib_ppo")
WARMUP = 5  # iterations that are not counted: compilation, caches
TIME_LIMIT_S = 900

Run = dict[str, Any]


def run_contender(name: str, env: str, iterations: int, seed: int, core: int) -> Run:
    """Runs one contender on one core and returns what it measured.

    Raises:
        RuntimeError: it failed; with the end of its standard error.
    """
    command = ["taskset", "-c", str(core), sys.executable, str(HERE / "contenders.py"), name]
    command += ["--env", env, "--iterations", str(iterations), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{name} on {env} failed:\n{done.stderr[-2000:]}")
    result: Run = json.loads(lines[-1])
    return result


def measure(rounds: int, iterations: int, core: int, envs: list[str], contenders: list[str]) -> list[Run]:
    """Interleaved rounds: in each, every contender on every environment."""
    runs = []
    for each in range(rounds):
        for env in envs:
            for name in contenders:
                run = run_contender(name, env, iterations, each, core)
                runs.append(run)
                print(f"round {each + 1}/{rounds}  {env:15} {name:10} {rate(run):8,.0f} env steps/s", flush=True)
    return runs


def rate(run: Run) -> float:
    """Env steps per second: of the median iteration after the warm-up."""
    return BATCH / float(statistics.median(run["seconds"][WARMUP:]))


def medians(runs: list[Run]) -> dict[tuple[str, str], float]:
    """(environment, contender) → median rate over rounds."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        rates[run["env"], run["contender"]].append(rate(run))
    return {key: statistics.median(values) for key, values in rates.items()}


def machine() -> str:
    """The processor and the versions that the figures depend on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    packages = ("ray", "torch", "numpy", "gymnasium", "mujoco", "stable-baselines3", "sbx-rl", "jax")
    installed = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in packages if name in installed)
    cpu = model.group(1) if model else platform.processor()
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def split(run: Run) -> tuple[float, ...]:
    """Milliseconds of the run's median iteration: whole, stepping, policy and arrays, update, sync, the rest."""
    counted = range(WARMUP, len(run["seconds"]))
    middle = sorted(counted, key=lambda i: run["seconds"][i])[len(counted) // 2]
    whole, parts = run["seconds"][middle], run["splits"][middle]
    stepping, sampling, update, sync = (parts[part] for part in ("stepping", "sampling", "update", "sync"))
    rest = whole - sampling - update - sync
    return tuple(1e3 * x for x in (whole, stepping, sampling - stepping, update, sync, rest))


def render(runs: list[Run], rounds: int, iterations: int) -> str:
    """The section of RESULTS.md."""
    speed = medians(runs)
    envs = list(dict.fromkeys(run["env"] for run in runs))
    names = list(dict.fromkeys(run["contender"] for run in runs))
    lines = [
        f"Measured on {date.today():%Y-%m-%d}: {machine()}.",
        "",
        f"One core, {rounds} interleaved rounds of {iterations} iterations (the first {WARMUP} not counted), medians. "
        "The same work for all: 8 environments × 256 steps an iteration, minibatches of 64, 10 epochs, actor and "
        "critic of two 64-wide tanh layers, observations and rewards normalised. Ant-v5 without contact forces.",
        "",
        "| env steps/s | " + " | ".join(envs) + " |",
        "| --- |" + " ---: |" * len(envs),
    ]
    lines += [f"| {NAMES[n]} | " + " | ".join(f"{speed[e, n]:,.0f}" for e in envs) + " |" for n in names]
    lines += ["", "| ratio | " + " | ".join(envs) + " |", "| --- |" + " ---: |" * len(envs)]
    for own in (n for n in ("spg", "rpg") if n in names):
        for peer in (n for n in PEERS if n in names):
            cells = " | ".join(f"{speed[e, own] / speed[e, peer]:.2f} ×" for e in envs)
            lines.append(f"| {own.upper()} / {NAMES[peer]} | {cells} |")
    if {"spg", "rpg"} <= set(names):
        cells = " | ".join(f"{100 * (speed[e, 'spg'] / speed[e, 'rpg'] - 1):.1f} %" for e in envs)
        lines.append(f"| cost of RPG over SPG (prior, add-on, KL) | {cells} |")
    if {"rpg", "conditioned"} <= set(names):
        cells = " | ".join(f"{100 * (speed[e, 'rpg'] / speed[e, 'conditioned'] - 1):.1f} %" for e in envs)
        lines.append(f"| cost of being told two weights | {cells} |")
    lines += ["", "| process | peak memory MB | process start to first iteration s |", "| --- | ---: | ---: |"]
    for name in names:
        mine = [run for run in runs if run["contender"] == name and run["env"] == envs[0]]
        memory = statistics.median(run["peak_mb"] for run in mine)
        first = [run["first_iteration_s"] for run in mine if run["first_iteration_s"] is not None]
        lines.append(f"| {NAMES[name]} | {memory:,.0f} | {f'{statistics.median(first):.1f}' if first else '–'} |")
    lines += [
        "",
        f"Where the median iteration goes, {envs[0]}, ms (median over rounds):",
        "",
        "| | iteration | stepping environments | policy and arrays | update | weight sync | metrics and rest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (n for n in ("spg", "rpg", "conditioned", "rllib_ppo") if n in names):
        parts = zip(*(split(run) for run in runs if run["contender"] == name and run["env"] == envs[0]), strict=True)
        lines.append(f"| {NAMES[name]} | " + " | ".join(f"{statistics.median(x):.1f}" for x in parts) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: list[Run]) -> None:
    """Bars of every contender's rate, one group an environment."""
    speed = medians(runs)
    envs = list(dict.fromkeys(run["env"] for run in runs))
    names = list(dict.fromkeys(run["contender"] for run in runs))
    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        bars = axes.bar(
            [e + i * width for e in range(len(envs))], [speed[e, name] for e in envs], width, label=NAMES[name]
        )
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=6)
    axes.set_xticks([e + 0.4 - width / 2 for e in range(len(envs))], envs)
    axes.set_ylabel("env steps/s, one core")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(PICTURE)


def replace_section(text: str, title: str, body: str) -> str:
    """``text`` with the section ``## title`` replaced, or added at its end."""
    section = f"## {title}\n\n{body}"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section + "\n", text).rstrip() + "\n"
    return text.rstrip() + "\n\n" + section


def publish(title: str, section: str, dry_run: bool) -> None:
    """Prints a section and, unless ``dry_run``, puts it into RESULTS.md."""
    if not dry_run:
        text = RESULTS.read_text() if RESULTS.is_file() else "# Results\n"
        RESULTS.write_text(replace_section(text, title, section))
    print(section)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--core", type=int, default=0, help="the core that everything runs on")
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--title", default=TITLE, help="the section; its picture goes with the whole comparison alone")
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    runs = measure(arguments.rounds, arguments.iterations, arguments.core, arguments.envs, arguments.contenders)
    section = render(runs, arguments.rounds, arguments.iterations)
    if arguments.title == TITLE:
        section += f"\n![Speed]({PICTURE.name})\n"
        if not arguments.dry_run:
            draw(runs)
    publish(arguments.title, section, arguments.dry_run)


if __name__ == "__main__":
    main()
