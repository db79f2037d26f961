"""What a sweep comes to before it starts: trials, env steps, time, the cluster's room, disk.

`plan.expand` says which trials there are; this adds what they cost, and refuses what cannot run.
"""

from __future__ import annotations

import dataclasses
import heapq
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_platform.planning.cluster import (
    Amounts,
    check_capacity,
    placement,
    rounds,
    trials_at_once,
)
from rpg_platform.planning.rates import Rate, known_rate, rate_key
from rpg_platform.results.ranking import needed, needs_prior
from rpg_platform.run import disk_guard as disk
from rpg_platform.spec.checks import expand
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.space import SearchSpace, Setting
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.task import get_task
from rpg_platform.spec.trials import arms, searched, trials_of
from rpg_platform.storage.sweep_folder import TrialState
from rpg_platform.tasks.environments import make_env

START_S = 12.0
"""Seconds to start Ray and to import everything in the trials' processes."""
DEFAULT_EPISODE = 1_000
"""Env steps of an episode where the task sets no limit."""
_MLFLOW_EMPTY, _MLFLOW_FIGURE, _FIGURES_PER_REPORT = 1_100_000, 300, 25
_OF_SWEEP, _OF_TRIAL_IN_STATE = 250_000, 80_000


class PlanError(ValueError):
    """A sweep that cannot run as it is planned; the message says what is missing."""


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
        counted = {"trials": self.trials, "trials_left": self.left}
        rate = None
        if self.rate is not None:
            at = datetime.fromtimestamp(self.rate.at, tz=UTC).isoformat(timespec="seconds")
            rate = dataclasses.asdict(self.rate) | {"at": at}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            **counted,
            "methods": [dataclasses.asdict(each) for each in self.methods],
            "nodes": [{name: node[name] for name in ("CPU", "GPU") if name in node} for node in self.nodes],
            "rate": rate,
        }


def heaviest(trials: Sequence[TrialSpec], prior: PriorBundle | None) -> TrialSpec | None:
    """The trial with the most arithmetic per env step; None where nothing is trained."""
    trained = [trial for trial in trials if METHODS[trial.method].trains]
    if not trained:
        return None
    env = make_env(get_task(trained[0].task))
    fixed_cost = 20_000  # of a gradient step, in parameters: calls and Adam's bookkeeping

    def cost(trial: TrialSpec) -> float:
        sizes = disk.parameters(trial, env, prior)
        per_sample = sizes.policy + sizes.critic + sizes.prior / 3
        return trial.training.num_epochs * (per_sample + fixed_cost * 256 / trial.training.minibatch_size)

    try:
        return max(trained, key=cost)
    finally:
        env.close()  # type: ignore[no-untyped-call]


def all_trials(spec: SweepSpec, begun: Collection[str] = ()) -> list[TrialSpec]:
    """The trials of a sweep; those that a search chooses as it goes are represented by others of their kind.

    Args:
        spec: the sweep.
        begun: ids of the trials that it has, on resuming.
    """
    known = expand(spec)
    ids = {trial.trial_id for trial in known}
    chosen = sorted(trial_id for trial_id in begun if trial_id not in ids)
    stand_ins = _adaptive(spec)
    for index, stand_in in enumerate(stand_ins):
        its = next((each for each in chosen if each.endswith(f"-seed={stand_in.seed}")), None)
        if its is not None:
            chosen.remove(its)
            stand_ins[index] = stand_in.model_copy(update={"trial_id": its})
    return known + stand_ins


def _adaptive(spec: SweepSpec) -> list[TrialSpec]:
    """Stand-ins for the settings that an adaptive search will propose: of the right number, at the spaces' ends."""
    if not spec.search.is_adaptive:
        return []
    spaces = searched(spec, arms(spec)[0])
    kinds = [trials_of(spec, {name: _end(space, which) for name, space in spaces.items()}) for which in (0, -1)]
    made: list[TrialSpec] = []
    for index in range(spec.samples or 1):
        name = f"{spec.algorithm}-{index}"
        made += [each.model_copy(update={"trial_id": f"{name}-seed={each.seed}"}) for each in kinds[index % len(kinds)]]
    return made


def _end(space: SearchSpace, which: int) -> Setting:
    return space.values[which]


def make_plan(
    spec: SweepSpec,
    trials: Sequence[TrialSpec],
    prior: PriorBundle | None,
    nodes: Sequence[Amounts],
    storage: str,
    *,
    tracking_is_local: bool,
    states: Mapping[str, TrialState] | None = None,
    rate: Rate | None = None,
) -> SweepPlan:
    """Counts and estimates what is left of a sweep.

    Args:
        spec: the sweep.
        trials: all its trials (`all_trials`).
        prior: its prior.
        nodes: resources of the machines that it will run on.
        storage: where its results go.
        tracking_is_local: MLflow's store is in the storage.
        states: how far its trials are, on resuming.
        rate: of the heaviest trials; None: the one that is known from earlier.

    Raises:
        CapacityError: no trial could ever start.
        PlanError: the storage's disk has too little room.
    """
    bundles = placement(spec)
    check_capacity(bundles, nodes)
    states = states or {}
    left = [t for t in trials if t.trial_id not in states or not states[t.trial_id].finishes(t)]
    at_once = trials_at_once(bundles, nodes, min(len(left), spec.resources.max_concurrent or len(left)))
    hardest = heaviest(trials, prior)
    if rate is None and hardest is not None:
        rate = known_rate(rate_key(hardest, nodes))
    episode, assumed = _episode(spec)
    work = [_steps(trial, states.get(trial.trial_id), episode) for trial in left]
    sizes = _Sizes.of(trials, left, prior, states)
    in_storage = sizes.trials + (sizes.mlflow if tracking_is_local else 0) + _OF_SWEEP + _OF_TRIAL_IN_STATE * len(left)
    plan = SweepPlan(
        sweep=spec.name,
        task=get_task(spec.task).name,
        methods=_methods(trials, {trial.trial_id for trial in left}, len(spec.seeds)),
        seeds=len(spec.seeds),
        chosen_by=spec.search.method if any(s.is_random for arm in arms(spec) for s in _spaces(spec, arm)) else None,
        env_steps=sum(trial.env_steps for trial in trials),
        env_steps_left=sum(training for training, _ in work),
        evaluation_steps=sum(evaluating for _, evaluating in work),
        assumed_episode=assumed,
        rate=rate,
        **_times(work, rate, bundles, at_once),
        nodes=[dict(node) for node in nodes],
        per_trial={name: sum(b.get(name, 0.0) for b in bundles) for name in ("CPU", "GPU")},
        at_once=at_once,
        rounds=rounds(len(left), at_once),
        storage=storage,
        checkpoint_bytes=sizes.checkpoint,
        storage_bytes=in_storage,
        mlflow_bytes=sizes.mlflow,
        temporary_bytes=sizes.checkpoint * at_once,
        free_bytes=None if "://" in storage else disk.free_bytes(storage),
        ends_early=spec.scheduler is not None and spec.scheduler.ends_early,
    )
    _check_disk(plan)
    return plan


def _spaces(spec: SweepSpec, arm: Any) -> Collection[SearchSpace]:
    return searched(spec, arm).values() if METHODS[arm.entry.method].trains else ()


def _methods(trials: Sequence[TrialSpec], left: Collection[str], seeds: int) -> list[MethodPlan]:
    found = []
    for method in dict.fromkeys(trial.method for trial in trials):
        its = [trial for trial in trials if trial.method == method]
        settings = 1 if not METHODS[method].trains else len(its) // seeds
        found.append(MethodPlan(method, settings, len(its), sum(trial.trial_id in left for trial in its)))
    return found


def _episode(spec: SweepSpec) -> tuple[int, int | None]:
    """Longest episode, and the same where it is only assumed."""
    env = make_env(get_task(spec.task))
    try:
        limit = getattr(env.spec, "max_episode_steps", None) or get_task(spec.task).max_episode_steps
    finally:
        env.close()  # type: ignore[no-untyped-call]
    return (int(limit), None) if limit else (DEFAULT_EPISODE, DEFAULT_EPISODE)


def _steps(trial: TrialSpec, state: TrialState | None, episode: int) -> tuple[int, int]:
    """Env steps of training and, at most, of evaluating that a trial has left."""
    settings, objective = trial.evaluation, trial.objective
    trained = METHODS[trial.method].trains
    done = 0 if state is None else min(state.env_steps, trial.env_steps)
    evaluating = 2 * settings.episodes * (2 if trained and settings.validations else 1)
    if trained:
        modes = 2 if objective.mode == "deterministic" and "kl_to_prior" in needed(objective) else 1
        times = settings.validations * (1 - done / trial.env_steps) + len([r for r in trial.rungs if r > done])
        evaluating += round(modes * settings.validation_episodes * (times + (1 if needs_prior(objective) else 0)))
    return trial.env_steps - done, evaluating * episode


def _times(
    work: Sequence[tuple[int, int]], rate: Rate | None, bundles: Sequence[Amounts], at_once: int
) -> dict[str, float | None]:
    """Seconds of the longest trial and of the sweep, CPU- and GPU-hours, and the share of evaluations."""
    names = ("trial_s", "wall_s", "cpu_hours", "gpu_hours", "evaluation_share")
    if rate is None:
        return dict.fromkeys(names)
    training = [steps / rate.env_steps_per_s for steps, _ in work]
    evaluating = [steps / rate.evaluation_steps_per_s for _, steps in work]
    each = [rate.setup_s + t + e for t, e in zip(training, evaluating, strict=True)]
    slots = [0.0] * max(1, at_once)
    for seconds in each:  # in their order, each where a place becomes free first, as Tune does
        heapq.heapreplace(slots, slots[0] + seconds)
    wall = max(slots) + (START_S if each else 0.0)
    hours = sum(each) / 3_600
    cpus, gpus = (sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU"))
    share = sum(evaluating) / sum(each) if sum(each) else 0.0
    return dict(zip(names, (max(each, default=0.0), wall, hours * cpus, hours * gpus, share), strict=True))


@dataclass(frozen=True)
class _Sizes:
    checkpoint: int
    trials: int
    mlflow: int

    @classmethod
    def of(
        cls,
        trials: Sequence[TrialSpec],
        left: Sequence[TrialSpec],
        prior: PriorBundle | None,
        states: Mapping[str, TrialState],
    ) -> _Sizes:
        env = make_env(get_task(trials[0].task))
        try:
            each = [(trial, disk.parameters(trial, env, prior)) for trial in left]
        finally:
            env.close()  # type: ignore[no-untyped-call]
        checkpoint = max((disk.checkpoint_bytes(trial, sizes) for trial, sizes in each), default=0)
        of_trials = sum(disk.trial_bytes(trial, sizes) for trial, sizes in each)
        figures = sum(_FIGURES_PER_REPORT * disk.reports(trial) + 60 for trial, _ in each)
        artifacts = sum(2 * disk.bundle_bytes(sizes) + 30_000 for _, sizes in each)
        return cls(checkpoint, of_trials, _MLFLOW_EMPTY + _MLFLOW_FIGURE * figures + artifacts)


def _check_disk(plan: SweepPlan) -> None:
    if plan.free_bytes is not None and plan.storage_bytes + disk.RESERVE > plan.free_bytes:
        raise PlanError(
            f"{plan.storage}: {disk.size_text(plan.free_bytes)} are free, and the sweep needs "
            f"{disk.size_text(plan.storage_bytes)} and {disk.size_text(disk.RESERVE)} to spare: "
            "make room, give another --storage, or keep fewer checkpoints (checkpoint.keep)"
        )


def check_writable(storage: str) -> None:
    """Refuses a local storage that cannot be written to.

    Raises:
        PlanError: says which folder is at fault.
    """
    if "://" in storage:
        return
    folder = disk.existing(storage)
    if not folder.is_dir():
        raise PlanError(f"storage={storage!r}: {folder} is a file, expected a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # has no name: nothing is seen of it
    except OSError as error:
        raise PlanError(f"storage={storage!r}: {folder} cannot be written to: {error.strerror}") from error
