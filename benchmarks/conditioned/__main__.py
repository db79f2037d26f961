"""One training for a range of weights against a separate training of each setting: trains both, writes the comparison.

    python -m benchmarks.conditioned --environment halfcheetah [--storage DIR] [--write-only]

For each of five seeds sweeps of all settings of ``tune_configs/<environment>_conditioned.yaml``: its policy for a
range; a training of each setting at which that is evaluated, 0.8 M env steps; and, on HalfCheetah, two small weights
for as long as the range. Ctrl-C saves what is running and the same command goes on. What a sweep came to is recorded in
benchmarks/conditioned/records/ at its end, and not trained again. The section is written into docs/conditioned.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from benchmarks.conditioned.records import FOLDER, Records
from benchmarks.conditioned.section import Section
from benchmarks.conditioned.study import Study
from benchmarks.reproduction.plan import ENVIRONMENTS, ROOT

from rpg_platform.storage.location import DEFAULT_STORAGE, storage_path

PAGE = ROOT / "docs" / "conditioned.md"


def main() -> int:
    """Trains and writes; returns the exit code: 0 if everything is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conditioned", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--environment", choices=list(ENVIRONMENTS), default="halfcheetah")
    parser.add_argument("--storage", help=f"default: {DEFAULT_STORAGE}/conditioned")
    parser.add_argument("--records", type=Path, default=FOLDER, help="default: benchmarks/conditioned/records")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; default: docs/conditioned.md")
    parser.add_argument("--write-only", action="store_true", help="train nothing")
    given = parser.parse_args()
    study = Study(given.environment, storage_path(given.storage or f"{DEFAULT_STORAGE}/conditioned"))
    records = Records.read(given.environment, given.records)

    def keep() -> None:
        records.write(given.environment, given.records)
        if Section.can_be_written(records):
            Section(study, records).write(given.out)
            print(f"Page        {given.out}", flush=True)

    done = given.write_only or study.train(records, keep)
    if given.write_only:
        keep()
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
