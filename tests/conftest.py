"""What all tests share: a quiet, closed environment, and one local Ray for the tests that need it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator

import pytest

# Before anything imports ray or mlflow, and inherited by every subprocess. A test of a cluster with a token
# sets RAY_AUTH_MODE=token in the environment of its own processes.
os.environ.update(
    RAY_AUTH_MODE="disabled",  # a plain ray.init() would write a token into the home directory
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",  # workers run in this interpreter, even under `uv run`
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    RPG_VIDEOS="0",  # some ten seconds for each sweep
    OMP_NUM_THREADS="1",  # networks this small gain nothing from threads, which spin against other tests' processes
    OPENBLAS_NUM_THREADS="1",
    RAY_worker_niceness="0",  # at Ray's 15, a test would wait for its trials as long as another test computes
)


# Files with few tests that each take long, and those that would otherwise end alone, as a file is run by one worker.
LONG = (
    *("tests/platform/whole/", "tests/platform/run/"),
    *("tests/test_docs_snippets.py", "tests/test_extending.py", "tests/test_house.py", "tests/test_distribution.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets the workers of pytest-xdist begin with the longest files, so that they end at about the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Measured rates and the like go to a folder of this session alone, subprocesses included."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this test session alone, on two logical CPUs.

    Shared by all tests: none may shut it down. A test that starts its own Ray does so in a subprocess.
    """
    import ray

    if ray.is_initialized():
        raise RuntimeError("a test started Ray without the local_ray fixture")
    ray.init(
        address="local",  # never a cluster that happens to run here
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
        object_store_memory=256 * 1024 * 1024,
    )
    yield
    ray.shutdown()
