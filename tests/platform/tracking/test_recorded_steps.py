"""One point for each metric and step in MLflow, whatever a trial reports again, and whoever sends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.platform.records import CARD
from tests.platform.resolved import tracker_of

from rpg_platform.results.report import TrialResult
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record
from rpg_platform.tracking.tracker import MlflowTracker

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

OPEN = [Record(run, "open", {"name": run, "params": {}, "tags": {}, "start_time": 1}) for run in (PARENT, "t")]
RAW: dict[str, Any] = {"name": "s", "task": "halfcheetah-foot-angle", "algorithm": "spg", "weights": {"alpha": 0.1}}


def report(attempt: int, step: int, *keys: str) -> Record:
    """An attempt's figures, which no other attempt has."""
    values = dict.fromkeys(keys, attempt + step / 100)
    return Record("t", "metrics", {"values": values, "step": step, "timestamp": 1_000 * attempt + step})


def points(found: TrackedSweep) -> dict[str, list[tuple[int, float]]]:
    return {key: found.history(found.children["t"], key) for key in ("a", "b")}


@pytest.mark.parametrize("batched", [True, False])
def test_a_trial_that_went_back_to_a_checkpoint(embedded_store: str, read_sweep: ReadSweep, batched: bool) -> None:
    """In one driver; `b` is not in every report, so of some steps it has no point yet."""
    runs = MlflowRuns(embedded_store, f"back {batched}", "k")
    runs.log(OPEN[:1])
    records = [OPEN[1], *(report(1, step, "a") for step in range(1, 6)), report(1, 3, "b")]
    records += [OPEN[1], *(report(2, step, "a", "b") for step in range(3, 8))]
    if batched:
        runs.log(records)
    else:
        runs.put(*records)
    assert points(read_sweep(embedded_store, f"back {batched}")) == {
        "a": [(step, (1 if step < 6 else 2) + step / 100) for step in range(1, 8)],
        "b": [(3, 1.03), *((step, 2 + step / 100) for step in range(4, 8))],
    }


@pytest.mark.parametrize("knows_the_run", [True, False])
def test_a_driver_that_resumes(embedded_store: str, read_sweep: ReadSweep, knows_the_run: bool) -> None:
    """It learns from MLflow what is there: by the run's id, or where the spool is gone by a search."""
    name = f"resumed {knows_the_run}"
    first = MlflowRuns(embedded_store, name, "k")
    first.put(*OPEN, *(report(1, step, "a") for step in range(1, 6)))
    again = MlflowRuns(embedded_store, name, "k", known=dict(first.known) if knows_the_run else {})
    again.expect_earlier_runs()
    again.put(*OPEN, report(1, 5, "a"), *(report(2, step, "a") for step in range(4, 8)))
    assert points(read_sweep(embedded_store, name))["a"] == [
        *((step, 1 + step / 100) for step in range(1, 6)),
        *((step, 2 + step / 100) for step in (6, 7)),
    ]
    # `rpg track` sends what is left without opening the run.
    later = MlflowRuns(embedded_store, name, "k", known=dict(again.known))
    later.put(report(2, 7, "a"), report(3, 7, "a"), report(2, 8, "a"))
    assert [step for step, _ in points(read_sweep(embedded_store, name))["a"]] == list(range(1, 9))


def test_a_report_that_was_set_aside_keeps_its_place(embedded_store: str, read_sweep: ReadSweep) -> None:
    runs = MlflowRuns(embedded_store, "aside", "k")
    runs.put(*OPEN, report(1, 1, "a"))
    runs.passed_over(report(1, 2, "a"))
    runs.put(report(2, 2, "a"), report(2, 3, "a"))
    assert [step for step, _ in points(read_sweep(embedded_store, "aside"))["a"]] == [1, 3]
    runs.put(report(1, 2, "a"), late=True)
    assert points(read_sweep(embedded_store, "aside"))["a"] == [(1, 1.01), (2, 1.02), (3, 2.03)]


# ---- final evaluations ---------------------------------------------------------------------------
FINAL = {"env_steps": 100.0, "a": 0.5, "eval/deterministic/total_return_mean": 7.0, "done": True, "finished": True}
KEY = "eval/deterministic/total_return_mean"


def tune_trial(spec: TrialSpec, last: dict[str, Any]) -> Any:
    return SimpleNamespace(config={"trial": spec.model_dump(mode="json")}, checkpoint=None, last_result=last)


def make(uri: str, experiment: str, folder: Path, **arguments: Any) -> tuple[MlflowTracker, TrialSpec]:
    spec = SweepSpec.model_validate(RAW | {"budget": {"env_steps": 10_000}})
    [trial] = expand(spec)
    tracker = tracker_of(uri, experiment, spec, [trial], folder, **arguments)
    tracker.start()
    return tracker, trial


def test_the_final_evaluation_is_that_of_the_policy_that_is_kept(
    embedded_store: str, read_sweep: ReadSweep, tmp_path: Path
) -> None:
    """A worker dies while it saves the policy that it has just evaluated; the next one trains another."""
    tracker, trial = make(embedded_store, "evaluated", tmp_path)
    for moment, total in ((1, 7.0), (2, 9.0)):
        last = FINAL | {KEY: total, "a": float(moment), "timestamp": moment}
        tracker.on_trial_start(0, [], tune_trial(trial, last))
        tracker.on_trial_result(0, [], tune_trial(trial, last), last)
    tracker.on_trial_complete(0, [], tune_trial(trial, last))
    results: list[TrialResult] = [(trial, last, None)]
    assert tracker.finish(results) == "FINISHED"
    found = read_sweep(embedded_store, "evaluated")
    run = found.children[trial.trial_id]
    assert found.history(run, "total") == [(100, 9.0)]
    assert found.history(run, "train/a") == [(100, 1.0)]


@pytest.mark.parametrize("left", ["running", "killed", "finished", "no spool", "nothing"])
def test_a_trial_that_finished_as_its_driver_died_is_recorded_by_the_next(
    embedded_store: str, read_sweep: ReadSweep, tmp_path: Path, left: str
) -> None:
    """Its checkpoint says that it finished; the driver died before, while or after it recorded that."""
    first, trial = make(embedded_store, f"adopted {left}", tmp_path / "spool", run_key="k")
    if left != "nothing":
        first.on_trial_start(0, [], tune_trial(trial, FINAL))
        first.on_trial_result(0, [], tune_trial(trial, FINAL), FINAL | {"timestamp": 1})
    if left == "finished":
        first.on_trial_complete(0, [], tune_trial(trial, FINAL | {"timestamp": 1}))
    if left == "killed":  # by `rpg track`, say
        first._close_run(trial.trial_id, "KILLED")
    assert first._sender is not None
    assert first._sender.flush(30)
    first.leave()
    before = read_sweep(embedded_store, f"adopted {left}")

    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "bundle").mkdir(parents=True)
    (checkpoint / "bundle" / "card.json").write_text(CARD)
    spool = tmp_path / ("another" if left == "no spool" else "spool")
    again, _ = make(embedded_store, f"adopted {left}", spool, run_key="k", resume=True)
    again.adopt(trial, TrialState(str(checkpoint), 100, FINAL))
    again.finish([(trial, FINAL, None)])
    found = read_sweep(embedded_store, f"adopted {left}")
    run = found.children[trial.trial_id]
    assert run.info.status == "FINISHED"
    for key, name in ((KEY, "total"), ("a", "train/a")):
        assert found.history(run, name) == [(100, FINAL[key])]
    listed = [file.path for file in found.client.list_artifacts(run.info.run_id)]
    assert len(run.outputs.model_outputs) == 1, "its policy is a model, also where an earlier driver made none"
    if left == "finished":
        now, earlier = run.to_dictionary(), before.children[trial.trial_id].to_dictionary()
        assert now == earlier | {"outputs": now["outputs"]}
        assert "bundle" not in listed, "it was not touched"
    else:
        assert "bundle" in listed
    assert again.errors == 0
