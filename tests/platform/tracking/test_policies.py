"""One model a policy in a real store, wherever its record is cut off and however often it is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from tests.platform.records import CARD, closing, metrics, opening

from rpg_platform.tracking.policies import model_name
from rpg_platform.tracking.runs import PARENT, MlflowRuns, Record

CALLS = (
    "get_run",
    "search_logged_models",
    "create_logged_model",
    "log_outputs",
    "log_batch",
    "finalize_logged_model",
)
FIGURES = {"total": 3.0, "basic": 5.0, "addon": -2.0, "kl": 0.5}


class Cut(Exception):  # noqa: N818 - stands for a kill
    pass


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (tmp_path / "checkpoint" / "bundle").mkdir(parents=True)
    (tmp_path / "checkpoint" / "bundle" / "card.json").write_text(CARD)
    data: dict[str, Any] = {"checkpoint": str(tmp_path / "checkpoint"), "folder": "bundle", "path": "model"}
    data |= {"name": "ω′ 0.2 · seed 0", "params": {"omega_prime": "0.2"}, "tags": {"policy_of": "t", "sweep": "s"}}
    return Record("t", "policy", data)


def runs_at(uri: str, experiment: str) -> MlflowRuns:
    runs = MlflowRuns(uri, experiment, "k")
    runs.expect_earlier_runs()
    return runs


def models(uri: str, runs: MlflowRuns) -> list[LoggedModel]:
    found = MlflowClient(uri).search_logged_models([str(runs.experiment_id)], max_results=10)
    return list(found)


def cut_at(patch: pytest.MonkeyPatch, name: str, *, answered: bool) -> None:
    """The call of that name does nothing, or does its work and its answer is lost; and nothing comes after it."""
    real: Callable[..., Any] = getattr(MlflowClient, name)

    def cut(*arguments: Any, **named: Any) -> Any:
        if answered:
            real(*arguments, **named)
        raise Cut

    patch.setattr(MlflowClient, name, cut)


@pytest.mark.parametrize("same_process", [True, False])
def test_a_policy_that_is_cut_off_anywhere_is_one_whole_model(
    embedded_store: str, record: Record, monkeypatch: pytest.MonkeyPatch, same_process: bool
) -> None:
    for answered in (False, True):
        for call in CALLS:
            name = f"cut-{same_process}-{call}-{answered}"
            runs = runs_at(embedded_store, name)
            runs.put(opening(PARENT), opening("t"), metrics("t", 100, **FIGURES))
            with monkeypatch.context() as patch:
                cut_at(patch, call, answered=answered)
                with pytest.raises(Cut):
                    runs.put(record)
            again = runs if same_process else runs_at(embedded_store, name)
            again.put(record)
            again.put(metrics("t", 100, kept_pct=90.0), record, closing("t"), record)  # its share is known later
            [model] = models(embedded_store, again)
            assert model.status == "READY"
            assert {each.key: each.value for each in model.metrics or []} == {**FIGURES, "kept_pct": 90.0}, name
            run = MlflowClient(embedded_store).get_run(again.run_ids["t"])
            assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
            for key, value in FIGURES.items():
                history = MlflowClient(embedded_store).get_metric_history(run.info.run_id, key)
                assert [(each.step, each.value) for each in history] == [(100, value)]
    assert (model.name, model.params) == ("ω′ 0,2 · seed 0", {"omega_prime": "0.2"})
    assert (model.tags["content_hash"], model.tags["prior_hash"]) == ("c" * 64, "b" * 64)
    assert model.tags["parents"] == f"{'b' * 64},{'a' * 64}"


def test_a_policy_that_was_trained_further_is_another_one(embedded_store: str, record: Record) -> None:
    runs = runs_at(embedded_store, "further")
    runs.put(opening(PARENT), opening("t"), metrics("t", 100, total=1.0), record)
    card = Path(record.data["checkpoint"]) / "bundle" / "card.json"
    card.write_text(CARD.replace("c" * 64, "d" * 64))
    runs.put(metrics("t", 200, total=2.0), record)
    found = {model.tags["content_hash"][0]: model for model in models(embedded_store, runs)}
    assert {key: [each.value for each in model.metrics or []] for key, model in found.items()} == {
        "c": [1.0],
        "d": [2.0],
    }


def test_a_card_that_is_none_is_refused_at_once(embedded_store: str, record: Record) -> None:
    runs = runs_at(embedded_store, "damaged-policies")
    (Path(record.data["checkpoint"]) / "bundle" / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="has no content hash"):
        runs.put(opening(PARENT), opening("t"), record)
    assert models(embedded_store, runs) == []


def test_names_are_such_as_mlflow_takes() -> None:
    assert model_name("kl β 0.1 · lr='1e-4'/x") == "kl β 0,1 · lr=_1e-4__x"
