"""Reads MLflow models: ``models:/name@alias``, ``models:/name/3``, ``runs:/id/path`` and model folders.

Artifacts are downloaded and looked at; no flavour is ever loaded, as most of them unpickle. Among the artifacts this
reader looks for one policy of any other format. ``rpg export`` puts a bundle into its MLflow models, and a bundle
counts before anything that stands beside it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from rpg_platform.priors import formats
from rpg_platform.priors.files.archive import read_file
from rpg_platform.priors.formats import Format, what_is_read
from rpg_platform.priors.formats.content import Content
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError, printable
from rpg_platform.priors.origin import hash_of
from rpg_platform.priors.recognise import format_of, recognise
from rpg_platform.spec.logins import without_login
from rpg_platform.tracking.store import check_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

ReadPath = Callable[[Path, Format, ImportOptions], Imported]
MODEL_FILE = "MLmodel"
MAX_FILES, MAX_BYTES, MAX_DEPTH = 2_000, 2 << 30, 12
_MAX_MODEL_FILE_BYTES, _MAX_ALIASES = 4_000_000, 16


class _Loader(yaml.SafeLoader):
    """Loads plain data with few aliases: many can unfold to anything, and MLflow itself writes two at most."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _MAX_ALIASES:
                raise yaml.YAMLError(f"more than {_MAX_ALIASES} aliases")
        return super().compose_node(parent, index)


def read(source: Path | str, options: ImportOptions, read_path: ReadPath, store: Callable[[], str]) -> Imported:
    """Reads the policy in an MLflow model's folder or behind an MLflow address.

    Args:
        source: the folder, or the text ``models:/…``, ``runs:/…`` or ``mlflow-artifacts:/…``.
        options: as for any reader.
        read_path: reads the file or folder in it that is a policy.
        store: gives the address of the store of runs and models.

    Raises:
        PriorImportError: nothing is there, it is too large, or it holds nothing that is read, or several policies.
    """
    if isinstance(source, str):
        return _read_address(source, options, read_path, store())
    if not (source / MODEL_FILE).is_file():
        raise PriorImportError(f"{source}: no MLflow model there (expected a file {MODEL_FILE})")
    return _read_artifacts(source, options, read_path, str(source))


def _read_address(address: str, options: ImportOptions, read_path: ReadPath, tracking_uri: str) -> Imported:
    from mlflow.exceptions import MlflowException

    try:
        uri, found = _locate(address, tracking_uri)
        with tempfile.TemporaryDirectory(prefix="rpg-import-") as folder:
            fetched = _download(uri, tracking_uri, Path(folder), address)
            imported = _read_artifacts(fetched, options, read_path, address)
            facts = {**imported.facts, **found, "sha256": hash_of(fetched)}
    except MlflowException as error:
        store = without_login(tracking_uri)
        raise PriorImportError(f"{address}: {without_login(str(error))[:500]} (MLflow store: {store})") from error
    return replace(imported, facts=facts)


def _read_artifacts(path: Path, options: ImportOptions, read_path: ReadPath, shown: str) -> Imported:
    """Reads the policy in a folder of artifacts, or in one file; messages call it ``shown``."""
    if path.is_file():
        return read_path(path, recognise(path), options)
    flavours, about = _model_file(path, shown)
    found = sorted(_candidates(path, flavours, shown), key=lambda each: (each[0].name, each[1]))
    bundles = [each for each in found if each[0].name == "bundle"]
    chosen = bundles or found
    names = ", ".join(f"{str(each.relative_to(path)) or '.'} ({form.name})" for form, each in chosen[:8])
    if len(chosen) > 1:
        raise PriorImportError(f"{shown}: holds several policies: {names}; name one of them by its own path")
    if not chosen:
        raise PriorImportError(f"{shown}: {_why_nothing(path, flavours)}; read are {what_is_read()}")
    form, file = chosen[0]
    try:
        imported = read_path(file, form, options)
    except PriorImportError as error:
        raise PriorImportError(str(error).replace(str(path), shown)) from error
    return replace(imported, format=f"mlflow/{imported.format}", facts={**about, **imported.facts})


# ---- what a folder holds ------------------------------------------------------------------------
def _model_file(folder: Path, shown: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads an MLmodel file: its flavours, and the facts worth keeping; both are empty where there is no such file."""
    file = folder / MODEL_FILE
    if not file.is_file():
        return {}, {}
    try:
        data = yaml.load(read_file(file, _MAX_MODEL_FILE_BYTES), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, PriorImportError):
            raise
        raise PriorImportError(f"{shown}: {MODEL_FILE}: not YAML: {str(error)[:200]}") from error
    if not isinstance(data, dict) or not isinstance(data.get("flavors"), dict):
        raise PriorImportError(f"{shown}: {MODEL_FILE} names no flavours; expected that of an MLflow model")
    flavours = {str(name): value if isinstance(value, dict) else {} for name, value in data["flavors"].items()}
    kept = {key: data.get(key) for key in ("mlflow_version", "run_id", "model_uuid", "utc_time_created")}
    return flavours, {"mlflow": {k: printable(str(v)[:100]) for k, v in kept.items() if isinstance(v, str | float)}}


def _candidates(folder: Path, flavours: dict[str, Any], shown: str) -> Iterator[tuple[Format, Path]]:
    pickled = _pickled_modules(folder, flavours)
    markers = {each.marker for each in formats.FORMATS if "read_path" not in each.needs}
    count = 0
    for here, folders, files in os.walk(folder):
        count += len(files)
        if count > MAX_FILES:
            raise PriorImportError(f"{shown}: more than the {MAX_FILES} files that are looked at")
        place = Path(here)
        if markers.intersection(files):
            folders.clear()  # its files are parts of one thing
            yield recognise(place), place
            continue
        for name in files:
            file = place / name
            found = None if file.is_symlink() else _format_of_file(file)
            if found is not None and not (found.name == "state-dict" and file in pickled):
                yield found, file


def _format_of_file(file: Path) -> Format | None:
    """Tells the format of a file; None where it has none, or is damaged."""
    try:
        return format_of(Content(file))
    except PriorImportError:
        return None


def _pickled_modules(folder: Path, flavours: dict[str, Any]) -> set[Path]:
    """Lists the files where MLflow's pytorch flavour pickles whole modules (or keeps TorchScript so named)."""
    data = flavours.get("pytorch", {}).get("model_data", "data")
    if not isinstance(data, str) or PurePosixPath(data).is_absolute() or ".." in PurePosixPath(data).parts:
        return set()
    return {folder / data / name for name in ("model.pth", "extra_files/model.pth")}


def _why_nothing(folder: Path, flavours: dict[str, Any]) -> str:
    advice = "log it as ONNX, or as TorchScript (mlflow.pytorch.log_model of torch.jit.script(module))"
    if "pytorch" in flavours and any((folder / "data").glob("*.pt2")):
        return f"its pytorch flavour is a program of torch.export (.pt2), which is not read; {advice}"
    if "pytorch" in flavours:
        return (
            "its pytorch flavour is a pickled module, which cannot be loaded without executing what it says; " + advice
        )
    if flavours:
        return f"no policy in a readable format among its files (flavours: {', '.join(sorted(flavours))[:200]})"
    return "no policy in a readable format among its files"


# ---- where an address leads ---------------------------------------------------------------------
def _locate(address: str, tracking_uri: str) -> tuple[str, dict[str, Any]]:
    """Finds the artifacts' own address, and what the store says of them, for the card."""
    from mlflow import MlflowClient

    try:
        check_store(tracking_uri)
    except ValueError as error:
        raise PriorImportError(
            f"{address}: {error}. Name the store with --tracking-uri or the variable MLFLOW_TRACKING_URI"
        ) from error
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    if address.startswith("runs:/"):
        match = re.fullmatch(r"runs:/([0-9a-zA-Z_-]{1,256})(?:/(.+))?", address)
        if match is None:
            raise PriorImportError(f"{address}: expected runs:/RUN_ID/path")
        root = client.get_run(match[1]).info.artifact_uri
        return _join(root, match[2] or "", address), {"run_id": match[1]}
    if address.startswith("models:/"):
        return _model(client, address)
    return address, {}


def _model(client: MlflowClient, address: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"models:/(?P<name>[^/@:]{1,256})(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))", address)
    if match is None:
        identifier = re.fullmatch(r"models:/(m-[0-9a-zA-Z]{1,128})", address)
        if identifier is None:
            raise PriorImportError(f"{address}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        logged = client.get_logged_model(identifier[1])
        return logged.artifact_location, {"model_id": identifier[1]}
    if match["alias"] is not None:
        version = client.get_model_version_by_alias(match["name"], match["alias"])
    else:
        version = client.get_model_version(match["name"], match["version"])
    facts: dict[str, Any] = {"model": match["name"], "version": str(version.version)}
    facts |= {"alias": match["alias"]} if match["alias"] is not None else {}
    facts |= {"run_id": version.run_id} if version.run_id else {}
    uri = client.get_model_version_download_uri(match["name"], str(version.version))
    if uri.startswith("models:/m-"):
        uri = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return uri, facts


def _join(root: str, path: str, address: str) -> str:
    if ".." in PurePosixPath(path).parts:
        raise PriorImportError(f"{address}: points outside of the run's artifacts")
    return root.rstrip("/") + (f"/{path}" if path else "")


def _download(artifact_uri: str, tracking_uri: str, folder: Path, address: str) -> Path:
    """Fetches a folder or file of artifacts after checking its size."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    root, _, name = artifact_uri.rstrip("/").rpartition("/")
    repository = get_artifact_repository(root, tracking_uri=tracking_uri, registry_uri=tracking_uri)
    _check_size(repository, name, address)
    fetched = Path(repository.download_artifacts(name, dst_path=str(folder)))  # type: ignore[no-untyped-call]
    files = [each for each in ([fetched] if fetched.is_file() else fetched.rglob("*")) if each.is_file()]
    if sum(each.stat().st_size for each in files) > MAX_BYTES:
        raise PriorImportError(f"{address}: more than the {MAX_BYTES} bytes that are read")
    return fetched


def _check_size(repository: ArtifactRepository, name: str, address: str) -> None:
    pending, files, size = [(name, 0)], 0, 0
    while pending:
        path, depth = pending.pop()
        for each in repository.list_artifacts(path):
            if each.is_dir:
                pending.append((each.path, depth + 1))
            files, size = files + 1, size + int(each.file_size or 0)
            if files > MAX_FILES or size > MAX_BYTES or depth > MAX_DEPTH:
                raise PriorImportError(
                    f"{address}: holds more than the {MAX_FILES} files, {MAX_BYTES} bytes or {MAX_DEPTH} levels of "
                    "folders that are read"
                )
