"""`rpg extend` to more env steps, stopped before its end: what was evaluated is shown still, and says of when it is."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from tests.platform.commands import LIMIT_S, here, started

from rpg_algorithms.policies.bundle import load_card
from rpg_platform.results.names import short_name
from rpg_platform.results.picture import tradeoff_figure
from rpg_platform.review.found import found_in
from rpg_platform.run.run import run_sweep
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

A = "rpg-omega_prime=0.1-alpha_hat=0.02-seed=0"
RAW = {
    "name": "small",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
    "budget": {"env_steps": 1024},
    "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1, "critic_warmup_iterations": 1},
    "evaluation": {"episodes": 2, "validations": 0},
    "resources": {"max_concurrent": 1},
}


@pytest.mark.slow
def test_an_extension_that_is_stopped_keeps_the_last_complete_evaluation(
    local_ray: None, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    """One setting is trained further and saved, the other has not begun again: both are shown as they were, marked."""
    sweep = Sweep.resolve(SweepSpec.model_validate(RAW | {"storage": str(tmp_path)}))
    before = run_sweep(sweep, console=Console(file=io.StringIO()))
    totals = {t.trial_id: (r or {})["eval/deterministic/total_return_mean"] for t, r, _ in before.results}
    running = started("extend", "small", "--env-steps", "400000", "--storage", str(tmp_path), cwd=tmp_path)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not ((report := tmp_path / "small/attempt-2" / A / "result.json").exists() and report.stat().st_size):
            assert running.poll() is None, running.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 1
    assert "2 of 3 trials have no result: the sweep was stopped" in said
    folder = SweepFolder(str(tmp_path), "small")
    assert folder.trials()[A].env_steps > 1024

    # The learning rate had ended, and follows the new budget's schedule from there, as was said.
    assert "Learning rate: 0 at 1,024 env steps, goes on at 99.7 % of training.lr and falls to 0 at 400,000" in said
    for attempt, budget in (("", 1024), ("attempt-2", 400_000)):
        last = json.loads((tmp_path / "small" / attempt / A / "result.json").read_text().splitlines()[-1])
        assert last["learning_rate"] == pytest.approx(4e-4 * (1 - last["env_steps"] / budget), abs=1e-9)

    # What the command printed, and what prints it again.
    shown = here("show", "small", "--storage", str(tmp_path)).output
    for text in (said, shown):
        for omega in (0.1, 0.2):
            assert f"rpg omega_prime={omega} alpha_hat=0.02 @1.02k" in text
        assert "prior @" not in text
        assert "its extension to 400,000 has not been evaluated yet" in " ".join(text.split())
        assert "without a result" not in text
    found = found_in(folder)
    trained = {row.group + "-seed=0": row for row in found.rows if not row.is_prior}
    for trial, row in trained.items():
        assert row.deterministic.total_return.mean == totals[trial]
        assert (row.evaluated_at, row.env_steps) == (1024, 400_000)
        # The policy that stands for the setting is the one whose figures are shown.
        assert found.checkpoints[trial] == before.checkpoints[trial]
    assert Path(folder.uri, "tradeoff.png").is_file()
    drawn = tradeoff_figure(found.rows)
    assert drawn is not None
    assert sum("@1.02k" in each.get_text() for each in drawn.legends[0].get_texts()) == 2

    content = re.search(r'id="data">(.*?)</script>', Path(folder.uri, "report.html").read_text(), re.S)
    assert content is not None
    page = json.loads(content[1].replace("\\u003c", "<"))
    on_page = {row["group"] + "-seed=0": row for row in page["rows"]}
    assert page["about"]["trials"]["finished"] == 1
    runs = read_sweep(default_tracking_uri(str(tmp_path)), "small")
    assert runs.parent.info.status == "KILLED"
    assert "@1.02k" in runs.parent.data.tags["mlflow.note.content"]
    for trial, row in trained.items():
        assert on_page[trial]["name"] == short_name(row)
        assert short_name(row).endswith(" · α̂ 0.02 @1.02k")
        assert on_page[trial]["deterministic"]["total_return"][0] == pytest.approx(totals[trial], rel=1e-6)
        run = runs.children[trial]
        assert runs.history(run, "total") == [(1024, totals[trial])]
        assert run.info.run_name == f"{short_name(row).removesuffix(' @1.02k')} · seed 0 @1.02k"
        assert run.data.tags["evaluated_at"] == "1024 env steps"
        # So is the policy that the run has: what was trained on has no figures.
        with tempfile.TemporaryDirectory() as out:
            runs.client.download_artifacts(run.info.run_id, "bundle", out)
            assert load_card(Path(out, "bundle")).made_by["env_steps"] == 1024
