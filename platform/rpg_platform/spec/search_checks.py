"""Which combinations of search, scheduler, spaces and budget can be run; part of ``checks``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

from rpg_platform.spec.errors import Problem
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.space import SearchSpace
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.trials import Arm, arms, rungs, searched, searched_weights, warmup_env_steps
from rpg_platform.wording import Path

MAX_RUNGS = 100
_SPACES: tuple[Path, ...] = (("weights",), ("training",), ("algorithm",))
_METHOD: Path = ("search", "method")


def check_search(spec: SweepSpec, *, check_installed: bool = True) -> Iterator[Problem]:
    """What is wrong with `search` and `scheduler`, each against the rest of the specification."""
    yield from _search(spec)
    yield from _objectives(spec)
    yield from _scheduler(spec)
    needed = spec.search.row.needs
    if check_installed and needed is not None and importlib.util.find_spec(needed) is None:
        yield Problem(_METHOD, f"{needed} is not installed: pip install 'residual-policy-gradient[{needed}]'")


def space_paths(spec: SweepSpec, arm: Arm) -> dict[Path, SearchSpace]:
    """Where a specification gives what an arm searches over."""
    if not METHODS[arm.entry.method].trains:
        return {}
    return {
        arm.weight_path(name) if name in arm.entry.weights else ("training", name): space
        for name, space in searched(spec, arm).items()
    }


def _search(spec: SweepSpec) -> Iterator[Problem]:
    method = spec.search.method
    if not (spec.search.is_adaptive or spec.search.row.draws):
        return
    algorithm = arms(spec)[0]
    spaces = space_paths(spec, algorithm)
    if spec.search.is_adaptive:
        for path, space in spaces.items():
            if not space.is_random:
                message = f"{method} chooses each setting itself, and a grid is enumerated: write choice for grid"
                yield Problem((*path, space.kind), message, at_key=True, needs=(("search",), *_SPACES[1:]))
        if not spaces:
            message = f"{method} has nothing to choose: {spec.algorithm} has no choice, uniform or loguniform"
            yield Problem(_METHOD, message, needs=_SPACES)
    elif not any(space.is_random for arm in arms(spec) for space in space_paths(spec, arm).values()):
        message = f"{method} given, but nothing is drawn: there is no choice, uniform or loguniform"
        yield Problem(_METHOD, message, needs=(*_SPACES, ("baselines",)))


def _objectives(spec: SweepSpec) -> Iterator[Problem]:
    names, here = spec.search.objectives, ("search", "objectives")
    if names and not spec.search.is_adaptive:
        message = f"takes part in optuna's search only, and the method is {spec.search.method}"
        yield Problem(here, message, at_key=True, needs=(_METHOD,))
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Problem((*here, index), f"{name} is in the list twice")
        if name == "kl_to_prior" and spec.prior is None:
            yield Problem((*here, index), "is measured against the prior, and no prior is given", needs=(("prior",),))


def _scheduler(spec: SweepSpec) -> Iterator[Problem]:
    scheduler = spec.scheduler
    if scheduler is None:
        return
    name, here = scheduler.name, ("scheduler",)
    if spec.evaluation.validations == 0:
        message = f"{name} decides on validation figures, and evaluation.validations is 0"
        yield Problem(here, message, needs=(("evaluation", "validations"),))
    objectives = spec.search.objectives
    if spec.search.is_adaptive and objectives and objectives != (spec.objective.maximize,):
        message = f"{name} compares settings by objective.maximize, {spec.objective.maximize}, alone, "
        message += f"and search.objectives has {', '.join(objectives)}"
        yield Problem(here, message, needs=(("search",), ("objective",)))
    settings = _count_settings(spec)
    if settings < 2:
        message = f"{name} compares settings with each other, and {spec.algorithm} has one"
        yield Problem(here, message, needs=(*_SPACES, ("samples",), ("search",)))
    if scheduler.pbt is not None:
        yield from _population(spec)
    yield from _rungs(spec)


def _population(spec: SweepSpec) -> Iterator[Problem]:
    """Population-based training explores numbers among the algorithm's weights, and knows all settings up front."""
    here = ("scheduler",)
    if spec.search.is_adaptive:
        message = f"pbt begins with settings that are all drawn before it starts, and {spec.search.method} chooses "
        yield Problem(here, message + "one after another: use random or quasi_random", needs=(("search",),))
    for name, space in spec.training.searched.items():
        message = "pbt explores weights only, and a checkpoint that is taken over brings its own training settings"
        yield Problem(("training", name, space.kind), message, at_key=True, needs=(("scheduler",),))
    weights = searched_weights(spec)
    for name, space in weights.items():
        if any(isinstance(value, tuple) for value in space.values):
            message = "pbt moves a number up and down, and a schedule is none"
            yield Problem(("weights", name, space.kind), message, at_key=True, needs=(("scheduler",),))
    if not weights:
        message = f"pbt has nothing to explore: {spec.algorithm} has no grid, choice, uniform or loguniform weight"
        yield Problem(here, message, needs=_SPACES)


def _rungs(spec: SweepSpec) -> Iterator[Problem]:
    scheduler, budget, warmup = spec.scheduler, spec.budget.env_steps, warmup_env_steps(spec)
    assert scheduler is not None
    key = scheduler.section.begins
    given: int | None = getattr(scheduler.section, key)
    where: Path = ("scheduler", scheduler.name, key)
    needs: tuple[Path, ...] = (("budget",), ("training",), ("resources",), ("prior",), ("algorithm",))
    if given is not None and given >= budget:
        message = f"{given} is not below the budget of {budget} env steps: none is "
        yield Problem(where, message + ("ended" if scheduler.ends_early else "taken over"), needs=needs)
    elif given is not None and scheduler.ends_early and given <= warmup < budget:
        detail = f"the {warmup} env steps of critic_warmup_iterations"
        yield Problem(where, f"{given} is within {detail}, before the policy moves", needs=needs)
    elif warmup < budget and len(rungs(spec)) > MAX_RUNGS:
        message = f"gives more than {MAX_RUNGS} comparisons within {budget} env steps"
        yield Problem(("scheduler", scheduler.name, "every_env_steps"), message, needs=needs)


def _count_settings(spec: SweepSpec) -> int:
    spaces = space_paths(spec, arms(spec)[0]).values()
    drawn = spec.samples or 1 if any(space.is_random for space in spaces) else 1
    return drawn * math.prod(space.size or 1 for space in spaces if not space.is_random)
