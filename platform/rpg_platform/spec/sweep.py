"""The models of a sweep (`SweepSpec`, what tune_configs/*.yaml holds) and of one trial of it (`TrialSpec`).

The models check each field by itself; `checks` holds everything that concerns two fields at once, or the
world outside. Both models are frozen, JSON-able and survive `model_validate(model_dump(mode="json"))`
unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeAlias, cast, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from rpg_platform.spec.errors import Problem, explain, fault, refuse
from rpg_platform.spec.methods import METHODS, WEIGHTS, MethodName
from rpg_platform.spec.search import Scheduler, Search
from rpg_platform.spec.sections import (
    Budget,
    Checkpoint,
    Evaluation,
    Faults,
    Line,
    Name,
    Network,
    Objective,
    Positive,
    Resources,
    Section,
    Seed,
    Seeds,
    StoragePlace,
    Text,
    Tracking,
    Training,
    Whole,
)
from rpg_platform.spec.space import (
    ConditionedRange,
    SearchSpace,
    Setting,
    WeightValue,
    dump,
    is_space,
    parse_space,
    parse_weight_value,
)
from rpg_platform.spec.task import AnyTask
from rpg_platform.wording import Path, one_of, show, suggestion

__all__ = [
    "SECTION_KEYS",
    "Baseline",
    "Budget",
    "Checkpoint",
    "Evaluation",
    "Faults",
    "Network",
    "Objective",
    "Resources",
    "SweepSpec",
    "Tracking",
    "Training",
    "TrainingSpace",
    "TrialSpec",
    "WeightSetting",
]

WeightSetting: TypeAlias = WeightValue | SearchSpace


WARMUP = "critic_warmup_iterations"
_WARMUP = 10


# ---- the parts that may be searched over --------------------------------------------------------
@dataclass(frozen=True)
class Baseline:
    """A further method of a sweep, with its own weights."""

    method: MethodName
    weights: Mapping[str, WeightSetting] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSpace:
    """The training section of a sweep.

    Attributes:
        fixed: What is the same in every trial, and the defaults.
        searched: What is searched over, by the name of its field.
    """

    fixed: Training = field(default_factory=Training)
    searched: Mapping[str, SearchSpace] = field(default_factory=dict)

    def candidates(self, name: str) -> tuple[Setting, ...]:
        """Every value that the field `name` may take; the two bounds where it is continuous."""
        if name in self.searched:
            return self.searched[name].values
        return (cast(Setting, getattr(self.fixed, name)),)


_CONTINUOUS = frozenset(
    name for name, info in Training.model_fields.items() if float in (info.annotation, *get_args(info.annotation))
)


def _parse_training(raw: object) -> TrainingSpace:
    if isinstance(raw, TrainingSpace):
        raw = _dump_training(raw)
    if not isinstance(raw, Mapping):
        raise fault(f"expected a mapping (key: value), got {show(raw)}")
    problems: list[Problem] = []
    spaces = {k: v for k, v in raw.items() if is_space(v) and k in Training.model_fields and k != "network"}
    searched: dict[str, SearchSpace] = {}
    for name, value in spaces.items():
        space = parse_space(value, _training_value(name), (name,), problems)
        if space and space.size is None and name not in _CONTINUOUS:
            message = f"{space.kind} draws fractions, and {name} takes none: use grid or choice"
            problems.append(Problem((name, space.kind), message, at_key=True))
        elif space:
            searched[name] = space
    try:
        fixed = Training.model_validate({k: v for k, v in raw.items() if k not in spaces})
    except ValidationError as error:
        refuse([*problems, *explain(error, Training)])
    if problems:
        refuse(problems)
    return TrainingSpace(fixed, searched)


def _training_value(name: str) -> Any:
    def parse(value: object, path: Path, problems: list[Problem]) -> Setting:
        if name == WARMUP and value is None:
            problems.append(Problem(path, "expected a whole number of iterations, got null"))
            return None
        try:
            return cast(Setting, getattr(Training.model_validate({name: value}), name))
        except ValidationError as error:
            problems.extend(Problem((*path, *fault.path[1:]), fault.message) for fault in explain(error, Training))
            return None

    return parse


def _dump_training(space: TrainingSpace) -> dict[str, object]:
    return {
        **space.fixed.model_dump(mode="json"),
        **{name: dump(value) for name, value in space.searched.items()},
    }


def _parse_weights(raw: object, path: Path, problems: list[Problem], spaces: bool) -> dict[str, WeightSetting]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        problems.append(Problem(path, f"expected a mapping (weight: value), got {show(raw)}"))
        return {}
    weights: dict[str, WeightSetting] = {}
    for name, value in raw.items():
        here = (*path, name)
        if spaces and is_space(value):
            space = parse_space(value, parse_weight_value, here, problems)
            if space is not None:
                weights[name] = space
        else:
            setting = parse_weight_value(value, here, problems)
            if setting is not None:
                weights[name] = setting
    return weights


def _parse_sweep_weights(raw: object) -> dict[str, WeightSetting]:
    problems: list[Problem] = []
    weights = _parse_weights(raw, (), problems, spaces=True)
    if problems:
        refuse(problems)
    return weights


def _parse_trial_weights(raw: object) -> dict[str, WeightValue]:
    problems: list[Problem] = []
    weights = _parse_weights(raw, (), problems, spaces=False)
    if problems:
        refuse(problems)
    return cast(dict[str, WeightValue], weights)


def _dump_weights(weights: Mapping[str, WeightSetting]) -> dict[str, object]:
    return {name: dump(value) for name, value in weights.items()}


def _parse_baselines(raw: object) -> tuple[Baseline, ...]:
    if not isinstance(raw, list | tuple):
        raise fault(f"expected a list of methods, got {show(raw)}")
    problems: list[Problem] = []
    baselines: list[Baseline] = []
    for index, item in enumerate(raw):
        entry = _dump_baseline(item) if isinstance(item, Baseline) else item
        if isinstance(entry, str):
            entry = {entry: None}
            at_key = False
        elif isinstance(entry, Mapping) and len(entry) == 1:
            at_key = True
        else:
            message = f"expected a method, or one method with its weights: {{kl: {{...}}}}, got {show(entry)}"
            problems.append(Problem((index,), message))
            continue
        method, weights = next(iter(entry.items()))
        path: Path = (index, method) if at_key else (index,)
        if method not in METHODS:
            problems.append(
                Problem(path, f"unknown method {show(method)}" + suggestion(str(method), METHODS), at_key=at_key)
            )
            continue
        parsed = _parse_weights(weights, path, problems, spaces=True)
        baselines.append(Baseline(method, parsed))
    if problems:
        refuse(problems)
    return tuple(baselines)


def _dump_baseline(baseline: Baseline) -> object:
    return {baseline.method: _dump_weights(baseline.weights)} if baseline.weights else baseline.method


def _dump_baselines(baselines: tuple[Baseline, ...]) -> list[object]:
    return [_dump_baseline(baseline) for baseline in baselines]


def _known_method(value: object) -> object:
    if not isinstance(value, str):
        raise fault(f"expected {one_of(METHODS)}, got {show(value)}")
    if value not in METHODS:
        raise fault(f"unknown method {show(value)}" + suggestion(value, METHODS))
    return value


Method: TypeAlias = Annotated[MethodName, BeforeValidator(_known_method)]
SweepWeights: TypeAlias = Annotated[
    dict[str, WeightSetting], PlainValidator(_parse_sweep_weights), PlainSerializer(_dump_weights)
]
TrialWeights: TypeAlias = Annotated[
    dict[str, WeightValue], PlainValidator(_parse_trial_weights), PlainSerializer(_dump_weights)
]
Baselines: TypeAlias = Annotated[
    tuple[Baseline, ...], PlainValidator(_parse_baselines), PlainSerializer(_dump_baselines)
]
SearchedTraining: TypeAlias = Annotated[TrainingSpace, PlainValidator(_parse_training), PlainSerializer(_dump_training)]


# ---- the two specifications ---------------------------------------------------------------------
class SweepSpec(Section):
    """A sweep: what is customised, by which methods, at which weights, how often and for how long."""

    name: Name = Field(description="Names the results; by default the file's stem.")
    description: Text = Field(default="", description="Free text.")
    task: AnyTask = Field(description="A registered task, or an environment with add-on rewards (`task_spec`).")
    prior: Line | None = Field(default=None, description="A shipped prior's name, or the path of a bundle.")
    start: Line | None = Field(
        default=None,
        description="A bundle whose policy training starts from instead of the prior's; it goes on from there.",
    )
    algorithm: Method = Field(description="The method whose weights are swept.")
    weights: SweepWeights = Field(default_factory=dict, description="Its weights: value, schedule or search space.")
    samples: Annotated[Positive, Field(le=10_000)] | None = Field(
        default=None, description="Settings per grid point; only with choice, uniform or loguniform."
    )
    search_seed: Seed = Field(default=0, description="Seeds the draws; the same seed draws the same settings.")
    search: Search = Field(default_factory=Search, description="How the settings that are not enumerated are chosen.")
    scheduler: Scheduler | None = Field(
        default=None, description="Which settings are ended early, or taken over; null: none."
    )
    baselines: Baselines = Field(default=(), description="Further methods, each with its weights.")
    seeds: Seeds = Field(default=(0,), description="Training seeds, or how many.")
    budget: Budget
    training: SearchedTraining = Field(default_factory=TrainingSpace)
    resources: Resources = Field(default_factory=Resources)
    objective: Objective = Field(default_factory=Objective)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    faults: Faults = Field(default_factory=Faults)
    tracking: Tracking = Field(default_factory=Tracking)
    storage: StoragePlace | None = Field(
        default=None, description="Local path or URI of the results; null: ~/rpg_results."
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: object) -> object:
        """A section whose lines are all commented out is absent, not null."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _warmup_fits_the_budget(self) -> Self:
        fixed = self.training.fixed
        if fixed.critic_warmup_iterations is None:
            fixed = fixed.model_copy(update={WARMUP: default_warmup(self)})
            self.__dict__["training"] = replace(self.training, fixed=fixed)  # frozen for everybody else
        return self

    @property
    def methods(self) -> tuple[Baseline, ...]:
        """The algorithm with its weights, then the baselines."""
        return (Baseline(self.algorithm, self.weights), *self.baselines)


def iteration_env_steps(spec: SweepSpec) -> int:
    """Env steps of one iteration; of the longest where the rollout's length is searched over."""
    longest = max(cast(int, value) for value in spec.training.candidates("rollout_length"))
    return longest * spec.resources.envs_per_runner * max(1, spec.resources.env_runners)


def default_warmup(spec: SweepSpec) -> int:
    """Iterations that train the critic alone where the specification does not say: at most a quarter of the budget."""
    return min(_WARMUP, spec.budget.env_steps // (4 * iteration_env_steps(spec)))


SECTION_KEYS: Mapping[str, Collection[str]] = {
    "training": tuple(Training.model_fields),
    "weights": tuple(WEIGHTS),
    **{
        name: tuple(section.model_fields)
        for name, section in (
            ("search", Search),
            ("scheduler", Scheduler),
            ("budget", Budget),
            ("resources", Resources),
            ("objective", Objective),
            ("evaluation", Evaluation),
            ("checkpoint", Checkpoint),
            ("faults", Faults),
            ("tracking", Tracking),
        )
    },
}
"""The keys of each section, to tell where a misplaced key belongs."""


class StartFrom(Section):
    """Another trial's checkpoint, which a trial of a population takes over.

    Attributes:
        checkpoint: A local path or a URI.
        until_env_steps: While the trial's own newest checkpoint is not beyond this, it goes on from that one.
    """

    checkpoint: Line
    until_env_steps: Annotated[Whole, Field(ge=0)]


class TrialSpec(Section):
    """One trial: one method at one setting of its weights and training, with one seed.

    Everything is concrete. `training.network` is set exactly when the policy starts from fresh weights;
    `prior` is None exactly when the method makes no use of one.
    """

    trial_id: Line
    sweep: Name
    task: AnyTask
    prior: Line | None
    method: Method
    weights: TrialWeights
    seed: Seed
    env_steps: Annotated[Whole, Field(ge=0)]
    training: Training
    resources: Resources
    objective: Objective = Field(default_factory=Objective)
    evaluation: Evaluation
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    rungs: tuple[Whole, ...] = Field(
        default=(), strict=False, description="Env steps at which it is compared with other settings, and validated."
    )
    starts_from: StartFrom | None = Field(default=None, description="What a trial of a population takes over.")
    point_of: Line | None = Field(
        default=None, description="The trial whose policy this one's is, at one setting of the weights it is told."
    )

    @property
    def group(self) -> str:
        """The trial's id without its seed: the key by which a table averages over seeds."""
        return self.trial_id.removesuffix(f"-seed={self.seed}")

    @property
    def told(self) -> dict[str, ConditionedRange]:
        """The weights that its policy is told, with their ranges; empty of a policy at one setting."""
        return {name: value for name, value in self.weights.items() if isinstance(value, ConditionedRange)}

    @property
    def points(self) -> int:
        """At how many settings of the weights that it is told its policy is evaluated; 1 of a policy at one setting."""
        told = len(self.told)
        return self.evaluation.values_of_each(told) ** told if told else 1

    def at(self, weights: Mapping[str, float]) -> Self:
        """Its policy at one setting of the weights that it is told, as a trial of its own."""
        words = ",".join(f"{name}={value:.6g}" for name, value in weights.items())
        point = {"trial_id": f"{self.group}@{words}-seed={self.seed}", "point_of": self.trial_id}
        return self.model_copy(update={**point, "weights": {**self.weights, **weights}})

    def as_config(self) -> dict[str, Any]:
        """The configuration under which Tune hands the trial around."""
        return {_CONFIG: self.model_dump(mode="json")}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The trial that ``as_config`` gave."""
        return cls.model_validate(config[_CONFIG])


_CONFIG = "trial"


def trial_id_of(config: Mapping[str, Any]) -> str:
    """The id of the trial in Tune's configuration, without reading all of it."""
    return str(config[_CONFIG]["trial_id"])
