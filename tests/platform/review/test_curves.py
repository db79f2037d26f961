"""Learning curves and health from the files that attempts leave."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from tests.platform.review.made_sweep import made_sweep

from rpg_platform.review.curves import health_of, thinned, trainings, warnings_of

TRIAL = "rpg-omega_prime=0.2-alpha_hat=0.02-seed=0"


def test_of_a_step_that_was_reported_twice_the_first_counts(tmp_path: Path) -> None:
    """The second attempt goes on from a checkpoint before the crash; the line that the kill cut is passed over."""
    folder = made_sweep(tmp_path)
    first = Path(folder.uri, TRIAL, "result.json")
    lines = first.read_text().splitlines()
    first.write_text("\n".join(lines[:10]) + "\n" + lines[10][:40])
    again = [json.loads(line) | {"kl_to_prior": 77.0} for line in lines[7:-1]]
    second = Path(folder.uri, "attempt-2", TRIAL, "result.json")
    second.parent.mkdir(parents=True)
    second.write_text("".join(json.dumps(line) + "\n" for line in again))
    found = trainings(folder, [TRIAL])[TRIAL]
    assert list(found.steps) == [5_000.0 * i for i in range(1, 20)]
    assert (found.values["kl_to_prior"][:10] < 5).all()
    assert (found.values["kl_to_prior"][10:] == 77.0).all()
    assert list(found.validation_steps) == [25_000.0, 50_000.0, 75_000.0]


def test_thinning_keeps_means_and_ends(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path, reports=101)
    found = trainings(folder, [TRIAL])[TRIAL]
    thin = thinned(found, 10)
    assert len(thin["steps"]) == 10
    assert thin["steps"][-1] == found.steps[-1]
    trained_on = found.values["objective"]  # of the validations, which are every fifth report
    assert np.isfinite(trained_on).sum() == 20
    assert np.isfinite(thin["objective"]).all()
    assert np.nanmax(trained_on) - np.nanmin(trained_on) > 200
    whole = found.values["kl_to_prior"][:-1]  # the last report of a made sweep has none
    assert np.isclose(np.mean(thin["kl_to_prior"]), np.mean(whole), rtol=0.02)
    assert thinned(found, 1000)["steps"] == list(found.steps)


def test_health_says_what_end_figures_hide() -> None:
    steady = {
        "kl_to_prior": np.linspace(0, 3, 30),
        "approx_kl": np.array([0.0] * 5 + [0.01] * 25),
        "clip_fraction": np.array([0.0] * 5 + [0.2] * 25),
        "explained_variance": np.array([-0.5] * 5 + [0.9] * 25),
        "total_return": np.linspace(0, 100, 30),
        "nonfinite_values": np.zeros(30),
        "env_failures": np.zeros(30),
        "kl_to_prior_peak": np.full(30, math.nan),  # as in reports of version 0.1.0
        "approx_kl_peak": np.linspace(0, 0.08, 30),
    }
    assert warnings_of(health_of(steady)) == []
    assert health_of(steady)["clip_fraction"] == 0.2  # of the updates that moved the policy
    spiky = {name: values.copy() for name, values in steady.items()}
    spiky["kl_to_prior_peak"][12] = 181.0  # in an iteration between two reports
    spiky["approx_kl_peak"][12] = 2.5
    spiky["explained_variance"][-3:] = -0.4
    spiky["env_failures"][3] = 1
    assert [line.split(" ")[0] for line in warnings_of(health_of(spiky))] == ["KL", "an", "the", "1"]
    empty = {name: np.full(3, math.nan) for name in steady}
    assert warnings_of(health_of(empty)) == []
