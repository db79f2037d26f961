"""Delivery to MLflow: nothing doubled, however often a record is sent and whatever becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from tests.platform.proxy import Proxy
from tests.platform.records import closing, metrics, opening

from rpg_platform.tracking.errors import is_refusal
from rpg_platform.tracking.runs import PARENT, KnownRun, MlflowRuns, Record, _batches, metric_key

if TYPE_CHECKING:
    from tests.platform.servers import MlflowServer, TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]


def test_a_replay_adds_nothing(embedded_store: str, read_sweep: ReadSweep) -> None:
    runs = MlflowRuns(embedded_store, "replay", "k")
    records = [opening(PARENT), opening("t", params={"lr": "1"}), metrics("t", 10, a=1.0, b=2.0)]
    records += [Record("t", "tags", {"values": {"x": 1}}), Record("t", "text", {"text": "hi", "path": "a.txt"})]
    records += [closing("t")]
    runs.put(*records)
    before = read_sweep(embedded_store, "replay").children["t"]
    later = MlflowRuns(embedded_store, "replay", "k")  # a driver that knows of nothing
    later.expect_earlier_runs(PARENT, "t")
    later.put(*records, *records)
    found = read_sweep(embedded_store, "replay")
    after = found.children["t"]
    assert after.to_dictionary() == before.to_dictionary()
    assert found.points(after) == {("a", 10, 10_000, 1.0): 1, ("b", 10, 10_000, 2.0): 1}


def test_a_run_that_is_opened_again_runs_again_and_keeps_its_parameters(
    embedded_store: str, read_sweep: ReadSweep
) -> None:
    changes: list[tuple[str, KnownRun]] = []
    runs = MlflowRuns(embedded_store, "again", "k", changed=lambda key, run: changes.append((key, run)))
    runs.put(opening(PARENT), opening("t", params={"lr": "1"}), closing("t", "FAILED"))
    assert [(key, run.run_id) for key, run in changes] == [
        (PARENT, runs.run_ids[PARENT]),
        *[("t", runs.run_ids["t"])] * 2,
    ]
    later = MlflowRuns(embedded_store, "again", "k", known=dict(runs.known))
    tags = {"kind": "trial", "version.ray": "3"}
    later.put(opening("t", params={"lr": "2", "gamma": "0.9"}, tags=tags, start_time=3_000))
    found = read_sweep(embedded_store, "again").children["t"]
    assert found.info.status == "RUNNING"
    assert found.data.params == {"lr": "1", "gamma": "0.9"}  # a parameter can't change
    assert found.data.tags["version.ray"] == "3"
    # Part of a replay that ends with its close: nobody sees it run in between.
    later.put(closing("t"))
    again = MlflowRuns(embedded_store, "again", "k", known=dict(later.known))
    again.log([opening("t"), metrics("t", 1, a=1.0)], closing=True)
    assert read_sweep(embedded_store, "again").children["t"].info.status == "FINISHED"


def test_one_request_takes_all_that_is_known_of_a_run(
    mlflow_server: MlflowServer, unused_port: int, read_sweep: ReadSweep
) -> None:
    proxy = Proxy(unused_port, mlflow_server.port)
    proxy.open()
    try:
        runs = MlflowRuns(f"http://127.0.0.1:{proxy.port}", "batches", "k")
        runs.put(opening(PARENT))
        before = len(proxy.seen)
        records = [opening("t", params={"lr": "1"}), Record("t", "tags", {"values": {"x": 1}})]
        runs.log([*records, *(metrics("t", step, **{f"m{i}": 1.0 * step for i in range(20)}) for step in range(35))])
        assert [each.rpartition("/")[2] for each in proxy.seen[before:]] == ["create", "log-batch"]
        runs.log([metrics("t", step, **{f"m{i}": 1.0 * step for i in range(20)}) for step in range(35, 235)])
        assert [each.rpartition("/")[2] for each in proxy.seen[before + 2 :]] == ["log-batch"] * 5  # 800 figures each
    finally:
        proxy.close()
    found = read_sweep(mlflow_server.uri, "batches")
    assert len(found.points(found.children["t"])) == 235 * 20
    assert found.children["t"].data.params == {"lr": "1"}


def test_batches_stay_within_the_limits_of_mlflow() -> None:
    metrics_ = [Metric(f"m{i}", 1.0, 0, 0) for i in range(1_700)]
    params = [Param(f"p{i}", "x" * 6_000) for i in range(250)]
    tags = [RunTag(f"t{i}", "x") for i in range(120)]
    found = list(_batches(metrics_, params, tags))
    assert [each for batch in found for each in batch["metrics"]] == metrics_
    assert [each for batch in found for each in batch["params"]] == params
    assert [each for batch in found for each in batch["tags"]] == tags
    for batch in found:
        assert sum(map(len, batch.values())) <= 1_000
        assert len(batch["params"]) <= 100
        assert len(batch["tags"]) <= 100
        assert sum(len(each.value) for each in batch["params"]) < 500_000
    assert list(_batches([], [], [])) == []
    assert len(list(_batches(metrics_[:800], params[:10], tags[:100]))) == 1


def test_an_answer_that_is_lost_doubles_nothing(
    mlflow_server: MlflowServer, unused_port: int, read_sweep: ReadSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server takes its time: the run appears only after it was looked for in vain."""
    # As the sender sets it: MLflow's own retries would make a run twice.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    proxy = Proxy(unused_port, mlflow_server.port)
    proxy.open()
    runs = MlflowRuns(f"http://127.0.0.1:{proxy.port}", "lost", "k")
    losses = {
        "runs/create": (opening(PARENT), opening("t", params={"lr": "1"})),
        "runs/log-batch": (metrics("t", 1, a=1.0),),
        "runs/update": (closing("t"),),
    }
    for request, record in ((request, record) for request, records in losses.items() for record in records):
        lost = proxy.lost
        proxy.fate = lambda path, body, r=request, n=lost: "lose" if path.endswith(r) and proxy.lost == n else "pass"
        with pytest.raises(MlflowException) as caught:
            runs.put(record)
        assert not is_refusal(caught.value)
        runs.put(record)
    assert proxy.lost == 4
    proxy.close()
    found = read_sweep(mlflow_server.uri, "lost")
    assert list(found.children) == ["t"]
    assert found.points(found.children["t"]) == {("a", 1, 1_000, 1.0): 1}
    late = MlflowRuns(mlflow_server.uri, "lost", "k")
    late.expect_earlier_runs(PARENT)
    late.put(opening(PARENT), opening("u"))  # comes through when nobody expects it any more
    runs = MlflowRuns(mlflow_server.uri, "lost", "k", known=dict(runs.known))
    runs.put(opening("u"), metrics("u", 1, a=1.0))  # so the run has been made a second time
    runs.known["u"].doubtful = True
    runs.put(closing("u"))
    found = read_sweep(mlflow_server.uri, "lost")  # fails on a second run of a trial
    assert found.points(found.children["u"]) == {("a", 1, 1_000, 1.0): 1}


def test_a_run_whose_opening_is_lost_is_made_all_the_same(embedded_store: str, read_sweep: ReadSweep) -> None:
    """Its record was damaged on the disk: the figures are worth more than the tags."""
    runs = MlflowRuns(embedded_store, "orphans", "k", "my sweep")
    runs.put(metrics("t", 1, a=1.0), Record("u", "text", {"text": "hi", "path": "a.txt"}), closing("v"))
    found = read_sweep(embedded_store, "orphans")
    assert set(found.children) == {"t", "u", "v"}
    assert found.parent.info.run_name == "my sweep"
    assert found.children["t"].data.tags["sweep"] == "my sweep"
    assert found.points(found.children["t"]) == {("a", 1, 1_000, 1.0): 1}
    assert found.children["v"].info.status == "FINISHED"


def test_whose_fault_an_error_is(embedded_store: str) -> None:
    runs = MlflowRuns(embedded_store, "faults", "k")
    runs.put(opening(PARENT), opening("t"))
    MlflowClient(embedded_store).delete_run(runs.run_ids["t"])
    gone = Record("t", "folder", {"checkpoint": "/nowhere/at/all", "folder": "bundle", "path": "bundle"})
    for record in (metrics("t", 1, a=1.0), gone):
        with pytest.raises((MlflowException, FileNotFoundError)) as caught:
            runs.put(record)
        assert is_refusal(caught.value)
    answer = requests.Response()
    for status, refused in ((400, True), (401, False), (404, True), (413, True), (429, False), (500, False)):
        answer.status_code = status
        assert is_refusal(requests.HTTPError(response=answer)) == refused
    assert not is_refusal(requests.exceptions.InvalidJSONError())  # a ValueError: of somebody else's making
    assert not is_refusal(OSError("disk"))


def test_a_tag_of_any_length_and_a_key_of_any_kind_are_taken(embedded_store: str, read_sweep: ReadSweep) -> None:
    runs = MlflowRuns(embedded_store, "odd", "k")
    runs.put(opening(PARENT, params={"long": "x" * 10_000}, tags={"kind": "sweep", "long": "x" * 10_000}))
    runs.put(metrics(PARENT, 1, **{"omega'·log π": 1.0, "eval/sampled/total_return_mean": 2.0}))
    parent = read_sweep(embedded_store, "odd").parent
    assert parent.data.metrics == {"omega__log _": 1.0, "eval/sampled/total_return_mean": 2.0}
    assert metric_key("a" * 300) == "a" * 250


def test_artifacts_of_an_embedded_store_lie_under_the_storage(embedded_store: str) -> None:
    runs = MlflowRuns(embedded_store, "../odd name", "k")
    runs.put(opening(PARENT))
    runs.put(Record(PARENT, "text", {"text": "hi", "path": "a.txt"}))
    folder = Path(embedded_store.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert [path.read_text() for path in folder.glob("__odd_name/*/artifacts/a.txt")] == ["hi"]
