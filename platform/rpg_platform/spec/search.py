"""The sections `search` and `scheduler` of a specification: how settings are chosen, and which are ended early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from rpg_platform.spec.errors import fault
from rpg_platform.spec.measures import MEASURES
from rpg_platform.spec.sections import Positive, Section, Whole
from rpg_platform.wording import one_of, show, suggestion


@dataclass(frozen=True)
class SearchMethod:
    """One way to choose settings.

    Attributes:
        name: as `search: method:` names it.
        draws: `module:function` that draws all settings before the sweep starts, as `quasi_random.settings` does; None:
            each value is drawn by itself.
        optimiser: `module:Class` of an `Optimiser` that chooses one setting after another by the results of those
            before; None: it does not look at results.
        needs: the package that has to be installed, which is also the name of our extra.
    """

    name: str
    draws: str | None = None
    optimiser: str | None = None
    needs: str | None = None


SEARCH_METHODS = {
    method.name: method
    for method in (
        SearchMethod("random"),
        SearchMethod("quasi_random", draws="rpg_platform.spec.quasi_random:settings"),
        SearchMethod("optuna", optimiser="rpg_platform.search.optuna_search:OptunaSearch", needs="optuna"),
    )
}
if TYPE_CHECKING:
    TradedOff: TypeAlias = str
else:
    TradedOff = Literal[tuple(measure.name for measure in MEASURES if measure.is_objective)]

_DEFAULT_RUNGS = 2  # of ASHA below the budget
_MOST_LOOKS = 1_000
_DEFAULT_LOOKS = 5  # of median stopping, the end included


def _known_method(value: object) -> object:
    if not isinstance(value, str):
        raise fault(f"expected {one_of(SEARCH_METHODS)}, got {show(value)}")
    if value not in SEARCH_METHODS:
        hint = suggestion(value, SEARCH_METHODS)
        if value == "grid":
            hint = "; a grid needs no method: write {grid: [...]} for a weight"
        elif value in ("pbt", "asha", "median"):
            hint = f"; write scheduler: {value}"
        raise fault(f"unknown search method {show(value)}{hint}")
    return value


class Search(Section):
    """How the settings of choice, uniform and loguniform spaces are chosen."""

    method: Annotated[str, BeforeValidator(_known_method)] = Field(
        default="random", description="random and quasi_random draw; optuna learns from what is finished."
    )
    objectives: tuple[TradedOff, ...] = Field(
        default=(),
        strict=False,
        max_length=4,
        description="What optuna trades off: returns are maximised, the KL is minimised; []: objective.maximize alone.",
    )
    startup: Whole = Field(
        default=8, ge=1, le=10_000, description="Quasi-random settings that optuna begins with, before it models them."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: object) -> object:
        """`search: optuna` is enough."""
        return {"method": data} if isinstance(data, str) else data

    @property
    def is_adaptive(self) -> bool:
        """Whether settings depend on the results of others, so that trials are not known up front."""
        return self.row.optimiser is not None

    @property
    def row(self) -> SearchMethod:
        """The method's row in the table."""
        return SEARCH_METHODS[self.method]


class Asha(Section):
    """Asynchronous successive halving: at each rung the better settings go on."""

    ends_early: ClassVar[bool] = True
    begins: ClassVar[str] = "first_rung_env_steps"

    reduction_factor: Whole = Field(
        default=3, ge=2, le=100, description="One of so many settings goes on at each rung; rungs are so much apart."
    )
    first_rung_env_steps: Positive | None = Field(
        default=None, description="Env steps of the first rung; null: two rungs below the budget."
    )

    def rungs(self, env_steps: int, start: int) -> list[int]:
        """Lays rungs out between ``start`` and the budget, each ``reduction_factor`` times as far as the one before."""
        factor = self.reduction_factor
        first = self.first_rung_env_steps or start + math.ceil((env_steps - start) / factor**_DEFAULT_RUNGS)
        distance, found = max(first - start, 1), []
        while start + distance < env_steps:
            found.append(start + distance)
            distance *= factor
        return found


class Median(Section):
    """A setting that is worse than more than half of the others at the same step is ended."""

    ends_early: ClassVar[bool] = True
    begins: ClassVar[str] = "grace_env_steps"

    grace_env_steps: Positive | None = Field(
        default=None, description="Env steps before which none is ended; null: a fifth of the budget."
    )
    every_env_steps: Positive | None = Field(
        default=None, description="Env steps from one look to the next; null: a fifth of the budget."
    )
    min_settings: Whole = Field(default=3, ge=1, le=10_000, description="Other settings needed for a comparison.")

    def rungs(self, env_steps: int, start: int) -> list[int]:
        """Lays rungs out from the end of the grace on, at equal distances."""
        part = math.ceil((env_steps - start) / _DEFAULT_LOOKS)
        return list(range(self.grace_env_steps or start + part, env_steps, self.every_env_steps or part)[:_MOST_LOOKS])


class Pbt(Section):
    """Population-based training: at each rung the worst settings go on from the best ones, with weights near theirs."""

    ends_early: ClassVar[bool] = False
    begins: ClassVar[str] = "every_env_steps"

    every_env_steps: Positive | None = Field(
        default=None, description="Env steps from one rung to the next; null: a fifth of the budget."
    )
    quantile: float = Field(
        default=0.25, gt=0, le=0.5, description="Share of the settings that takes over, and is taken."
    )
    perturbation: float = Field(default=1.2, gt=1, le=100, description="A weight is multiplied or divided by it.")
    resample_probability: float = Field(
        default=0.25, ge=0, le=1, description="How often a weight is drawn anew instead."
    )

    def rungs(self, env_steps: int, start: int) -> list[int]:
        """Lays rungs out at equal distances from ``start`` on."""
        every = self.every_env_steps or math.ceil((env_steps - start) / _DEFAULT_LOOKS)
        return list(range(start + every, env_steps, every)[:_MOST_LOOKS])


class Scheduler(Section):
    """Which settings are ended early, or taken over; exactly one."""

    asha: Asha | None = Field(default=None, description="Successive halving.")
    median: Median | None = Field(default=None, description="Median stopping.")
    pbt: Pbt | None = Field(default=None, description="Population-based training over the weights.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: object) -> object:
        """`scheduler: asha` is enough, and so is `asha:` without a line below it."""
        names = tuple(cls.model_fields)
        if isinstance(data, str):
            if data not in names:
                raise fault(f"unknown scheduler {show(data)}{suggestion(data, names)}")
            return {data: {}}
        if isinstance(data, Mapping) and len(data) == 1:
            return {key: {} if value is None else value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        names = tuple(type(self).model_fields)
        if sum(getattr(self, name) is not None for name in names) != 1:
            raise fault(f"takes exactly one of {', '.join(names[:-1])} and {names[-1]}")
        return self

    @property
    def name(self) -> str:
        """`asha`, `median` or `pbt`."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def section(self) -> Any:
        """What is set of it: the section of that name."""
        return getattr(self, self.name)

    @property
    def ends_early(self) -> bool:
        """Whether it ends settings before their budget is used up."""
        return bool(self.section.ends_early)

    def rungs(self, env_steps: int, start: int = 0) -> tuple[int, ...]:
        """Env steps at which settings are compared, increasing, all below the budget.

        Args:
            env_steps: the budget per trial.
            start: env steps before which the policy does not change (the critic's warm-up): rungs are laid out over
                what is left.
        """
        return tuple(self.section.rungs(env_steps, start)) if start < env_steps else ()
