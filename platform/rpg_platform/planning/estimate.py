"""What a sweep comes to before it starts: trials, env steps, time, the cluster's room, disk.

`expand` says which trials there are; this adds what they cost, and refuses what cannot run.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rpg_platform.planning.cluster import Amounts, asked, check_capacity, placement, rounds, total, trials_at_once
from rpg_platform.planning.rates import Rate
from rpg_platform.results.ranking import needs_prior
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.trials import arms, searched, trials_of
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.trial.room import free_bytes
from rpg_platform.trial.sizes import Networks, bundle_bytes, checkpoint_bytes, networks_of, reports, trial_bytes

START_S = 12.0
"""Seconds to start Ray and to import everything in the trials' processes."""
DEFAULT_EPISODE = 1_000
"""Env steps of an episode where the task sets no limit."""
_GRADIENT_STEP = 20_000  # its fixed cost, calls and Adam's bookkeeping, in parameters
# Bytes: MLflow's empty store, its rows of a report, of a trial beside its bundles; Tune's state of a sweep and a trial.
_MLFLOW, _MLFLOW_REPORT, _MLFLOW_TRIAL, _SWEEP, _TRIAL_STATE = 1_100_000, 7_500, 48_000, 250_000, 80_000


@dataclass(frozen=True)
class MethodPlan:
    """One method's share of a sweep.

    Attributes:
        method: its name.
        settings: how many of its settings, each at every seed.
        trials: how many trials.
        left: how many of them are not finished yet.
    """

    method: str
    settings: int
    trials: int
    left: int


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep comes to. Times are None while no rate is known.

    Attributes:
        sweep, task: names.
        methods: each method's share.
        seeds: number of training seeds.
        chosen_by: how the settings that are no grid are chosen, where some are.
        env_steps, env_steps_left: of training, in total and what is left.
        evaluation_steps: env steps of what is left in evaluations and validations, at most.
        assumed_episode: length assumed for episodes, where the task sets no limit.
        rate: of the slowest trials.
        trial_s, wall_s, cpu_hours, gpu_hours: estimates for what is left.
        evaluation_share: share of the trials' time that goes into evaluations and validations, at most.
        nodes: resources of the machines.
        per_trial: resources of a trial.
        at_once, rounds: how many trials run together, and how often.
        storage: where the results go.
        checkpoint_bytes: of the largest checkpoint.
        storage_bytes: what is added to the storage, MLflow's embedded store included.
        mlflow_bytes: of it, or of the MLflow server, what goes to MLflow.
        temporary_bytes: in the temporary folders of the trials' machines.
        free_bytes: in the storage, where it is local.
        ends_early: trials may be ended before their budget.
    """

    sweep: str
    task: str
    methods: Sequence[MethodPlan]
    seeds: int
    chosen_by: str | None
    env_steps: int
    env_steps_left: int
    evaluation_steps: int
    assumed_episode: int | None
    rate: Rate | None
    trial_s: float | None
    wall_s: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    evaluation_share: float | None
    nodes: Sequence[Amounts]
    per_trial: Amounts
    at_once: int
    rounds: int
    storage: str
    checkpoint_bytes: int
    storage_bytes: int
    mlflow_bytes: int
    temporary_bytes: int
    free_bytes: int | None
    ends_early: bool

    @property
    def trials(self) -> int:
        """Trials in total."""
        return sum(each.trials for each in self.methods)

    @property
    def left(self) -> int:
        """Trials that are not finished yet."""
        return sum(each.left for each in self.methods)

    def as_json(self) -> dict[str, Any]:
        """The whole plan as data."""
        data = dataclasses.asdict(self) | {"trials": self.trials, "trials_left": self.left}
        if self.rate is not None:
            data["rate"]["at"] = datetime.fromtimestamp(self.rate.at, tz=UTC).isoformat(timespec="seconds")
        return data


def all_trials(spec: SweepSpec, trials: Sequence[TrialSpec], begun: Collection[str] = ()) -> list[TrialSpec]:
    """The trials of a sweep; those that an adaptive search chooses as it goes are represented by others of their kind.

    The stand-ins are as many as there will be, half of them at either end of the searched spaces.

    Args:
        spec: the sweep.
        trials: those that are known from the specification (`expand`).
        begun: ids of the trials that it has, on resuming; what the search has chosen of them takes a stand-in's place.
    """
    if not spec.search.is_adaptive:
        return list(trials)
    spaces = searched(spec, arms(spec)[0])
    kinds = [trials_of(spec, {name: space.values[end] for name, space in spaces.items()}) for end in (0, -1)]
    chosen = iter(sorted(set(begun) - {trial.trial_id for trial in trials}))
    stand_ins = [
        kind.model_copy(update={"trial_id": next(chosen, f"{spec.algorithm}-{index}-seed={kind.seed}")})
        for index in range(spec.samples or 1)
        for kind in kinds[index % len(kinds)]
    ]
    return [*trials, *stand_ins]


def make_plan(
    sweep: Sweep,
    nodes: Sequence[Amounts],
    rate_of: Callable[[TrialSpec], Rate | None],
    states: Mapping[str, TrialState] | None = None,
) -> SweepPlan:
    """Counts and estimates what is left of a sweep, in time linear in its trials.

    Args:
        sweep: the sweep.
        nodes: resources of the machines that it will run on.
        rate_of: gives the rate of the heaviest trial, which it is called with; None if that is not known.
        states: how far its trials are, on resuming.

    Raises:
        CapacityError: no trial could ever start.
    """
    spec, storage, states = sweep.spec, sweep.storage, states or {}
    trials = all_trials(spec, sweep.trials, states)
    bundles = placement(spec)
    check_capacity(bundles, nodes, strategy := spec.resources.placement)
    left = [t for t in trials if t.trial_id not in states or not states[t.trial_id].finishes(t)]
    at_once = trials_at_once(bundles, nodes, min(len(left), spec.resources.max_concurrent or len(left)), strategy)
    episode = sweep.max_episode_steps
    work = [_steps(t, states.get(t.trial_id), episode or DEFAULT_EPISODE) for t in left]
    networks = {t.trial_id: networks_of(t, sweep.observation_space, sweep.action_space, sweep.prior) for t in trials}
    sizes = [(t, networks[t.trial_id]) for t in left]
    checkpoint = max((checkpoint_bytes(*each) for each in sizes), default=0)
    mlflow = _MLFLOW + sum(_MLFLOW_REPORT * reports(t) + _MLFLOW_TRIAL + 2 * bundle_bytes(n) for t, n in sizes)
    in_storage = _SWEEP + sum(trial_bytes(*each) + _TRIAL_STATE for each in sizes)
    is_beside = "://" not in storage and sweep.tracking_uri == default_tracking_uri(storage)
    trained = [t for t in trials if METHODS[t.method].trains]
    rate = rate_of(max(trained, key=lambda t: _cost(t, networks[t.trial_id]))) if trained else None
    training = [arm for arm in arms(spec) if METHODS[arm.entry.method].trains]
    drawn = any(space.is_random for arm in training for space in searched(spec, arm).values())
    return SweepPlan(
        sweep=spec.name,
        task=sweep.task.name,
        methods=_methods(trials, {t.trial_id for t in left}, len(spec.seeds)),
        seeds=len(spec.seeds),
        chosen_by=spec.search.method if drawn else None,
        env_steps=sum(t.env_steps for t in trials),
        env_steps_left=sum(training for training, _ in work),
        evaluation_steps=sum(evaluating for _, evaluating in work),
        assumed_episode=None if episode else DEFAULT_EPISODE,
        rate=rate,
        **_times(work, rate, bundles, at_once),
        nodes=[{name: node[name] for name in ("CPU", "GPU") if name in node} for node in nodes],
        per_trial={name: total(bundles, name) for name in dict.fromkeys(("CPU", "GPU", *asked(bundles)))},
        at_once=at_once,
        rounds=rounds(len(left), at_once),
        storage=storage,
        checkpoint_bytes=checkpoint,
        storage_bytes=in_storage + (mlflow if is_beside else 0),
        mlflow_bytes=mlflow,
        temporary_bytes=checkpoint * at_once,
        free_bytes=None if "://" in storage else free_bytes(storage),
        ends_early=spec.scheduler is not None and spec.scheduler.ends_early,
    )


def _methods(trials: Sequence[TrialSpec], left: Collection[str], seeds: int) -> list[MethodPlan]:
    found = []
    for method in dict.fromkeys(trial.method for trial in trials):
        its = [trial for trial in trials if trial.method == method]
        settings = len(its) // seeds if METHODS[method].trains else 1
        found.append(MethodPlan(method, settings, len(its), sum(trial.trial_id in left for trial in its)))
    return found


def _cost(trial: TrialSpec, networks: Networks) -> float:
    """A trial's arithmetic per env step, to compare it with others'."""
    per_sample = networks.policy + networks.critic + networks.prior / 3
    return trial.training.num_epochs * (per_sample + _GRADIENT_STEP * 256 / trial.training.minibatch_size)


def _steps(trial: TrialSpec, state: TrialState | None, episode: int) -> tuple[int, int]:
    """Env steps of training and, at most, of evaluating that a trial has left."""
    settings, objective = trial.evaluation, trial.objective
    trained = METHODS[trial.method].trains
    done = 0 if state is None else min(state.env_steps, trial.env_steps)
    evaluating = 2 * settings.episodes * (2 if trained and settings.validations else 1)
    evaluating += 2 * settings.episodes_to_choose_by
    if trained:
        modes = 2 if objective.mode == "deterministic" else 1
        times = settings.validations * (1 - done / trial.env_steps) + len([r for r in trial.rungs if r > done])
        validation = settings.validation_episodes
        if trial.told:
            evaluating, validation = trial.points * evaluating, trial.points * -(-validation // trial.points)
        evaluating += round(modes * validation * (times + (1 if needs_prior(objective) else 0)))
    return trial.env_steps - done, evaluating * episode


def _times(
    work: Sequence[tuple[int, int]], rate: Rate | None, bundles: Sequence[Amounts], at_once: int
) -> dict[str, Any]:
    """Seconds of the longest trial and of the sweep, CPU- and GPU-hours, and the share of evaluations."""
    if rate is None:
        return dict.fromkeys(("trial_s", "wall_s", "cpu_hours", "gpu_hours", "evaluation_share"))
    evaluating = [steps / rate.evaluation_steps_per_s for _, steps in work]
    each = [rate.setup_s + s / rate.env_steps_per_s + e for (s, _), e in zip(work, evaluating, strict=True)]
    slots = [0.0] * max(1, at_once)
    for seconds in each:  # in their order, each where a place becomes free first, as Tune does
        heapq.heapreplace(slots, slots[0] + seconds)
    hours = sum(each) / 3_600
    return {
        "trial_s": max(each, default=0.0),
        "wall_s": max(slots) + (START_S if each else 0.0),
        "cpu_hours": hours * total(bundles, "CPU"),
        "gpu_hours": hours * total(bundles, "GPU"),
        "evaluation_share": sum(evaluating) / sum(each) if each else 0.0,
    }
