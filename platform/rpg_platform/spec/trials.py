"""From a sweep's specification to its trials, one by one: grid points, draws, seeds and names.

Everything here is a function of the specification alone. The k-th draw of a searched value depends on
`search_seed`, the value's name and k, and on nothing else: every grid point, every seed and every method that
searches the same name sees the same draws, and more samples leave the earlier ones as they were. A setting that
comes up again is drawn anew; a method with fewer distinct settings than `samples` gets each of them once. Quasi-random
settings are the first points of one sequence over all that a method searches. What an adaptive search tries
(`search.is_adaptive`) is not known here, only how a setting that it proposes becomes trials (`trials_of`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import pkgutil
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rpg_platform.spec.methods import METHODS, WEIGHTS, MethodName
from rpg_platform.spec.space import ConditionedRange, SearchSpace, Setting, WeightValue, dump
from rpg_platform.spec.sweep import (
    WARMUP,
    Baseline,
    Network,
    SweepSpec,
    Training,
    TrialSpec,
    iteration_env_steps,
)
from rpg_platform.wording import Path

PRIOR_TRIAL = "prior"
MAX_ID_LENGTH = 120

_DRAWS_PER_SAMPLE = 20
_SPARE_DRAWS = 1_000
_WITH_PRIOR_ONLY = (WARMUP, "start_from_prior")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")


@dataclass(frozen=True)
class Arm:
    """One method of a sweep with its weights.

    Attributes:
        path: Where the specification gives it: `("algorithm",)` or `("baselines", i)`.
        entry: The method and its weights.
    """

    path: Path
    entry: Baseline

    def weight_path(self, name: str | None = None) -> Path:
        """Where the specification gives the weight `name`, or the weights as a whole."""
        whole: Path = (*self.path, self.entry.method) if len(self.path) > 1 else ("weights",)
        if name is not None:
            return (*whole, name)
        return whole if self.entry.weights else self.path


def arms(spec: SweepSpec) -> list[Arm]:
    """The algorithm and the baselines, each with its place in the specification."""
    baselines = (Arm(("baselines", index), entry) for index, entry in enumerate(spec.baselines))
    return [Arm(("algorithm",), Baseline(spec.algorithm, spec.weights)), *baselines]


def uses_prior(spec: SweepSpec, method: MethodName) -> bool:
    """Whether trials of `method` are given the sweep's prior."""
    return spec.prior is not None and METHODS[method].uses_prior


def searched(spec: SweepSpec, arm: Arm) -> dict[str, SearchSpace]:
    """What an arm searches over by name: its weights, then the training settings, in their tables' order."""
    weights = {name: arm.entry.weights[name] for name in WEIGHTS if name in arm.entry.weights}
    spaces = {name: value for name, value in weights.items() if isinstance(value, SearchSpace)}
    training = spec.training.searched
    idle = () if uses_prior(spec, arm.entry.method) else _WITH_PRIOR_ONLY
    names = [name for name in Training.model_fields if name in training and name not in idle]
    return {**spaces, **{name: training[name] for name in names}}


def searched_weights(spec: SweepSpec) -> dict[str, SearchSpace]:
    """Returns the weights that a population explores."""
    return {name: space for name, space in spec.weights.items() if isinstance(space, SearchSpace)}


def count_trials(spec: SweepSpec) -> int:
    """How many trials the specification asks for, at most, without making them."""
    total = 1 if spec.prior is not None else 0
    for arm in arms(spec):
        if not METHODS[arm.entry.method].trains:
            continue
        spaces = searched(spec, arm).values()
        grid = math.prod(space.size or 1 for space in spaces if not space.is_random)
        drawn = [space for space in spaces if space.is_random]
        samples = (spec.samples or 1) if drawn else 1
        if all(space.size for space in drawn):
            samples = min(samples, math.prod(space.size or 1 for space in drawn))
        total += grid * samples * len(spec.seeds)
    return total


def draws(spec: SweepSpec, arm: Arm) -> list[dict[str, Setting]]:
    """The distinct random settings of an arm: `samples` of them, or as many as there are.

    Returns:
        Settings by name; a single empty one when nothing is random.
    """
    spaces = {name: space for name, space in searched(spec, arm).items() if space.is_random}
    if not spaces:
        return [{}]
    wanted = spec.samples or 1
    attempts = 2 * wanted + _SPARE_DRAWS
    if all(space.size for space in spaces.values()):
        wanted = min(wanted, math.prod(space.size or 1 for space in spaces.values()))
        attempts = _DRAWS_PER_SAMPLE * wanted + _SPARE_DRAWS  # the last of n settings takes about n log n draws
    found: dict[tuple[Setting, ...], dict[str, Setting]] = {}
    for drawn in _attempts(spec, spaces, attempts):
        found.setdefault(tuple(drawn.values()), drawn)
        if len(found) == wanted:
            break
    return list(found.values())


def _attempts(spec: SweepSpec, spaces: Mapping[str, SearchSpace], count: int) -> Iterator[dict[str, Setting]]:
    if spec.search.row.draws is not None:
        yield from pkgutil.resolve_name(spec.search.row.draws)(spaces, count, spec.search_seed)
        return
    for attempt in range(count):
        yield {
            name: space.draw(random.Random(f"{spec.search_seed}/{name}/{attempt}")) for name, space in spaces.items()
        }


def _settings(spec: SweepSpec, arm: Arm) -> Iterator[dict[str, Setting]]:
    grids = {name: space.values for name, space in searched(spec, arm).items() if not space.is_random}
    drawn = draws(spec, arm)
    for point in itertools.product(*grids.values()):
        for draw in drawn:
            yield {**dict(zip(grids, point, strict=True)), **draw}


def rungs(spec: SweepSpec) -> tuple[int, ...]:
    """Env steps at which the scheduler compares the algorithm's settings; none without a scheduler."""
    if spec.scheduler is None:
        return ()
    return spec.scheduler.rungs(spec.budget.env_steps, warmup_env_steps(spec))


def warmup_env_steps(spec: SweepSpec) -> int:
    """Env steps before which the algorithm's policy does not move, at most."""
    training = spec.training
    if not uses_prior(spec, spec.algorithm) or not any(v is True for v in training.candidates("start_from_prior")):
        return 0
    return max(cast(int, value) for value in training.candidates(WARMUP)) * iteration_env_steps(spec)


def trials_of(spec: SweepSpec, setting: Mapping[str, Setting]) -> list[TrialSpec]:
    """The trials of one setting that an adaptive search proposes for the algorithm: one a seed."""
    [named] = _name_apart([_trial(spec, arms(spec)[0], setting)])
    return _over_seeds(spec, named)


def make_trials(spec: SweepSpec) -> list[tuple[TrialSpec, Arm | None]]:
    """Every trial of a specification that has passed its checks, each with the arm it comes from.

    The prior's own row is first and belongs to no arm. Then arm by arm, setting by setting, seed by seed. The
    algorithm's own trials are not among them where an adaptive search chooses them.
    """
    made = [
        (trial, arm)
        for arm in (arms(spec)[1:] if spec.search.is_adaptive else arms(spec))
        if METHODS[arm.entry.method].trains
        for setting in _settings(spec, arm)
        for trial in (_trial(spec, arm, setting),)
    ]
    named = _name_apart([trial for trial, _ in made])
    trials: list[tuple[TrialSpec, Arm | None]] = []
    if spec.prior is not None:
        trials.append((_prior_trial(spec), None))
    for trial, (_, arm) in zip(named, made, strict=True):
        trials += [(seeded, arm) for seeded in _over_seeds(spec, trial)]
    return trials


def in_running_order(spec: SweepSpec, made: Sequence[tuple[TrialSpec, Arm | None]]) -> list[TrialSpec]:
    """The trials of `make_trials` in the order in which they start: a sweep that is stopped can still be compared.

    The prior's row is first. Then the methods take turns, setting by setting, at the first seed; then at the next. A
    scheduler judges settings by all of their seeds, so with one the seeds of a setting stay together. Where an
    adaptive search chooses, the baselines come before all that it proposes.
    """
    settings: dict[Path, dict[str, list[TrialSpec]]] = defaultdict(lambda: defaultdict(list))
    for trial, arm in made:
        if arm is not None:
            settings[arm.path][trial.group].append(trial)
    turns = itertools.zip_longest(*(each.values() for each in settings.values()))
    started = [seeded for turn in turns for seeded in turn if seeded is not None]
    together = spec.scheduler is not None or spec.search.is_adaptive
    prior = [trial for trial, arm in made if arm is None]
    return [*prior, *itertools.chain.from_iterable(started if together else zip(*started, strict=True))]


def _over_seeds(spec: SweepSpec, trial: TrialSpec) -> list[TrialSpec]:
    return [trial.model_copy(update={"trial_id": f"{trial.trial_id}-seed={seed}", "seed": seed}) for seed in spec.seeds]


def _trial(spec: SweepSpec, arm: Arm, setting: Mapping[str, Setting]) -> TrialSpec:
    """One setting as a trial, before it has a seed; its id is the readable label."""
    method = arm.entry.method
    given = {name: arm.entry.weights[name] for name in WEIGHTS if name in arm.entry.weights}
    weights = {name: cast(WeightValue, setting.get(name, value)) for name, value in given.items()}
    chosen = {name: value for name, value in setting.items() if name not in given}
    training = spec.training.fixed.model_dump() | chosen
    if not uses_prior(spec, method):
        training |= {"start_from_prior": False, WARMUP: 0}
    if not training["start_from_prior"]:
        training["network"] = training["network"] or Network()
    label = "-".join([method, *(f"{name}={_label(value)}" for name, value in {**weights, **chosen}.items())])
    return TrialSpec(
        trial_id=label,
        sweep=spec.name,
        task=spec.task,
        prior=spec.prior if uses_prior(spec, method) else None,
        method=method,
        weights=weights,
        seed=0,
        env_steps=spec.budget.env_steps,
        training=Training.model_validate(training),
        resources=spec.resources,
        objective=spec.objective,
        evaluation=spec.evaluation,
        checkpoint=spec.checkpoint,
        rungs=rungs(spec) if arm.path == ("algorithm",) else (),
    )


def _prior_trial(spec: SweepSpec) -> TrialSpec:
    return TrialSpec(
        trial_id=PRIOR_TRIAL,
        sweep=spec.name,
        task=spec.task,
        prior=spec.prior,
        method="prior",
        weights={},
        seed=0,
        env_steps=0,
        training=spec.training.fixed.model_copy(update={"start_from_prior": True, "network": None}),
        resources=spec.resources,
        objective=spec.objective,
        evaluation=spec.evaluation,
        checkpoint=spec.checkpoint,
    )


def _label(value: object) -> str:
    """A value in a trial's name: at most six digits, no character that a path or MLflow minds."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "to".join(f"{amount:.6g}" for _, amount in value)
    if isinstance(value, ConditionedRange):
        return f"{value.low:.6g}..{value.high:.6g}"
    return _UNSAFE.sub("_", str(value))


def _name_apart(trials: list[TrialSpec]) -> list[TrialSpec]:
    """Labels made unique and short: a hash is added where two would be the same or one too long."""
    contents = [_content(trial) for trial in trials]
    sharing: dict[str, set[str]] = defaultdict(set)
    for trial, content in zip(trials, contents, strict=True):
        sharing[trial.trial_id].add(content)
    named = []
    for trial, content in zip(trials, contents, strict=True):
        label = trial.trial_id
        if len(sharing[label]) > 1 or len(label) > MAX_ID_LENGTH:
            digest = hashlib.sha256(content.encode()).hexdigest()[:8]
            label = f"{label[: MAX_ID_LENGTH - 9].rstrip('-')}-{digest}"
        named.append(trial.model_copy(update={"trial_id": label}))
    return named


def _content(trial: TrialSpec) -> str:
    fields: dict[str, Any] = {
        "method": trial.method,
        "weights": {name: dump(value) for name, value in trial.weights.items()},
        "training": trial.training.model_dump(mode="json"),
    }
    return json.dumps(fields, sort_keys=True)
