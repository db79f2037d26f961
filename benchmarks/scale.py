"""What a sweep costs its driver, by simulation: thousands of trials that report at once and train nothing.

Real Tune, real actors, real MLflow store; only the training is left out, so every second is the driver's (or Tune's).

    python -m benchmarks.scale
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import machine, publish

TRIALS, REPORTS = (10, 100, 1_000), 5
RUNNERS = (0, 1, 2, 4)
KEYS = 25  # metrics of a report


@dataclass(frozen=True)
class Cost:
    """What one simulated sweep cost."""

    trials: int
    tracked: bool
    seconds: float
    peak_mb: float

    @property
    def per_report_ms(self) -> float:
        """Wall milliseconds per report of a trial."""
        return 1e3 * self.seconds / (self.trials * REPORTS)


def simulate(trials: int, tracked: bool) -> Cost:
    """Runs a sweep of trials that report and train nothing."""
    from ray import tune
    from ray.tune import RunConfig, TuneConfig, Tuner
    from ray.tune.logger import JsonLoggerCallback

    from rpg_platform.run.progress import Progress
    from rpg_platform.spec.checks import expand
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.storage.sweep import Sweep
    from rpg_platform.tracking.tracker import MlflowTracker

    class Idle(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.count = 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.count += 1
            metrics = {f"metric_{i}": float(i + self.count) for i in range(KEYS)}
            return metrics | {"env_steps": 1e3 * self.count, "done": self.count == REPORTS}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "state").write_text(str(self.count))

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.count = int((Path(checkpoint) / "state").read_text())

    spec = SweepSpec.model_validate(
        {
            "name": f"scale-{trials}",
            "task": "halfcheetah-foot-angle",
            "algorithm": "spg",
            "weights": {"alpha": 0.1},
            "seeds": trials,
            "budget": {"env_steps": 10_000},
        }
    )
    plan = expand(spec)
    with tempfile.TemporaryDirectory() as folder:
        from rich.console import Console

        callbacks: list[Any] = [JsonLoggerCallback()]
        if tracked:
            sweep = Sweep.resolve(spec.model_copy(update={"storage": folder}))
            tracker = MlflowTracker(sweep, plan)
            tracker.start()
            callbacks += [tracker, Progress(plan, Console(quiet=True))]
        started = time.perf_counter()
        Tuner(
            tune.with_resources(Idle, {"cpu": 1}),
            param_space={"trial": tune.grid_search([t.model_dump(mode="json") for t in plan])},
            tune_config=TuneConfig(reuse_actors=True, trial_dirname_creator=lambda t: t.config["trial"]["trial_id"]),
            run_config=RunConfig(name=spec.name, storage_path=folder, callbacks=callbacks, verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
        if tracked:
            tracker.finish([])
    return Cost(trials, tracked, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def runner_rates(counts: tuple[int, ...]) -> dict[int, float]:
    """Remote env runners of one SPG algorithm → env steps/s; 8 environments each, 256 steps an iteration."""
    from rpg_algorithms import NetworkConfig, SPGConfig

    rates = {}
    for count in counts:
        batch = 2048 * max(1, count)
        config = (
            SPGConfig()
            .environment("HalfCheetah-v5")
            .env_runners(num_env_runners=count, num_cpus_per_env_runner=0, num_envs_per_env_runner=8)
            .training(train_batch_size_per_learner=batch, minibatch_size=64 * max(1, count), num_epochs=10)
            .rl_module(model_config=NetworkConfig(hidden=(64, 64), activation="tanh"))
            .debugging(seed=0, log_level="ERROR")
        )
        algo = config.build_algo()
        seconds = []
        for _ in range(15):
            start = time.perf_counter()
            algo.train()
            seconds.append(time.perf_counter() - start)
        rates[count] = batch / statistics.median(seconds[5:])
        algo.stop()
    return rates


def render(costs: list[Cost], rates: dict[int, float]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{machine()}.",
        "",
        f"Trials that report {REPORTS} times ({KEYS} metrics) and train nothing, on all cores: what a report costs the "
        "driver, Tune's own work included; with tracking means MLflow (SQLite) and the progress view.",
        "",
        "| trials | tracking | ms per report | reports/s | driver's peak memory so far MB |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c.trials:,} | {'yes' if c.tracked else 'no'} | {c.per_report_ms:.1f} | {1e3 / c.per_report_ms:,.0f} | "
        f"{c.peak_mb:,.0f} |"
        for c in costs
    ]
    worst = max((c for c in costs if c.tracked), key=lambda c: c.trials)
    lines += [
        "",
        f"A trial reports about 200 times whatever its length. At {worst.per_report_ms:.1f} ms a report one driver "
        f"follows {1e3 / worst.per_report_ms:,.0f} reports/s: trials that train for an hour report every 18 s, so it "
        f"breaks at about {18e3 / worst.per_report_ms:,.0f} trials *running at once*; those waiting cost memory alone.",
    ]
    lines += [
        "",
        f"One algorithm with remote env runners of 8 environments each, on the {os.cpu_count()} cores of this machine "
        "(runners and learner take turns, so stepping alone gains from cores):",
        "",
        "| env runners | env steps/s |",
        "| ---: | ---: |",
        *(f"| {count or 'none: in the process itself'} | {rate:,.0f} |" for count, rate in rates.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=list(TRIALS))
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    import ray

    from rpg_platform.planning.cluster import quiet

    quiet()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    costs = [simulate(n, tracked) for n in arguments.trials for tracked in (False, True)]
    section = render(costs, runner_rates(RUNNERS))
    publish("Scale", section, arguments.dry_run)


if __name__ == "__main__":
    main()
