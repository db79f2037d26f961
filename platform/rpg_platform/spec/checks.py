"""What a specification must satisfy beyond each field by itself: fields against each other and against files.

Each check states both of the values that do not go together. `check` runs them all; nothing of Ray is started
or imported, and nothing but the prior's card is read.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from rpg_algorithms.policies.discount import other_discount, recorded_gamma
from rpg_platform.bundles import SHIPPED, bundle_in
from rpg_platform.spec.errors import Problem, SpecError
from rpg_platform.spec.methods import METHODS, weight_faults
from rpg_platform.spec.search_checks import check_search, space_paths
from rpg_platform.spec.space import ConditionedRange, SearchSpace
from rpg_platform.spec.sweep import SweepSpec, TrialSpec, WeightSetting
from rpg_platform.spec.task import build_task, same_environment, task_env_id, task_label
from rpg_platform.spec.trials import Arm, arms, count_trials, draws, in_running_order, make_trials, uses_prior
from rpg_platform.tasks.registry import TASKS
from rpg_platform.wording import Path, dotted, show, suggestion

MAX_TRIALS = 10_000
MAX_CARD_BYTES = 1_000_000
CARD_FILE = "card.json"

Made: TypeAlias = tuple[TrialSpec, Arm | None]
"""A trial, and the arm that it comes from."""

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
    return _checked(spec, check_files)[0]


def _checked(spec: SweepSpec, check_files: bool) -> tuple[list[Problem], list[Made]]:
    """The problems, and the trials that were made to find the last of them; none where others came first."""
    made: list[Made] = []
    problems = [
        *_task(spec),
        *_seeds(spec),
        *_weight_names(spec),
        *_told(spec),
        *_prior_use(spec),
        *_samples(spec),
        *check_search(spec, check_installed=check_files),
        *_iteration(spec),
        *_custom_resources(spec),
        *_start(spec),
        *_entropy(spec),
        *_evaluation_seeds(spec),
        *_objective(spec),
    ]
    if check_files:
        problems += _environment(spec)
    if check_files and spec.prior is not None:
        problems += _bundle(spec, spec.prior)
    if spec.start is not None:
        problems += _start_bundle(spec, spec.start, check_files)
    total = count_trials(spec)
    if total > MAX_TRIALS:
        message = f"asks for {total} trials ({_factors(spec)}), and at most {MAX_TRIALS} are made"
        needs: tuple[Path, ...] = (("weights",), _TRAINING, ("baselines",), ("seeds",), ("samples",))
        problems.append(Problem(_most_of(spec), message, needs=needs))
    elif not problems:
        made = make_trials(spec)
        problems += _draws_and_duplicates(spec, made)
    return problems, made


def expand(spec: SweepSpec) -> list[TrialSpec]:
    """The trials of a sweep in the order in which they start (`trials.in_running_order`).

    Deterministic, from the specification alone: no file is read. Trial ids are unique, readable, at most 140
    characters and safe as a file's or an MLflow run's name.

    Args:
        spec: From a file (`yaml_file.load_spec`) or made in Python.

    Raises:
        SpecError: If the specification contradicts itself; lists every fault.
    """
    problems, made = _checked(spec, check_files=False)
    if problems:
        raise SpecError([str(problem) for problem in problems])
    return in_running_order(spec, made)


# ---- names --------------------------------------------------------------------------------------
def _task(spec: SweepSpec) -> Iterator[Problem]:
    if isinstance(spec.task, str):
        if spec.task not in TASKS:
            yield Problem(("task",), f"unknown task {show(spec.task)}" + suggestion(spec.task, TASKS))
    elif spec.task.env is not None and not spec.task.addons:
        for arm in arms(spec):
            if "addon_weight" in METHODS[arm.entry.method].takes:
                message = f"method {arm.entry.method!r} customises for add-on rewards, and the task has none"
                yield Problem(("task",), f"{message}: give addons", at_key=True, needs=(arm.path,))


def _environment(spec: SweepSpec) -> Iterator[Problem]:
    """What only the environment of a task of one's own can tell; registered tasks are tested."""
    if isinstance(spec.task, str):
        return
    from rpg_platform.tasks.conformance import probe  # imports gymnasium, and whatever the task names

    for error in probe(build_task(spec.task), may_go_on=spec.evaluation.max_steps is not None):
        yield Problem(("task", *error.path), error.message, error.at_key, offset=error.offset)


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


def _has_range(value: WeightSetting) -> bool:
    inside = value.values if isinstance(value, SearchSpace) else (value,)
    return any(isinstance(each, ConditionedRange) for each in inside)


def _told(spec: SweepSpec) -> Iterator[Problem]:
    for arm in arms(spec):
        able = METHODS[arm.entry.method].can_be_told
        for name, value in arm.entry.weights.items():
            if name not in able and _has_range(value):
                which = f"it can be told {', '.join(sorted(able))}" if able else "it can be told none"
                message = f"conditioned: a policy of method {arm.entry.method!r} can't be told {name}; {which}"
                yield Problem(arm.weight_path(name), message, at_key=True, needs=(arm.path,))


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


def _folder_of(prior: str) -> pathlib.Path:
    return SHIPPED.get(prior) or bundle_in(pathlib.Path(prior)) or pathlib.Path(prior)


def _bundle(spec: SweepSpec, prior: str) -> Iterator[Problem]:
    here: Path = ("prior",)
    if prior not in SHIPPED and not is_path(prior):
        hint = suggestion(prior, SHIPPED)
        yield Problem(here, f"{prior!r} is neither a shipped prior nor a folder beside the file{hint}")
        return
    try:
        card = _read_card(_folder_of(prior))
    except ValueError as error:
        yield Problem(here, str(error))
        return
    made_for, wanted = card.get("env_id"), task_env_id(spec.task)
    if isinstance(made_for, str) and made_for and wanted and not same_environment(made_for, wanted):
        message = f"{prior!r} acts in {made_for}, but task {task_label(spec.task)!r} is in {wanted}"
        yield Problem(here, message, needs=(("task",),))
    network = cast(Mapping[str, Any], card.get("network") or {})
    if told := [each["name"] for each in network.get("context") or ()]:
        message = f"{prior!r} is a policy for a range of {', '.join(told)}, not for one setting"
        yield Problem(here, f"{message}: fold it by `rpg export --format bundle --weights {told[0]}=…`")
    if network.get("graph") is not None:
        for arm in arms(spec):
            for name, value in arm.entry.weights.items():
                if _has_range(value) and uses_prior(spec, arm.entry.method):
                    message = (
                        f"conditioned: the network of {prior!r} is a graph, without a first layer to add inputs to"
                    )
                    yield Problem(arm.weight_path(name), message, at_key=True, needs=(here,))
    if card.get("alpha") is None:
        for arm in arms(spec):
            if METHODS[arm.entry.method].prior == "required" and "omega" in arm.entry.weights:
                message = f"needs the alpha that the prior was trained with, and {prior!r} records none"
                yield Problem(arm.weight_path("omega"), f"{message}; give omega_prime", True, (here, arm.path))
    yield from _families(spec, prior, card)
    yield from _discount(spec, prior, card)


def _start_bundle(spec: SweepSpec, start: str, check_files: bool) -> Iterator[Problem]:
    """What training starts from has the prior's network, and takes the place of the prior's weights."""
    here: Path = ("start",)
    if spec.prior is None or not any(spec.training.candidates("start_from_prior")):
        needs: tuple[Path, ...] = (("prior",), (*_TRAINING, "start_from_prior"))
        message = f"{start!r} takes the place of the prior's weights at the start: it needs a prior"
        yield Problem(here, f"{message}, and start_from_prior: true", at_key=True, needs=needs)
        return
    if not check_files:
        return
    try:
        card, prior = _read_card(_folder_of(start)), _read_card(_folder_of(spec.prior))
    except ValueError as error:
        yield Problem(here, str(error), needs=(("prior",),))
        return
    network, wanted = (cast(Mapping[str, Any], each.get("network") or {}) for each in (card, prior))
    if told := [each["name"] for each in network.get("context") or ()]:
        message = f"{start!r} is a policy for a range of {', '.join(told)}, not for one setting"
        yield Problem(here, f"{message}: fold it by `rpg export --format bundle --weights {told[0]}=…`")
    elif others := [name for name in wanted if name != "log_std_init" and network.get(name) != wanted[name]]:
        message = f"{start!r} has another network than the prior {spec.prior!r}: {', '.join(others[:3])} differ"
        yield Problem(here, message, needs=(("prior",),))


def with_discount_of_prior(spec: SweepSpec) -> SweepSpec:
    """A specification whose discount is that of its prior, where it gives none and RPG reads the prior's log pi."""
    training = spec.training
    is_given = "gamma" in {*training.searched, *training.fixed.model_fields_set}
    if spec.prior is None or is_given or not _reads_log_pi(spec):
        return spec
    try:
        card = _read_card(_folder_of(spec.prior))
    except ValueError:  # ``check`` says so
        return spec
    its = recorded_gamma(card.get("made_by"))
    if its is None:
        return spec
    fixed = training.fixed.model_copy(update={"gamma": its})
    return spec.model_copy(update={"training": dataclasses.replace(training, fixed=fixed)})


def _reads_log_pi(spec: SweepSpec) -> list[Arm]:
    """The methods that read log pi as the prior's soft advantage, which it is at the prior's own discount."""
    return [arm for arm in arms(spec) if arm.entry.method == "rpg"]


def _discount(spec: SweepSpec, prior: str, card: Mapping[str, object]) -> Iterator[Problem]:
    reads_it = _reads_log_pi(spec)
    for gamma in spec.training.candidates("gamma") if reads_it else ():
        message = other_discount(cast(float, gamma), prior, card.get("made_by"))
        if message is not None:
            yield Problem((*_TRAINING, "gamma"), message, needs=(("prior",), reads_it[0].path))
            return


def _families(spec: SweepSpec, prior: str, card: Mapping[str, object]) -> Iterator[Problem]:
    """A policy that starts from its prior is of its family; from scratch both kinds of Gaussian go together."""
    network, described = spec.training.fixed.network, card.get("network")
    given = None if network is None else network.distribution
    its = described.get("distribution") if isinstance(described, dict) else None
    if given is None or not isinstance(its, str) or given == its:
        return
    path: Path = (*_TRAINING, "network", "distribution")
    message = f"{given!r} given, but the prior {prior!r} is {its!r}"
    if "categorical" in (given, its):
        yield Problem(path, f"{message}: their actions are of different kinds", needs=(("prior",),))
    elif any(value is True for value in spec.training.candidates("start_from_prior")):
        message += ", and a policy that starts from its prior is of its family; set start_from_prior: false"
        yield Problem(path, message, needs=((*_TRAINING, "start_from_prior"), ("prior",)))


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


# ---- the search ---------------------------------------------------------------------------------
def _samples(spec: SweepSpec) -> Iterator[Problem]:
    random = [dotted(path) for arm in arms(spec) for path, space in space_paths(spec, arm).items() if space.is_random]
    everything: tuple[Path, ...] = (("weights",), ("baselines",), _TRAINING)
    if spec.samples is not None and not random:
        message = f"{spec.samples} given, but nothing is random: there is no choice, uniform or loguniform"
        yield Problem(("samples",), message, at_key=True, needs=everything)
    if spec.samples is None and random:
        yield Problem(
            ("samples",),
            f"missing: {random[0]} is drawn at random, so say how often, such as `samples: 8`",
            needs=everything,
        )


def _factors(spec: SweepSpec) -> str:
    return f"samples {spec.samples or 1}, seeds {len(spec.seeds)}, methods {len(spec.methods)}, and the grids"


def _most_of(spec: SweepSpec) -> Path:
    """Where the specification gives the factor that makes the most trials."""
    spaces = {path: space for arm in arms(spec) for path, space in space_paths(spec, arm).items()}
    factors: dict[Path, int] = {path: space.size or 1 for path, space in spaces.items() if not space.is_random}
    factors |= {("seeds",): len(spec.seeds), ("baselines",): len(spec.baselines)}
    if any(space.is_random for space in spaces.values()):
        factors["samples",] = spec.samples or 1
    return max(factors, key=lambda path: factors[path])


def _draws_and_duplicates(spec: SweepSpec, made: Sequence[Made]) -> Iterator[Problem]:
    found = {
        len(draws(spec, arm)): arm.entry.method
        for arm in arms(spec)
        if any(space.is_random for space in space_paths(spec, arm).values())
    }
    if spec.samples is not None and found and max(found) < spec.samples:
        message = f"{spec.samples} draws, but {found[max(found)]} has only {max(found)} distinct settings to draw"
        yield Problem(("samples",), message)
    first: dict[str, Arm | None] = {}
    repeated: set[Path] = set()
    for trial, made_by in made:
        earlier = first.setdefault(trial.trial_id, made_by)
        if earlier is not made_by and made_by is not None and earlier is not None and made_by.path not in repeated:
            repeated.add(made_by.path)
            message = f"trial {trial.trial_id!r} is already given by {dotted(earlier.path)}"
            yield Problem(made_by.path, message, needs=(earlier.path, ("weights",)))


def _custom_resources(spec: SweepSpec) -> Iterator[Problem]:
    """Resources of processes that a trial does not have."""
    resources = spec.resources
    for name, processes in (("env_runner", resources.env_runners), ("learner", resources.learners)):
        if getattr(resources, f"custom_per_{name}") and not processes:
            message = f"a trial has no process of that kind ({name}s: 0); give {name}s, or use custom_per_trial"
            yield Problem((*_RESOURCES, f"custom_per_{name}"), message, needs=(_RESOURCES,))


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
    trains = any(uses_prior(spec, arm.entry.method) and METHODS[arm.entry.method].trains for arm in arms(spec))
    starts = any(value is True for value in spec.training.candidates("start_from_prior"))
    if trains and starts and longest <= spec.budget.env_steps <= warmup * longest:
        message = f"{warmup} iterations of {longest} env steps use up the budget of {spec.budget.env_steps}"
        where = (*_TRAINING, "critic_warmup_iterations")
        yield Problem(
            where,
            f"{message} before the policy moves; give fewer iterations or more env steps",
            needs=(*needs, _STEPS, ("algorithm",), ("prior",)),
        )


def _start(spec: SweepSpec) -> Iterator[Problem]:
    starters = [
        arm.entry.method
        for arm in arms(spec)
        if uses_prior(spec, arm.entry.method) and METHODS[arm.entry.method].trains
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


def _entropy(spec: SweepSpec) -> Iterator[Problem]:
    """An entropy term in the loss needs the entropy in closed form, which a squashed Gaussian has not."""
    network = spec.training.fixed.network
    if network is None or network.distribution != "squashed_gaussian":
        return
    for arm in arms(spec):
        method, weights = arm.entry.method, arm.entry.weights
        name = "alpha" if method == "repeat-entropy" and "entropy_coeff" not in weights else "entropy_coeff"
        if "entropy_coeff" in METHODS[method].takes and weights.get(name, 0.0) != 0.0:
            message = (
                f"method {method!r} adds entropy to the loss ({name}), and a squashed gaussian's has no closed form"
            )
            needs: tuple[Path, ...] = ((*_TRAINING, "network", "distribution"), arm.path)
            yield Problem(arm.weight_path(name), f"{message}: use spg, whose entropy is a reward", True, needs)


# ---- evaluation -----------------------------------------------------------------------------------
def _evaluation_seeds(spec: SweepSpec) -> Iterator[Problem]:
    """What chooses must not be what is shown: the seeds of validation and selection are no evaluation seeds."""
    settings, section = spec.evaluation, "evaluation"
    shown = range(settings.seed, settings.seed + settings.episodes)
    counts = {"validation": settings.validation_episodes if settings.validations else 0}
    counts["selection"] = settings.episodes_to_choose_by
    for name, count in counts.items():
        first: int = getattr(settings, f"{name}_seed")
        others = range(first, first + count)
        if count and shown.start < others.stop and others.start < shown.stop:
            message = f"the {name} seeds {_span(others)} and the evaluation seeds {_span(shown)} overlap"
            switch = ("validations",) if name == "validation" else ()
            needs = tuple((section, each) for each in ("seed", "episodes", f"{name}_episodes", *switch))
            yield Problem((section, f"{name}_seed"), f"{message}: the best would be chosen on them", needs=needs)


def _span(seeds: range) -> str:
    return f"{seeds.start} to {seeds.stop - 1}"


def _objective(spec: SweepSpec) -> Iterator[Problem]:
    if spec.prior is not None:
        return
    constraints = spec.objective.constraints
    for name in type(constraints).model_fields:
        bound = getattr(constraints, name)
        if name == "kl_to_prior" and bound is not None:
            yield Problem(("objective", "constraints", name), _NO_PRIOR, at_key=True, needs=(("prior",),))
        elif getattr(bound, "min_fraction_of_prior", None) is not None:
            path: Path = ("objective", "constraints", name, "min_fraction_of_prior")
            yield Problem(path, _NO_PRIOR, at_key=True, needs=(("prior",),))


_NO_PRIOR = "is measured against the prior, and no prior is given"
