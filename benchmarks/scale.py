"""What a sweep costs its driver, by simulation: thousands of trials that report at once and train nothing.

Real Tune, real actors, real MLflow store; only the training is left out, so every second is the driver's (or Tune's).
And what the commands take that read a whole large sweep before anything trains.

    python -m benchmarks.scale
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.shared_actors import shared_actors
from benchmarks.speed import machine, publish
from tests.platform.review.made_sweep import made_sweep

T = TypeVar("T")

SIMULATED = ((100, 2), (1_000, 2))
"""Trials in all, and how many of them run at once: reports as fast as they come."""
PACED = ((2_000, 500, 18.0), (1_000, 1_000, 18.0), (1_000, 1_000, 9.0), (2_000, 2_000, 18.0))
"""The same, and the seconds between two reports of a trial: one of an hour reports every 18 s."""
REPORTS, REPORTS_PACED = 5, 3
PER_PROCESS = 63
"""Trials of more than 64 at once share processes, so many each."""
PLANNED, RESUMED = 10_000, 2_000
RUNNERS = (0, 1, 2, 4)
KEYS = 25  # metrics of a report


@dataclass(frozen=True)
class Steady:
    """What the driver did while all trials that can run at once did so.

    Attributes:
        asked_every_s: the interval at which a trial would report.
        came_every_s: that at which it did: a trial's next report waits until the driver has taken its last.
        cpu_share: of a core, the driver's.
        cpu_per_report_ms: its CPU milliseconds per report.
    """

    asked_every_s: float
    came_every_s: float
    cpu_share: float
    cpu_per_report_ms: float


@dataclass(frozen=True)
class Cost:
    """What one simulated sweep cost."""

    trials: int
    at_once: int
    tracked: bool
    seconds: float
    cpu_s: float
    peak_mb: float
    steady: Steady | None

    @property
    def per_report_ms(self) -> float:
        """Wall milliseconds per report of a trial."""
        return 1e3 * self.seconds / (self.trials * REPORTS)

    @property
    def cpu_per_report_ms(self) -> float:
        """The driver's own CPU milliseconds per report: the rest of the wall time is the trials' on the same cores."""
        return 1e3 * self.cpu_s / (self.trials * REPORTS)


def _idle(reports: int, every_s: float) -> type:
    """A trainable that reports so often, at that interval from a random moment on, and does nothing else."""
    from ray import tune

    class Idle(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.count = 0
            self.due = time.monotonic() + every_s * random.random()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.count += 1
            time.sleep(max(0.0, self.due - time.monotonic()))
            self.due += every_s
            metrics = {f"metric_{i}": float(i + self.count) for i in range(KEYS)}
            return metrics | {"env_steps": 1e3 * self.count, "done": self.count == reports}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "state").write_text(str(self.count))

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.count = int((Path(checkpoint) / "state").read_text())

    return Idle


def simulate(trials: int, at_once: int, tracked: bool, every_s: float = 0.0) -> Cost:
    """Runs a sweep of trials that report and train nothing, so many at once, at an interval or as fast as they can."""
    import ray
    from ray import tune
    from ray.tune import RunConfig, TuneConfig, Tuner
    from ray.tune.logger import JsonLoggerCallback

    from rpg_platform.run.progress import Progress
    from rpg_platform.search.listed import ListedTrials
    from rpg_platform.spec.checks import expand
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.storage.sweep import Sweep
    from rpg_platform.tracking.tracker import MlflowTracker

    spec = SweepSpec.model_validate(
        {
            "name": f"scale-{trials}",
            "task": "halfcheetah-foot-angle",
            "algorithm": "spg",
            "weights": {"alpha": {"grid": [0.1 + i / 100 for i in range(-(-trials // 500))]}},
            "seeds": min(trials, 500),
            "budget": {"env_steps": 10_000},
        }
    )
    plan = expand(spec)
    with tempfile.TemporaryDirectory() as folder:
        from rich.console import Console

        window = _window(at_once)
        callbacks: list[Any] = [JsonLoggerCallback(), window]
        if tracked:
            sweep = Sweep.resolve(spec.model_copy(update={"storage": folder}))
            tracker = MlflowTracker(sweep, plan)
            tracker.start()
            callbacks += [tracker, Progress(plan, Console(quiet=True))]
        ray.init("local", num_cpus=at_once, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        shared = shared_actors(at_once, PER_PROCESS) if at_once > PER_PROCESS + 1 else contextlib.nullcontext()
        started, cpu = time.perf_counter(), time.process_time()
        tuner = Tuner(
            tune.with_resources(_idle(REPORTS_PACED if every_s else REPORTS, every_s), {"cpu": 1}),
            tune_config=TuneConfig(
                search_alg=ListedTrials([trial.as_config() for trial in plan]),
                reuse_actors=True,
                trial_dirname_creator=lambda t: t.config["trial"]["trial_id"],
            ),
            run_config=RunConfig(name=spec.name, storage_path=folder, callbacks=callbacks, verbose=0),
        )
        with shared:
            tuner.fit()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        ray.shutdown()
        if tracked:
            tracker.finish([])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steady = None
    if every_s:
        (began, began_cpu, first), (ended, ended_cpu, last) = window.edges
        wall, used, reports = ended - began, ended_cpu - began_cpu, last - first
        steady = Steady(every_s, at_once * wall / reports, used / wall, 1e3 * used / reports)
    return Cost(trials, at_once, tracked, seconds, cpu, peak, steady)


def _window(at_once: int) -> Any:
    """A callback whose ``edges`` say when so many trials had reported, and when the first one was done."""
    from ray.tune import Callback

    class Window(Callback):
        def __init__(self) -> None:
            self.seen: set[str] = set()
            self.reports = 0
            self.edges: list[tuple[float, float, int]] = []

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            self.reports += 1
            self.seen.add(trial.trial_id)
            if (not self.edges and len(self.seen) == at_once) or (len(self.edges) == 1 and result["done"]):
                self.edges.append((time.perf_counter(), time.process_time(), self.reports))

    return Window()


@dataclass(frozen=True)
class Command:
    """What a command took."""

    words: str
    seconds: float
    peak_mb: float


def command(words: str, *arguments: str) -> Command:
    """Runs a command of ``rpg`` in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    code = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    given = [sys.executable, "-c", code, sys.executable, "-m", "rpg_platform.cli", *arguments]
    done = subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True)
    return Command(words, time.perf_counter() - started, int(done.stdout.split()[-1]) / 1024)


def commands() -> Iterator[Command]:
    """What is done with a whole sweep before anything trains: a large one planned, a finished one read and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "large.yaml")
        file.write_text(
            "{task: halfcheetah-foot-angle, algorithm: spg, weights: {alpha: {loguniform: [0.01, 1.0]}}, "
            f"samples: {PLANNED // 4}, seeds: 4, budget: {{env_steps: 1_000_000}}}}",
            encoding="utf-8",
        )
        yield command(f"`rpg plan --no-calibrate`, {PLANNED:,} trials", "plan", str(file), "--no-calibrate")
        weights = {"omega_prime": {"loguniform": [0.02, 1.6]}, "alpha_hat": {"loguniform": [0.01, 0.2]}}
        made: dict[str, Any] = {"weights": weights, "samples": RESUMED // 4, "seeds": 4, "baselines": []}
        made_sweep(Path(folder), reports=200, whole_lines=True, **made)
        at = ("--storage", folder)
        yield command(f"`rpg status`, {RESUMED:,} trials", "status", "made", *at)
        for what in ("of which MLflow has nothing: runs, table, report", "recorded: table, report"):
            yield command(f"`rpg resume`, {RESUMED:,} finished trials, {what}", "resume", "made", *at)


def _told(found: T) -> T:
    print(found, file=sys.stderr, flush=True)
    return found


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


def render(costs: list[Cost], paced: list[Cost], taken: list[Command], rates: dict[int, float]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{machine()}.",
        "",
        f"Trials that report {REPORTS} times ({KEYS} metrics) and train nothing, on all cores: what a report costs the "
        "driver, Tune's own work included; with tracking means MLflow (SQLite) and the progress view.",
        "",
        "| trials | at once | tracking | ms per report | of it the driver's CPU ms | driver's peak memory so far MB |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c.trials:,} | {c.at_once:,} | {'yes' if c.tracked else 'no'} | {c.per_report_ms:.1f} | "
        f"{c.cpu_per_report_ms:.1f} | {c.peak_mb:,.0f} |"
        for c in costs
    ]
    lines += [
        "",
        f"More than {PER_PROCESS + 1} trials at once share processes (`benchmarks/shared_actors.py`). A trial reports "
        "about 200 times whatever its length, so one of an hour every 18 s. At such intervals, tracked, while as many "
        "run as can:",
        "",
        "| trials | at once | a report every, asked | came | driver's CPU, of a core | CPU ms per report | sweep s | "
        "peak memory so far MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {c.trials:,} | {c.at_once:,} | {c.steady.asked_every_s:.0f} s | {c.steady.came_every_s:.1f} s | "
            f"{100 * c.steady.cpu_share:.0f} % | {c.steady.cpu_per_report_ms:.1f} | {c.seconds:,.0f} | "
            f"{c.peak_mb:,.0f} |"
            for c in paced
            if c.steady is not None
        ),
        "",
        "| command | seconds | peak memory MB |",
        "| --- | ---: | ---: |",
        *(f"| {each.words} | {each.seconds:.1f} | {each.peak_mb:,.0f} |" for each in taken),
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
    parser.add_argument("--quick", action="store_true", help="the smallest of each, to see that it works")
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_enable_worker_prestart": "0",  # Ray would start a process for each CPU that it is told it has
    }
    from rpg_platform.planning.cluster import quiet

    quiet()
    simulated = SIMULATED[:1] if arguments.quick else SIMULATED
    costs = [_told(simulate(*sizes, tracked)) for sizes in simulated for tracked in (False, True)]
    slow = () if arguments.quick else PACED
    paced = [_told(simulate(trials, at_once, True, every_s)) for trials, at_once, every_s in slow]
    rates = runner_rates(RUNNERS[:1] if arguments.quick else RUNNERS)
    section = render(costs, paced, [_told(each) for each in commands()], rates)
    publish("Scale", section, arguments.dry_run)


if __name__ == "__main__":
    main()
