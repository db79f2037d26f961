"""How steady is training? Learning curves and their health over seeds, of this checkout and, if given, of another one.

    python -m benchmarks.steadiness [OTHER_CHECKOUT]

Customising HalfCheetah's shipped prior by RPG and KL PPO, and SPG from scratch on Hopper and Ant. Each training runs in
a process of its own. The table goes to RESULTS.md, the curves to docs/images/steadiness.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "images" / "steadiness.png"
CHEETAH = {"task": "halfcheetah-foot-angle", "prior": "halfcheetah-spg"}
HOPPER = {"lr": 4e-4, "gamma": 0.99, "lambda_": 0.95, "grad_clip": 0.7}
ANT = {"lr": 4e-4, "gamma": 0.98, "lambda_": 0.90, "grad_clip": 0.6, "network": {"log_std_init": -1.0}}
CASES: dict[str, dict[str, Any]] = {
    "RPG, HalfCheetah": {**CHEETAH, "algorithm": "rpg", "weights": {"omega_prime": 0.2, "alpha_hat": 0.02}},
    "KL PPO, HalfCheetah": {**CHEETAH, "algorithm": "kl", "weights": {"kl_coefficient": 0.3}},
    "SPG, Hopper": {"task": "hopper-height", "algorithm": "spg", "weights": {"alpha": 0.05}, "training": HOPPER},
    "SPG, Ant": {"task": "ant-sideways", "algorithm": "spg", "weights": {"alpha": 0.05}, "training": ANT},
}
CURVES = {
    "return": "training return (total; SPG: basic)",
    "kl_to_prior": "KL to the prior, nats",
    "vf_explained_var": "explained variance",
    "approx_kl_max": "largest KL of an update, nats",
}
Run = dict[str, Any]


# ---- in a checkout: the specification's own interface, which both versions understand --------------
def train(case: str, seed: int, env_steps: int) -> Run:
    """Trains one case and returns its curves, one value an iteration, and its final evaluation."""
    import ray

    from rpg_algorithms.policies.bundle import load_bundle
    from rpg_platform.bundles import resolve_prior
    from rpg_platform.evaluation.play import evaluate_both
    from rpg_platform.spec.checks import expand
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.spec.task import get_task
    from rpg_platform.trial.config import algorithm_config

    raw = {"name": "steadiness", "seeds": [seed], "budget": {"env_steps": env_steps}, **CASES[case]}
    trial = next(each for each in expand(SweepSpec.model_validate(raw)) if each.method != "prior")
    task, prior = get_task(trial.task), None
    if "prior" in raw:
        prior = load_bundle(resolve_prior(raw["prior"]))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = algorithm_config(trial, task, prior)
    algorithm = config.build_algo()
    curves: defaultdict[str, list[float]] = defaultdict(list)
    kind = "episode_total_return_mean" if prior else "episode_basic_return_mean"
    while not curves["env_steps"] or curves["env_steps"][-1] < env_steps:
        result = algorithm.train()
        learner, sampled = result["learners"]["default_policy"], result["env_runners"]
        curves["env_steps"].append(float(sampled["num_env_steps_sampled_lifetime"]))
        curves["return"].append(float(sampled.get(kind, float("nan"))))
        for name in (*list(CURVES)[1:], "approx_kl", "clip_fraction"):
            curves[name].append(float(learner.get(name, float("nan"))))
    played = evaluate_both(algorithm.get_module().policy, task, 20, 2_000_000, None if prior is None else prior.build())
    field = "total_return" if prior else "basic_return"
    algorithm.stop()
    return {
        "curves": curves,
        "warm_up": trial.training.critic_warmup_iterations if prior else 0,
        **{mode: float(getattr(each, field).mean()) for mode, each in played.items()},
    }


# ---- all of them ----------------------------------------------------------------------------------
def measure(
    checkouts: Mapping[str, Path], cases: Sequence[str], seeds: int, env_steps: int
) -> dict[tuple[str, str], list[Run]]:
    """(Case, checkout) → a run for each seed."""

    def one(job: tuple[str, str, int]) -> Run:
        case, name, seed = job
        root = checkouts[name].resolve()
        environment = os.environ | {
            "PYTHONPATH": f"{root / 'algorithms'}{os.pathsep}{root / 'platform'}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run.json"
            command = [sys.executable, str(Path(__file__).resolve()), "--in", case, str(seed), str(env_steps), str(out)]
            subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
            run: Run = json.loads(out.read_text())
        print(f"{case}, {name}, seed {seed}: {run['deterministic']:,.0f}", flush=True)
        return run

    jobs = [(case, name, seed) for seed in range(seeds) for case in cases for name in checkouts]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = list(pool.map(one, jobs))
    found: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
    for (case, name, _), run in zip(jobs, runs, strict=True):
        found[case, name].append(run)
    return dict(found)


def health_of(run: Run) -> dict[str, float]:
    """What can go wrong in a training, after the critic's warm-up."""
    curves = {name: np.array(values[run["warm_up"] :], float) for name, values in run["curves"].items()}
    return {
        "kl": float(np.nanmax(curves["kl_to_prior"])) if np.isfinite(curves["kl_to_prior"]).any() else float("nan"),
        "step": float(np.nanmax(curves["approx_kl_max"])),
        "negative": float((curves["vf_explained_var"] < 0).mean()),
        "end": float(curves["vf_explained_var"][-10:].mean()),
    }


def render(found: Mapping[tuple[str, str], Sequence[Run]], env_steps: int) -> str:
    """The section of RESULTS.md."""
    from benchmarks.speed import machine

    seeds = len(next(iter(found.values())))
    lines = [
        f"{machine()}.",
        "",
        f"{env_steps:,} env steps, {seeds} seeds; means over seeds with their standard deviation, else the worst seed. "
        "Returns are of 20 episodes: total where a prior is customised, else basic.",
        "",
        "| | | deterministic | sampled | highest KL to the prior | largest KL of an update "
        "| iterations with negative explained variance | explained variance at the end |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (case, name), runs in found.items():
        health = [health_of(run) for run in runs]
        returns = [
            f"{np.mean(values):,.0f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:,.0f}"
            for values in ([run[mode] for run in runs] for mode in ("deterministic", "sampled"))
        ]
        kl = max(each["kl"] for each in health)
        lines.append(
            f"| {case} | {name} | {returns[0]} | {returns[1]} | {'–' if kl != kl else f'{kl:.1f}'} "
            f"| {max(each['step'] for each in health):.2g} "
            f"| {100 * np.mean([each['negative'] for each in health]):.0f} % "
            f"| {min(each['end'] for each in health):.2f} |"
        )
    return "\n".join(lines) + "\n\n![Steadiness](../docs/images/steadiness.png)\n"


def draw(found: Mapping[tuple[str, str], Sequence[Run]]) -> None:
    """Every seed's curves: a column a case, a row a figure, a colour a checkout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(case for case, _ in found))
    names = list(dict.fromkeys(name for _, name in found))
    figure, axes = pyplot.subplots(len(CURVES), len(cases), figsize=(4 * len(cases), 9), sharex=True, squeeze=False)
    colours = dict(zip(names, ("#0072B2", "#D55E00"), strict=False))
    for (case, name), runs in found.items():
        for row, (curve, label) in enumerate(CURVES.items()):
            axis = axes[row][cases.index(case)]
            for i, run in enumerate(runs):
                steps, values = (np.array(run["curves"][key], float) for key in ("env_steps", curve))
                known = np.isfinite(values)
                axis.plot(steps[known] / 1e3, values[known], color=colours[name], lw=0.9, label="" if i else name)
            axis.set_ylabel(label if cases.index(case) == 0 else "", fontsize=8)
            axis.set_yscale("symlog", linthresh=1.0 if curve == "kl_to_prior" else 0.1) if "kl" in curve else None
            axis.set_ylim(-2, 1.05) if curve == "vf_explained_var" else None
            axis.grid(alpha=0.3)
            axis.set_title(case if row == 0 else "", fontsize=10)
            axis.set_xlabel("1,000 env steps" if row == len(CURVES) - 1 else "", fontsize=8)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Measures and writes the results."""
    if sys.argv[1:2] == ["--in"]:
        case, seed, env_steps, out = sys.argv[2:]
        Path(out).write_text(json.dumps(train(case, int(seed), int(env_steps))))
        return
    from benchmarks.speed import publish

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="another checkout, which is called 'before'")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=300_000)
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    checkouts = {} if arguments.other is None else {"before": arguments.other}
    checkouts["now"] = HERE.parent
    found = measure(checkouts, arguments.cases, arguments.seeds, arguments.env_steps)
    if not arguments.dry_run:
        draw(found)
    publish("Steadiness", render(found, arguments.env_steps), arguments.dry_run)


if __name__ == "__main__":
    main()
