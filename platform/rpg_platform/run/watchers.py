"""What watches a sweep's disks, its nodes and its rate while it runs."""

from __future__ import annotations

import shlex
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback

from rpg_platform.planning.cluster import Amounts
from rpg_platform.planning.estimate import SweepPlan
from rpg_platform.planning.preflight import must_stay_free
from rpg_platform.planning.rates import Rate, keep_rate, rate_key
from rpg_platform.results.report import ENV_STEPS_PER_S, EVALUATION_STEPS_PER_S, number
from rpg_platform.run.disk_guard import DiskGuard
from rpg_platform.run.idle_nodes import NodeWaker
from rpg_platform.run.stopping import GracefulStop
from rpg_platform.spec.sweep import TrialSpec, trial_id_of
from rpg_platform.storage.sweep_folder import SweepFolder

_ENOUGH_REPORTS, _MOST_REPORTS = 3, 10_000
_SETUP_S = 3.0  # of a trial, where nothing is known


def watchers(plan: SweepPlan, folder: SweepFolder, stop: GracefulStop, tell: Callable[[str], None]) -> list[Callback]:
    """Tune's callbacks that stop the sweep before a disk is full, wake its nodes, and keep its rate for later plans."""
    advice = f"Make room, then: rpg resume {folder.name} --storage {shlex.quote(folder.storage)}"
    setup_s = _SETUP_S if plan.rate is None else plan.rate.setup_s
    guard = DiskGuard(must_stay_free(plan, folder), stop.request, tell, advice)
    return [guard, RateRecorder(plan.nodes, setup_s), NodeWaker()]


class RateRecorder(Callback):
    """Keeps the rates of a sweep's trials, as they report them, for the plans of later ones.

    Args:
        nodes: resources of the machines that it runs on.
        setup_s: what is known of building a trial.
    """

    def __init__(self, nodes: Sequence[Amounts], setup_s: float) -> None:
        self._nodes, self._setup_s = nodes, setup_s
        self._keys: dict[str, str] = {}
        self._training: dict[str, deque[float]] = {}
        self._evaluating: dict[str, deque[float]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported how fast it trained and, at its end, how fast it was evaluated."""
        trial_id, training = trial_id_of(trial.config), number(result, ENV_STEPS_PER_S)
        if not training > 0:  # the prior's own row, which trains nothing
            return
        if trial_id not in self._keys:
            self._keys[trial_id] = rate_key(TrialSpec.of_config(trial.config), self._nodes)
        for found, rate in (
            (self._training, training),
            (self._evaluating, number(result, EVALUATION_STEPS_PER_S)),
        ):
            if rate > 0:
                found.setdefault(self._keys[trial_id], deque(maxlen=_MOST_REPORTS)).append(rate)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The sweep ended."""
        for key, evaluating in self._evaluating.items():
            if len(training := self._training[key]) >= _ENOUGH_REPORTS:
                speeds = statistics.median(training), statistics.median(evaluating)
                keep_rate(key, Rate(*speeds, self._setup_s, "reports of an earlier sweep", time.time()))
