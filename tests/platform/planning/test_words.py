"""A plan in words."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.platform.planning.planned import planned, spec

from rpg_platform.planning.words import head_lines, period, render


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (600, "10 min"), (3 * 3600 + 60, "3 h 01 min"), (86_400 * 5, "5.0 days")],
)
def test_periods(seconds: float, text: str) -> None:
    assert period(seconds) == text


def test_the_head_of_a_sweep_and_the_table_say_the_same(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        planned(tmp_path),
        storage="/data",
        checkpoint_bytes=1_120_000,
        storage_bytes=24_100_000,
        free_bytes=65_600_000_000,
    )
    lines = [
        "Trials      10: the prior, rpg 2 settings x 3 seeds, greedy 1 setting x 3 seeds",
        "Env steps   900,000, and 660,000 at most in evaluations",
        "Time        about 10 min, 0.301 CPU-hours (15% of it evaluations) at 1,000 env steps/s a trial, measured here",
        "Cluster     1 node, 2 CPUs: 2 trials at once (1 CPU each), 5 rounds",
        "Disk        24.1 MB in /data (1.1 MB a checkpoint, 65.6 GB free)",
    ]
    assert head_lines(plan) == lines
    text = io.StringIO()
    Console(file=text, width=200).print(render(plan), highlight=False)
    shown = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert shown[0] == "Sweep planned, task halfcheetah-foot-angle"
    assert shown[1:6] == [" ".join(line.split()) for line in lines]
    assert [line.split()[0] for line in shown[6:]] == ["MLflow", "Temporary"]


def test_gpus_are_named_where_there_are_some(tmp_path: Path) -> None:
    wanted = spec(resources={"gpus_per_trial": 0.5})
    lines = head_lines(planned(tmp_path, wanted, nodes=[{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]))
    assert "CPU-hours, 0.295 GPU-hours" not in lines[2]
    assert "0.151 GPU-hours" in lines[2]
    assert lines[3] == "Cluster     2 nodes, 16 CPUs, 1 GPUs: 2 trials at once (1 CPU and 0.5 GPU each), 5 rounds"
