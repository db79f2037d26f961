"""What the platform's tests share: a real MLflow server, an embedded store, and an S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.platform.buckets import new_bucket
from tests.platform.disks import small_disk
from tests.platform.servers import MlflowServer, TrackedSweep, free_port, read_sweep

from rpg_platform.storage.location import DATABASE_FILE, default_tracking_uri
from rpg_platform.tracking.store import create_embedded_store


@pytest.fixture(scope="session", name="read_sweep")
def _read_sweep() -> Callable[[str, str], TrackedSweep]:
    return read_sweep


@pytest.fixture
def unused_port() -> int:
    """A loopback port on which nothing listens."""
    return free_port()


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that all tests share: none may kill it."""
    server = MlflowServer(tmp_path_factory.mktemp("server"), free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an embedded store of this test alone."""
    folder = tmp_path_factory.mktemp("store")
    create_embedded_store(folder / DATABASE_FILE)
    return default_tracking_uri(folder)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Storage on an S3 server of this test alone."""
    with new_bucket(tmp_path, monkeypatch) as storage:
        yield storage
