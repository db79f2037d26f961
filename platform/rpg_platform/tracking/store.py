"""Where MLflow's stores are: addresses, the embedded store beside a sweep's results, and whether one answers.

Importing this module does not import MLflow, which takes seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from rpg_platform.spec.logins import take_login, without_login
from rpg_platform.storage.cache import cache_folder

ARTIFACT_FOLDER = "mlartifacts"
_HEALTH_LIMIT_S = 10.0
_BUSY_S = 30.0
_ADDRESSES = (  # where MLflow's schema has addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
logger = logging.getLogger(__name__)


def embedded_database(tracking_uri: str) -> Path | None:
    """The SQLite file behind a tracking URI, or None if it is not SQLite."""
    prefix = "sqlite:///"
    if not tracking_uri.startswith(prefix):
        return None
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]).resolve()


def create_embedded_store(database: Path) -> bool:
    """Makes the SQLite file with MLflow's schema if it is not there yet.

    MLflow takes some seconds to make its schema, so the first empty store is kept in ``~/.cache/rpg/mlflow/``, one for
    each version of MLflow, and the next ones are copies of it. The file appears complete or not at all, so that neither
    a kill in the middle nor a second sweep that starts at the same moment leaves half a schema.

    Args:
        database: where the file belongs; its folder is made.

    Returns:
        Whether this call made it.
    """
    if database.exists() and database.stat().st_size > 0:
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f".{database.name}.{uuid4().hex}.new")
    artifacts = (database.parent / ARTIFACT_FOLDER).as_uri()
    kept = cache_folder("mlflow") / f"{version('mlflow')}.db"
    try:
        if not _copied(kept, unfinished, artifacts):
            unfinished.unlink(missing_ok=True)
            _make_schema(unfinished, artifacts)
            _keep(unfinished, kept)
        if database.exists() and database.stat().st_size == 0:
            database.unlink()
        try:
            os.link(unfinished, database)
        except FileExistsError:  # another sweep was faster, and its file is as good
            return False
        except OSError:  # a file system without hard links
            if database.exists():
                return False
            unfinished.replace(database)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _make_schema(database: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # seconds

    with _quiet("alembic", "mlflow.store.db.utils"):
        store: Any = SqlAlchemyStore  # untyped in MLflow
        store(f"sqlite:///{database}", artifacts).engine.dispose()


def _copied(kept: Path, database: Path, artifacts: str) -> bool:
    """Copies the empty store that was kept and gives it its place for artifacts; False if there is no sound one."""
    try:
        shutil.copyfile(kept, database)
        with contextlib.closing(sqlite3.connect(database)) as store, store:
            if store.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                return False
            place = store.execute("UPDATE experiments SET artifact_location = ?", (f"{artifacts}/0",))
            return place.rowcount == 1  # MLflow's own experiment 0
    except (OSError, sqlite3.Error):
        return False


def _keep(database: Path, kept: Path) -> None:
    """Keeps an empty store for the next ones; what cannot be written is not kept."""
    part = kept.with_name(f".{kept.name}.{uuid4().hex}.part")
    with contextlib.suppress(OSError):
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(database, part)
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)


def follow_move(database: Path) -> None:
    """Lets the artifacts of an embedded store be found where its folder lies now.

    MLflow keeps their addresses as absolute ones, so in a folder that was copied or moved they name the old place, and
    a resumed sweep would even write there.

    Args:
        database: SQLite file with MLflow's schema. One that ``create_embedded_store`` has not made, or that has no
            artifacts beside it, stays as it is.
    """
    artifacts = database.parent / ARTIFACT_FOLDER
    if not artifacts.is_dir():
        return
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_BUSY_S)) as store:
            row = store.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
            before, now = str(row[0]).removesuffix("/0") if row else "", artifacts.as_uri()
            if before == now or not re.fullmatch(rf"file://.*/{ARTIFACT_FOLDER}", before):
                return
            with store:
                for table, column in _ADDRESSES:
                    if column in {each[1] for each in store.execute(f"PRAGMA table_info({table})")}:
                        store.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                            (now, len(before) + 1, len(before) + 1, f"{before}/"),
                        )
    except sqlite3.Error as error:  # read-only, or no database, of which MLflow has more to say
        logger.warning("%s was moved, and its artifacts can't be given their new place: %s", database, error)


def check_store(tracking_uri: str) -> None:
    """Refuses an address at which there is no store: MLflow would make a local one, or wait for minutes for a server.

    Raises:
        ValueError: says what to do.
    """
    shown, database = without_login(tracking_uri), embedded_database(tracking_uri)
    if database is not None:
        if not database.is_file() or database.stat().st_size == 0:
            raise ValueError(f"tracking_uri={shown!r}: no MLflow store there; name that of a sweep or of a server")
        follow_move(database)
        return
    if re.match(r"https?://", tracking_uri):
        address = urllib.parse.urlsplit(take_login(tracking_uri))._replace(query="", fragment="")
        health = urllib.parse.urlunsplit(address).rstrip("/") + "/health"
        try:
            urllib.request.urlopen(health, timeout=_HEALTH_LIMIT_S).close()
        except (OSError, ValueError) as error:  # URLError is an OSError
            raise ValueError(f"tracking_uri={shown!r}: no MLflow server answers there: {error}") from error
    elif not re.match(r"[a-z][a-z0-9+]*:", tracking_uri) or tracking_uri.startswith("file:"):
        raise ValueError(
            f"tracking_uri={shown!r}: expected sqlite:///FILE or the address of a server, got a folder; "
            "a sweep's storage keeps its store in sqlite:///STORAGE/mlflow.db"
        )


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
