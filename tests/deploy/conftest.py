"""What the tests of deploy/ share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.deploy.services import install_locked


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with what requirements/mlflow.lock lists and nothing else."""
    return install_locked(tmp_path_factory.mktemp("mlflow"))
