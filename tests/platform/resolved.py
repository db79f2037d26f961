"""Resolved sweeps of toy trials, whose environments and priors no test needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gymnasium as gym

from rpg_platform.spec.checks import expand
from rpg_platform.spec.logins import take_login, without_login
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.task import get_task
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.tracker import MlflowTracker


def resolved(
    spec: SweepSpec,
    storage: str | Path,
    *,
    uri: str | None = None,
    experiment: str | None = None,
    trials: Sequence[TrialSpec] | None = None,
    source: str | None = None,
    prior_hash: str | None = None,
    resume: bool = False,
) -> Sweep:
    """A sweep as ``Sweep.resolve`` makes it, without building its environment or reading its prior."""
    prior: Any = None if prior_hash is None else SimpleNamespace(card=SimpleNamespace(content_hash=prior_hash))
    space = cast(Any, gym.spaces.Box(-1.0, 1.0, (1,)))
    return Sweep(
        spec,
        tuple(expand(spec) if trials is None else trials),
        get_task(spec.task),
        prior,
        None,
        space,
        space,
        1_000,
        SweepFolder(str(storage), spec.name),
        take_login(uri) if uri else default_tracking_uri(storage),
        experiment or spec.name,
        None if source is None else without_login(source),
        resume,
    )


def tracker_of(
    uri: str,
    experiment: str,
    spec: SweepSpec,
    trials: Sequence[TrialSpec],
    folder: Path,
    *,
    run_key: str | None = None,
    to_come: int = 0,
    **more: Any,
) -> MlflowTracker:
    """A tracker whose spool lies in ``folder``.

    Args:
        uri: MLflow's store.
        experiment: MLflow's experiment.
        spec: the sweep.
        trials: its trials, as far as they are known.
        folder: of the spool.
        run_key: as of ``MlflowTracker``.
        to_come: as of ``MlflowTracker``.
        **more: as of ``resolved``.
    """
    sweep = resolved(spec, folder.parent, uri=uri, experiment=experiment, trials=trials, **more)
    tracker = MlflowTracker(sweep, trials, run_key=run_key, to_come=to_come)
    tracker.folder = folder
    return tracker
