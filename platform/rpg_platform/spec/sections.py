"""The sections of a specification and the types of its fields: all that is checked of one field by itself.

A default, a bound, a unit and a sentence for each field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from rpg_platform.spec.errors import fault
from rpg_platform.spec.logins import refuse_login, take_login
from rpg_platform.spec.measures import MEASURES, RETURNS
from rpg_platform.wording import show

NormalizeAdvantages: TypeAlias = Literal["minibatch", "batch", "none"]

MAX_SEEDS = 1_000


# ---- field types --------------------------------------------------------------------------------
def _whole(value: object) -> object:
    """`2e6` is a whole number to whoever writes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def matching(pattern: str, expected: str) -> AfterValidator:
    """The check that the whole of a text matches a regular expression; the refusal of another begins as `expected`."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise fault(f"{expected}, got {show(value)}")
        return value

    return AfterValidator(check)


def _seed_list(value: object) -> object:
    """N stands for the seeds 0 to N-1."""
    count = _whole(value)
    if isinstance(value, list | tuple):
        return value
    if isinstance(count, bool) or not isinstance(count, int):
        raise fault(f"expected a list of seeds, or how many, got {show(value)}")
    if not 1 <= count <= MAX_SEEDS:
        raise fault(f"a number of seeds is from 1 to {MAX_SEEDS}, got {show(count)}")
    return tuple(range(count))


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Positive: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Seed: TypeAlias = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**31)]
Seeds: TypeAlias = Annotated[
    tuple[Seed, ...], Field(strict=False, min_length=1, max_length=MAX_SEEDS), BeforeValidator(_seed_list)
]
_PRINTABLE = matching(r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]*", "holds a control character")
_ONE_LINE = matching(r"(?!\s)[^\n\t]*(?<!\s)", "must be one line without spaces around it")
_PLAIN_NAME = matching(
    r"[A-Za-z0-9][A-Za-z0-9_-]*", "takes letters, digits, - and _, and starts with a letter or digit"
)
Text: TypeAlias = Annotated[str, Field(max_length=2000), _PRINTABLE]
Line: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000), _PRINTABLE, _ONE_LINE]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=64), _PLAIN_NAME]


def _said(check: Callable[[str], str]) -> AfterValidator:
    """A check whose ``ValueError`` says all that is to be said; what it gives back is the value."""

    def checked(value: str) -> str:
        try:
            return check(value)
        except ValueError as error:
            raise fault(str(error)) from None

    return AfterValidator(checked)


StoragePlace: TypeAlias = Annotated[Line, _said(refuse_login)]
TrackingUri: TypeAlias = Annotated[
    Line,
    matching(
        r"(?s:databricks|(https?|sqlite|postgresql|mysql|mssql|databricks)(\+.*?)?://.*)",
        "expected a URI such as http://host:5000 or sqlite:///path/mlflow.db",
    ),
    _said(take_login),
]


class Section(BaseModel):
    """A part of a specification: every key is known, every value of its own type, none infinite; frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# ---- the sections -------------------------------------------------------------------------------
class Network(Section):
    """The policy and value networks of a policy trained from scratch."""

    hidden: tuple[Annotated[Whole, Field(ge=1, le=8192)], ...] = Field(
        default=(128, 128), strict=False, min_length=1, max_length=16, description="Widths of the hidden layers."
    )
    activation: Literal["relu", "tanh", "elu", "silu"] = Field(
        default="relu", description="Activation after each hidden layer."
    )
    log_std_init: float = Field(default=-2.0, ge=-20, le=5, description="Initial log standard deviation, nats.")
    distribution: Literal["gaussian", "squashed_gaussian", "categorical"] | None = Field(
        default=None, description="Family of the action distribution; null: the one that fits the action space."
    )
    state_dependent_std: bool = Field(default=False, description="The network gives the log standard deviation too.")


class Training(Section):
    """How a policy is trained; the defaults are those that work on HalfCheetah-v5."""

    lr: float = Field(default=4e-4, gt=0, le=1, description="Adam's learning rate.")
    anneal_lr: bool = Field(default=True, description="The learning rate falls to 0 over the budget.")
    anneal_power: float = Field(
        default=1.0,
        ge=1,
        le=10,
        description="It falls as (1 - t) to this power, t the share of the budget: 1 linearly, 2 fast at first.",
    )
    gamma: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="Discount per step; where RPG reads a prior's log pi, by default the prior's own.",
    )
    lambda_: float = Field(default=0.92, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    clip_param: float = Field(default=0.1, gt=0, le=10, description="PPO's clip range of the probability ratio.")
    rollout_length: Whole = Field(default=512, ge=1, le=1_000_000, description="Steps per environment and iteration.")
    minibatch_size: Whole = Field(default=256, ge=1, description="Env steps per gradient step and learner.")
    num_epochs: Whole = Field(default=10, ge=1, le=1_000, description="Passes over each iteration's env steps.")
    vf_loss_coeff: float = Field(default=0.5, ge=0, description="Weight of the value loss.")
    grad_clip: float | None = Field(default=0.8, gt=0, description="Bound on the gradient's norm; null: none.")
    target_kl: float | None = Field(
        default=0.1,
        gt=0,
        description="Beyond this approximate KL, nats, only the critic takes an iteration's other steps; null: never.",
    )
    prior_logp_floor: float | None = Field(
        default=20.0,
        gt=0,
        description="RPG counts log pi of the prior no lower than so many nats under its median; null: any value.",
    )
    critic_warmup_iterations: Annotated[Whole, Field(ge=0)] | None = Field(
        default=None,
        description="Iterations at the start that train the critic alone (with a prior only); null: 10, or a quarter "
        "of the budget where that is less.",
    )
    start_from_prior: bool = Field(default=True, description="Start from the prior's weights rather than fresh ones.")
    scale_rewards: bool = Field(
        default=True, description="Divide the whole soft or residual reward by its return's running spread."
    )
    normalize_advantages: NormalizeAdvantages = Field(
        default="minibatch", description="Over what advantages are normalised."
    )
    network: Network | None = Field(
        default=None, description="The network of a policy that does not start from a prior; null: the defaults."
    )


class Budget(Section):
    """How long each trial trains."""

    env_steps: Whole = Field(ge=1, le=10**12, description="Environment steps per trial.")

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, data: object) -> object:
        if isinstance(data, str | int | float) and not isinstance(data, bool):
            raise fault(f"expected a mapping such as {{env_steps: 300_000}}, got {show(data)}")
        return data


def _custom(amounts: dict[str, float]) -> dict[str, float]:
    """Refuses what Ray would: other names than a node can give, and parts of more than one."""
    for name, amount in amounts.items():
        if name in _RAYS_OWN or not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
            raise fault(
                f"{show(name)} is no name of a custom resource; expected one that nodes were started with, such as "
                "cpu_node (ray start --resources='{\"cpu_node\": 1}')"
            )
        if not amount >= 0.0001 or (amount > 1 and amount != int(amount)):
            raise fault(f"{name}: expected at least 0.0001, and above 1 a whole number, got {show(amount)}")
    return amounts


_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")
Custom: TypeAlias = Annotated[dict[str, float], AfterValidator(_custom)]


class Resources(Section):
    """What each trial runs on."""

    envs_per_runner: Whole = Field(default=8, ge=1, le=65_536, description="Environments stepped together.")
    env_runners: Whole = Field(default=0, ge=0, le=10_000, description="Remote env runners; 0: in the trial itself.")
    learners: Whole = Field(default=0, ge=0, le=1_000, description="Remote learners; 0: in the trial itself.")
    cpus_per_trial: float = Field(default=1, gt=0, description="CPUs reserved for a trial's own process.")
    gpus_per_trial: float = Field(
        default=0, ge=0, description="GPUs reserved for a trial's own process, or for each learner where there are any."
    )
    memory_gb_per_trial: float = Field(
        default=0, ge=0, le=1e6, description="Memory reserved for a trial's own process, in GB; 0: none."
    )
    custom_per_trial: Custom = Field(default_factory=dict, description="Custom resources of Ray, of its own process.")
    custom_per_env_runner: Custom = Field(default_factory=dict, description="The same, of each remote env runner.")
    custom_per_learner: Custom = Field(default_factory=dict, description="The same, of each remote learner.")
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = Field(
        default="pack",
        description="A trial's processes on few nodes, or on many; strict: on one, or each on another, or not at all.",
    )
    max_concurrent: Positive | None = Field(default=None, description="Most trials at once; null: as many as fit.")


class Evaluation(Section):
    """How every trial and the prior are evaluated, deterministic and sampled."""

    episodes: Whole = Field(default=20, ge=1, le=10_000, description="Episodes, all finished, per evaluation.")
    seed: Seed = Field(default=10_000, description="First of the fixed evaluation seeds.")
    selection_episodes: Whole | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="Further episodes by which settings are ranked and the best is chosen, so that what is shown of it "
        "chose nothing; 0: chosen by what is shown; null: half as many as are shown.",
    )
    selection_seed: Seed = Field(
        default=2_000_000, description="First of the selection seeds; none may be an evaluation seed."
    )
    validations: Whole = Field(
        default=5,
        ge=0,
        le=1_000,
        description="Times in training that the policy is tried on the validation seeds, to keep the best; 0: never.",
    )
    validation_episodes: Whole = Field(default=5, ge=1, le=10_000, description="Episodes per validation.")
    validation_seed: Seed = Field(
        default=1_000_000, description="First of the validation seeds; none may be an evaluation seed."
    )
    conditioned_points: Whole = Field(
        default=9,
        ge=2,
        le=1_000,
        description="Settings at which a policy that is told its weights is evaluated, spread over their ranges.",
    )
    max_steps: Positive | None = Field(
        default=None,
        description="Steps after which an episode that has not ended is cut off and counted; null: 20,000, "
        "or the environment's own time limit where that is more.",
    )

    @property
    def episodes_to_choose_by(self) -> int:
        """How many episodes settings are chosen by."""
        return (self.episodes + 1) // 2 if self.selection_episodes is None else self.selection_episodes

    def values_of_each(self, told: int) -> int:
        """Values of each of ``told`` weights, which together make about ``conditioned_points`` settings."""
        return max(2, round(math.pow(self.conditioned_points, 1 / told)))


class Range(Section):
    """Bounds on a figure; at least one."""

    min: float | None = Field(default=None, description="The least it may be; null: no bound.")
    max: float | None = Field(default=None, description="The most it may be; null: no bound.")

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise fault(f"bounds nothing; give {' or '.join(type(self).model_fields)}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise fault(f"min {show(self.min)} is above max {show(self.max)}: nothing satisfies both")
        return self


class ReturnRange(Range):
    """Bounds on a return per episode; at least one."""

    min_fraction_of_prior: float | None = Field(
        default=None,
        ge=0,
        le=1_000,
        description="The least it may be as a share f of the prior's r: r - (1 - f) |r|; null: no bound.",
    )


class Ceiling(Section):
    """The most that a figure may be."""

    max: float = Field(ge=0, description="The most it may be.")


_BOUNDS = {"return": ReturnRange, "range": Range, "ceiling": Ceiling}
_CONSTRAINTS: dict[str, Any] = {
    each.name: (_BOUNDS[each.bounds] | None, Field(default=None, description=each.description))
    for each in MEASURES
    if each.bounds
}
if TYPE_CHECKING:
    Maximized: TypeAlias = str

    class Constraints(Section):
        """What a policy must satisfy to be called best: a bound for each measure, null for no constraint."""
else:
    Maximized = Literal[RETURNS]
    Constraints = create_model("Constraints", __base__=Section, **_CONSTRAINTS)


class Objective(Section):
    """What is called best: among a sweep's settings, and among the checkpoints of a trial."""

    maximize: Maximized = Field(default="total_return", description="The return per episode that is as high as can be.")
    mode: Literal["deterministic", "sampled"] = Field(
        default="deterministic", description="Which policy it and the constraints are of."
    )
    constraints: Constraints = Field(default_factory=Constraints, description="What must hold besides.")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: object) -> object:
        """Constraints whose lines are all commented out are absent, not null."""
        if isinstance(data, dict) and data.get("constraints", data) is None:
            return {key: value for key, value in data.items() if key != "constraints"}
        return data


class Checkpoint(Section):
    """When a trial saves its state."""

    every_env_steps: Positive | None = Field(
        default=100_000, description="Env steps between checkpoints; null: only at the end."
    )
    keep: Whole = Field(default=2, ge=1, description="Checkpoints kept per trial.")


class Faults(Section):
    """What happens when a trial's process dies or hangs."""

    retries: Whole = Field(
        default=2, ge=0, le=1_000, description="Times that a trial is started again from its last checkpoint."
    )
    stall_after_s: float | None = Field(
        default=3600.0, gt=0, description="Seconds without a report until a trial's process is ended; null: never."
    )


class Tracking(Section):
    """Where the results are tracked."""

    uri: TrackingUri | None = Field(default=None, description="MLflow tracking URI; null: SQLite under the storage.")
    experiment: Line | None = Field(default=None, description="MLflow experiment; null: the sweep's name.")
