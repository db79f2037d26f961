"""A sweep as MLflow has it: its runs, their artifacts, and the histories of their metrics, many runs a request."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request

from rpg_platform.spec.logins import without_login
from rpg_platform.tracking.runs import TAG_RUN_KEY, TAG_TRIAL_ID
from rpg_platform.tracking.store import check_store
from rpg_platform.tracking.variables import NO_PROGRESS_BARS, variables
from rpg_platform.wording import suggestion

_HISTORIES = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"  # of MLflow's own page; no client has it
_RUNS_AT_ONCE, _POINTS_AT_ONCE = 100, 25_000  # what a server takes and gives
_PAGE = 1_000

Series = Mapping[int, float]
"""Step → value."""


class StoreError(ValueError):
    """A sweep that a store does not have, or a store that does not answer; the message says what to do."""


@dataclass(frozen=True)
class StoredSweep:
    """One sweep's runs.

    Attributes:
        client: of the store.
        uri: of the store, without a login.
        parent: the sweep's own run.
        trials: trial id → its run, the first first.
    """

    client: MlflowClient
    uri: str
    parent: Run
    trials: Mapping[str, Run]

    def artifact(self, path: str, trial_id: str | None = None) -> bytes | None:
        """A file among the artifacts of a trial's run, or of the sweep's own; None if it is not there."""
        run = self.parent if trial_id is None else self.trials[trial_id]
        with tempfile.TemporaryDirectory() as local, variables(NO_PROGRESS_BARS):
            try:
                return Path(self.client.download_artifacts(run.info.run_id, path, local)).read_bytes()
            except (MlflowException, OSError):
                return None

    def histories(self, key: str, trial_ids: Iterable[str]) -> dict[str, Series]:
        """Trial id → every point of one metric, of the trials that have it."""
        ids = {run.info.run_id: name for name in trial_ids if key in (run := self.trials[name]).data.metrics}
        found: defaultdict[str, dict[int, float]] = defaultdict(dict)
        every = list(ids)
        for start in range(0, len(every), _RUNS_AT_ONCE):
            for run_id, step, value in self._points(key, every[start : start + _RUNS_AT_ONCE]):
                found[ids[run_id]].setdefault(step, value)
        return dict(found)

    def _points(self, key: str, run_ids: Sequence[str]) -> list[tuple[str, int, float]]:
        """(run id, step, value) of every point, the earliest of a run first."""
        if len(run_ids) > 1:
            found = self._in_bulk(key, run_ids)
            if found is not None and len(found) < _POINTS_AT_ONCE:
                return found
            half = len(run_ids) // 2  # there are more than one answer holds
            return [*self._points(key, run_ids[:half]), *self._points(key, run_ids[half:])]
        history = self.client.get_metric_history(run_ids[0], key)
        return [(run_ids[0], each.step, each.value) for each in sorted(history, key=lambda each: each.timestamp)]

    def _in_bulk(self, key: str, run_ids: Sequence[str]) -> list[tuple[str, int, float]] | None:
        """The same in one request; None where the store can't."""
        store: Any = self.client._tracking_client.store
        if hasattr(store, "get_metric_history_bulk"):
            made = store.get_metric_history_bulk(run_ids, key, _POINTS_AT_ONCE)
            return [(each.run_id, each.step, each.value) for each in made]
        query = [*(("run_id", each) for each in run_ids), ("metric_key", key), ("max_results", _POINTS_AT_ONCE)]
        answer = http_request(store.get_host_creds(), _HISTORIES, "GET", params=query)  # type: ignore[no-untyped-call]
        if answer.status_code != 200:
            return None
        return [(each["run_id"], int(each["step"]), float(each["value"])) for each in answer.json()["metrics"]]


def find_sweep(client: MlflowClient, sweep: str | None = None) -> Run | None:
    """The run of a sweep; None if the store has none at all.

    Args:
        client: of the store.
        sweep: its name; None: the sweep that began last. Of several of one name it is the last one.

    Raises:
        StoreError: the store has sweeps, but none of this name, with the nearest names.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    wanted = "" if sweep is None else f" and tags.sweep = '{sweep}'"
    latest = ["attributes.start_time DESC"]
    found = client.search_runs(experiments, f"tags.kind = 'sweep'{wanted}", max_results=1, order_by=latest)
    if not found and sweep is not None:
        runs = client.search_runs(experiments, "tags.kind = 'sweep'", max_results=_PAGE, order_by=latest)
        names = dict.fromkeys(run.data.tags.get("sweep", "") for run in runs)
        raise StoreError(f"there is no sweep {sweep!r} in this store{suggestion(sweep, names)}")
    return found[0] if found else None


def every_run(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    """The runs of an experiment that a query finds, the first to start first, in a request for a thousand."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], query, max_results=_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def stored_sweep(uri: str, name: str) -> StoredSweep:
    """Reads the runs of a sweep, in a request for a thousand trials.

    Args:
        uri: of the store, with its login if it needs one.
        name: the sweep's.

    Raises:
        StoreError: there is no such sweep, or the store does not answer.
        ValueError: there is no store at the address.
    """
    check_store(uri)
    client = MlflowClient(uri)
    try:
        parent = find_sweep(client, name)
        assert parent is not None  # a name that is not there is refused
        query = f"tags.{TAG_RUN_KEY} = '{parent.data.tags[TAG_RUN_KEY]}' and tags.kind = 'trial'"
        trials: dict[str, Run] = {}
        for run in every_run(client, parent.info.experiment_id, query):
            trials.setdefault(run.data.tags[TAG_TRIAL_ID], run)
        return StoredSweep(client, without_login(uri), parent, trials)
    except MlflowException as error:
        raise StoreError(f"{without_login(uri)}: {without_login(str(error))}") from error
