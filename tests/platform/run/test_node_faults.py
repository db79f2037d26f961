"""Which failures of a trial cost a retry."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable

from rpg_platform.run.node_faults import node_faults
from rpg_platform.tracking.tune_trial import NODE_DIED
from rpg_platform.trial.trainable import CustomizationTrial

GONE = RayActorError(None, f"The actor died unexpectedly.\nThe actor died because {NODE_DIED}. Node Id: 7", False)
AWAY = ActorUnavailableError("RpcError: Socket closed", None)
CRASHED = ActorDiedError()


@pytest.fixture
def trial(local_ray: None, tmp_path: Path) -> Trial:
    register_trainable("customization", CustomizationTrial)
    made = Trial(
        "customization",
        config={"trial": {"trial_id": "a"}},
        max_failures=0,
        storage=StorageContext(str(tmp_path), "sweep", trial_dir_name="a"),
        trial_dirname_creator=lambda trial: "a",
    )
    made.init_local_path()
    return made


def reported(trial: Trial, timestamp: int) -> None:
    trial.run_metadata.last_result = {"timestamp": timestamp}


def test_a_lost_node_costs_no_retry_unless_nothing_was_reported_since_the_last(trial: Trial) -> None:
    with node_faults():
        for timestamp, error in enumerate((GONE, AWAY, GONE)):
            reported(trial, timestamp)
            trial.handle_error(error)
            assert trial.should_recover()
        trial.handle_error(GONE)  # it may be what ends its nodes
        assert not trial.should_recover()


def test_a_crash_costs_one(trial: Trial) -> None:
    with node_faults():
        trial.handle_error(CRASHED)
        assert not trial.should_recover()


def test_tune_counts_as_before_afterwards(trial: Trial) -> None:
    with node_faults():
        pass
    trial.handle_error(GONE)
    assert not trial.should_recover()
