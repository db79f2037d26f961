"""A sweep in small under real Tune: its trials report the keys of real ones and train nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from tests.platform.records import CARD

from rpg_platform.results.report import TrialResult
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.tracking.tracker import MlflowTracker

STEPS = 4
STEP_SIZE = 5000
PRIOR, PRIOR_HASH = "/priors/mine", "a" * 64
HAPPENED_ONCE = "eval/deterministic/total_return_mean"


def toy_sweep(**changes: Any) -> tuple[SweepSpec, list[TrialSpec]]:
    raw = {
        "name": "toy",
        "description": "a sweep in small",
        "task": "halfcheetah-foot-angle",
        "prior": PRIOR,
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.05, 0.1]}, "alpha_hat": [[0, 0.2], [2000, 0.05]]},
        "baselines": ["greedy"],
        "training": {"critic_warmup_iterations": 0},
        "budget": {"env_steps": STEPS * STEP_SIZE},
    }
    spec = SweepSpec.model_validate(raw | changes)
    return spec, expand(spec)


def toy_trainable() -> type[tune.Trainable]:
    """Reports the keys of a real trial. Local, so that workers get it by value."""

    class Toy(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.spec = config["trial"]
            self.fault = config["faults"].get(self.spec["trial_id"])
            self.count = 0

        def step(self) -> dict[str, Any]:
            self.count += 1
            if self.fault is not None and self.count == 3:
                marker = Path(self.fault)
                if marker.name == "always" or not marker.exists():
                    marker.touch()
                    raise RuntimeError("the toy broke at step 3")
            result: dict[str, Any] = {
                "env_steps": float(STEP_SIZE * self.count),
                "iteration": float(self.count),
                "basic_return": math.nan if self.count == 1 else 10.0 * self.count,
                "explained_variance": -math.inf if self.count == 1 else 0.5,
                "total_return": self.count + self.spec["seed"] / 10,
                "should_checkpoint": True,
            }
            if self.count == STEPS:
                result |= {"done": True, HAPPENED_ONCE: 42.0}
            return result

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            folder = Path(checkpoint_dir)
            (folder / "count").write_text(str(self.count))
            (folder / "bundle").mkdir()
            (folder / "bundle" / "card.json").write_text(json.dumps({"made_at": self.count, **json.loads(CARD)}))
            (folder / "config").mkdir()
            (folder / "config" / "algorithm_config.json").write_text("{}")

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            self.count = int((Path(checkpoint_dir) / "count").read_text())

    return Toy


def trial_of(spec: TrialSpec) -> Any:
    """What a hook looks at in Tune's own trial, before there is a checkpoint."""
    return SimpleNamespace(config={"trial": spec.model_dump(mode="json")}, checkpoint=None)


def make_tuner(
    tracker: MlflowTracker, trials: list[TrialSpec], folder: Path, *, faults: dict[str, str], retries: int = 0
) -> tune.Tuner:
    return tune.Tuner(
        toy_trainable(),
        param_space={
            "trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials]),
            "faults": faults,
        },
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[tracker],
            failure_config=tune.FailureConfig(max_failures=retries),
            verbose=0,
        ),
    )


def results_of(grid: tune.ResultGrid) -> list[TrialResult]:
    every = (grid[index] for index in range(len(grid)))
    return [
        (
            TrialSpec.model_validate((each.config or {})["trial"]),
            each.metrics or None,
            str(each.error) if each.error else None,
        )
        for each in every
    ]


def result_files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each trial reported, from Tune's own result.json."""
    found = {}
    for path in folder.glob("tune/*/result.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[lines[0]["config"]["trial"]["trial_id"]] = lines
    return found
