"""Deletes the MLflow runs of a sweep, and the models that stand for its policies."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException

from rpg_platform.tracking.errors import short
from rpg_platform.tracking.runs import TAG_PARENT, TAG_RUN_KEY
from rpg_platform.tracking.store import check_store, embedded_database
from rpg_platform.tracking.stored import every_run

_REGISTERED_AS = "mlflow.modelVersions"  # MLflow's tag of a model that the registry has


class RemovalError(ValueError):
    """MLflow's runs can't be deleted; the message says why."""


@dataclass(frozen=True)
class Removed:
    """What became of a sweep's runs.

    Attributes:
        runs: deleted, as MLflow deletes: ``mlflow gc`` removes them for good.
        kept: trials' runs whose policy is registered, and with one of them the sweep's own.
    """

    runs: int
    kept: int


def remove_runs(tracking_uri: str, experiment: str, run_key: str, *, dry_run: bool = False) -> Removed:
    """Deletes the runs of one sweep; repeated after a failure it deletes the rest.

    Args:
        tracking_uri: MLflow's store.
        experiment: where the runs are.
        run_key: the tag that they share.
        dry_run: only counts.

    Raises:
        RemovalError: the store does not answer, or refuses.
    """
    database = embedded_database(tracking_uri)
    if database is not None and not database.exists():
        return Removed(0, 0)
    try:
        check_store(tracking_uri)
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return Removed(0, 0)
        removed = kept = 0
        runs = every_run(client, found.experiment_id, f"tags.{TAG_RUN_KEY} = '{run_key}'")
        for run in sorted(runs, key=lambda each: TAG_PARENT not in each.data.tags):  # the sweep's own last
            models = _models(client, found.experiment_id, run)
            is_sweep = TAG_PARENT not in run.data.tags
            if (is_sweep and kept) or any(_is_registered(model) for model in models):
                kept += 1
                continue
            removed += 1
            if not dry_run:
                for model in models:
                    client.delete_logged_model(model.model_id)
                client.delete_run(run.info.run_id)
        return Removed(removed, kept)
    except (MlflowException, ValueError, OSError) as error:
        raise RemovalError(f"the runs in MLflow at {tracking_uri} can't be deleted: {short(error)}") from error


def _models(client: MlflowClient, experiment_id: str, run: Run) -> list[LoggedModel]:
    try:
        return list(client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'"))
    except MlflowException as error:
        if error.error_code in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"):  # a server of version 2 has no models
            return []
        raise


def _is_registered(model: LoggedModel) -> bool:
    return bool(json.loads(model.tags.get(_REGISTERED_AS, "[]")))
