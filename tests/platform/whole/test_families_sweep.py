"""A sweep whose policies are of another family than their prior, from the YAML to the table and MLflow."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.results.rows import summarise
from rpg_platform.results.table import render_table, rows_to_json, rows_to_markdown
from rpg_platform.run.run import run_sweep
from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.storage.sweep import Sweep

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

SPEC = """
name: other-family
task: halfcheetah-foot-angle
prior: halfcheetah-spg
algorithm: rpg
weights: {omega_prime: 0.1, alpha_hat: 0.02}
training:
  start_from_prior: false
  network: {distribution: squashed_gaussian, hidden: [16], state_dependent_std: true}
  rollout_length: 64
  minibatch_size: 128
  num_epochs: 2
budget: {env_steps: 1024}
evaluation: {episodes: 2, validations: 0}
resources: {max_concurrent: 1}
"""


@pytest.mark.usefixtures("local_ray")
def test_kl_is_estimated_and_says_so(tmp_path: Path, read_sweep: Callable[[str, str], TrackedSweep]) -> None:
    (tmp_path / "sweep.yaml").write_text(SPEC + f"storage: {tmp_path / 'results'}\n")
    outcome = run_sweep(Sweep.resolve(load_spec(tmp_path / "sweep.yaml")), console=Console(file=io.StringIO()))
    assert outcome.failed == 0
    [(trial, report, _)] = [each for each in outcome.results if each[0].method == "rpg"]
    assert report is not None
    assert report["kl_to_prior_estimated"] == 1.0
    assert math.isfinite(report["eval/kl_to_prior"])
    assert report["eval/kl_to_prior"] > 1.0  # a policy from scratch
    assert report["kl_to_prior"] > 1.0
    bundle = load_bundle(Path(outcome.sweep.folder.uri) / outcome.checkpoints[trial.trial_id] / "bundle")
    assert bundle.network_spec.distribution == "squashed_gaussian"
    rows = summarise(outcome.results)
    assert {row.method: row.kl_estimated for row in rows} == {"rpg": True, "prior": False}
    text = io.StringIO()
    Console(file=text, width=200).print(render_table(rows))
    for table in (text.getvalue(), rows_to_markdown(rows)):
        assert table.count("≈") == 2  # the cell and the caption
        assert "KL estimated, as policy and prior are of different families" in " ".join(table.split())
    assert [row["kl_estimated"] for row in json.loads(rows_to_json(rows))] == [row.kl_estimated for row in rows]
    tracked = read_sweep(outcome.sweep.tracking_uri, "other-family")
    run = tracked.children[trial.trial_id]
    assert run.data.tags["kl_to_prior"] == "estimated"
