"""Time and memory of the report over a sweep of thousands of trials, and how long a browser takes to show it.

    python -m benchmarks.review [--trials 2000] [--reports 200]

The sweep's files are made: as many as a real sweep leaves, with the configuration in every line as Tune writes it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import machine, publish
from tests.platform.review.made_sweep import made_sweep

SECTION = "The report over thousands of trials"


def main() -> None:
    """Makes the sweep, writes its report in a process of its own, opens it, and records the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--dry-run", action="store_true", help="leave RESULTS.md as it is")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        samples = given.trials // 4
        weights = {"omega_prime": {"loguniform": [0.02, 1.6]}, "alpha_hat": {"loguniform": [0.01, 0.2]}}
        folder = made_sweep(
            Path(storage),
            reports=given.reports,
            weights=weights,
            samples=samples,
            seeds=4,
            baselines=[],
            whole_lines=True,
        )
        size = sum(file.stat().st_size for file in Path(folder.uri).glob("*/result.json"))
        begun = time.perf_counter()
        command = [sys.executable, "-m", "rpg_platform.cli", "report", "made", "--storage", storage]
        subprocess.run(command, check=True, capture_output=True)
        took = time.perf_counter() - begun
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        page = Path(folder.uri, "report.html")
        answers, shown = opening_s(page)
        publish(
            SECTION,
            f"{machine()}.\n\n{given.trials:,} trials ({samples:,} settings, 4 seeds), {given.reports} reports each, "
            f"{size / 1e6:,.0f} MB of reports.\n\n| | |\n| --- | ---: |\n"
            f"| `rpg report`, the whole command | {took:.1f} s |\n| its peak memory | {memory / 1e6:,.0f} MB |\n"
            f"| the page | {page.stat().st_size / 1e6:.2f} MB |\n"
            f"| opened in Chromium, until it answers | {answers:.1f} s |\n"
            f"| opened in Chromium, every picture drawn | {shown:.1f} s |\n",
            given.dry_run,
        )


def opening_s(page: Path) -> tuple[float, float]:
    """Seconds from the address until the page answers, with what is in view drawn, and to the last picture."""
    from tests.browser import chromium

    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.perf_counter()
        tab.goto(page.as_uri())
        answers = time.perf_counter() - begun
        tab.wait_for_selector("#terms .main-svg")
        return answers, time.perf_counter() - begun


if __name__ == "__main__":
    main()
