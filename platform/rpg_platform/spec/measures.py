"""What is measured of a policy: the one list that specifications, reports, tables and searches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """One figure of an evaluation.

    Attributes:
        name: in reports, specifications and MLflow.
        heading: over its column in tables; empty: tables do not show it. The task names its own metric.
        description: what it is, with its unit.
        bounds: how ``objective.constraints`` may bound it: a ``return`` also as a share of the prior's, a ``range`` at
            both ends, a ``ceiling`` from above; None: not at all, as settings cannot be compared by it.
        per_mode: measured of the deterministic and of the sampled policy; otherwise of the sampled one alone.
        minimise: less is better, where a search trades it off.
        is_objective: a search may trade it off; what is not minimised may also be ``objective.maximize``.
        shows_spread: tables give its standard deviation.
    """

    name: str
    heading: str
    description: str
    bounds: Literal["return", "range", "ceiling"] | None
    per_mode: bool = True
    minimise: bool = False
    is_objective: bool = False
    shows_spread: bool = False


MEASURES = (
    Measure("basic_return", "basic", "Basic return per episode.", "return", is_objective=True, shows_spread=True),
    Measure("addon_return", "add-on", "Add-on return per episode.", "return", is_objective=True, shows_spread=True),
    Measure(
        "total_return",
        "total",
        "Basic plus add-on return per episode.",
        "return",
        is_objective=True,
        shows_spread=True,
    ),
    Measure(
        "kl_to_prior",
        "KL",
        "KL to the prior, sampled policy, nats per state.",
        "ceiling",
        per_mode=False,
        minimise=True,
        is_objective=True,
    ),
    Measure(
        "objective",
        "J",
        "Sum per episode of the reward that the setting trains on, sampled policy; another reward for each setting.",
        None,
        per_mode=False,
    ),
    Measure("episode_length", "", "Steps per episode.", "range"),
    Measure("task_metric", "task metric", "The task's readable metric, mean over steps.", "range"),
)
BY_NAME = {measure.name: measure for measure in MEASURES}
PER_MODE = tuple(measure.name for measure in MEASURES if measure.per_mode)
"""Names of the measures that a deterministic and a sampled evaluation have each."""
RETURNS = tuple(measure.name for measure in MEASURES if measure.is_objective and not measure.minimise)
"""Names of what ``objective.maximize`` may be."""
