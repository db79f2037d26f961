"""One resolved sweep: everything that is known before it starts, derived once and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rpg_platform.spec.checks import expand
from rpg_platform.spec.logins import without_login
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.task import TaskSpec, get_task
from rpg_platform.storage.location import storage_path, tracking_uri_of
from rpg_platform.storage.sweep_folder import PRIOR_FOLDER, START_FOLDER, SweepFolder
from rpg_platform.tasks.conformance import faults_in
from rpg_platform.tasks.environments import make_env
from rpg_platform.tasks.task import Task

if TYPE_CHECKING:
    import gymnasium as gym

    from rpg_algorithms.policies.bundle import PriorBundle


class SweepError(ValueError):
    """A sweep that cannot be started as asked; the message says what to do."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it will run: plan, run, search, tracker and status take it, and derive none of it again.

    Attributes:
        spec: the specification.
        trials: the trials that the specification alone determines; an adaptive search adds others.
        task: what every trial trains on.
        prior: the prior of the methods that use one; None without one.
        start: the policy that training starts from instead of the prior; None: from the prior.
        observation_space, action_space: of the task's environment.
        max_episode_steps: time limit of an episode; None where the environment sets none.
        folder: where the results go; a new sweep does not have it yet.
        tracking_uri: MLflow's store.
        experiment: MLflow's experiment.
        source: the YAML as the user wrote it, logins hidden; None for a sweep that was made in Python.
        is_resumed: the sweep of this name goes on.
    """

    spec: SweepSpec
    trials: tuple[TrialSpec, ...]
    task: Task
    prior: PriorBundle | None
    start: PriorBundle | None
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    max_episode_steps: int | None
    folder: SweepFolder
    tracking_uri: str
    experiment: str
    source: str | None = None
    is_resumed: bool = False

    @classmethod
    def resolve(cls, spec: SweepSpec, *, source: str | None = None, resume: bool = False) -> Self:
        """Derives everything from a specification, and refuses what contradicts itself or its surroundings.

        The task's environment is built once, and closed.

        Args:
            spec: the sweep.
            source: the YAML as the user wrote it.
            resume: the sweep of this name goes on; its prior is the one that its folder keeps.

        Raises:
            ValueError: says what is wrong: a contradiction, a name that is taken, an environment that cannot be made,
                a prior that does not fit.
        """
        trials = expand(spec)
        tracking_uri = tracking_uri_of(spec)
        folder = SweepFolder(storage_path(spec.storage), spec.name)
        if not resume:
            folder.check_free()
        prior, start = _bundles_of(spec, folder if resume else None)
        task = get_task(spec.task)
        with closing(make_env(task)) as env:
            spaces = (env.observation_space, env.action_space)
            limit = (None if env.spec is None else env.spec.max_episode_steps) or task.max_episode_steps
            refused = []
            if not isinstance(spec.task, str):  # registered tasks are tested
                refused = faults_in(task, env, may_go_on=spec.evaluation.max_steps is not None)
        if refused:
            raise SweepError("\n".join(map(str, refused)))
        if prior is not None:
            _check_prior(prior, spaces, task.env_id)
        _check_networks(trials, spaces)
        experiment = spec.tracking.experiment or spec.name
        source = None if source is None else without_login(source)
        return cls(
            spec, tuple(trials), task, prior, start, *spaces, limit, folder, tracking_uri, experiment, source, resume
        )

    @property
    def storage(self) -> str:
        """The storage that holds the sweep's folder: an absolute path or a URI."""
        return self.folder.storage

    def bundles_for(self, trial: TrialSpec) -> tuple[PriorBundle | None, PriorBundle | None]:
        """The prior and the start that a trial is given: None where its method makes no use of them."""
        return (self.prior, self.start) if trial.prior is not None else (None, None)


def as_found_here(folder: SweepFolder, asked: SweepSpec) -> SweepSpec:
    """The specification that ``folder`` keeps, with the paths of ``asked`` for what lies elsewhere and is the same.

    On a cluster each job unpacks its files into a folder of its own, so a prior that is a folder and the user's modules
    have another path every time. A prior is the same if its content is; modules are the user's to keep.

    Args:
        folder: of a sweep.
        asked: what it is to be continued with.

    Raises:
        SweepFolderError: there is no sweep.
    """
    stored = folder.spec()
    changes: dict[str, Any] = {}
    if (stored.prior, stored.start) != (asked.prior, asked.start):
        before, now = (folder.prior(), folder.prior(START_FOLDER)), _bundles_of(asked, None)
        for name, kept, given in zip(("prior", "start"), before, now, strict=True):
            if kept is not None and given is not None and kept.card.content_hash == given.card.content_hash:
                changes[name] = getattr(asked, name)
    if isinstance(stored.task, TaskSpec) and isinstance(asked.task, TaskSpec):
        changes["task"] = stored.task.model_copy(update={"folder": asked.task.folder})
    return stored.model_copy(update=changes)


def _check_prior(prior: PriorBundle, spaces: tuple[gym.Space[Any], gym.Space[Any]], env_id: str) -> None:
    """Raises a ValueError where the prior does not act in the task's spaces; explains a difference in size."""
    from rpg_algorithms.policies.bundle import BundleError
    from rpg_algorithms.policies.network import observation_size
    from rpg_platform.tasks.observed import difference

    try:
        prior.check_spaces(*spaces, env_id)
    except BundleError as error:
        taken, given = prior.network_spec.observation_size, observation_size(spaces[0])
        if taken == given:
            raise
        raise SweepError(f"{error}: {difference(taken, given)}") from error


def _check_networks(trials: Sequence[TrialSpec], spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
    """Raises a ValueError that names the first trial whose network does not fit the task's spaces."""
    from rpg_algorithms.policies.network import spec_for_spaces

    fresh = {each.training.network.distribution: each for each in reversed(trials) if each.training.network is not None}
    for distribution, trial in fresh.items():
        try:
            spec_for_spaces(*spaces, distribution)
        except ValueError as error:
            raise SweepError(f"{trial.trial_id}: {error}") from error


def _bundles_of(spec: SweepSpec, resumed: SweepFolder | None) -> tuple[PriorBundle | None, PriorBundle | None]:
    """The prior and the start that the specification names, or that a resumed sweep's folder keeps."""

    def one(name: str | None, kept_as: str) -> PriorBundle | None:
        if name is None:
            return None
        kept = None if resumed is None else resumed.prior(kept_as)
        if kept is not None:
            return kept
        from rpg_algorithms.policies.bundle import load_bundle
        from rpg_platform.bundles import resolve_prior

        return load_bundle(resolve_prior(name))

    return one(spec.prior, PRIOR_FOLDER), one(spec.start, START_FOLDER)
