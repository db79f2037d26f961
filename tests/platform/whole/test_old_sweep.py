"""A sweep that version 0.1.0 left half done, before modules moved into packages, goes on.

The archive was written by that version: ``rpg sweep`` of two RPG settings on CartPole, killed when the prior's row and
one setting were finished and the other had saved a checkpoint. Tune's own pickles and the spool were taken out.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from rpg_platform.cli.main import app
from rpg_platform.priors.imported import ImportOptions
from rpg_platform.priors.sources import import_prior
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

ARCHIVE = Path(__file__).parent / "fixtures" / "half-done-0.1.0.tar.xz"
DONE, BEGUN = (f"rpg-omega_prime={weight}-alpha_hat=0.02-seed=0" for weight in (0.1, 0.4))
BUDGET = 60_000


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_of_version_0_1_0_is_resumed(storage: Path, read_sweep: Callable[[str, str], TrackedSweep]) -> None:
    folder = SweepFolder(str(storage), "half-done")
    before = folder.trials()
    assert (before[DONE].finished, before[BEGUN].finished) == (True, False)
    assert 0 < before[BEGUN].env_steps < BUDGET
    done = CliRunner().invoke(app, ["resume", "half-done", "--storage", str(storage)])
    assert done.exit_code == 0, done.output
    assert "2 of 3 trials are finished, 1 go on from a checkpoint" in done.output
    after = folder.trials()
    assert after[DONE] == before[DONE], "what was finished is not run again"
    assert after[BEGUN].finished
    reports = storage / "half-done" / "attempt-2" / BEGUN / "result.json"
    steps = [json.loads(line)["env_steps"] for line in reports.read_text().splitlines()]
    assert before[BEGUN].env_steps < steps[0] < before[BEGUN].env_steps + 5_000, "it goes on where it was"
    assert steps[-1] >= BUDGET
    tracked = read_sweep(default_tracking_uri(storage), "half-done")
    assert {name: run.info.status for name, run in tracked.children.items()} == dict.fromkeys(after, "FINISHED")
    assert all({"total", "kept_pct"} <= run.data.metrics.keys() for run in tracked.children.values())


def test_an_algorithms_checkpoint_of_version_0_1_0_is_a_prior(storage: Path) -> None:
    """It names its classes by the modules that they stood in then."""
    trial = storage / "half-done" / DONE
    [checkpoint] = trial.glob("checkpoint_*")
    made = import_prior(str(checkpoint / "algorithm"), storage / "bundle", ImportOptions())
    assert made.imported.format == "rllib/rpg"
