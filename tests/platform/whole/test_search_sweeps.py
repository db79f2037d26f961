"""Searches that learn and end settings early, through the command line on HalfCheetah, killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.platform.commands import started

from rpg_platform.results.ranking import pareto_set
from rpg_platform.search.judge import Verdict
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

LIMIT_S = 270
RAW: dict[str, Any] = {
    "name": "searched",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"loguniform": [0.02, 1.0]}, "alpha_hat": {"loguniform": [0.005, 0.2]}},
    "samples": 8,
    "seeds": 2,
    "budget": {"env_steps": 20 * 2048},
    "training": {"critic_warmup_iterations": 1, "rollout_length": 256},
    "checkpoint": {"every_env_steps": 8192},
    "evaluation": {"episodes": 2, "validations": 2, "validation_episodes": 1},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT_S)]


def rpg(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return started(*arguments, cwd=folder, stderr=(folder / "errors.txt").open("a"))


def settle(folder: Path) -> None:
    """Waits until nothing is written any more: workers outlive the rest of Ray by a moment."""
    end, seen = time.monotonic() + LIMIT_S, None
    while seen != (seen := {file: file.stat().st_mtime_ns for file in sorted(folder.rglob("*")) if file.exists()}):
        assert time.monotonic() < end
        time.sleep(3.0)


def run_killed_and_resumed(
    folder: Path, raw: dict[str, Any], condition: Callable[[SweepFolder], bool], *, some_over: bool = True
) -> tuple[SweepFolder, list[dict[str, Any]]]:
    """Kills the driver and all that it started once ``condition`` holds; resumes; returns the final table."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(raw))
    sweep = SweepFolder(str(folder / "results"), raw["name"])
    with rpg(folder, "sweep", "sweep.yaml", "--storage", "results", "--json") as process:
        end = time.monotonic() + LIMIT_S
        while not condition(sweep):
            assert process.poll() is None, (folder / "errors.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
    settle(folder / "results")
    over = {name for name, state in sweep.trials().items() if state.finished or state.stopped}
    before = {
        file: file.stat().st_mtime_ns for name in over for file in (folder / "results" / raw["name"] / name).rglob("*")
    }
    with rpg(folder, "resume", raw["name"], "--storage", "results", "--json") as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, (folder / "errors.txt").read_text()
    assert over or not some_over
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a trial that had ended was touched"
    return sweep, json.loads(output)


def test_an_optuna_search_of_several_objectives_is_killed_and_goes_on(tmp_path: Path, read_sweep: ReadSweep) -> None:
    raw = RAW | {
        "search": {
            "method": "optuna",
            "objectives": ["basic_return", "addon_return", "kl_to_prior"],
            "startup": 3,
        },
        "objective": {
            "constraints": {"kl_to_prior": {"max": 50.0}, "basic_return": {"min_fraction_of_prior": 0.9}},
        },
    }
    proposed: list[Any] = []

    def enough(sweep: SweepFolder) -> bool:
        finished = sum(state.finished for state in sweep.trials().values())
        proposed[:] = sweep.proposals()
        return finished >= 1 + 2 * 4

    sweep, rows = run_killed_and_resumed(tmp_path, raw, enough)
    assert sweep.proposals()[: len(proposed)] == proposed, "what was proposed is proposed"
    assert len(sweep.proposals()) == 8
    assert all(state.finished for state in sweep.trials().values())
    assert len(sweep.trials()) == 1 + 8 * 2

    trained = [row for row in rows if not row["is_prior"]]
    assert [row["seeds"] for row in trained] == [[0, 1]] * 8
    axes = [
        (
            row["deterministic"]["basic_return"]["mean"],
            row["deterministic"]["addon_return"]["mean"],
            -row["kl_to_prior"]["mean"],
        )
        for row in rows
    ]
    assert [row["is_pareto"] for row in rows] == pareto_set(axes).tolist()
    assert sum(row["is_pareto"] for row in rows) >= 2
    prior = next(row for row in rows if row["is_prior"])["deterministic"]["basic_return"]["mean"]
    [best] = (row for row in rows if row["is_best"])
    able = [
        row
        for row in rows
        if row["kl_to_prior"]["mean"] <= 50 and row["deterministic"]["basic_return"]["mean"] >= 0.9 * prior
    ]
    assert best == max(able, key=lambda row: row["deterministic"]["total_return"]["mean"])

    tracked = read_sweep(default_tracking_uri(tmp_path / "results"), "searched")
    assert sorted(tracked.children) == sorted(sweep.trials())
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
    assert tracked.parent.data.tags["trials_total"] == "17"


def test_asha_ends_settings_is_killed_and_holds_to_it(tmp_path: Path, read_sweep: ReadSweep) -> None:
    raw = RAW | {
        "scheduler": {"asha": {"first_rung_env_steps": 6144, "reduction_factor": 2}},
        "objective": {"constraints": {"kl_to_prior": {"max": 50.0}}},
        "checkpoint": {"every_env_steps": 4096},
    }
    verdicts: list[Any] = []

    def enough(sweep: SweepFolder) -> bool:
        verdicts[:] = sweep.verdicts()
        return sum(state.stopped for state in sweep.trials().values()) >= 3

    sweep, rows = run_killed_and_resumed(tmp_path, raw, enough)
    assert all(each in sweep.verdicts() for each in verdicts), "a verdict is final"
    states = sweep.trials()
    assert len(states) == 1 + 8 * 2
    stopped = {name for name, state in states.items() if state.stopped}
    assert 4 <= len(stopped) < 16
    ended = {each["group"]: Verdict.from_json(each) for each in sweep.verdicts() if not each["goes_on"]}
    for name, state in states.items():
        group = name.rpartition("-seed=")[0]
        assert state.stopped != state.finished
        assert not state.stopped or state.env_steps >= ended[group].rung
        assert state.finished == (state.env_steps >= 20 * 2048 or name == "prior")
        assert (Path(state.checkpoint) / "bundle" / "weights.safetensors").is_file(), "its policy is saved"

    by_group = {row["group"]: row for row in rows}
    assert all(by_group[group]["stopped"] and not by_group[group]["seeds"] for group in ended)
    assert all(not row["failures"] for row in rows)
    [best] = (row for row in rows if row["is_best"])
    assert not best["stopped"]

    tracked = read_sweep(default_tracking_uri(tmp_path / "results"), "searched")
    assert sorted(tracked.children) == sorted(states)
    assert tracked.parent.info.status == "FINISHED"
    statuses = {name: run.info.status for name, run in tracked.children.items()}
    assert statuses == {name: "KILLED" if name in stopped else "FINISHED" for name in states}
    assert tracked.parent.data.tags["trials_stopped"] == str(len(stopped))
    outcomes = {tracked.children[name].data.tags["outcome"].split(" at ")[0] for name in stopped}
    assert outcomes == {"stopped by asha"}


def test_a_population_exchanges_policies_is_killed_and_goes_on(tmp_path: Path, read_sweep: ReadSweep) -> None:
    raw = RAW | {
        "weights": {"omega_prime": {"loguniform": [0.02, 1.0]}, "alpha_hat": 0.02},
        "samples": 4,
        "search": "quasi_random",
        "scheduler": {"pbt": {"every_env_steps": 12_288}},
    }
    kept: list[Any] = []

    def enough(sweep: SweepFolder) -> bool:
        kept[:] = sweep.generations()
        rung = kept[0]["rung"] if kept else 0
        return bool(kept) and any(state.env_steps > rung for state in sweep.trials().values())

    sweep, rows = run_killed_and_resumed(tmp_path, raw, enough, some_over=False)
    generations = sweep.generations()
    assert generations[: len(kept)] == kept, "what was exchanged stays exchanged"
    assert [each["rung"] for each in generations] == [14_336, 26_624, 38_912]  # after the critic's warm-up
    states = sweep.trials()
    assert len(states) == 1 + 4 * 2
    assert all(state.finished for state in states.values())
    last = generations[-1]
    taken = {group: source for group, source in last["sources"].items() if group != source}
    assert taken
    by_group = {row["group"]: row for row in rows}
    for group in taken:
        schedule = by_group[group]["weights"]["omega_prime"]
        assert schedule[-1] == [last["until"][f"{group}-seed=0"] + 1, last["weights"][group]["omega_prime"]]
        for seed in (0, 1):
            card = Path(states[f"{group}-seed={seed}"].checkpoint) / "bundle" / "card.json"
            assert json.loads(card.read_text())["made_by"]["weights"]["omega_prime"] == schedule
    tracked = read_sweep(default_tracking_uri(tmp_path / "results"), "searched")
    assert sorted(tracked.children) == sorted(states)
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
