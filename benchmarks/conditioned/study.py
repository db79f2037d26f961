"""The comparison's sweeps on one environment: which they are, and training those that are not recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from benchmarks.conditioned.records import Records, Setting, record_of
from benchmarks.reproduction.plan import CONFIGS
from benchmarks.reproduction.records import COMMIT
from benchmarks.speed import machine

from rpg_algorithms.maths.conditioned import Conditioned, grid
from rpg_platform.review.found import found_in
from rpg_platform.spec.sections import Resources
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.yaml_file import dump_spec, load_spec
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.run_tags import git_tags

SEEDS = (0, 1, 2, 3, 4)
SEPARATE = 800_000
RANGE, EACH, LONG = KINDS = ("range", "separate", "long")
LONG_ON = ("halfcheetah",)
"""Environments on which small weights are also trained for as long as the range."""


@dataclass(frozen=True)
class Study:
    """The comparison on one environment.

    Attributes:
        environment: what ``tune_configs/<environment>_conditioned.yaml`` is for.
        storage: where its sweeps are kept.
    """

    environment: str
    storage: str

    @cached_property
    def file(self) -> SweepSpec:
        """The shipped specification of the range."""
        return load_spec(CONFIGS / f"{self.environment}_conditioned.yaml", check_files=False)

    @cached_property
    def ranges(self) -> list[Conditioned]:
        """The weights that the policy is told."""
        weights = self.file.model_dump(mode="json")["weights"]
        return [
            Conditioned(value["conditioned"][0], value["conditioned"][1], name)
            for name, value in weights.items()
            if isinstance(value, dict)
        ]

    @property
    def settings(self) -> list[Setting]:
        """Those at which the policy for the range is evaluated, and each of which is trained by itself."""
        each = self.file.evaluation.values_of_each(len(self.ranges))
        return [tuple(point.items()) for point in grid(self.ranges, each)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its sweeps of a seed."""
        return KINDS if self.environment in LONG_ON else KINDS[:2]

    def name(self, kind: str, seed: int) -> str:
        """Of a sweep."""
        return f"conditioned-{self.environment}-{kind}-{seed}"

    def env_steps(self, kind: str) -> int:
        """Of each of a kind's trainings."""
        return SEPARATE if kind == EACH else self.file.budget.env_steps

    def spec(self, kind: str, seed: int) -> SweepSpec:
        """The specification of a sweep: ``range``, ``separate`` or ``long``, of one seed."""
        raw = self.file.model_dump(mode="json")
        raw |= {"name": self.name(kind, seed), "storage": self.storage, "seeds": [seed]}
        raw["budget"] |= {"env_steps": self.env_steps(kind)}
        if kind == RANGE:
            return SweepSpec.model_validate(raw)
        axes = {each.name: sorted({dict(s)[each.name] for s in self.settings}) for each in self.ranges}
        if kind == LONG:  # small weights of the first, the middle of the others
            first = self.ranges[0].name
            axes = {name: values[:2] if name == first else [values[len(values) // 2]] for name, values in axes.items()}
        raw["weights"] = {**raw["weights"], **{name: {"grid": values} for name, values in axes.items()}}
        raw["resources"] |= {"envs_per_runner": Resources().envs_per_runner}
        single = load_spec(CONFIGS / f"{self.environment}.yaml", check_files=False)
        raw["training"] = single.model_dump(mode="json")["training"] | {"anneal_lr": True}
        return SweepSpec.model_validate(raw)

    def train(self, records: Records, keep: Callable[[], None]) -> bool:
        """Trains what is not recorded, a seed after the other, and records it; returns whether everything is.

        Args:
            records: takes each sweep that has finished.
            keep: is called after each.
        """
        from rpg_platform.run.run import run_sweep
        from rpg_platform.storage.sweep import Sweep

        for seed in SEEDS:
            for kind in (kind for kind in self.kinds if not records.has(kind, seed)):
                folder, spec = SweepFolder(self.storage, self.name(kind, seed)), self.spec(kind, seed)
                resume = folder.is_sweep()
                source = folder.source() if resume else dump_spec(spec)
                outcome = run_sweep(Sweep.resolve(folder.spec() if resume else spec, source=source, resume=resume))
                if outcome.interrupted or outcome.failed:
                    return False
                commit = git_tags(CONFIGS).get(COMMIT, "")
                records.add(kind, seed, record_of(found_in(folder), seed, machine(), commit))
                keep()
        return True
