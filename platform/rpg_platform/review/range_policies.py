"""The policies of a sweep that were trained for a range of weights, played at any weights of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.evaluation.play import Episodes, evaluate
from rpg_platform.results.ranking import needed
from rpg_platform.results.report import Mode
from rpg_platform.review.choice import ChoiceError
from rpg_platform.review.found import Found
from rpg_platform.spec.measures import PER_MODE
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.task import get_task
from rpg_platform.tasks.task import Task

KL = "kl_to_prior"


@dataclass(frozen=True)
class RangePolicies:
    """What one method's trainings for a range left, a policy a seed.

    Attributes:
        method: the method.
        told: the weights that the policies are told.
        networks: the policies.
        prior: the prior's network, where the sweep has one.
        task: what they are played on.
    """

    method: str
    told: Sequence[Conditioned]
    networks: Sequence[PolicyNetwork]
    prior: PolicyNetwork | None
    task: Task
    max_steps: int | None

    def play(
        self, weights: Mapping[str, float], objective: Objective, episodes: int, seed: int
    ) -> dict[str, NDArray[np.float64]]:
        """Measure → its figures ``[S, E]`` at these weights, in the objective's mode; the KL is of the sampled policy.

        Args:
            weights: a value within its range of each.
            objective: the KL is measured where it asks for it.
            episodes: E.
            seed: first of their seeds.
        """
        each = [network.folded(weights) for network in self.networks]
        return self._played(each, objective, episodes, seed)

    def play_prior(self, objective: Objective, episodes: int, seed: int) -> dict[str, NDArray[np.float64]] | None:
        """The same of the prior, ``[1, E]``; None where there is none."""
        return None if self.prior is None else self._played([self.prior], objective, episodes, seed)

    def _played(
        self, networks: Sequence[PolicyNetwork], objective: Objective, episodes: int, seed: int
    ) -> dict[str, NDArray[np.float64]]:
        def episodes_of(mode: Mode) -> list[Episodes]:
            prior = self.prior if mode == "sampled" else None
            return [
                evaluate(each, self.task, episodes, seed, mode, prior, max_steps=self.max_steps) for each in networks
            ]

        played = episodes_of(objective.mode)
        found = {name: np.stack([getattr(each, name) for each in played]) for name in PER_MODE}
        if KL in needed(objective) and self.prior is not None:
            sampled = played if objective.mode == "sampled" else episodes_of("sampled")
            found[KL] = np.stack([getattr(each, KL) for each in sampled])
        return found


def range_policies(found: Found, method: str | None = None) -> RangePolicies:
    """The policies of a sweep's finished trainings for a range.

    Args:
        found: the sweep, read from its folder.
        method: of which method; None: the sweep's algorithm, or the one that has a range.

    Raises:
        ChoiceError: there are none.
    """
    points = {trial.point_of: trial for trial, _, _ in found.results if trial.point_of is not None}
    methods = list(dict.fromkeys(trial.method for trial in points.values()))
    wanted = method or (found.spec.algorithm if found.spec.algorithm in methods else next(iter(methods), None))
    if wanted not in methods:
        has = f"those of {', '.join(methods)}" if methods else "none: give a weight as {conditioned: [low, high]}"
        raise ChoiceError(f"{found.spec.name}: policies that are told their weights are {has}")
    networks = []
    with tempfile.TemporaryDirectory() as scratch:
        for i, trial in enumerate(each for each in points.values() if each.method == wanted):
            place = found.checkpoints[trial.trial_id]
            networks.append(load_bundle(found.folder.fetch_bundle(Path(scratch, str(i)), place)).build())
    prior = found.folder.prior()
    return RangePolicies(
        wanted,
        networks[0].spec.context,
        networks,
        None if prior is None else prior.build(),
        get_task(found.spec.task),
        found.spec.evaluation.max_steps,
    )
