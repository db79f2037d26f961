"""Where a sweep's results and its MLflow store lie: the defaults, and every path as an absolute one, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyarrow import fs as filesystems

from rpg_platform.spec.logins import refuse_login
from rpg_platform.spec.sweep import SweepSpec

DEFAULT_STORAGE = "~/rpg_results"
DATABASE_FILE = "mlflow.db"


class LocationError(ValueError):
    """A place that cannot hold what it is asked to; the message says what to give instead."""


def storage_path(storage: str | None) -> str:
    """A storage as the user gives it, or the default one: an absolute local path, or a URI as given."""
    text = storage or DEFAULT_STORAGE
    if "://" in text:
        return text
    try:
        return str(Path(text).expanduser().resolve())
    except (RuntimeError, OSError) as error:  # no home directory, a loop of links
        raise LocationError(f"storage={text!r}: {error}; give a path: --storage /path") from error


def file_system(storage: str) -> tuple[Any, str]:
    """The pyarrow file system of a storage, and the storage's path in it.

    Args:
        storage: absolute local path, or a URI that pyarrow knows (``s3://bucket/path``, ``gs://``, ``hdfs://``).

    Raises:
        LocationError: it is of a kind that cannot be read, or holds a login.
    """
    if "://" not in storage:
        return filesystems.LocalFileSystem(), storage.rstrip("/")
    try:
        refuse_login(storage)
    except ValueError as error:
        raise LocationError(f"storage: {error}") from None
    try:
        found: tuple[Any, str] = filesystems.FileSystem.from_uri(storage.rstrip("/"))
    except (ValueError, OSError) as error:
        raise LocationError(f"storage={storage!r}: {error}") from error
    return found


def default_tracking_uri(storage: str | Path) -> str:
    """Address of the embedded MLflow store of a storage folder: ``sqlite:///<storage>/mlflow.db``.

    Args:
        storage: a local folder, as a path or a ``file://`` URI; need not exist yet.

    Raises:
        LocationError: ``storage`` is not local: SQLite can't live in an object store; or its path holds what means
            something in an address.
    """
    text = str(storage)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    elif "://" in text:
        raise LocationError(
            f"storage: {text!r} is not a local directory and can't hold the embedded MLflow store; "
            "set tracking.uri to an MLflow server"
        )
    folder = Path(text).expanduser().resolve()
    if found := sorted(set("?#%") & set(str(folder))):
        raise LocationError(
            f"storage: {str(folder)!r} holds {' '.join(found)}, which the address of an SQLite store can't hold: "
            "rename the folder, or set tracking.uri to an MLflow server"
        )
    return f"sqlite:///{folder / DATABASE_FILE}"


def tracking_uri_of(spec: SweepSpec) -> str:
    """The MLflow store of a sweep: as its specification gives it, or the embedded one beside its results.

    Raises:
        LocationError: the storage is remote and no server is given.
    """
    if spec.tracking.uri is not None:
        return spec.tracking.uri
    storage = storage_path(spec.storage)
    if "://" in storage:
        raise LocationError(
            f"storage={storage!r} is remote: give tracking.uri, the embedded MLflow store needs a local path"
        )
    return default_tracking_uri(storage)
