"""Does a prior do what it is said to do: play it, compare with its card, and draw the distribution of its returns."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpg_algorithms.policies.bundle import PriorBundle, PriorCard, ReturnStatistics
from rpg_platform.evaluation.play import Episodes, evaluate_both, statistics_of
from rpg_platform.results.report import MODES, Mode, as_json
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.tasks.task import Nothing, Task

AGREES_WITHIN = 3.0  # standard errors of the difference of two means
_BARS = "▁▂▃▄▅▆▇█"
_BINS = 24


@dataclass(frozen=True)
class Returns:
    """Undiscounted returns of N episodes in one mode, against what the card says.

    Attributes:
        values: ``[N]``.
        stated: the card's mean, standard deviation and episodes; None where it says nothing.
    """

    values: NDArray[np.float64]
    stated: ReturnStatistics | None

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics_of(self.values).mean

    @property
    def std(self) -> float:
        """Their sample standard deviation; 0 for one episode."""
        return statistics_of(self.values).std

    @property
    def standard_errors(self) -> float | None:
        """How far the mean is from the stated one, in standard errors of the difference; None without a statement.

        The variances are pooled (Student's t): if the card tells the truth, both are of one distribution, and a few
        episodes alone say little of it.
        """
        if self.stated is None:
            return None
        n, m = len(self.values), self.stated.episodes
        difference = abs(self.mean - self.stated.mean)
        if difference <= 1e-6 * max(1.0, abs(self.stated.mean)):
            return 0.0
        squares = (n - 1) * self.std**2 + (m - 1) * self.stated.std**2
        return difference / math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m)) if squares > 0 else math.inf

    @property
    def agrees(self) -> bool | None:
        """Whether the card's statement is within ``AGREES_WITHIN`` standard errors; None without one."""
        distance = self.standard_errors
        return None if distance is None else distance <= AGREES_WITHIN

    def as_json(self) -> dict[str, Any]:
        """JSON-able summary with every episode's return."""
        distance = self.standard_errors
        return {
            "mean": self.mean,
            "std": self.std,
            "min": float(self.values.min()),
            "max": float(self.values.max()),
            "episodes": len(self.values),
            "returns": [float(x) for x in self.values],
            "card": None if self.stated is None else self.stated.model_dump(),
            "standard_errors_from_card": as_json(distance),
            "agrees_with_card": self.agrees,
        }


@dataclass(frozen=True)
class PriorCheck:
    """What a check found.

    Attributes:
        card: the prior's.
        task: what it was played on.
        basic: mode → returns of the environment's own reward.
        addon: the same of the add-on reward; empty where the environment alone was played.
        length: mode → episode lengths ``[N]``.
    """

    card: PriorCard
    task: Task
    basic: Mapping[Mode, Returns]
    addon: Mapping[Mode, Returns] = field(default_factory=dict)
    length: Mapping[Mode, NDArray[np.float64]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "prior": self.card.name,
            "content_hash": self.card.content_hash,
            "environment": self.task.env_id,
            "task": None if self.task.name == self.task.env_id else self.task.name,
            "basic": {mode: returns.as_json() for mode, returns in self.basic.items()},
            "addon": {mode: returns.as_json() for mode, returns in self.addon.items()},
            "episode_length": {mode: float(values.mean()) for mode, values in self.length.items()},
        }


def check_prior(bundle: PriorBundle, task: Task, episodes: int = 20, seed: int = 10_000) -> PriorCheck:
    """Plays a prior deterministically and sampled, each on the same seeds.

    Args:
        bundle: the prior.
        task: what it is played on; see ``environment.chosen_task``.
        episodes: how many, all finished.
        seed: episode i is reset with ``seed + i``.

    Raises:
        BundleError: the prior does not act in the task's spaces.
        ValueError: the environment cannot be made.
    """
    bundle.check_spaces(*spaces_of(task), task.env_id)
    played = evaluate_both(bundle.build(), task, episodes, seed)
    same_task = (
        bundle.card.made_by.get("task") == task.name
    )  # what a card says of add-ons is of the task of its training
    stated = bundle.card.returns if same_task else {}
    addon = {} if isinstance(task.addon, Nothing) else _returns(played, "addon", stated)
    return PriorCheck(
        bundle.card,
        task,
        _returns(played, "basic", bundle.card.returns),
        addon,
        {mode: result.episode_length for mode, result in played.items()},
    )


def _returns(played: Mapping[Mode, Episodes], name: str, stated: Mapping[str, ReturnStatistics]) -> dict[Mode, Returns]:
    return {
        mode: Returns(getattr(result, f"{name}_return"), stated.get(f"{name}/{mode}"))
        for mode, result in played.items()
    }


# ---- pictures -----------------------------------------------------------------------------------
def sparkline(values: NDArray[np.float64], low: float, high: float, width: int = _BINS) -> str:
    """A histogram in one line of text over ``low`` to ``high``."""
    if not high > low:
        return _BARS[-1]
    counts, _ = np.histogram(values, bins=width, range=(low, high))
    scale = (len(_BARS) - 1) / counts.max()
    return "".join(_BARS[math.ceil(n * scale)] if n else " " for n in counts)


def returns_png(check: PriorCheck) -> bytes:
    """Draws the distribution of the basic return, one panel a mode: a histogram, every episode, mean, and the card's.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    panels = figure.subplots(len(MODES), 1, sharex=True, sharey=True)
    everything = np.concatenate([returns.values for returns in check.basic.values()])
    bins = np.histogram_bin_edges(everything, bins=min(_BINS, max(8, len(everything) // 3))).tolist()
    for row, mode in enumerate(MODES):
        axes, returns, colour = panels[row], check.basic[mode], f"C{row}"
        axes.hist(returns.values, bins=bins, color=colour, alpha=0.45)
        axes.plot(returns.values, np.zeros(len(returns.values)), "|", color=colour, markersize=12, clip_on=False)
        axes.axvline(
            returns.mean, color=colour, linewidth=2.0, label=f"mean {returns.mean:,.1f}, std {returns.std:,.1f}"
        )
        if returns.stated is not None:
            text = f"its card: mean {returns.stated.mean:,.1f}, std {returns.stated.std:,.1f}"
            axes.axvline(returns.stated.mean, color="black", linestyle=":", linewidth=2.0, label=text)
        axes.set_ylabel("episodes")
        axes.set_title(mode, loc="left", fontsize=10)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False, ncols=2, borderpad=0.2)
    figure.suptitle(
        f"{check.card.name} in {check.task.env_id}: {len(check.basic[MODES[0]].values)} episodes of each mode"
    )
    panels[-1].set_xlabel("basic return of an episode (undiscounted); each mark is one episode")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
