"""One LoggedModel a policy: a row of the experiment's table of models, with figures, weights and line of parents.

A record of a policy may be sent any number of times, whole or cut off: the model is looked up by its run and the hash
of its policy before it is made, is filled with what it lacks, and is marked as ready last. Its figures are the run's
own points, so that sending them adds none to the run. Nothing here removes a model that is ready.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from rpg_platform.results.names import run_name
from rpg_platform.results.report import HEADLINE, KEPT
from rpg_platform.tracking.run_tags import texts, trial_params

logger = logging.getLogger(__name__)

TAG_HASH = "content_hash"
TAG_POLICY = "policy_of"
"""Of a model that stands for a trial's policy: the trial's id. Other models of its run are the user's."""
MODEL_TYPE = "policy"
_MAX_CHARS = 5_000
_FIGURES = (*HEADLINE, KEPT)


def models_of(client: MlflowClient, experiment_id: str, run_id: str, content_hash: str) -> list[LoggedModel]:
    """The models of a run that stand for one policy, the oldest first."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=100)
    same = [each for each in found if TAG_POLICY in each.tags and each.tags.get(TAG_HASH) == content_hash]
    return sorted(same, key=lambda each: (each.creation_timestamp, each.model_id))


def lineage_of(card: bytes) -> dict[str, str]:
    """The tags that say which policy a bundle's card is of, and of which it was made, the nearest first.

    Raises:
        ValueError: it is no card.
    """
    content = json.loads(card)
    try:
        hash_, parents = content[TAG_HASH], content.get("parents", [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the policy's card has no content hash") from error
    tags = {TAG_HASH: str(hash_), "parents": ",".join(parents), "prior_hash": parents[0] if parents else ""}
    return {name: value[:_MAX_CHARS] for name, value in tags.items() if value}


class PolicyModels:
    """Writes the models of one sweep's policies."""

    def __init__(self) -> None:
        self._unanswered: set[str] = set()  # runs for which a model was asked and no answer came
        self._warned = False

    def put(self, client: MlflowClient, experiment_id: str, run_id: str, data: Mapping[str, Any], card: bytes) -> None:
        """Makes the model of a policy, or completes it.

        Args:
            client: of the store.
            experiment_id: of the sweep.
            run_id: of the trial.
            data: ``name``, ``params`` and ``tags``.
            card: of the policy's bundle.
        """
        lineage = lineage_of(card)
        run = client.get_run(run_id)
        try:
            known = models_of(client, experiment_id, run_id, lineage[TAG_HASH])
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            if not self._warned:
                logger.warning("tracking: this MLflow server keeps no models (version 3 does): no table of policies")
            self._warned = True
            return
        if known:
            model = next((each for each in known if each.status == LoggedModelStatus.READY), known[0])
        else:
            model = self._make(client, experiment_id, run_id, data, lineage)
        if model.model_id not in {each.model_id for each in (run.outputs.model_outputs if run.outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        has = {(each.key, each.step, each.value) for each in model.metrics or []}
        figures = [each for each in run.data._metric_objs if each.key in _FIGURES]  # with steps and times
        missing = [
            Metric(each.key, each.value, each.timestamp, each.step, model_id=model.model_id)
            for each in figures
            if (each.key, each.step, each.value) not in has
        ]
        client.log_batch(run_id, missing, synchronous=True)
        if model.status != LoggedModelStatus.READY:
            model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if run_id in self._unanswered or len(known) > 1:
            self._remove_strays(client, experiment_id, run_id, model)

    def _make(
        self,
        client: MlflowClient,
        experiment_id: str,
        run_id: str,
        data: Mapping[str, Any],
        lineage: Mapping[str, str],
    ) -> LoggedModel:
        doubtful = run_id in self._unanswered
        self._unanswered.add(run_id)
        made = client.create_logged_model(
            experiment_id,
            model_name(data["name"]),
            run_id,
            tags={name: str(value)[:_MAX_CHARS] for name, value in {**data["tags"], **lineage}.items()},
            params={name: str(value)[:_MAX_CHARS] for name, value in data["params"].items()},
            model_type=MODEL_TYPE,
        )
        if not doubtful:
            self._unanswered.discard(run_id)
        return made

    def _remove_strays(self, client: MlflowClient, experiment_id: str, run_id: str, model: LoggedModel) -> None:
        """Removes an empty second model, which a request made whose answer was lost."""
        for each in models_of(client, experiment_id, run_id, model.tags[TAG_HASH]):
            if each.model_id != model.model_id and each.status == LoggedModelStatus.PENDING:
                client.delete_logged_model(each.model_id)
        self._unanswered.discard(run_id)


def policy_data(spec: Mapping[str, Any], searched: Sequence[str], sweep: str, env_steps: int) -> dict[str, Any]:
    """What is recorded of a trial's policy beside where its bundle lies.

    Args:
        spec: the trial's specification, as data.
        searched: the training settings in which trials differ.
        sweep: its sweep's name.
        env_steps: how far it was trained.
    """
    tags = {TAG_POLICY: spec["trial_id"], "sweep": sweep, "trained_env_steps": env_steps}
    return {"name": run_name(spec, searched), "params": texts(trial_params(spec, searched)), "tags": tags}


def model_name(name: str) -> str:
    """A run's name as MLflow takes it for a model: without ``. / : % ' "``; a decimal point becomes a comma."""
    return name.replace(".", ",").translate({ord(each): "_" for each in "/:%'\""})
