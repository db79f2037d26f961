"""What the reproduction consists of: its sweeps, in the order in which one needs another, and their specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.yaml_file import load_spec

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "tune_configs"
ENVIRONMENTS: Mapping[str, str] = {"halfcheetah": "HalfCheetah", "hopper": "Hopper", "ant": "Ant", "swimmer": "Swimmer"}
EXPERIMENTS = (1, 2)
SCRATCH = "scratch"
"""Full policy from scratch: the method ``full`` in the sweeps without a prior."""
ENTROPY_BONUS = "ppo+entropy"
"""PPO with an entropy bonus: the method ``ppo`` with a weight."""
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
FINAL_EVALUATION_SEED = 20_000
"""First of the evaluation seeds of the final figures; tuning chooses on those of the files."""
QUICK_SEEDS, QUICK_SETTINGS, QUICK_ENV_STEPS = SEEDS[:2], 2, 12_288
_QUICK: Mapping[str, Any] = {
    "budget": {"env_steps": QUICK_ENV_STEPS},
    "evaluation": {"episodes": 2, "validations": 1, "validation_episodes": 1},
}

Stage = Literal["entropy", "prior", "tuning", "final"]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """One sweep of the reproduction.

    Attributes:
        stage: what it is for.
        environment: a key of ``ENVIRONMENTS``.
        file: its specification, relative to tune_configs/.
        seeds: its training seeds.
        prior_seed: the seed of the prior that it starts from; None without one.
    """

    stage: Stage
    environment: str
    file: str
    seeds: tuple[int, ...]
    prior_seed: int | None = None

    @property
    def is_scratch(self) -> bool:
        """Whether it trains Full policy from scratch."""
        return self.file.endswith(f"_{SCRATCH}.yaml")

    @property
    def name(self) -> str:
        """The sweep's name, which is MLflow's experiment too."""
        own = self.seeds[0] if self.stage == "entropy" else self.prior_seed
        which = SCRATCH if self.is_scratch else own
        return f"{self.stage}-{self.environment}" + ("" if which is None else f"-{which}")

    def method_of(self, method: str, weights: Mapping[str, Any] | None = None) -> str:
        """A trial's method as tables have it: ``SCRATCH`` and ``ENTROPY_BONUS`` are methods of their own there."""
        if method == "ppo" and weights:
            return ENTROPY_BONUS
        return SCRATCH if self.is_scratch else method


@dataclass(frozen=True)
class Scope:
    """How much of it: all of it, some environments or experiments, or the quick pass through everything.

    Attributes:
        environments: keys of ``ENVIRONMENTS``.
        experiments: of ``EXPERIMENTS``.
        quick: two seeds, two settings a method and a tiny budget.
    """

    environments: tuple[str, ...] = tuple(ENVIRONMENTS)
    experiments: tuple[int, ...] = EXPERIMENTS
    quick: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds of the figures."""
        return QUICK_SEEDS if self.quick else SEEDS

    def steps(self) -> list[Step]:
        """Every sweep, each after those that it needs, one environment after another."""
        found = []
        for experiment in self.experiments:
            for environment in self.environments:
                found += self._first(environment) if experiment == 1 else self._second(environment)
        return found

    def _first(self, environment: str) -> list[Step]:
        file = f"paper/{environment}_entropy.yaml"
        return [Step("entropy", environment, file, (seed,)) for seed in self.seeds if (CONFIGS / file).is_file()]

    def _second(self, environment: str) -> list[Step]:
        customise, scratch = f"paper/{environment}_customise.yaml", f"paper/{environment}_{SCRATCH}.yaml"
        every = (*self.seeds, *TUNING_SEEDS)
        return [
            Step("prior", environment, f"priors/{environment}.yaml", every),
            *(Step("tuning", environment, customise, (seed,), seed) for seed in TUNING_SEEDS),
            Step("tuning", environment, scratch, TUNING_SEEDS),
            *(Step("final", environment, customise, (seed,), seed) for seed in self.seeds),
            Step("final", environment, scratch, self.seeds),
        ]

    def of(self, stage: Stage, environment: str) -> list[Step]:
        """The sweeps of a stage on one environment."""
        return [step for step in self.steps() if (step.stage, step.environment) == (stage, environment)]

    def spec(
        self, step: Step, storage: str, *, prior: str | None = None, chosen: Mapping[str, Weights] | None = None
    ) -> SweepSpec:
        """The specification of a sweep: its file's, with the seeds, the prior, the name and the storage of the step.

        Args:
            step: the sweep.
            storage: its storage.
            prior: folder of its prior; None: the one that its file names.
            chosen: method (see ``Step.method_of``) → its weights, of a final sweep; None: all that the file tries.

        Raises:
            KeyError: ``chosen`` lacks a method.
        """
        raw = load_spec(CONFIGS / step.file, check_files=False).model_dump(mode="json")
        raw |= {"name": step.name, "storage": storage, "seeds": list(step.seeds)}
        if prior is not None:
            raw["prior"] = prior
        if chosen is not None:
            raw["weights"] = dict(chosen[step.method_of(raw["algorithm"])])
            raw["baselines"] = [{name: dict(chosen[name])} for name in map(_method, raw["baselines"])]
        if step.stage == "final":
            raw["evaluation"] |= {"seed": FINAL_EVALUATION_SEED}
        if self.quick:
            raw["weights"] = _fewer(raw["weights"])
            raw["baselines"] = [_fewer_of(each) for each in raw["baselines"]]
            raw |= {name: raw.get(name, {}) | changes for name, changes in _QUICK.items()}
            raw["training"]["critic_warmup_iterations"] = None  # that of the smaller budget
        return SweepSpec.model_validate(raw)

    def trials(self, step: Step) -> Sequence[TrialSpec]:
        """The trials of a sweep that the plan alone determines: of a final one any setting stands for the chosen."""
        return _trials(self, step)

    def env_steps(self, step: Step) -> int:
        """Env steps that a sweep trains in all."""
        return sum(trial.env_steps for trial in self.trials(step))


@lru_cache(maxsize=256)
def _trials(scope: Scope, step: Step) -> tuple[TrialSpec, ...]:
    spec = scope.spec(step, "/plan")
    trials = expand(spec)
    if step.stage == "final":
        first = {trial.method: trial.group for trial in reversed(trials)}
        trials = [trial for trial in trials if trial.group == first[trial.method]]
    return tuple(trials)


def _method(baseline: Any) -> str:
    return baseline if isinstance(baseline, str) else str(next(iter(baseline)))


def _fewer_of(baseline: Any) -> Any:
    return baseline if isinstance(baseline, str) else {name: _fewer(weights) for name, weights in baseline.items()}


def _fewer(weights: Mapping[str, Any]) -> dict[str, Any]:
    """``QUICK_SETTINGS`` settings of a method: the first of its first grid, and of each other grid the first."""
    fewer, most = {}, QUICK_SETTINGS
    for name, value in weights.items():
        is_grid = isinstance(value, Mapping) and "grid" in value
        fewer[name] = {"grid": value["grid"][:most]} if is_grid else value
        most = 1 if is_grid else most
    return fewer
