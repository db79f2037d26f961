"""What the reproduction is held to: the paper's figures, what must be reached and what is aimed at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.reproduction.figures import BASIC, NOT_YET, TOTAL, Group, Measured, at, difference, number, ratio
from benchmarks.reproduction.plan import CONFIGS, ENVIRONMENTS, SCRATCH

from rpg_platform.spec.yaml_file import load_spec

PAPER: Mapping[tuple[str, str, str], tuple[float, float]] = {
    ("halfcheetah", "spg", BASIC): (5896.5, 371.8),
    ("halfcheetah", "repeat-entropy", BASIC): (-38.9, 58.2),
    ("halfcheetah", SCRATCH, TOTAL): (5556.2, 57.8),
    ("halfcheetah", "rpg", TOTAL): (5488.3, 75.6),
    ("ant", "rpg", TOTAL): (5568.3, 852.4),
    ("ant", "kl", TOTAL): (4019.4, 1103.4),
    ("hopper", "prior", BASIC): (3689.4, 29.2),
    ("hopper", "prior", TOTAL): (5133.7, 33.2),
    ("hopper", "rpg", TOTAL): (4401.4, 505.3),
    ("hopper", "greedy", TOTAL): (3714.5, 7.1),
}
"""(environment, method, measure) → mean and standard deviation in arXiv 2503.11019."""

Entropy = Mapping[str, Sequence[Group]]
"""Environment → the groups of the first experiment."""
Final = Mapping[str, Mapping[str, Group]]
"""Environment → method → the groups of the second experiment."""


def paper(environment: str, method: str, measure: str) -> str:
    """The paper's figure; a dash where it gives none."""
    known = PAPER.get((environment, method, measure))
    return "–" if known is None else f"{number(known[0])} ± {number(known[1])}"


def prior_alpha(environment: str) -> float:
    """The temperature of an environment's priors, at which the first experiment's claims are looked at."""
    alpha = load_spec(CONFIGS / "priors" / f"{environment}.yaml").weights["alpha"]
    assert isinstance(alpha, float)
    return alpha


@dataclass(frozen=True)
class Bound:
    """What a figure is held to.

    Attributes:
        words: to read.
        holds: whether a figure keeps to it; None where that can't be told yet.
    """

    words: str
    holds: Callable[[Measured], bool | None]


def _at_least(bound: float) -> Bound:
    return Bound(number(bound), lambda found: found.value >= bound)


def _clear_above(bound: float) -> Bound:
    return Bound(f"95 % interval above {bound:g}", lambda found: found.is_above(bound))


@dataclass(frozen=True)
class Goal:
    """One row: a figure and what it is held to.

    Attributes:
        what: the figure, in words.
        paper: the paper's figure, in words.
        measured: ours.
        must, aim: what it is held to; None: nothing.
        environment, experiment: what is to be run for it.
        digits: with how many digits it is written; None: by its size.
    """

    what: str
    paper: str
    measured: Measured
    must: Bound | None
    aim: Bound | None
    environment: str
    experiment: int
    digits: int | None = None

    @property
    def verdict(self) -> str:
        """Whether it is reached; ``so far`` while seeds are missing."""
        if math.isnan(self.measured.value):
            return NOT_YET
        so_far = "" if self.measured.is_final else " so far"
        if self.aim is not None and self.aim.holds(self.measured):
            return f"aim met{so_far}"
        if self.must is None:
            return f"as it comes, aim missed{so_far}" if self.aim is not None else f"as it comes{so_far}"
        met = self.must.holds(self.measured)
        return ("too few seeds to tell" if met is None else "must met" if met else "**missed**") + so_far


def goals(entropy: Entropy, final: Final) -> Iterator[Goal]:
    """Every row, of what there is by now."""
    for environment, settings in entropy.items():
        yield from _entropy_goals(environment, settings)
    for environment, groups in final.items():
        yield from _customised_goals(environment, groups)


def _entropy_goals(environment: str, groups: Sequence[Group]) -> Iterator[Goal]:
    name, alpha = ENVIRONMENTS[environment], prior_alpha(environment)
    soft, repeat = at(groups, "spg", alpha), at(groups, "repeat-entropy", alpha)
    if soft is None or repeat is None:
        return
    known = {method: PAPER.get((environment, method, BASIC)) for method in ("spg", "repeat-entropy")}
    words = {method: "–" if found is None else number(found[0]) for method, found in known.items()}
    reached = soft.mean(BASIC)
    must, aim = (_at_least(6_500), _at_least(7_500)) if environment == "halfcheetah" else (None, None)
    what = f"{name}: Soft PPO at α {alpha:g}, basic return"
    yield Goal(what, words["spg"], reached, must, aim, environment, 1)

    def is_apart(found: Measured) -> bool | None:
        return None if not (found.interval and reached.interval) else found.interval[1] < reached.interval[0]

    what = f"{name}: repeat-entropy PPO at α {alpha:g}, basic return"
    below = Bound("95 % interval below Soft PPO's", is_apart)
    yield Goal(what, words["repeat-entropy"], repeat.mean(BASIC), below, None, environment, 1)


def _customised_goals(environment: str, groups: Mapping[str, Group]) -> Iterator[Goal]:
    name, rpg, where = ENVIRONMENTS[environment], groups["rpg"], (environment, 2)
    if environment == "halfcheetah":
        yield Goal(f"{name}: RPG, total", "5,488", rpg.mean(TOTAL), _at_least(5_500), _at_least(6_000), *where)
        of = ratio(rpg, groups[SCRATCH])
        what = f"{name}: RPG / Full from scratch, same env steps"
        yield Goal(what, "0.988", of, _at_least(0.98), _at_least(1.1), *where, digits=3)
        of = ratio(rpg, groups["full"])
        what = f"{name}: RPG / Full from the prior's weights, same env steps"
        yield Goal(what, "–", of, _at_least(0.90), _at_least(0.97), *where, digits=3)
    if environment == "ant":
        what = f"{name}: RPG / KL, each at its best, equal tuning"
        yield Goal(what, "1.385", ratio(rpg, groups["kl"]), _clear_above(1), _at_least(1.3), *where, digits=3)
    for other, words in (("kl", "KL"), ("greedy", "Greedy"), ("prior", "prior")):
        found, clear = difference(rpg, groups[other]), _clear_above(0)
        what = f"{name}: RPG - {words}, total"
        if environment != "hopper":
            yield Goal(what, "above 0", found, clear, None, *where)
        elif other == "prior":
            yield Goal(what, "below 0", found, None, None, *where)
        else:
            yield Goal(what, "–", found, None, clear, *where)
