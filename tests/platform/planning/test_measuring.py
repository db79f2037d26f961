"""Measuring how fast a trial is."""

from __future__ import annotations

import pytest
import ray
from tests.platform.planning.planned import PRIOR, spec

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.planning import measuring
from rpg_platform.spec.checks import expand


def test_measuring_starts_no_ray_even_for_a_trial_with_remote_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_MEASURED_S", 0.2)
    was_running = ray.is_initialized()
    wanted = spec(resources={"envs_per_runner": 4, "env_runners": 2}, training={"rollout_length": 64, "num_epochs": 1})
    trial = next(trial for trial in expand(wanted) if trial.trial_id == "greedy-seed=0")
    rate = measuring.measure(trial, load_bundle(resolve_prior(PRIOR)))
    assert 200 < rate.env_steps_per_s < 200_000
    assert 200 < rate.evaluation_steps_per_s < 500_000
    assert 0 < rate.setup_s < 60
    assert ray.is_initialized() == was_running
