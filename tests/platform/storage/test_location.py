"""Where results go and where they are tracked."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import LocationError, storage_path, tracking_uri_of

RAW = {"name": "small", "task": "halfcheetah-foot-angle", "algorithm": "ppo", "budget": {"env_steps": 1024}}


def test_remote_storage_needs_a_server() -> None:
    spec = SweepSpec.model_validate(RAW | {"storage": "s3://bucket/sweeps"})
    assert storage_path(spec.storage) == "s3://bucket/sweeps"
    with pytest.raises(LocationError, match=r"storage='s3://bucket/sweeps' is remote: give tracking\.uri"):
        tracking_uri_of(spec)
    given = SweepSpec.model_validate(RAW | {"storage": "s3://bucket/sweeps", "tracking": {"uri": "http://mlflow:5000"}})
    assert tracking_uri_of(given) == "http://mlflow:5000"
    assert storage_path("~/x") == str(Path.home() / "x")
    assert storage_path(None) == str(Path.home() / "rpg_results")
