"""What a specification must satisfy beyond each field by itself: fields against each other and against files.

Each check states both of the values that do not go together. `check` runs them all; nothing of Ray is started
or imported, and nothing but the prior's card is read.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import cast

from rpg_platform.methods import METHODS, weight_faults
from rpg_platform.search_space import SearchSpace
from rpg_platform.shipped import SHIPPED
from rpg_platform.spec import SweepSpec
from rpg_platform.spec_errors import Path, Problem, dotted, show, suggestion
from rpg_platform.tasks import TASKS
from rpg_platform.trials import Arm, arms, count_trials, draws, make_trials, searched, uses_prior

MAX_TRIALS = 10_000
MAX_CARD_BYTES = 1_000_000
CARD_FILE = "card.json"

_TRAINING: Path = ("training",)
_RESOURCES: Path = ("resources",)
_STEPS: Path = ("budget", "env_steps")


def is_path(prior: str) -> bool:
    """Whether `prior` is meant as a path rather than a shipped prior's name."""
    return "/" in prior or prior in (".", "..")


def check(spec: SweepSpec, *, check_files: bool = True) -> list[Problem]:
    """Everything that is wrong with a specification whose fields are each valid.

    Args:
        spec: The specification; a prior given as a path is taken relative to the working directory.
        check_files: Look at the prior's bundle too.

    Returns:
        The problems, in the order of the checks; empty when it can run.
    """
    problems = [
        *_task(spec),
        *_seeds(spec),
        *_weight_names(spec),
        *_prior_use(spec),
        *_samples(spec),
        *_iteration(spec),
        *_start(spec),
    ]
    if check_files and spec.prior is not None:
        problems += _bundle(spec, spec.prior)
    total = count_trials(spec)
    if total > MAX_TRIALS:
        message = f"asks for {total} trials ({_factors(spec)}), and at most {MAX_TRIALS} are made"
        problems.append(Problem(("algorithm",), message, needs=(("weights",), _TRAINING, ("baselines",), ("seeds",))))
    elif not problems:
        problems += _draws_and_duplicates(spec)
    return problems


# ---- names --------------------------------------------------------------------------------------
def _task(spec: SweepSpec) -> Iterator[Problem]:
    if spec.task not in TASKS:
        yield Problem(("task",), f"unknown task {show(spec.task)}" + suggestion(spec.task, TASKS))


def _seeds(spec: SweepSpec) -> Iterator[Problem]:
    for index, seed in enumerate(spec.seeds):
        if seed in spec.seeds[:index]:
            yield Problem(("seeds", index), f"seed {seed} is in the list twice")


def _weight_names(spec: SweepSpec) -> Iterator[Problem]:
    for arm in arms(spec):
        for name, message in weight_faults(arm.entry.method, arm.entry.weights):
            path = arm.weight_path(name)
            needs = (arm.path,) if name else (arm.path, ("weights",))
            yield Problem(path, message, at_key=path != arm.path, needs=needs)


# ---- the prior ----------------------------------------------------------------------------------
def _prior_use(spec: SweepSpec) -> Iterator[Problem]:
    if spec.prior is None:
        for arm in arms(spec):
            if METHODS[arm.entry.method].prior == "required":
                message = f"method {arm.entry.method!r} needs a prior, and no prior is given"
                yield Problem(arm.path, message, needs=(("prior",),))
        return
    if not any(uses_prior(spec, arm.entry.method) for arm in arms(spec)):
        methods = ", ".join(dict.fromkeys(arm.entry.method for arm in arms(spec)))
        message = f"{spec.prior!r} is given, but no method of this sweep uses a prior ({methods})"
        yield Problem(("prior",), message, at_key=True, needs=(("algorithm",), ("baselines",)))


def _bundle(spec: SweepSpec, prior: str) -> Iterator[Problem]:
    here: Path = ("prior",)
    if prior not in SHIPPED and not is_path(prior):
        hint = suggestion(prior, SHIPPED)
        yield Problem(here, f"{prior!r} is neither a shipped prior nor a folder beside the file{hint}")
        return
    folder = SHIPPED.get(prior, pathlib.Path(prior))
    try:
        card = _read_card(folder)
    except ValueError as error:
        yield Problem(here, str(error))
        return
    made_for, wanted = card.get("env_id"), TASKS[spec.task].env_id if spec.task in TASKS else None
    if isinstance(made_for, str) and wanted and _family(made_for) != _family(wanted):
        message = f"{prior!r} acts in {made_for}, but task {spec.task!r} is in {wanted}"
        yield Problem(here, message, needs=(("task",),))
    if card.get("alpha") is None:
        for arm in arms(spec):
            if METHODS[arm.entry.method].algorithm == "rpg" and "omega" in arm.entry.weights:
                message = f"needs the alpha that the prior was trained with, and {prior!r} records none"
                yield Problem(arm.weight_path("omega"), f"{message}; give omega_prime", True, (here, arm.path))


def _read_card(folder: pathlib.Path) -> Mapping[str, object]:
    """The card of a bundle, as JSON.

    Raises:
        ValueError: If `folder` is no bundle; says why.
    """
    try:
        if not folder.exists():
            raise ValueError(f"no such folder: {folder}")
        if not folder.is_dir():
            raise ValueError(f"not a prior bundle: {folder} is a file, and a bundle is a folder with {CARD_FILE}")
        if not (folder / CARD_FILE).is_file():
            raise ValueError(f"not a prior bundle: {folder} holds no {CARD_FILE}")
        with (folder / CARD_FILE).open("rb") as file:
            card = json.loads(file.read(MAX_CARD_BYTES))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"cannot be read: {folder / CARD_FILE}: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"not a prior bundle: {folder / CARD_FILE} is no JSON object")
    return card


def _family(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id)


# ---- the search ---------------------------------------------------------------------------------
def _samples(spec: SweepSpec) -> Iterator[Problem]:
    random = [dotted(path) for arm in arms(spec) for path, space in _space_paths(spec, arm).items() if space.is_random]
    everything: tuple[Path, ...] = (("weights",), ("baselines",), _TRAINING)
    if spec.samples is not None and not random:
        message = f"{spec.samples} given, but nothing is random: there is no choice, uniform or loguniform"
        yield Problem(("samples",), message, at_key=True, needs=everything)
    if spec.samples is None and random:
        yield Problem(("samples",), f"missing: {random[0]} is drawn at random, so say how often", needs=everything)


def _space_paths(spec: SweepSpec, arm: Arm) -> dict[Path, SearchSpace]:
    if METHODS[arm.entry.method].algorithm is None:
        return {}
    return {
        arm.weight_path(name) if name in arm.entry.weights else (*_TRAINING, name): space
        for name, space in searched(spec, arm).items()
    }


def _factors(spec: SweepSpec) -> str:
    return f"samples {spec.samples or 1}, seeds {len(spec.seeds)}, methods {len(spec.methods)}, and the grids"


def _draws_and_duplicates(spec: SweepSpec) -> Iterator[Problem]:
    found = {
        len(draws(spec, arm)): arm.entry.method
        for arm in arms(spec)
        if any(space.is_random for space in _space_paths(spec, arm).values())
    }
    if spec.samples is not None and found and max(found) < spec.samples:
        message = f"{spec.samples} draws, but {found[max(found)]} has only {max(found)} distinct settings to draw"
        yield Problem(("samples",), message)
    first: dict[str, Arm | None] = {}
    repeated: set[Path] = set()
    for trial, made_by in make_trials(spec):
        earlier = first.setdefault(trial.trial_id, made_by)
        if earlier is not made_by and made_by is not None and earlier is not None and made_by.path not in repeated:
            repeated.add(made_by.path)
            message = f"trial {trial.trial_id!r} is already given by {dotted(earlier.path)}"
            yield Problem(made_by.path, message, needs=(earlier.path, ("weights",)))


# ---- sizes --------------------------------------------------------------------------------------
def _iteration(spec: SweepSpec) -> Iterator[Problem]:
    """The budget, the minibatch, the learners and the warm-up against the env steps of one iteration."""
    resources, runners = spec.resources, max(1, spec.resources.env_runners)
    environments = resources.envs_per_runner * runners
    learners = max(1, resources.learners)
    needs: tuple[Path, ...] = ((*_TRAINING, "rollout_length"), _RESOURCES)
    spelled = f"envs_per_runner {resources.envs_per_runner}"
    if resources.env_runners:
        spelled += f" x env_runners {runners}"
    if environments % learners:
        message = f"{learners} learners cannot share {environments} environments evenly ({spelled})"
        yield Problem((*_RESOURCES, "learners"), message, needs=(_RESOURCES,))
    rollouts = [cast(int, value) for value in spec.training.candidates("rollout_length")]
    longest, shortest = max(rollouts) * environments, min(rollouts) * environments
    if spec.budget.env_steps < longest:
        message = f"{spec.budget.env_steps} env steps are less than one iteration of {longest}"
        yield Problem(_STEPS, f"{message} (rollout_length {max(rollouts)} x {spelled})", needs=needs)
    minibatch = max(cast(int, value) for value in spec.training.candidates("minibatch_size"))
    if minibatch > shortest // learners:
        message = f"{minibatch} is more than the {shortest // learners} env steps of an iteration"
        shared = f" / learners {learners}" if learners > 1 else ""
        where = (*_TRAINING, "minibatch_size")
        yield Problem(where, f"{message} (rollout_length {min(rollouts)} x {spelled}{shared})", needs=needs)
    warmup = max(cast(int, value) for value in spec.training.candidates("critic_warmup_iterations"))
    trains = any(uses_prior(spec, arm.entry.method) and METHODS[arm.entry.method].algorithm for arm in arms(spec))
    if trains and longest <= spec.budget.env_steps <= warmup * longest:
        message = f"{warmup} iterations of {longest} env steps use up the budget of {spec.budget.env_steps}"
        where = (*_TRAINING, "critic_warmup_iterations")
        yield Problem(where, f"{message} before the policy moves", needs=(*needs, _STEPS, ("algorithm",), ("prior",)))


def _start(spec: SweepSpec) -> Iterator[Problem]:
    starters = [
        arm.entry.method
        for arm in arms(spec)
        if uses_prior(spec, arm.entry.method) and METHODS[arm.entry.method].algorithm
    ]
    starts = any(value is True for value in spec.training.candidates("start_from_prior"))
    if spec.training.fixed.network is not None and starts and starters:
        message = "given together with start_from_prior: true, but"
        detail = f"method {starters[0]!r} starts from the network of the prior {spec.prior!r}"
        needs: tuple[Path, ...] = (
            (*_TRAINING, "start_from_prior"),
            ("algorithm",),
            ("baselines",),
            ("prior",),
        )
        yield Problem((*_TRAINING, "network"), f"{message} {detail}; leave one out", at_key=True, needs=needs)
