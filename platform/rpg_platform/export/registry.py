"""Promotes a policy: makes a version in MLflow's model registry, with an alias, its lineage and a link to its run.

It uses only MLflow's client, and gives it the store's address each time, so MLflow's global state stays unchanged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpg_algorithms.policies.bundle import CARD_FILE, PriorCard, load_bundle
from rpg_platform.export import mlflow_model
from rpg_platform.export.policy import Mode, Precision
from rpg_platform.priors.ancestry import lineage_text, weights_text
from rpg_platform.spec.logins import without_login
from rpg_platform.storage.location import DEFAULT_STORAGE, default_tracking_uri, tracking_uri_of
from rpg_platform.storage.sweep_folder import SPEC_FILE, SweepFolder
from rpg_platform.tracking.policies import MODEL_TYPE, models_of
from rpg_platform.tracking.store import ARTIFACT_FOLDER, check_store, embedded_database
from rpg_platform.tracking.variables import NO_PROGRESS_BARS, variables

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

EXPERIMENT = "promoted"
TRIAL_BUNDLES = ("bundle", "bundle_best")  # the folders of a trial's last and best policy
_ALIAS = re.compile(r"(?!v\d+$)(?!latest$)[A-Za-z0-9_-]{1,255}", re.IGNORECASE)
_CANDIDATES = 50
_MAX_TAG = 5_000
_VERSIONS = "mlflow.modelVersions"


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    Attributes:
        name, version, alias: the registered version.
        created: True if the version is new; otherwise the policy had been registered before and only the alias moved.
        run_id: the MLflow run that trained the policy; None if the store has no such run.
        tracking_uri: the store.
    """

    name: str
    version: str
    alias: str
    created: bool
    run_id: str | None
    tracking_uri: str

    @property
    def uri(self) -> str:
        """Address of the model for ``mlflow.pyfunc.load_model`` and ``rpg priors import``."""
        return f"models:/{self.name}@{self.alias}"


def promote(
    source: Path,
    name: str,
    alias: str,
    tracking_uri: str,
    mode: Mode = "distribution",
    precision: Precision = "float64",
) -> Promotion:
    """Registers a policy under ``name``, once for each content hash, and points ``alias`` to it.

    Args:
        source: the bundle's folder.
        name: the registered model, which is made if it is missing.
        alias: is moved to this version, from another version that has it.
        tracking_uri: the store of runs and models, which must exist.
        mode: ``deterministic`` leaves the distribution's parameters out.
        precision: see ``policy``.

    Raises:
        ValueError: MLflow does not take the name or alias, there is no store, or the bundle is damaged.
    """
    from mlflow import MlflowClient

    _check_names(name, alias)
    card = load_bundle(source).card
    check_store(tracking_uri)
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    with _refused(tracking_uri):
        version = _registered(client, name, card)
        created = version is None
        if version is None:
            version = _register(client, source, card, name, tracking_uri, mode, precision)
        client.set_registered_model_alias(name, alias, version.version)
    return Promotion(name, str(version.version), alias, created, version.run_id or None, without_login(tracking_uri))


def default_store(source: Path, sweep: SweepFolder | None = None) -> str:
    """Returns the store that recorded the policy's sweep, or else the store of the default storage.

    Args:
        source: the bundle's folder, which may lie in that of the sweep.
        sweep: the sweep, where it is known.

    Raises:
        SweepFolderError: the sweep's specification is damaged.
    """
    if sweep is None:
        here = next((folder for folder in source.parents if (folder / SPEC_FILE).is_file()), None)
        sweep = None if here is None else SweepFolder(str(here.parent), here.name)
    return default_tracking_uri(DEFAULT_STORAGE) if sweep is None else tracking_uri_of(sweep.spec())


def find_run(client: MlflowClient, card: PriorCard) -> Run | None:
    """Finds the run of the trial that made a policy: by its tags, and only if its bundle is exactly this policy."""
    trial, sweep = card.made_by.get("trial"), card.made_by.get("sweep")
    if not all(isinstance(each, str) and each and "'" not in each for each in (trial, sweep)):
        return None
    query = f"tags.trial_id = '{trial}' and tags.sweep = '{sweep}'"
    experiments = [each.experiment_id for each in client.search_experiments()]
    for run in client.search_runs(experiments, query, max_results=_CANDIDATES):
        if any(_left_bundle(client, run.info.run_id, each) == card.content_hash for each in TRIAL_BUNDLES):
            return run
    return None


def lineage_tags(card: PriorCard) -> dict[str, str]:
    """Returns the tags of a version, which say in single lines: prior → weights → result."""
    nearest = card.lineage[0] if card.lineage else None
    made = card.made_by
    weights = made.get("weights")
    tags: dict[str, Any] = {
        "content_hash": card.content_hash,
        "policy": card.name,
        "env_id": card.env_id,
        "task": made.get("task"),
        "method": made.get("method"),
        "weights": weights_text(weights) if isinstance(weights, Mapping) else None,
        "alpha": card.alpha,
        "seed": made.get("seed"),
        "sweep": made.get("sweep"),
        "trial": made.get("trial"),
        "prior": nearest.name if nearest else None,
        "prior_hash": card.parents[0] if card.parents else None,
        "parents": ",".join(card.parents),
        **{f"return/{key}": f"{value.mean:.6g}" for key, value in sorted(card.returns.items())},
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in tags.items()}
    return {key: texts[key][:_MAX_TAG] for key, value in tags.items() if value not in (None, "")}


def _registered(client: MlflowClient, name: str, card: PriorCard) -> ModelVersion | None:
    """Returns the version of ``name`` that is exactly this policy, if there is one."""
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        for version in page:
            if version.tags.get("content_hash") == card.content_hash and version.status == "READY":
                return version
        token = page.token
        if not token:
            return None


def _register(
    client: MlflowClient,
    source: Path,
    card: PriorCard,
    name: str,
    tracking_uri: str,
    mode: Mode,
    precision: Precision,
) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput

    run, tags = find_run(client, card), lineage_tags(card)
    experiment = run.info.experiment_id if run else _experiment(client, tracking_uri)
    run_id = run.info.run_id if run else None
    logged = None if run is None else _model_of_the_sweep(client, run, card, mode, precision)
    is_new = logged is None
    if logged is None:
        logged = client.create_logged_model(experiment, name, run_id, tags=tags, model_type=MODEL_TYPE)
    if not _holds(logged, mode, precision):
        _fill(client, logged, source, run_id, mode, precision, is_new=is_new)
        client.set_logged_model_tags(logged.model_id, tags | {"mode": mode, "precision": precision})
    if is_new:
        client.finalize_logged_model(logged.model_id, "READY")
        if run_id is not None:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    with _already_there():
        client.create_registered_model(name)
    # Without a server MLflow looks models:/… and model ids up in its global store, which need not be this one.
    server = tracking_uri.startswith("http")
    version = client.create_model_version(
        name,
        f"models:/{logged.model_id}" if server else logged.artifact_location,
        run_id,
        tags=tags | {"mode": mode, "precision": precision},
        description=lineage_text(card),
        model_id=logged.model_id if server else None,
    )
    # As MLflow's own registration writes it.
    links = [*json.loads(logged.tags.get(_VERSIONS, "[]")), {"name": name, "version": version.version}]
    client.set_logged_model_tags(logged.model_id, {_VERSIONS: json.dumps(links)})
    return version


def _model_of_the_sweep(
    client: MlflowClient, run: Run, card: PriorCard, mode: Mode, precision: Precision
) -> LoggedModel | None:
    """The model that the policy's sweep recorded; None where there is none, or it holds the policy in another way."""
    models = models_of(client, run.info.experiment_id, run.info.run_id, card.content_hash)
    free = [each for each in models if each.status == "READY" and not {"mode", "precision"} & set(each.tags)]
    return next((each for each in models if _holds(each, mode, precision)), free[0] if free else None)


def _holds(model: LoggedModel, mode: Mode, precision: Precision) -> bool:
    """Whether a model's artifacts are whole: they are tagged when they are."""
    return (model.tags.get("mode"), model.tags.get("precision")) == (mode, precision)


def _fill(
    client: MlflowClient,
    logged: LoggedModel,
    source: Path,
    run_id: str | None,
    mode: Mode,
    precision: Precision,
    *,
    is_new: bool,
) -> None:
    """Uploads the policy as the artifacts of a model; a new one that fails is marked as failed."""
    from mlflow.models import Model

    try:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "model"
            record = Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            )
            mlflow_model.save(source, folder, mode, precision, record)
            client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        if is_new:
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise


def _experiment(client: MlflowClient, tracking_uri: str) -> str:
    """Returns the experiment for policies that no run of this store made; makes it if it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise ValueError(f"experiment {EXPERIMENT!r} of the store is deleted; restore it")
        return str(found.experiment_id)
    database = embedded_database(tracking_uri)
    # A client of a local store would otherwise put artifacts below the working directory.
    location = (database.parent / ARTIFACT_FOLDER / EXPERIMENT).as_uri() if database else None
    return str(client.create_experiment(EXPERIMENT, location))


def _left_bundle(client: MlflowClient, run_id: str, folder: str) -> str | None:
    """Returns the content hash of a bundle among a run's artifacts; None if there is none or it cannot be read."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as local, variables(NO_PROGRESS_BARS):
        try:
            file = client.download_artifacts(run_id, f"{folder}/{CARD_FILE}", local)
            card = json.loads(Path(file).read_bytes())
        except (MlflowException, OSError, ValueError) as error:
            logger.debug("run %s has no bundle that can be read: %s", run_id, error)
            return None
    return card.get("content_hash") if isinstance(card, dict) else None


def _check_names(name: str, alias: str) -> None:
    if not name.strip() or re.search(r"[/:'\"]", name):
        raise ValueError(f"name={name!r}: expected a name without slash, colon or quotes")
    if not _ALIAS.fullmatch(alias):
        raise ValueError(
            f"alias={alias!r}: expected letters, digits, _ and -, and neither 'latest' nor 'v' with a number"
        )


@contextlib.contextmanager
def _already_there() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextlib.contextmanager
def _refused(tracking_uri: str) -> Iterator[None]:
    """Turns an error of the store into a ``ValueError`` that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise ValueError(f"{without_login(tracking_uri)}: {without_login(str(error))}") from error
