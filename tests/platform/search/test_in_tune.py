"""The search and the early ends in a real Tune run, with trials that cost nothing, and from the folder alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner
from tests.platform.resolved import resolved

from rpg_platform.results.endings import outcomes_of
from rpg_platform.results.leader import Standing
from rpg_platform.results.report import TrialResult, is_finished, is_stopped
from rpg_platform.results.rows import summarise
from rpg_platform.results.table import render_table, rows_to_markdown
from rpg_platform.search.proposals import known_trials
from rpg_platform.search.start import SearchRun
from rpg_platform.spec.extension import ResumeError, extended
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.trials import count_trials
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import read_state, write_state

pytestmark = pytest.mark.usefixtures("local_ray")
STEP = 1_000
BUDGET = 9 * STEP


class FreeTrial(tune.Trainable):
    """Reports what a trial reports; its returns are higher near omega_prime 0.3, and differ from seed to seed."""

    def setup(self, config: dict[str, Any], checkpoints: dict[str, str] | None = None) -> None:
        self.trial, self.env_steps, self.last = config["trial"], 0, dict[str, Any]()
        if checkpoint := (checkpoints or {}).get(self.trial["trial_id"]):
            self.load_checkpoint(checkpoint)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.env_steps += STEP
        value = -abs(self.trial["weights"].get("omega_prime", 0.0) - 0.3)
        value += 10.0 if self.trial["seed"] else -10.0
        passed = [rung for rung in self.trial["rungs"] if rung <= self.env_steps]
        report: dict[str, Any] = {"env_steps": float(self.env_steps), "done": False, "finished": False}
        report |= {f"rung/{rung}/total_return": value for rung in passed}
        if self.env_steps >= self.trial["env_steps"]:
            for mode in ("deterministic", "sampled"):
                names = ("basic_return", "addon_return", "total_return", "episode_length", "task_metric")
                report |= {f"eval/{mode}/{name}_mean": value for name in names}
            report |= {"eval/kl_to_prior": 1.0, "done": True, "finished": True}
        self.last = report
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "policy").write_text("p")
        write_state(Path(checkpoint_dir), self.env_steps, self.last)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.env_steps = int(read_state(Path(checkpoint))["env_steps"])


def spec(**changes: Any) -> SweepSpec:
    raw: dict[str, Any] = {
        "name": "free",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"uniform": [0.0, 1.0]}, "alpha_hat": 0.02},
        "samples": 6,
        "seeds": 2,
        "search": {"method": "optuna", "startup": 3},
        "scheduler": {"asha": {"first_rung_env_steps": 2 * STEP, "reduction_factor": 2}},
        "training": {"critic_warmup_iterations": 0},
        "budget": {"env_steps": BUDGET},
    }
    return SweepSpec.model_validate(raw | changes)


class After(tune.Stopper):
    """Ends a run once so many trials have finished."""

    def __init__(self, count: int | None) -> None:
        self.count, self.finished = count, set[str]()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.finished |= {trial_id} if result.get("finished") else set()
        return self.stop_all()

    def stop_all(self) -> bool:
        return self.count is not None and len(self.finished) >= self.count


def attempt(sweep: SweepSpec, folder: SweepFolder, stop_after: int | None = None) -> SearchRun:
    """Runs what is to run, or of it as much as there is until ``stop_after`` trials have finished."""
    states = folder.trials()
    search = SearchRun(replace(resolved(sweep, folder.storage), folder=folder), states)
    todo = [t for t in search.trials if t.trial_id not in states or not states[t.trial_id].finishes(t)]
    if not todo and not search.to_come:
        return search
    for_config = search.for_tuner(todo)
    storage, name = folder.next_attempt()
    checkpoints = {trial_id: state.checkpoint for trial_id, state in states.items()}

    def trial_name(trial: Any) -> str:
        return str(trial.config["trial"]["trial_id"])

    Tuner(
        tune.with_parameters(FreeTrial, checkpoints=checkpoints),
        tune_config=TuneConfig(
            reuse_actors=True, trial_name_creator=trial_name, trial_dirname_creator=trial_name, **for_config
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            stop=After(stop_after),
            callbacks=search.callbacks,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=True, checkpoint_frequency=2),
            verbose=0,
        ),
    ).fit()
    return search


def new_folder(sweep: SweepSpec, storage: Path) -> SweepFolder:
    folder = SweepFolder(str(storage), sweep.name)
    folder.create(sweep, None)
    return folder


def results_of(sweep: SweepSpec, folder: SweepFolder) -> list[TrialResult]:
    states = folder.trials()
    return [(trial, dict(states[trial.trial_id].report), None) for trial in known_trials(sweep, folder)]


def test_a_search_with_early_ends_runs_stops_and_goes_on_from_its_folder(tmp_path: Path) -> None:
    sweep = spec(resources={"max_concurrent": 2})
    folder = new_folder(sweep, tmp_path)
    attempt(sweep, folder, stop_after=3)
    begun, verdicts, first = folder.proposals(), folder.verdicts(), folder.trials()
    assert 0 < len(begun) < 6, "it was stopped on the way"
    over = {name: state for name, state in first.items() if state.finished or state.stopped}

    search = attempt(sweep, folder)
    assert search.to_come == 0
    assert folder.proposals()[: len(begun)] == begun
    assert all(verdict in folder.verdicts() for verdict in verdicts)
    states = folder.trials()
    assert {name: states[name] for name in over} == over, "nothing that had ended was run again"
    assert len(states) == count_trials(sweep) == 1 + 6 * 2
    assert {trial.trial_id for trial in known_trials(sweep, folder)} == set(states)

    # Alone, the seeds' returns of -10 and 10 would tell nothing; their means are the settings'.
    stops = {verdict["group"] for verdict in folder.verdicts() if not verdict["goes_on"]}
    assert stops
    for verdict in folder.verdicts():
        setting = float(verdict["group"].split("omega_prime=")[1].split("-")[0])
        assert verdict["figures"]["total_return"] == pytest.approx(-abs(setting - 0.3), abs=1e-5)
    assert all(
        state.stopped == (name.rpartition("-seed=")[0] in stops)
        for name, state in states.items()
        if (not state.finished)
    )
    assert all(state.stopped or state.finished for state in states.values())

    results = results_of(sweep, folder)
    counted = outcomes_of(results, states, count_trials(sweep))
    assert counted.status(interrupted=False) == "FINISHED"
    assert len(counted.stopped) == sum(is_stopped(report) for _, report, _ in results)
    assert counted.tags()["trials_missing"] == counted.tags()["trials_failed"] == 0
    rows = summarise(results)
    assert {row.group for row in rows if row.stopped} == stops
    assert all(not row.seeds and not row.failures and not row.is_pareto for row in rows if row.stopped)
    standing = Standing(sweep.objective)
    standing.add(trial for trial, _, _ in results)
    for trial, report, _ in results:
        standing.heard(trial.trial_id, report or {})
    leader = standing.leader()
    assert leader is not None
    assert leader.group not in stops, "the best so far is one that goes on"
    assert "were ended early and are not compared" in rows_to_markdown(rows)
    assert render_table(rows) is not None

    before = {file: file.stat().st_mtime_ns for file in Path(folder.uri).rglob("*.json")}
    attempt(sweep, folder)
    assert {file: file.stat().st_mtime_ns for file in Path(folder.uri).rglob("*.json")} == before, "nothing to do"


def test_an_extension_adds_settings_and_seeds_to_a_search(tmp_path: Path) -> None:
    sweep = spec(scheduler=None, samples=3, search="optuna", baselines=["greedy"])
    folder = new_folder(sweep, tmp_path)
    attempt(sweep, folder)
    proposed = folder.proposals()
    more = extended(sweep, sweep.model_copy(update={"samples": 4}), seeds=3)
    attempt(more, folder)
    assert folder.proposals()[:3] == proposed
    states = folder.trials()
    assert len(states) == count_trials(more) == 1 + 3 + 4 * 3
    assert all(is_finished(state.report, None) for state in states.values())
    assert len(json.loads(Path(folder.uri, "search", "proposal-000003.json").read_text())["setting"]) == 1
    for changes, message in (
        ({"samples": 2}, "samples=2: the sweep 'free' has 3 already"),
        ({"weights": {"omega_prime": {"uniform": [0.0, 2.0]}, "alpha_hat": 0.02}}, "keeps the search of the sweep"),
        ({}, "nothing to extend"),
    ):
        with pytest.raises(ResumeError, match=message):
            extended(sweep, SweepSpec.model_validate(sweep.model_dump(mode="json") | changes))
    with pytest.raises(ResumeError, match="asha compared settings on a budget of 9000"):
        extended(spec(), env_steps=2 * BUDGET)
