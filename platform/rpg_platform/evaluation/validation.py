"""Which of a trial's policies so far is the best: small evaluations while it trains, on seeds that nothing else uses.

The validation seeds are neither the reported evaluation's nor, being seeded otherwise, those of training. So the best
policy, evaluated once more at the end, has no advantage from having been chosen. docs/evaluation.md says what it costs.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpg_algorithms.policies.bundle import PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_platform.evaluation.play import Episodes, as_metrics, evaluate, pooled
from rpg_platform.evaluation.points import Reward, at_points, weights_at
from rpg_platform.results.ranking import Figures, needed, needs_prior, order_key, violations
from rpg_platform.results.report import RUNG, VALIDATION, Mode, as_json, figures_from_json
from rpg_platform.spec.measures import PER_MODE
from rpg_platform.spec.sections import Evaluation, Objective
from rpg_platform.tasks.task import Task

BEST_BUNDLE = "bundle_best"
"""Folder of the best policy's bundle in a trial's checkpoint."""
BEST_FILE = "best.json"
_KL = "kl_to_prior"


@dataclass(frozen=True)
class Best:
    """The best policy so far.

    Attributes:
        env_steps: how far it was trained.
        figures: its means on the validation seeds, by the names in ``Constraints``.
        network: the policy as it was then.
    """

    env_steps: int
    figures: Figures
    network: PolicyNetwork


class Validation:
    """Tries a policy now and then and keeps the best, by the sweep's objective and constraints.

    Args:
        settings: when and on which seeds.
        objective: what is best.
        env_steps: the trial's budget.
        task: what the policy is evaluated on.
        prior: for constraints that are relative to it; evaluated on the validation seeds when first needed.
        rungs: env steps at which it is compared with other settings: it is tried there too.
    """

    def __init__(
        self,
        settings: Evaluation,
        objective: Objective,
        env_steps: int,
        task: Task,
        prior: PolicyNetwork | None,
        rungs: Sequence[int] = (),
    ) -> None:
        self.best: Best | None = None
        self._rungs, self._at_rungs = tuple(rungs), dict[int, Figures]()
        self._settings, self._objective, self._task, self._prior = settings, objective, task, prior
        self._budget = env_steps
        self._of_prior: Figures | None = None

    def due(self, before: int, now: int) -> bool:
        """Whether a policy is tried after training went on from ``before`` to ``now`` env steps."""
        count = self._settings.validations
        if count == 0 or self._budget == 0:
            return False
        every = math.ceil(self._budget / count)
        at_rung = any(before < rung <= now for rung in self._rungs)
        return at_rung or now // every > before // every or now >= self._budget > before

    def consider(self, policy: PolicyNetwork, env_steps: int, reward: Reward | None = None) -> dict[str, float]:
        """Tries ``policy`` and keeps a copy if it is the best so far.

        Args:
            policy: as it is now.
            env_steps: how far it is trained.
            reward: the weights of the reward that it is trained on, for its objective; None: without.

        Returns:
            Metrics ``validation/<mode>/<measure>_mean`` and ``_std``, and ``validation/best_env_steps``.
        """
        modes = self._modes() if reward is None else (self._objective.mode, "sampled")
        results = {mode: self._play(policy, mode, reward, env_steps) for mode in dict.fromkeys(modes)}
        figures = measured(results, self._objective.mode)
        key = self._key(figures)
        if self.best is None or key < self._key(self.best.figures):
            self.best = Best(env_steps, figures, copy.deepcopy(policy))
        for rung in self._rungs:
            if rung <= env_steps and rung not in self._at_rungs:
                self._at_rungs[rung] = {name: figures.get(name, math.nan) for name in sorted(needed(self._objective))}
        return as_metrics(results, VALIDATION) | {f"{VALIDATION}/best_env_steps": float(self.best.env_steps)}

    def at_rungs(self) -> dict[str, float]:
        """What settings are compared by, of each rung that has been passed, as a report has it (``search.judge``)."""
        figures = {f"{RUNG}/{rung}/{name}": value for rung, at in self._at_rungs.items() for name, value in at.items()}
        if figures and self._of_prior is not None:
            names = sorted(needed(self._objective) - {_KL})
            figures |= {f"{RUNG}/prior/{name}": self._of_prior[name] for name in names}
        return figures

    def _modes(self) -> tuple[Mode, ...]:
        """The objective's mode; where the KL is constrained the sampled one too, as it is measured there."""
        mode = self._objective.mode
        return (mode,) if mode == "sampled" or "kl_to_prior" not in needed(self._objective) else (mode, "sampled")

    def _play(self, policy: PolicyNetwork, mode: Mode, reward: Reward | None = None, env_steps: int = 0) -> Episodes:
        """Episodes of a policy; of one that is told its weights at settings that cover their ranges, in turn."""
        settings, prior = self._settings, self._prior if mode == "sampled" else None
        plain = at_points(policy, settings)
        episodes = -(-settings.validation_episodes // len(plain))
        seed, most = settings.validation_seed, settings.max_steps
        played = [
            evaluate(
                each,
                self._task,
                episodes,
                seed,
                mode,
                prior,
                weights=None if reward is None else weights_at(reward, env_steps, told),
                max_steps=most,
            )
            for told, each in plain
        ]
        return pooled([{mode: each} for each in played])[mode]

    def _key(self, figures: Figures) -> tuple[object, ...]:
        if self._of_prior is None and self._prior is not None and needs_prior(self._objective):
            mode = self._objective.mode
            self._of_prior = measured({mode: self._play(self._prior, mode)}, mode)
        broken = violations(self._objective.constraints, figures, self._of_prior)
        return order_key(figures.get(self._objective.maximize, math.nan), broken)

    # --- checkpoints

    def save(self, folder: Path, card: Callable[[Best], PriorCard]) -> None:
        """Leaves the best policy as a bundle in ``folder``, with what it was chosen by; nothing if there is none."""
        if self.best is None:
            return
        save_bundle(folder / BEST_BUNDLE, self.best.network, card(self.best))
        record = {
            "env_steps": self.best.env_steps,
            "validation": as_json(self.best.figures),
            "prior": as_json(self._of_prior),
            "rungs": as_json(self._at_rungs),
        }
        (folder / BEST_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Takes back what ``save`` left; a folder without it has no best."""
        self.best = self._of_prior = None
        self._at_rungs = {}
        file = folder / BEST_FILE
        if not file.is_file():
            return
        record = json.loads(file.read_text(encoding="utf-8"))
        self.best = Best(
            int(record["env_steps"]), figures_from_json(record["validation"]), load_bundle(folder / BEST_BUNDLE).build()
        )
        self._of_prior = None if record["prior"] is None else figures_from_json(record["prior"])
        self._at_rungs = {int(rung): figures_from_json(figures) for rung, figures in record.get("rungs", {}).items()}


def measured(results: Mapping[Mode, Episodes], mode: Mode) -> dict[str, float]:
    """The means that an objective looks at, by the names in ``Constraints``; the KL is the sampled policy's.

    Args:
        results: evaluations on the same seeds; ``mode`` among them.
        mode: of everything but the KL.
    """
    figures = {name: float(getattr(results[mode], name).mean()) for name in PER_MODE}
    if "sampled" in results:
        figures["kl_to_prior"] = float(results["sampled"].kl_to_prior.mean())
    return figures
