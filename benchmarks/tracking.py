"""What tracking costs: requests, time in the driver's thread and in a training iteration, memory at 10,000 trials.

A real `mlflow server` process (SQLite) behind a counting proxy; the trials are simulated, except for the iteration.

    python -m benchmarks.tracking
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.speed import machine, publish

KEYS = 25  # metrics of a report
MOST_SEEDS = 1_000  # of a sweep


@dataclass(frozen=True)
class Requests:
    """One simulated sweep against a server."""

    trials: int
    reports: int
    requests: int
    callback_ms: float
    slowest_ms: float


@dataclass(frozen=True)
class Memory:
    """A driver with many trials and no server: everything is spooled."""

    trials: int
    tracker_mb: float
    spool_mb: float


@dataclass(frozen=True)
class Iteration:
    """Mean milliseconds of a training iteration, by turns without and with tracking."""

    iterations: int
    turns: list[tuple[float, float]]

    @property
    def without_ms(self) -> float:
        """Median over the turns without."""
        return statistics.median(without for without, _ in self.turns)

    @property
    def with_ms(self) -> float:
        """Median over the turns with."""
        return statistics.median(with_ for _, with_ in self.turns)

    @property
    def ratios(self) -> list[float]:
        """With to without, of neighbouring turns."""
        return [with_ / without for without, with_ in self.turns]

    @property
    def ratio(self) -> float:
        """The median of them."""
        return statistics.median(self.ratios)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """A server's port, for as long as the context lasts."""
    from rpg_platform.tracking.store import create_embedded_store

    create_embedded_store(folder / "mlflow.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def counting_proxy(target: int) -> Iterator[tuple[int, list[str]]]:
    """A port before ``target``, and every request that came by so far."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            seen.append(f"{self.command} {self.path.partition('?')[0]}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            onward = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            onward.request(self.command, self.path, body, kept)
            answer = onward.getresponse()
            content = answer.read()
            onward.close()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield int(proxy.server_address[1]), seen
    finally:
        proxy.shutdown()
        proxy.server_close()


def tracker_of(uri: str, trials: int, folder: Path) -> tuple[Any, list[Any]]:
    """A tracker for a sweep of so many trials, and what Tune would hand it for each."""
    from rpg_platform.spec.sweep import SweepSpec
    from rpg_platform.storage.sweep import Sweep
    from rpg_platform.tracking.tracker import MlflowTracker

    settings = -(-trials // MOST_SEEDS)
    spec = SweepSpec.model_validate(
        {
            "name": f"tracking-{trials}",
            "task": "halfcheetah-foot-angle",
            "algorithm": "spg",
            "weights": {"alpha": {"grid": [0.1 * (1 + i) for i in range(settings)]}},
            "seeds": trials // settings,
            "budget": {"env_steps": 10_000},
            "storage": str(folder),
            "tracking": {"uri": uri},
        }
    )
    sweep = Sweep.resolve(spec)
    plan = sweep.trials
    tracker = MlflowTracker(sweep, plan)
    tune_trials = [
        SimpleNamespace(config={"trial": trial.model_dump(mode="json")}, checkpoint=None, last_result={})
        for trial in plan
    ]
    return tracker, tune_trials


def report(step: int) -> dict[str, Any]:
    """A report as a trial makes it."""
    return {f"metric_{i}": 0.1 * i * step for i in range(KEYS)} | {"env_steps": 1e3 * step, "timestamp": time.time()}


def count_requests(port: int, trials: int, reports: int, every_s: float) -> Requests:
    """Runs a simulated sweep whose trials each report ``reports`` times, one report every ``every_s``."""
    with tempfile.TemporaryDirectory() as folder, counting_proxy(port) as (near, seen):
        tracker, tune_trials = tracker_of(f"http://127.0.0.1:{near}", trials, Path(folder))
        tracker.start()
        for trial in tune_trials:
            tracker.on_trial_start(0, [], trial)
        callbacks = []
        for step in range(1, reports + 1):
            for trial in tune_trials:
                result = report(step)
                started = time.perf_counter()
                tracker.on_trial_result(0, [], trial, result)
                callbacks.append(1e3 * (time.perf_counter() - started))
            time.sleep(every_s)
        for trial in tune_trials:
            tracker.on_trial_complete(0, [], trial)
        tracker.finish([])
        assert not tracker.state().spooled
    return Requests(trials, trials * reports, len(seen), statistics.median(callbacks), max(callbacks))


def memory(trials: int, reports: int) -> Memory:
    """Python memory of tracker, spool and sender after so many trials have reported, with no server to send to."""
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        tracker, tune_trials = tracker_of(f"http://127.0.0.1:{free_port()}", trials, Path(folder))
        before, _ = tracemalloc.get_traced_memory()  # the plan and Tune's trials, which are there without it
        tracker.start()
        for trial in tune_trials:
            tracker.on_trial_start(0, [], trial)
        for step in range(1, reports + 1):
            for trial in tune_trials:
                tracker.on_trial_result(0, [], trial, report(step))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        spooled = sum(file.stat().st_size for file in tracker.folder.iterdir())
        tracker._stop()
    return Memory(trials, (after - before) / 2**20, spooled / 2**20)


def iteration_times(port: int, rounds: int, iterations: int) -> Iteration:
    """Trains in this process, by turns without and with a tracker that sends every iteration's report meanwhile.

    The worst case: training and tracker share a process. Opening and closing the runs is left out; it is once a trial.
    """
    from rpg_algorithms import NetworkConfig, SPGConfig

    config = (
        SPGConfig()
        .environment("HalfCheetah-v5")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(train_batch_size_per_learner=2048, minibatch_size=64, num_epochs=10)
        .rl_module(model_config=NetworkConfig(hidden=(64, 64), activation="tanh"))
        .debugging(seed=0, log_level="ERROR")
    )
    algo = config.build_algo()
    for _ in range(3):
        algo.train()
    turns = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            tracker, [trial] = tracker_of(f"http://127.0.0.1:{port}", 1, Path(folder))
            started = time.perf_counter()
            for _ in range(iterations):
                algo.train()
            without = time.perf_counter() - started
            tracker.start()
            tracker.on_trial_start(0, [], trial)
            tracker._sender.flush(60)
            started = time.perf_counter()
            for step in range(iterations):
                algo.train()
                tracker.on_trial_result(0, [], trial, report(turn * iterations + step))
            with_ = time.perf_counter() - started
            tracker.finish([])
        turns.append((1e3 * without / iterations, 1e3 * with_ / iterations))
    algo.stop()
    return Iteration(iterations, turns)


def render(swept: list[Requests], held: Memory, times: Iteration) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{machine()}.",
        "",
        f"Simulated trials with {KEYS} metrics a report, a real `mlflow server` (SQLite) behind a counting proxy. "
        "Every request counts: openings, parameters, figures, artifacts, ends, the sweep's own run.",
        "",
        "| trials | reports | requests | requests per report | ms per report in the driver's thread | slowest ms |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {s.trials:,} | {s.reports:,} | {s.requests:,} | {s.requests / s.reports:.2f} | {s.callback_ms:.3f} | "
        f"{s.slowest_ms:.1f} |"
        for s in swept
    ]
    lines += [
        "",
        f"{held.trials:,} trials, no server: the tracker holds {held.tracker_mb:.0f} MB, the spool on disk "
        f"{held.spool_mb:,.0f} MB.",
        "",
        f"A training iteration in the driver's own process, every one reported: {times.without_ms:.1f} ms without "
        f"tracking, {times.with_ms:.1f} ms with it; by turns of {times.iterations} iterations, "
        f"{100 * (times.ratio - 1):+.1f} % (median of {len(times.ratios)} turns; from "
        f"{100 * (min(times.ratios) - 1):+.1f} to {100 * (max(times.ratios) - 1):+.1f} %). In a sweep, trials have "
        "processes of their own.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--reports", type=int, default=50)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between the reports of a trial")
    parser.add_argument("--held", type=int, default=10_000, help="trials whose memory is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--dry-run", action="store_true", help="print the section instead of writing it")
    arguments = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    from rpg_platform.planning.cluster import quiet

    quiet()
    held = memory(arguments.held, 5)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as port:
        swept = [count_requests(port, n, arguments.reports, arguments.every) for n in arguments.trials]
        times = iteration_times(port, arguments.rounds, arguments.iterations)
    publish("Tracking", render(swept, held, times), arguments.dry_run)


if __name__ == "__main__":
    main()
