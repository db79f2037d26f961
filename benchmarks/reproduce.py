"""The paper's two experiments, from priors to tables: trains what is not trained yet and writes docs/reproduction.md.

    python -m benchmarks.reproduce [--experiments 1 2] [--environments halfcheetah …] [--storage DIR]
    python -m benchmarks.reproduce --quick          # the same path in minutes, to see that it works
    python -m benchmarks.reproduce --write-only     # the page again, from what MLflow has by now

It takes days. Ctrl-C saves what is running, and the same command goes on; nothing that is finished is trained again.
The page is written after each sweep, from MLflow alone. A finished sweep is kept beside the code
(benchmarks/reproduction/kept/): another machine goes on from there, and --anew trains everything itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from benchmarks.reproduction.kept import KEPT, Kept
from benchmarks.reproduction.page import write_page
from benchmarks.reproduction.plan import ENVIRONMENTS, EXPERIMENTS, ROOT, Scope
from benchmarks.reproduction.records import Store

from rpg_platform.storage.location import DEFAULT_STORAGE, default_tracking_uri, storage_path
from rpg_platform.tracking.variables import variables

PAGE = ROOT / "docs" / "reproduction.md"


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiments", type=int, nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--environments", nargs="+", choices=list(ENVIRONMENTS), help="default: all; quick: the first")
    parser.add_argument("--storage", help=f"default: {DEFAULT_STORAGE}/reproduction, quick: …/reproduction-quick")
    parser.add_argument("--out", type=Path, help="the page; default: docs/reproduction.md, quick: in the storage")
    parser.add_argument("--quick", action="store_true", help="one environment, two seeds, two settings, tiny budgets")
    parser.add_argument("--anew", action="store_true", help="train what other machines have finished, too")
    parser.add_argument("--write-only", action="store_true", help="train nothing")
    return parser.parse_args()


def main() -> int:
    """Trains and writes; returns the exit code: 0 if everything is finished, 130 after Ctrl-C outside of a sweep."""
    given = arguments()
    everything = list(ENVIRONMENTS)[:1] if given.quick else list(ENVIRONMENTS)
    environments, quick = tuple(given.environments or everything), given.quick
    storage = storage_path(given.storage or f"{DEFAULT_STORAGE}/reproduction{'-quick' if quick else ''}")
    uri = default_tracking_uri(storage)
    out = given.out or (Path(storage) / "reproduction.md" if quick else PAGE)
    kept = Kept(None if quick or given.anew else KEPT)
    shown = Scope(environments, quick=True) if quick else Scope()

    def tell(line: str) -> None:
        print(line, flush=True)

    def write() -> None:
        write_page(Store(uri, kept), shown, out)
        tell(f"Page        {out}")

    try:
        write()  # what there is; the driver brings it up to date after each sweep
        if given.write_only:
            return 0
        from benchmarks.reproduction.driver import Driver  # Ray, which writing alone does without

        from rpg_platform.run.run import VIDEOS

        scope = Scope(environments, tuple(given.experiments), quick)
        with variables({VIDEOS: os.environ.get(VIDEOS, "0")}):
            return 0 if Driver(scope, storage, uri, tell, write, kept).run() else 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
