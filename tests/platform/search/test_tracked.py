"""A trial that was ended early is in MLflow as that, even if its driver died before it could say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.platform.resolved import tracker_of

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.trial_state import TrialState

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]


def test_what_was_ended_early_is_neither_missing_nor_failed(tmp_path: Path, read_sweep: ReadSweep) -> None:
    raw: dict[str, Any] = {
        "name": "early",
        "task": "hopper-height",
        "algorithm": "ppo",
        "budget": {"env_steps": 100_000},
    }
    spec = SweepSpec.model_validate(raw)
    [trial] = expand(spec)
    uri, report = default_tracking_uri(tmp_path), {"env_steps": 20_000.0, "total_return": 7.0, "stopped_by": "asha"}
    (tmp_path / "checkpoint" / "bundle").mkdir(parents=True)
    for attempt in range(2):  # and resumed once more: nothing changes
        tracker = tracker_of(uri, "early", spec, [trial], tmp_path / "spool", resume=attempt > 0, to_come=0)
        tracker.start()
        tracker.adopt(trial, TrialState(str(tmp_path / "checkpoint"), 20_000, report))
        assert tracker.finish([(trial, report, None)]) == "FINISHED"
        tracked = read_sweep(uri, "early")
        [run] = tracked.children.values()
        assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "stopped by asha at 20,000 env steps")
        assert tracked.history(run, "train/total_return") == [(20_000, 7.0)]
        assert tracked.parent.info.status == "FINISHED"
        assert {name: tracked.parent.data.tags[f"trials_{name}"] for name in ("stopped", "failed", "missing")} == {
            "stopped": "1",
            "failed": "0",
            "missing": "0",
        }


def test_trials_that_a_search_did_not_come_to_are_missing(tmp_path: Path, read_sweep: ReadSweep) -> None:
    raw: dict[str, Any] = {
        "name": "cut",
        "task": "hopper-height",
        "algorithm": "ppo",
        "budget": {"env_steps": 100_000},
    }
    spec = SweepSpec.model_validate(raw)
    uri = default_tracking_uri(tmp_path)
    tracker = tracker_of(uri, "cut", spec, [], tmp_path / "spool", to_come=3)
    tracker.start()
    assert tracker.finish([], interrupted=True) == "KILLED"
    tags = read_sweep(uri, "cut").parent.data.tags
    assert (tags["trials_total"], tags["trials_missing"]) == ("3", "3")
