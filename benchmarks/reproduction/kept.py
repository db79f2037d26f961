"""What finished sweeps came to, in files beside the code: another machine goes on from them and trains none again.

A file holds what the page and the choices need of a sweep, as MLflow had it; beside them lie the priors themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from benchmarks.reproduction.plan import Step
from pydantic import BaseModel

from rpg_platform.results.report import as_json, figures_from_json
from rpg_platform.review.curves import Training

KEPT = Path(__file__).resolve().parent / "kept"
"""Of this repository."""
POINTS = 60
"""Of a learning curve, at most."""
DRAWN = ("total_return", "basic_return")
"""Of the learning curves."""
Figure = float | bool | None


class KeptTrial(BaseModel):
    """A trial.

    Attributes:
        method, weights, seed, env_steps, error: see ``records.Trained``.
        report: the figures of its last report.
        steps, values: env steps and ``DRAWN`` of its training, thinned out to ``POINTS``; null where unknown.
        health: see ``rpg_platform.review.curves.health_of``.
        totals: total return of each final episode of the deterministic policy.
    """

    method: str
    weights: dict[str, float]
    seed: int
    env_steps: int
    error: str | None
    report: dict[str, Figure]
    steps: list[float]
    values: dict[str, list[float | None]]
    health: dict[str, float | None]
    totals: list[float]

    @property
    def training(self) -> Training | None:
        """How its training went; None where it reported nothing."""
        if not self.steps:
            return None
        values = {name: np.array(of, dtype=np.float64) for name, of in self.values.items()}  # None becomes NaN
        return Training(np.array(self.steps), values, np.zeros(0), {}, figures_from_json(self.health))


class KeptSweep(BaseModel):
    """A finished sweep: the tags of its run, and its trials by id."""

    tags: dict[str, str]
    trials: dict[str, KeptTrial]


class Kept:
    """The folder of the files.

    Args:
        folder: None: nothing is kept, or taken from there.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, KeptSweep | None] = {}

    def sweep(self, step: Step) -> KeptSweep | None:
        """A sweep; None where it is not kept."""
        if self.folder is None:
            return None
        if step.name not in self._read:
            file = self.folder / f"{step.name}.json"
            known = file.is_file()
            self._read[step.name] = KeptSweep.model_validate_json(file.read_text(encoding="utf-8")) if known else None
        return self._read[step.name]

    def prior(self, environment: str, seed: int) -> Path | None:
        """The bundle of a prior; None where it is not kept."""
        found = None if self.folder is None else self.folder / "priors" / f"{environment}-{seed}"
        return found if found is not None and found.is_dir() else None

    def keep(self, step: Step, sweep: KeptSweep, priors: Mapping[int, Path]) -> None:
        """Writes a sweep, and the bundles of the priors that it trained, by seed: they first."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        for seed, bundle in priors.items():
            shutil.copytree(bundle, self.folder / "priors" / f"{step.environment}-{seed}", dirs_exist_ok=True)
        unfinished = self.folder / f".{step.name}.json"
        unfinished.write_text(sweep.model_dump_json() + "\n", encoding="utf-8")
        unfinished.replace(self.folder / f"{step.name}.json")
        self._read.pop(step.name, None)


def thinned(training: Training | None) -> tuple[list[float], dict[str, list[float | None]]]:
    """At most ``POINTS`` points of a training's curves, evenly over its reports: their env steps and ``DRAWN``."""
    if training is None:
        return [], {}
    chosen = np.unique(np.linspace(0, len(training.steps) - 1, POINTS).round().astype(int))
    return training.steps[chosen].tolist(), {name: as_json(training.values[name][chosen]) for name in DRAWN}
