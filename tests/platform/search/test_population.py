"""Population-based training: the rules by hand, the exchange in a real Tune run, and the same after a death."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from tests.platform.resolved import resolved

from rpg_platform.search.population import Generation, Population, explore
from rpg_platform.search.proposals import known_trials
from rpg_platform.search.start import SearchRun
from rpg_platform.spec.checks import expand
from rpg_platform.spec.search import Pbt
from rpg_platform.spec.space import SearchSpace
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.trials import searched_weights
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import read_state, write_state

STEP = 1_000
RUNGS = (2 * STEP, 4 * STEP, 6 * STEP, 8 * STEP)


def spec(**changes: Any) -> SweepSpec:
    raw: dict[str, Any] = {
        "name": "population",
        "task": "hopper-height",
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.1, 0.2, 0.4, 0.8]}, "alpha_hat": 0.02},
        "seeds": 2,
        "scheduler": {"pbt": {"every_env_steps": 2 * STEP}},
        "baselines": ["greedy"],
        "training": {"critic_warmup_iterations": 0},
        "budget": {"env_steps": 9 * STEP},
    }
    return SweepSpec.model_validate(raw | changes)


# ---- the rules ----------------------------------------------------------------------------------
def test_explored_weights_stay_in_their_space_and_near_the_source() -> None:
    spaces = {
        "omega_prime": SearchSpace("loguniform", (0.05, 0.5)),
        "alpha_hat": SearchSpace("choice", (0.1, 0.01, 0.03)),
    }
    moved = Pbt(resample_probability=0.0, perturbation=2.0)
    found = [explore(moved, spaces, {"omega_prime": 0.2, "alpha_hat": 0.03}, random.Random(i)) for i in range(50)]
    assert {each["omega_prime"] for each in found} == {0.1, 0.4}
    assert {each["alpha_hat"] for each in found} == {0.01, 0.1}, "the neighbours in size, not in the list"
    edge = [explore(moved, spaces, {"omega_prime": 0.4, "alpha_hat": 0.1}, random.Random(i)) for i in range(50)]
    assert {each["omega_prime"] for each in edge} == {0.2, 0.5}, "cut at the space's bound"
    assert {each["alpha_hat"] for each in edge} == {0.03}, "at the end of a list there is one way to go"
    anew = [
        explore(Pbt(resample_probability=1.0), spaces, {"omega_prime": 0.2, "alpha_hat": 0.03}, random.Random(i))
        for i in range(50)
    ]
    assert len({each["omega_prime"] for each in anew}) == 50
    assert all(0.05 <= each["omega_prime"] <= 0.5 for each in anew)


def population(sweep: SweepSpec, kept: list[Generation]) -> Population:
    return Population(
        sweep, expand(sweep), searched_weights(sweep), kept.append, lambda rung, name: f"/{rung}/{name}", list(kept)
    )


def tell(asked: Population, rung: int, values: dict[str, float]) -> None:
    """Figures of all trials: of seed 0 far below, of seed 1 far above, so that only their means compare."""
    for name in asked.waited_for:
        of, seed = name.split("-alpha_hat")[0], int(name[-1])
        value = values[of] + (100.0 if seed else -100.0)
        asked.report(name, {"env_steps": float(rung), f"rung/{rung}/total_return": value})


def test_a_generation_by_hand_and_from_what_was_kept() -> None:
    sweep, kept = spec(scheduler={"pbt": {"every_env_steps": 2 * STEP, "resample_probability": 0.0}}), []
    asked = population(sweep, kept)
    trials = {trial.trial_id: trial for trial in expand(sweep)}
    assert len(asked.waited_for) == 8, "neither the prior nor the baseline takes part"
    tell(asked, RUNGS[0], {f"rpg-omega_prime={w}": v for w, v in ((0.1, 3.0), (0.2, 4.0), (0.4, 1.0), (0.8, 2.0))})
    assert asked.is_due()
    assert all(map(asked.waits, asked.waited_for))
    generation = asked.decide()
    loser, winner = "rpg-omega_prime=0.4-alpha_hat=0.02", "rpg-omega_prime=0.2-alpha_hat=0.02"
    assert {group: source for group, source in generation.sources.items() if group != source} == {loser: winner}
    assert asked.donors(generation) == [f"{winner}-seed=0", f"{winner}-seed=1"]
    asked.adopt(generation)
    assert not asked.is_due()
    assert asked.rung == RUNGS[1]
    taken = asked.current(trials[f"{loser}-seed=1"])
    assert taken.weights["omega_prime"] in [
        ((0, 0.2), (2000, 0.2), (2001, 0.1)),
        ((0, 0.2), (2000, 0.2), (2001, 0.4)),
    ], "the winner's weights until then: they are what made the policy"
    assert taken.weights["alpha_hat"] == 0.02
    assert taken.starts_from is not None
    assert taken.starts_from.checkpoint == f"/2000/{winner}-seed=1", "seed by seed"
    assert asked.current(trials[f"{winner}-seed=1"]) == trials[f"{winner}-seed=1"]

    again = population(sweep, [Generation.from_json(json.loads(json.dumps(each.to_json()))) for each in kept])
    assert [again.current(trial) for trial in trials.values()] == [asked.current(each) for each in trials.values()]
    assert again.rung == RUNGS[1]
    # A setting of which a seed is lost is no longer waited for, and nobody takes it over.
    again.leave(f"{winner}-seed=0")
    tell(again, RUNGS[1], {f"rpg-omega_prime={w}": v for w, v in ((0.1, 3.0), (0.4, 5.0), (0.8, 2.0))})
    assert again.is_due()
    sources = again.decide().sources
    assert winner not in sources
    assert sources["rpg-omega_prime=0.8-alpha_hat=0.02"] == loser


# ---- in Tune ------------------------------------------------------------------------------------
class Grower(tune.Trainable):
    """Its return grows by the weight that it has, each 1,000 env steps; a checkpoint is env steps and return."""

    def setup(self, config: dict[str, Any], checkpoints: dict[str, str] | None = None) -> None:
        self.trial, self.env_steps, self.value = config["trial"], 0, 0.0
        self.at_rungs: dict[int, float] = {}
        self.last: dict[str, Any] = {}
        start = self.trial["starts_from"]
        path = (checkpoints or {}).get(self.trial["trial_id"]) or (start and start["checkpoint"])
        if path:
            self.load_checkpoint(path)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        weight = self.trial["weights"].get("omega_prime", 0.0)
        if isinstance(weight, list):
            weight = [value for step, value in weight if step <= self.env_steps + 1][-1]
        self.env_steps += STEP
        self.value += weight
        for rung in self.trial["rungs"]:
            if rung <= self.env_steps:
                self.at_rungs.setdefault(rung, self.value)
        report: dict[str, Any] = {"env_steps": float(self.env_steps), "value": self.value, "done": False}
        report |= {f"rung/{rung}/total_return": value for rung, value in self.at_rungs.items()}
        if self.env_steps >= self.trial["env_steps"]:
            report |= {"eval/deterministic/total_return_mean": self.value, "done": True, "finished": True}
        self.last = report
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        state = {"value": self.value, "at_rungs": self.at_rungs}
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps(state))
        write_state(Path(checkpoint_dir), self.env_steps, self.last)

    def load_checkpoint(self, checkpoint: Any) -> None:
        start, folder = self.trial["starts_from"], Path(checkpoint)
        if start and read_state(folder)["env_steps"] <= start["until_env_steps"]:
            folder = Path(start["checkpoint"])
        self.env_steps = int(read_state(folder)["env_steps"])
        state = json.loads((folder / "state.json").read_text())
        self.value, self.at_rungs = state["value"], {int(k): v for k, v in state["at_rungs"].items()}


def attempt(sweep: SweepSpec, folder: SweepFolder, until: int | None = None) -> dict[str, float]:
    """Runs what is to run, each trial to ``until`` at most; trial id → return."""
    states = folder.trials()
    search = SearchRun(replace(resolved(sweep, folder.storage), folder=folder), states)
    todo = [t for t in search.trials if t.trial_id not in states or not states[t.trial_id].finishes(t)]
    for_config = search.for_tuner(todo)
    storage, name = folder.next_attempt()

    def trial_name(trial: Any) -> str:
        return str(trial.config["trial"]["trial_id"])

    checkpoints = {trial_id: state.checkpoint for trial_id, state in states.items()}
    grid = Tuner(
        tune.with_parameters(Grower, checkpoints=checkpoints),
        tune_config=TuneConfig(
            reuse_actors=True, trial_name_creator=trial_name, trial_dirname_creator=trial_name, **for_config
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            stop=None if until is None else {"env_steps": until},
            failure_config=FailureConfig(fail_fast=True),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert not grid.errors
    found = {str(grid[i].config["trial"]["trial_id"]): grid[i].metrics for i in range(len(grid))}
    return {name: metrics["value"] for name, metrics in found.items()}


@pytest.mark.usefixtures("local_ray")
def test_worse_settings_go_on_from_better_ones_and_so_after_a_death(tmp_path: Path) -> None:
    sweep = spec(scheduler={"pbt": {"every_env_steps": 3 * STEP, "resample_probability": 0.0}}, baselines=[], seeds=1)
    whole, broken = (SweepFolder(str(tmp_path), name) for name in ("whole", "broken"))
    for folder in (whole, broken):
        folder.create(sweep, None)
    values = attempt(sweep, whole)
    generations = [Generation.from_json(each) for each in whole.generations()]
    assert [each.rung for each in generations] == [3 * STEP, 6 * STEP]
    worst, best = "rpg-omega_prime=0.1-alpha_hat=0.02", "rpg-omega_prime=0.8-alpha_hat=0.02"
    assert generations[0].sources[worst] == best
    assert values[f"{best}-seed=0"] == pytest.approx(9 * 0.8)
    # From 3,000 env steps on it has the best one's return and the weight beside the best one's; at 6,000 it is not the
    # worst any more, and goes on.
    assert values[f"{worst}-seed=0"] == pytest.approx(3 * 0.8 + 6 * 0.4)
    [member] = [trial for trial in known_trials(sweep, whole) if trial.trial_id == f"{worst}-seed=0"]
    assert member.weights["omega_prime"] == ((0, 0.8), (3000, 0.8), (3001, 0.4))

    attempt(sweep, broken, until=4 * STEP)  # between the two
    assert len(broken.generations()) == 1
    resumed = attempt(sweep, broken)
    assert resumed == pytest.approx({name: value for name, value in values.items() if name != "prior"})
    assert broken.generations() == whole.generations()
