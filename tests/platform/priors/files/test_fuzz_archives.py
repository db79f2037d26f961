"""Mutated archives and pickles: every one is read or refused; none crashes, hangs or carries anything out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]


def fuzz(thousands: float, seed: int, scratch: Path, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.platform.priors.files.fuzzing", str(thousands), str(scratch), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3_000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check(report: dict[str, Any], cases: int) -> None:
    assert report["failures"] == []
    assert report["events"] == []
    assert not report["marker"]
    assert any(event.startswith("pickle.find_class") for event in report["heard"])  # the watch is not deaf
    assert any(event.startswith("exec") for event in report["heard"])
    counts = report["counts"]
    assert sum(count.get("read", 0) + count.get("refused", 0) for count in counts.values()) >= cases
    for name, count in counts.items():  # mutations are neither all harmless nor all hopeless
        total = count["read"] + count["refused"]
        assert 0.005 < count["read"] / total < 0.9, (name, count)
        assert count["unfit to print"] == 0, (name, count)


def test_nothing_crashes_hangs_or_runs(tmp_path: Path) -> None:
    check(fuzz(5.2, 0, tmp_path, 280), 5_000)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_nothing_crashes_hangs_or_runs_in_many_more(tmp_path: Path) -> None:
    check(fuzz(60, 1, tmp_path, 1_700), 50_000)
